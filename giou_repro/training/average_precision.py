"""Average precision of a detector, by IoU or by GIoU as the criterion of a match, in the protocols of COCO and of
Pascal VOC.

Two lists of dicts go in, one entry an image, of tensors, arrays or lists; boxes are xyxy, in continuous pixels:

- a truth has ``boxes`` (n, 4) and ``labels`` (n,), and may have ``crowd`` (n,), ``difficult`` (n,) and ``area`` (n,),
  COCO's own area of the object, which sorts it into small, medium or large; without it, that of the box;
- a detection has ``boxes`` (k, 4), ``scores`` (k,) and ``labels`` (k,); None in its place means that nothing was
  detected.

Labels count the `classes` from 0. Truths that are difficult or a crowd are ignored in every protocol: a detection that
finds one is neither right nor wrong, and nobody misses it. A box of negative width or height has no area and overlaps
nothing. A class without a truth, and a size that no truth has, has no AP: NaN, left out of means. Input that cannot be
evaluated raises ValueError, naming the list and the image.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from faster_coco_eval.core.cocoeval import Params
from faster_coco_eval.faster_eval_api_cpp import COCOevalEvaluateAccumulate, Dataset

OVERLAPS = ("iou", "giou")
THRESHOLDS = np.linspace(0.5, 0.95, 10)  # COCO's, to the last digit
SIZES = ("", "s", "m", "l")  # COCO's: all, small, medium, large
MAX_DETECTIONS = (1, 10, 100)  # of one class in one image: as many as COCO looks at
RECALLS = np.arange(
    0, 1.1, 0.1
)  # the VOC kit's, to the last digit: .3, .6 and .7 lie just above, so that 3 of 10 do not reach .3
CORNERS = ["x1", "y1", "x2", "y2"]
COLUMNS = ("labels", "scores", "crowd", "difficult", "area")  # what an image says of each box
BLOCK = 1 << 16  # pairs compared at once


class Result(NamedTuple):
    """summary: name → number;  thresholds: table of criterion, threshold, AP;  classes: table of criterion, class, AP,
    AP50, AP75, …

    AP is the mean over all thresholds, AP50 and AP75 that at one: NaN where it is not among them.
    """

    summary: dict
    thresholds: pd.DataFrame
    classes: pd.DataFrame


def evaluate(truths, detections, classes):
    """What a run's evaluation.csv, thresholds.csv and classes.csv say of a detector, as a `Result`.

    summary: AP, AP50, AP75 in COCO's protocol and by GIoU AP_giou, AP50_giou, AP75_giou; `mean_iou`; and the same six
    in the VOC 2007 protocol, over the same thresholds: voc07_AP, …, voc07_AP75_giou. Tables: COCO's protocol, by IoU,
    then by GIoU.
    """
    truths, detections = _tables(truths, detections, classes)
    summary, thresholds, per_class, voc07 = {}, [], [], {}
    for overlap, suffix in (("iou", ""), ("giou", "_giou")):
        by_coco = _coco(truths, detections, classes, overlap, THRESHOLDS)
        by_voc = _voc(truths, detections, classes, overlap, THRESHOLDS, points=11, plus_one=False)
        names = ("AP", "AP50", "AP75")
        summary |= {f"{name}{suffix}": by_coco.summary[name] for name in names}
        voc07 |= {f"voc07_{name}{suffix}": by_voc.summary[name] for name in names}
        thresholds.append(by_coco.thresholds)
        per_class.append(by_coco.classes[["criterion", "class", *names]])
    summary |= {"mean_iou": _mean_iou(truths, detections, len(classes), 0.5)} | voc07
    return Result(summary, pd.concat(thresholds, ignore_index=True), pd.concat(per_class, ignore_index=True))


def coco(truths, detections, classes, overlap="iou", thresholds=THRESHOLDS):
    """Average precision as COCO defines it (at 101 recalls, from 100 detections of a class in an image), by `overlap`
    "iou" or "giou".

    By IoU every number is that of pycocotools, save that it says -1 for NaN. summary: AP (over classes and
    `thresholds`, each in (0, 1]), AP50, AP75, APs, APm, APl (truths of area up to 32², 96² and beyond) and the recalls
    AR1, AR10, AR100, ARs, ARm, ARl. The table of classes has the first six.
    A crowd may be found any number of times, by the share of the detection that lies in it. This is the detection's
    IoU, and its GIoU as well, with the best box the crowd could hold: the part of the detection inside it.
    """
    return _coco(*_tables(truths, detections, classes), classes, _known(overlap), _in_range(thresholds))


def voc(truths, detections, classes, overlap="iou", threshold=0.5, points=11, plus_one=False):
    """Average precision as the Pascal VOC development kit computes it, by `overlap` "iou" or "giou".

    `threshold`: a number in (0, 1], or several, over which the summary's AP is the mean. `points`: 11 for VOC 2007 (the
    mean of the best precision at recalls 0, .1, …, 1), "all" for VOC 2010 and later (the area under the best
    precision). A detection is held against that truth of its class which it overlaps most, taken or not: the first to
    reach the threshold, by falling score, finds it, others are wrong. An overlap equal to the threshold reaches it, as
    in the kit (its Python copies ask for more). Equal scores keep the order they come in.

    `plus_one` is for coordinates as VOC's files have them, the first and the last pixel inside: it takes widths as x2 −
    x1 + 1, which is the kit's arithmetic. Continuous boxes made of them, (xmin − 1, ymin − 1, xmax, ymax), have that
    width already and get the same AP without.
    """
    if points not in (11, "all"):
        raise ValueError(f"points must be 11 or 'all', got {points!r}")
    return _voc(*_tables(truths, detections, classes), classes, _known(overlap), _in_range(threshold), points, plus_one)


def mean_iou(truths, detections, classes, threshold=0.5):
    """Mean IoU of the truths found, with the detections that found them, over all classes; NaN where none was.

    By falling score, each detection finds the truth of its class and image that it overlaps most of those not found
    yet, provided that their IoU reaches `threshold`, in (0, 1]. Ignored truths take no part.
    """
    return _mean_iou(*_tables(truths, detections, classes), len(classes), *_in_range(threshold))


def _known(overlap):
    if overlap not in OVERLAPS:
        raise ValueError(f"overlap must be one of {', '.join(OVERLAPS)}, got {overlap!r}")
    return overlap


def _in_range(thresholds):
    thresholds = np.atleast_1d(np.asarray(thresholds, float))
    if thresholds.size == 0 or not ((thresholds > 0) & (thresholds <= 1)).all():
        raise ValueError(f"thresholds must lie in (0, 1], got {thresholds.tolist()}")
    return thresholds


# --- from lists of images to two tables, one row an object


def _tables(truths, detections, classes):
    """Truths and detections with the columns x1 … y2, label, score, crowd, area, image, ignored; by image, class and
    falling score."""
    if len(truths) != len(detections):
        raise ValueError(f"{len(truths)} truths and {len(detections)} detections: both need one entry an image")
    nothing = dict(boxes=[], labels=[], scores=[])
    detections = [nothing if entry is None else entry for entry in detections]
    return _table(truths, "truths", len(classes), optional=COLUMNS[2:]), _table(
        detections, "detections", len(classes), needed=COLUMNS[:2]
    )


def _table(images, name, num_classes, needed=COLUMNS[:1], optional=()):
    blocks = [_block(entry, f"{name}[{index}]", num_classes, needed, optional) for index, entry in enumerate(images)]
    table = pd.DataFrame(
        np.concatenate(blocks or [np.zeros((0, 9))]), columns=[*CORNERS, "label", "score", "crowd", "difficult", "area"]
    )
    table["image"] = np.repeat(np.arange(len(blocks)), [len(block) for block in blocks])
    table["label"] = table["label"].astype(int)
    table["crowd"] = table["crowd"] != 0
    table["ignored"] = table["crowd"] | (table.pop("difficult") != 0)
    table["area"] = table["area"].where(table["area"].notna(), _area(table[CORNERS].to_numpy()))
    return table.iloc[np.lexsort((-table["score"], table["label"], table["image"]))]


def _block(entry, where, num_classes, needed, optional):
    """One image's objects, an array (n, 9): boxes, then COLUMNS; an absent one is 0, an absent area NaN."""
    for key in ("boxes", *needed):
        if not isinstance(entry, dict) or entry.get(key) is None:
            raise ValueError(f"{where} must be a dict with {', '.join(('boxes', *needed))}; it has no {key}")
    boxes = _floats(entry, "boxes", where)
    boxes = boxes.reshape(-1, 4) if boxes.size == 0 else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{where}: boxes must be (n, 4), got {boxes.shape}")
    block = np.zeros((len(boxes), 9))
    block[:, :4], block[:, 8] = boxes, np.nan
    for column, key in enumerate(COLUMNS, start=4):
        if key in needed or (key in optional and entry.get(key) is not None):
            values = _floats(entry, key, where)
            if values.shape != (len(boxes),):
                raise ValueError(f"{where}: {key} must be ({len(boxes)},), one a box, got {values.shape}")
            block[:, column] = values
    strange = block[(block[:, 4] < 0) | (block[:, 4] >= num_classes) | (block[:, 4] % 1 != 0), 4]
    if strange.size:
        raise ValueError(
            f"{where}: label {strange[0]:g} is none of the {num_classes} classes, which are counted from 0"
        )
    return block


def _floats(entry, key, where):
    values = entry[key]
    values = values.detach().cpu().double().numpy() if isinstance(values, torch.Tensor) else np.asarray(values, float)
    if not np.isfinite(values).all():
        raise ValueError(f"{where}: {key} must be finite, got {values[~np.isfinite(values)][0]}")
    return values


# --- overlaps of all pairs of one class and image


def _keys(table, num_classes):
    """One number for image and class, in the order of the rows."""
    return (table["image"] * num_classes + table["label"]).to_numpy()


def _pairs(truths, detections, num_classes):
    """Row numbers (detection, truth) of every two of one class and image, ordered by detection, then truth."""
    keys, sought = _keys(truths, num_classes), _keys(detections, num_classes)
    first = np.searchsorted(keys, sought)
    count = np.searchsorted(keys, sought, "right") - first
    detection = np.repeat(np.arange(len(sought)), count)
    return detection, np.arange(len(detection)) + np.repeat(first + count - np.cumsum(count), count)


def _overlaps(truths, detections, pairs, overlap, plus_one=False):
    """IoU or GIoU (n,) of the `pairs` of a detection and a truth; with a crowd, the share of the detection inside
    it."""
    wider = np.array([0, 0, 1, 1]) * plus_one
    detected, true, crowd = (
        detections[CORNERS].to_numpy() + wider,
        truths[CORNERS].to_numpy() + wider,
        truths["crowd"].to_numpy(),
    )
    values = np.empty(len(pairs[0]))
    for start in range(0, len(values), BLOCK):
        detection, truth = (rows[start : start + BLOCK] for rows in pairs)
        values[start : start + BLOCK] = _overlap(detected[detection], true[truth], crowd[truth], overlap)
    return values


def _overlap(a, b, crowd, overlap):
    """IoU or GIoU (n,) of boxes (n, 4), in the arithmetic of pycocotools and of the VOC kit.

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
    return np.maximum(boxes[:, 2] - boxes[:, 0], 0) * np.maximum(boxes[:, 3] - boxes[:, 1], 0)


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
    keys = _keys(detections, num_classes)
    detections = detections[np.arange(len(keys)) - np.searchsorted(keys, keys) < MAX_DETECTIONS[-1]]
    matrices, none = _matrices(truths, detections, num_classes, overlap), []
    params = Params("bbox")
    params.iouThrs, params.catIds = thresholds, list(range(num_classes))
    params.imgIds = np.union1d(truths["image"], detections["image"]).tolist()
    overlaps = [[matrices.get((image, label), none) for label in params.catIds] for image in params.imgIds]
    return COCOevalEvaluateAccumulate(
        params, overlaps, _dataset(truths), _dataset(detections), params.imgIds, params.catIds, True
    )


def _dataset(table):
    dataset = Dataset()
    columns = (table[name].tolist() for name in ("image", "label", "area", "score", "crowd", "ignored"))
    for number, (image, label, area, score, crowd, ignored) in enumerate(zip(*columns, strict=True), start=1):
        dataset.append_ref(image, label, dict(id=number, area=area, score=score, iscrowd=crowd, ignore=ignored))
    return dataset


def _matrices(truths, detections, num_classes, overlap):
    """(image, label) → overlaps (detections, truths), where there are both."""
    pairs = _pairs(truths, detections, num_classes)
    values = _overlaps(truths, detections, pairs, overlap)
    groups, starts = np.unique(_keys(detections, num_classes)[pairs[0]], return_index=True)
    keys = _keys(truths, num_classes)
    widths = np.searchsorted(keys, groups, "right") - np.searchsorted(keys, groups)
    blocks = zip(
        groups.tolist(), np.split(values, starts[1:]), widths.tolist(), strict=False
    )  # one empty block where there is no pair
    return {divmod(key, num_classes): block.reshape(-1, width) for key, block, width in blocks}


def _voc(truths, detections, classes, overlap, thresholds, points, plus_one):
    best, truth = _best(truths, detections, len(classes), overlap, thresholds.min(), plus_one)
    order = np.lexsort((-detections["score"], detections["label"]))
    best, truth, bounds = (
        best[order],
        truth[order],
        np.searchsorted(detections["label"].to_numpy()[order], np.arange(len(classes) + 1)),
    )
    ignored = np.append(truths["ignored"], False)  # the last for no truth, -1
    wanted = np.bincount(truths["label"][~truths["ignored"]], minlength=len(classes))
    ap = np.full((len(thresholds), len(classes)), np.nan)
    for row, threshold in zip(ap, thresholds, strict=True):
        hit = best >= threshold
        right = np.zeros(len(hit), bool)
        right[np.flatnonzero(hit)[np.unique(truth[hit], return_index=True)[1]]] = True  # the first of each truth
        counted = ~(hit & ignored[truth])
        for index in np.flatnonzero(wanted):
            own = slice(*bounds[index : index + 2])
            row[index] = _average_precision(right[own][counted[own]], wanted[index], points)
    return _result(ap, classes, overlap, thresholds)


def _best(truths, detections, num_classes, overlap, threshold, plus_one):
    """Each detection's highest overlap with a truth and that truth's row, the first of several; -inf and -1 where none
    reaches `threshold`."""
    detection, truth, value = _reaching(truths, detections, num_classes, overlap, threshold, plus_one)
    found, first = np.unique(detection, return_index=True)
    best, row = np.full(len(detections), -np.inf), np.full(len(detections), -1)
    best[found], row[found] = value[first], truth[first]
    return best, row


def _reaching(truths, detections, num_classes, overlap, threshold, plus_one=False):
    """Columns detection, truth, overlap of the pairs that reach `threshold`; by detection, crowds last, then falling
    overlap, then truth."""
    pairs = _pairs(truths, detections, num_classes)
    values = _overlaps(truths, detections, pairs, overlap, plus_one)
    close = np.flatnonzero(values >= threshold)
    crowd = truths["crowd"].to_numpy()[pairs[1][close]]  # any box inside a crowd overlaps it wholly: it is asked last
    close = close[np.lexsort((-values[close], crowd, pairs[0][close]))]
    return pairs[0][close], pairs[1][close], values[close]


def _average_precision(right, wanted, points):
    """AP of detections by falling score, `right` (n,) or wrong, of `wanted` truths."""
    found = np.cumsum(right)
    recall, precision = found / wanted, found / np.arange(1, len(right) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]  # at this recall or a higher one
    if points == "all":
        return np.sum(np.diff(recall, prepend=0) * best)
    return np.append(best, 0)[np.minimum(np.searchsorted(recall, RECALLS), len(right))].mean()


def _mean_iou(truths, detections, num_classes, threshold):
    candidates = _reaching(truths[~truths["ignored"]], detections, num_classes, "iou", threshold)
    matched, found, overlaps = set(), set(), []
    for detection, truth, overlap in zip(
        *(column.tolist() for column in candidates), strict=True
    ):  # of one class and image: by falling score
        if detection not in matched and truth not in found:
            matched.add(detection)
            found.add(truth)
            overlaps.append(overlap)
    return _mean(np.array(overlaps))


def _result(ap, classes, overlap, thresholds):
    """A `Result` from AP (thresholds, classes), NaN for classes without a truth."""
    at = {"AP": ap, **{f"AP{percent}": ap[np.isclose(thresholds, percent / 100)] for percent in (50, 75)}}
    summary = {name: _mean(values) for name, values in at.items()}
    per_threshold = pd.DataFrame(dict(criterion=overlap, threshold=thresholds, AP=[_mean(row) for row in ap]))
    per_class = {"criterion": overlap, "class": list(classes)} | {
        name: [_mean(column) for column in values.T] for name, values in at.items()
    }
    return Result(summary, per_threshold, pd.DataFrame(per_class))


def _mean(values):
    """The mean of what is not NaN, NaN where nothing is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
