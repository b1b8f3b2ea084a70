"""Average precision of a detector, by IoU or by GIoU as the criterion of a match, in the protocols of COCO and of
Pascal VOC.

Two lists of dicts go in, one entry an image, of tensors, arrays or lists; boxes are xyxy, in continuous pixels:

- a truth has ``boxes`` (n, 4) and ``labels`` (n,), and may have ``crowd`` (n,), ``difficult`` (n,), ``area`` (n,),
  COCO's own area of the object, which sorts it into small, medium or large (without it, that of the box), and
  ``image_id``, a number or text;
- a detection has ``boxes`` (k, 4), ``scores`` (k,) and ``labels`` (k,); None in its place means that nothing was
  detected.

Labels count the `classes` from 0. Truths that are difficult or a crowd are ignored in every protocol: a detection that
finds one is neither right nor wrong, and nobody misses it. A box of negative width or height has no area and overlaps
nothing. A class without a truth, and a size that no truth has, has no AP: NaN, left out of means. Equal scores are
ranked by ``image_id``, or by place in the list where no truth has one; in an image, as they come. Input that cannot be
evaluated raises ValueError, naming the list and the image.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from faster_coco_eval.core.cocoeval import Params
from faster_coco_eval.faster_eval_api_cpp import COCOevalEvaluateAccumulate, Dataset

OVERLAPS = {"iou": "", "giou": "_giou"}  # criterion → how the names of its numbers end
THRESHOLDS = np.linspace(0.5, 0.95, 10)  # COCO's, to the last digit
SIZES = ("", "s", "m", "l")  # COCO's: all, small, medium, large
MAX_DETECTIONS = (1, 10, 100)  # of one class in one image: as many as COCO looks at
RECALLS = {  # to the last digit: the VOC kit's .3, .6 and .7 lie just above, 3 of 10 are below .3
    11: np.arange(0, 1.1, 0.1),
    101: np.linspace(0, 1, 101),  # COCO's
}
NAMES = ("AP", "AP50", "AP75")
CORNERS = ["x1", "y1", "x2", "y2"]
GROUP = ["image", "label"]  # what a detection and a truth have in common where they are compared
OPTIONAL = {"crowd": False, "difficult": False, "area": np.nan}  # of a truth: where it is not given
NOTHING = {"boxes": [], "labels": [], "scores": []}


class Result(NamedTuple):
    """summary: name → number;  thresholds: table of criterion, threshold, AP;  classes: table of criterion, class, AP,
    AP50, AP75, …

    AP is the mean over all thresholds, AP50 and AP75 that at one: NaN where it is not among them.
    """

    summary: dict
    thresholds: pd.DataFrame
    classes: pd.DataFrame


def evaluate(truths, detections, classes) -> Result:
    """What a run's evaluation.csv, thresholds.csv and classes.csv say of a detector, as a `Result`.

    summary: AP, AP50, AP75 in COCO's protocol and by GIoU AP_giou, AP50_giou, AP75_giou; `mean_iou`; and the same six
    in the VOC 2007 protocol, over the same thresholds: voc07_AP, …, voc07_AP75_giou. Tables: COCO's protocol, by IoU,
    then by GIoU.
    """
    tables = _tables(truths, detections, classes)
    coco_of = [_coco(*tables, classes, overlap, THRESHOLDS) for overlap in OVERLAPS]
    voc_of = [_voc(*tables, classes, overlap, THRESHOLDS, points=11, plus_one=False) for overlap in OVERLAPS]

    def named(prefix, results):
        pairs = zip(OVERLAPS.values(), results, strict=True)
        return {f"{prefix}{name}{suffix}": result.summary[name] for suffix, result in pairs for name in NAMES}

    summary = named("", coco_of) | {"mean_iou": _mean_iou(*tables, 0.5)} | named("voc07_", voc_of)
    thresholds = pd.concat([result.thresholds for result in coco_of], ignore_index=True)
    per_class = [result.classes[["criterion", "class", *NAMES]] for result in coco_of]
    return Result(summary, thresholds, pd.concat(per_class, ignore_index=True))


def coco(truths, detections, classes, overlap="iou", thresholds=THRESHOLDS):
    """Average precision as COCO defines it (at 101 recalls, from 100 detections of a class in an image), by `overlap`
    "iou" or "giou".

    By IoU every number is that of pycocotools, save that it says -1 for NaN. summary: AP (over classes and
    `thresholds`, each in (0, 1]), AP50, AP75, APs, APm, APl (truths of area up to 32², 96² and beyond) and the recalls
    AR1, AR10, AR100, ARs, ARm, ARl. The table of classes has the first six.
    A crowd may be found any number of times, by the share of the detection that lies in it. This is the detection's
    IoU, and its GIoU as well, with the best box the crowd could hold: the part of the detection inside it.
    """
    return _coco(*_tables(truths, detections, classes), classes, overlap, _criterion(thresholds, overlap))


def voc(truths, detections, classes, overlap="iou", threshold=0.5, points=11, plus_one=False):
    """Average precision as the Pascal VOC development kit computes it, by `overlap` "iou" or "giou".

    `threshold`: a number in (0, 1], or several, over which the summary's AP is the mean. `points`: 11 for VOC 2007 (the
    mean of the best precision at recalls 0, .1, …, 1), "all" for VOC 2010 and later (the area under the best
    precision), 101 for COCO's recalls 0, .01, …, 1. A detection is compared with that truth of its class which it
    overlaps most, taken or not: the first to reach the threshold, by falling score, finds it, others are wrong. An
    overlap equal to the threshold reaches it, as in the kit (its Python copies ask for more).

    `plus_one` is for coordinates as VOC's files have them, the first and the last pixel inside: it takes widths as x2 −
    x1 + 1, which is the kit's arithmetic. Continuous boxes made of them, (xmin − 1, ymin − 1, xmax, ymax), have that
    width already and get the same AP without.
    """
    if points not in (*RECALLS, "all"):
        raise ValueError(f"points must be 11, 101 or 'all', got {points!r}")
    thresholds = _criterion(threshold, overlap)
    return _voc(*_tables(truths, detections, classes), classes, overlap, thresholds, points, plus_one)


def mean_iou(truths, detections, classes, threshold=0.5):
    """Mean IoU of the truths found, with the detections that found them, over all classes; NaN where none was.

    By falling score, each detection finds the truth of its class and image that it overlaps most of those not found
    yet, provided that their IoU reaches `threshold`, in (0, 1]. Ignored truths take no part.
    """
    return _mean_iou(*_tables(truths, detections, classes), *_criterion(threshold))


def _criterion(thresholds, overlap="iou"):
    """The thresholds as an array (t,); ValueError for one out of range, or an unknown overlap."""
    thresholds = np.atleast_1d(np.asarray(thresholds, float))
    if overlap not in OVERLAPS:
        raise ValueError(f"overlap must be one of {', '.join(OVERLAPS)}, got {overlap!r}")
    if thresholds.size == 0 or not ((thresholds > 0) & (thresholds <= 1)).all():
        raise ValueError(f"thresholds must lie in (0, 1], got {thresholds.tolist()}")
    return thresholds


# --- from lists of images to two tables, one row an object


def _tables(truths, detections, classes):
    """Truths and detections with the columns image, label, score, x1 … y2, crowd, ignored, area; by image, class and
    falling score. Images are numbered by image_id."""
    if len(truths) != len(detections):
        raise ValueError(f"{len(truths)} truths and {len(detections)} detections: both need one entry an image")
    detections = [NOTHING if entry is None else entry for entry in detections]
    tables = (
        _table(truths, "truths", len(classes), ("labels",), OPTIONAL),
        _table(detections, "detections", len(classes), ("labels", "scores"), {}),
    )
    number = np.argsort(sorted(range(len(truths)), key=lambda index: truths[index].get("image_id", index)))
    numbered = [table.assign(image=number[table["image"]]) for table in tables]
    orders = [np.lexsort((-table["score"], table["label"], table["image"])) for table in numbered]
    return tuple(table.iloc[order].reset_index(drop=True) for table, order in zip(numbered, orders, strict=True))


def _table(images, name, num_classes, needed, optional):
    columns = [_columns(entry, f"{name}[{index}]", needed, optional) for index, entry in enumerate(images)]
    columns.append(_columns(NOTHING, name, needed, optional))  # so that there is a column without images
    stacked = {key: np.concatenate([image[key] for image in columns], dtype=float) for key in columns[-1]}
    number = np.repeat(np.arange(len(columns)), [len(image["labels"]) for image in columns])
    _check(stacked, number, name, num_classes, needed)
    table = pd.DataFrame(stacked.pop("boxes"), columns=CORNERS)
    table["image"] = number
    table["label"], table["score"] = stacked["labels"].astype(int), stacked["scores"]
    table["crowd"] = stacked["crowd"] != 0
    table["ignored"] = table["crowd"] | (stacked["difficult"] != 0)
    table["area"] = np.where(np.isnan(stacked["area"]), _area(table[CORNERS].to_numpy()), stacked["area"])
    return table


def _check(stacked, image, name, num_classes, needed):
    """ValueError, with list and image, for the first number that is not finite, or the first label that is no class."""
    for key in ("boxes", *needed):
        strange = np.argwhere(~np.isfinite(stacked[key]))
        if len(strange):
            row, *column = strange[0]
            raise ValueError(f"{name}[{image[row]}]: {key} must be finite, got {stacked[key][row, *column]}")
    labels = stacked["labels"]
    strange = np.flatnonzero((labels < 0) | (labels >= num_classes) | (labels % 1 != 0))
    if len(strange):
        reason = f"is none of the {num_classes} classes, which are counted from 0"
        raise ValueError(f"{name}[{image[strange[0]]}]: label {labels[strange[0]]:g} {reason}")


def _columns(entry, where, needed, optional):
    """One image's objects: boxes (n, 4), and a column (n,) for each other key."""
    for key in ("boxes", *needed):
        if not isinstance(entry, dict) or entry.get(key) is None:
            raise ValueError(f"{where} must be a dict with {', '.join(('boxes', *needed))}; it has no {key}")
    given = [key for key in optional if entry.get(key) is not None]
    columns = {key: _array(entry[key]) for key in ("boxes", *needed, *given)}
    boxes = columns.pop("boxes")
    boxes = boxes.reshape(-1, 4) if boxes.size == 0 else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{where}: boxes must be (n, 4), got {boxes.shape}")
    for key, values in columns.items():
        if values.shape != (len(boxes),):
            raise ValueError(f"{where}: {key} must be ({len(boxes)},), one a box, got {values.shape}")
    for key in given:
        if not np.isfinite(columns[key]).all():
            raise ValueError(f"{where}: {key} must be finite, got {columns[key][~np.isfinite(columns[key])][0]}")
    absent = {key: np.full(len(boxes), default) for key, default in {"scores": 0.0, **OPTIONAL}.items()}
    return {"boxes": boxes, **absent, **columns}


def _array(values):
    if not isinstance(values, torch.Tensor):
        return np.asarray(values, float)
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()  # NumPy has no bfloat16


# --- overlaps of all pairs of one class and image


def _pairs(truths, detections, overlap, plus_one=False):
    """A row for every detection and truth of one class and image, ordered by detection, then truth: their row numbers,
    their IoU or GIoU as `value`, whether the truth is a crowd or ignored."""
    pairs = detections[GROUP].assign(detection=detections.index)
    pairs = pairs.merge(truths[[*GROUP, "crowd", "ignored"]].assign(truth=truths.index), on=GROUP)
    shift = np.array([0, 0, 1, 1]) * plus_one
    detected, true = (
        (table[CORNERS].to_numpy() + shift)[pairs[name]]
        for table, name in ((detections, "detection"), (truths, "truth"))
    )
    return pairs.assign(value=_overlap(detected, true, pairs["crowd"].to_numpy(), overlap))


def _reaching(pairs, threshold):
    """The `pairs` that reach `threshold`; by detection, crowds last (a box inside one overlaps it wholly), then falling
    overlap, then truth."""
    order = {"by": ["detection", "crowd", "value", "truth"], "ascending": [True, True, False, True]}
    return pairs[pairs["value"] >= threshold].sort_values(**order)


def _overlap(a, b, crowd, overlap):
    """IoU or GIoU (n,) of boxes (n, 4), in the arithmetic of pycocotools and of the VOC kit; with a crowd, the share of
    `a` inside it.

    Whole products and one division, where `boxes.iou` adds shares: a pair of whole coordinates that lies on a threshold
    reaches it, to the last digit.
    """
    both = _area(np.concatenate((np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:])), 1))
    union = _area(a) + np.where(crowd, 0, _area(b) - both)
    iou = np.divide(both, union, out=np.zeros_like(both), where=both > 0)
    if overlap == "iou":
        return iou
    hull = _area(np.concatenate((np.minimum(a[:, :2], b[:, :2]), np.maximum(a[:, 2:], b[:, 2:])), 1))
    return iou - np.divide(hull - union, hull, out=np.zeros_like(both), where=~crowd & (hull > 0))


def _area(boxes):
    """Area (n,) of boxes (n, 4), 0 where a side is negative."""
    return np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(1)


# --- the protocols


def _coco(truths, detections, classes, overlap, thresholds):
    curves = _curves(truths, detections, len(classes), overlap, thresholds)
    precision, recall = (np.where(curves[name] < 0, np.nan, curves[name]) for name in ("precision", "recall"))
    by_size = {size: precision[..., index, -1].mean(1) for index, size in enumerate(SIZES)}  # (thresholds, classes)
    result = _result(by_size[""], classes, overlap, thresholds)
    for size in SIZES[1:]:
        result.summary[f"AP{size}"] = _mean(by_size[size])
        result.classes[f"AP{size}"] = by_size[size].mean(0)
    recalls = {f"AR{most}": recall[..., 0, index] for index, most in enumerate(MAX_DETECTIONS)}
    recalls |= {f"AR{size}": recall[..., index, -1] for index, size in enumerate(SIZES) if size}
    result.summary.update({name: _mean(values) for name, values in recalls.items()})
    return result


def _curves(truths, detections, num_classes, overlap, thresholds):
    """faster-coco-eval's precision (thresholds, recalls, classes, sizes, limits) and recall (thresholds, classes,
    sizes, limits), with the sizes of SIZES and the limits of MAX_DETECTIONS; -1 where there is no truth. Its matching
    takes overlaps as they are given."""
    detections = detections[detections.groupby(GROUP).cumcount() < MAX_DETECTIONS[-1]].reset_index(drop=True)
    matrices, none = _matrices(_pairs(truths, detections, overlap), num_classes), []
    params = Params("bbox")
    params.iouThrs, params.catIds = thresholds, list(range(num_classes))
    params.imgIds = np.union1d(truths["image"], detections["image"]).tolist()
    overlaps = [[matrices.get((image, label), none) for label in params.catIds] for image in params.imgIds]
    datasets = _dataset(truths), _dataset(detections)
    return COCOevalEvaluateAccumulate(params, overlaps, *datasets, params.imgIds, params.catIds, True)


def _dataset(table):
    dataset = Dataset()
    columns = (table[name].tolist() for name in ("image", "label", "area", "score", "crowd", "ignored"))
    for number, (image, label, area, score, crowd, ignored) in enumerate(zip(*columns, strict=True), start=1):
        dataset.append_ref(image, label, dict(id=number, area=area, score=score, iscrowd=crowd, ignore=ignored))
    return dataset


def _matrices(pairs, num_classes):
    """(image, label) → overlaps (detections, truths), where there are both."""
    keys = pairs["image"].to_numpy() * num_classes + pairs["label"].to_numpy()
    groups, starts = np.unique(keys, return_index=True)
    widths = np.bincount(pairs["detection"])[pairs["detection"].to_numpy()[starts]]  # pairs of a detection: truths
    blocks = np.split(pairs["value"].to_numpy(), starts)[1:]
    rows = zip(groups.tolist(), blocks, widths.tolist(), strict=True)
    return {divmod(key, num_classes): block.reshape(-1, width) for key, block, width in rows}


def _voc(truths, detections, classes, overlap, thresholds, points, plus_one):
    nearest = _reaching(_pairs(truths, detections, overlap, plus_one), thresholds.min()).drop_duplicates("detection")
    nearest = nearest.set_index("detection")[["truth", "value", "ignored"]]
    ranked = detections[["label", "score"]].join(nearest).sort_values("score", ascending=False, kind="stable")
    wanted = np.bincount(truths["label"][~truths["ignored"]], minlength=len(classes))
    ap = np.where(wanted > 0, 0.0, np.nan) * np.ones((len(thresholds), 1))
    for label, own in ranked.groupby("label"):
        truth, value, ignored = own["truth"].to_numpy(), own["value"].to_numpy(), own["ignored"].eq(True).to_numpy()
        for row, threshold in zip(ap, thresholds, strict=True):
            hit = value >= threshold
            right = np.zeros(len(hit), bool)
            right[np.flatnonzero(hit)[np.unique(truth[hit], return_index=True)[1]]] = True  # the first of each truth
            if wanted[label]:
                row[label] = _average_precision(right[~(hit & ignored)], wanted[label], points)
    return _result(ap, classes, overlap, thresholds)


def _average_precision(right, wanted, points):
    """AP of detections by falling score, `right` (n,) or wrong, of `wanted` truths."""
    true_positives = np.cumsum(right)
    recall, precision = true_positives / wanted, true_positives / np.arange(1, len(right) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]  # at this recall or a higher one
    if points == "all":
        return np.sum(np.diff(recall, prepend=0) * best)
    return np.append(best, 0)[np.searchsorted(recall, RECALLS[points])].mean()


def _mean_iou(truths, detections, threshold):
    pairs = _reaching(_pairs(truths[~truths["ignored"]].reset_index(drop=True), detections, "iou"), threshold)
    matched, overlaps = set(), []  # numbers of detections (from 0) and of truths (below 0)
    for detection, truth, overlap in zip(pairs["detection"], ~pairs["truth"], pairs["value"], strict=True):
        if matched.isdisjoint((detection, truth)):
            matched |= {detection, truth}
            overlaps.append(overlap)
    return _mean(np.array(overlaps))


def _result(ap, classes, overlap, thresholds):
    """A `Result` from AP (thresholds, classes), NaN for classes without a truth."""
    at = {"AP": ap, **{f"AP{percent}": ap[np.isclose(thresholds, percent / 100)] for percent in (50, 75)}}
    named = thresholds.round(12)  # .9, where COCO's is .8999999999999999
    per_threshold = pd.DataFrame(dict(criterion=overlap, threshold=named, AP=[_mean(row) for row in ap]))
    per_class = {name: [_mean(column) for column in values.T] for name, values in at.items()}
    per_class = pd.DataFrame({"criterion": overlap, "class": list(classes)} | per_class)
    return Result({name: _mean(values) for name, values in at.items()}, per_threshold, per_class)


def _mean(values):
    """The mean of what is not NaN, NaN where nothing is."""
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")
