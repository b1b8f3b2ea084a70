"""Average precision against oracles: pycocotools, and a textbook VOC evaluation, on scenes with every difficulty."""

import contextlib
import io
import itertools

import numpy as np
import pytest
import torch
import torchvision.ops
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from giou_repro.training import average_precision

CLASSES = ["plain", "small", "crowded", "never found", "never there", "nowhere"]


def scenes(seed, integers, images=12):
    """Truths and detections with crowds, difficult truths, tied scores, empty images, 130 detections in one, classes
    without either."""
    rng = np.random.default_rng(seed)
    truths, detections = [], []
    for image in range(images):
        count = 0 if image == 3 else rng.integers(1, 9)
        size = np.exp(rng.uniform(np.log(8), np.log(250), (count, 2)))
        corner = rng.uniform(0, 200, (count, 2))
        boxes = np.concatenate([corner, corner + size], 1)
        labels = rng.integers(0, 4, count)
        source = rng.integers(
            0, max(count, 1), 0 if image == 5 or count == 0 else 130 if image == 7 else rng.integers(1, 30)
        )
        moved = boxes[source] + rng.normal(0, 0.08, (len(source), 4)) * np.tile(size[source], 2)
        named = np.where(
            rng.random(len(source)) < 0.8, labels[source] if len(source) else 0, rng.choice([0, 1, 2, 4], len(source))
        )
        named[named == 3] = 0
        if image == 7:
            named[:] = 0
        boxes, moved = (np.rint(values / 4) * 4 if integers else values for values in (boxes, moved))
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 4)
        crowd = (labels == 2) & (rng.random(count) < 0.5)
        area = (boxes[:, 2:] - boxes[:, :2]).prod(1) * rng.uniform(0.5, 1, count)
        truths.append(dict(boxes=boxes, labels=labels, crowd=crowd, area=area, difficult=rng.random(count) < 0.2))
        detections.append(dict(boxes=moved, labels=named, scores=rng.integers(0, 20, len(source)) / 20))
    return truths, detections


class COCOevalByGIoU(COCOeval):
    """pycocotools with torchvision's GIoU, and its own overlap with crowds."""

    def computeIoU(self, image, category):
        overlaps = super().computeIoU(image, category)
        if len(overlaps) == 0:
            return overlaps
        detections = sorted(self._dts[image, category], key=lambda detection: -detection["score"])[
            : self.params.maxDets[-1]
        ]
        corners = [
            torch.tensor([one["bbox"] for one in objects], dtype=torch.float64)
            for objects in (detections, self._gts[image, category])
        ]
        giou = torchvision.ops.generalized_box_iou(
            *(torchvision.ops.box_convert(boxes, "xywh", "xyxy") for boxes in corners)
        ).numpy()
        return np.where([one["iscrowd"] for one in self._gts[image, category]], overlaps, giou)


def pycocotools_of(truths, detections, evaluator=COCOeval):
    def xywh(boxes):
        return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()

    annotations, results = [], []
    for image, (one, other) in enumerate(zip(truths, detections, strict=True)):
        for box, label, crowd, area in zip(
            xywh(one["boxes"]), one["labels"].tolist(), one["crowd"], one["area"], strict=True
        ):
            entry = dict(
                id=len(annotations) + 1,
                image_id=image,
                category_id=label,
                bbox=box,
                area=float(area),
                iscrowd=int(crowd),
            )
            annotations.append(entry)
        for box, label, score in zip(
            xywh(other["boxes"]), other["labels"].tolist(), other["scores"].tolist(), strict=True
        ):
            results.append(dict(image_id=image, category_id=label, bbox=box, score=score))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        categories = [dict(id=index) for index in range(len(CLASSES))]
        coco.dataset = dict(
            images=[dict(id=index) for index in range(len(truths))], annotations=annotations, categories=categories
        )
        coco.createIndex()
        oracle = evaluator(coco, coco.loadRes(results), "bbox")
        oracle.evaluate()
        oracle.accumulate()
        oracle.summarize()
    return oracle


@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("overlap", average_precision.OVERLAPS)
def test_every_number_is_that_of_pycocotools(overlap, seed, integers):
    truths, detections = scenes(seed, integers)
    truths = [{key: value for key, value in image.items() if key != "difficult"} for image in truths]
    oracle = pycocotools_of(truths, detections, COCOeval if overlap == "iou" else COCOevalByGIoU)
    truths = [image | dict(image_id=number) for number, image in enumerate(truths)]  # equal scores: by id, in any order
    result = average_precision.coco(truths[::-1], detections[::-1], CLASSES, overlap)
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
    exact = dict(rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        [result.summary[name] for name in names], np.where(oracle.stats < 0, np.nan, oracle.stats), **exact
    )
    precision = np.where(oracle.eval["precision"] < 0, np.nan, oracle.eval["precision"])[
        ..., -1
    ]  # (thresholds, recalls, classes, sizes)
    present = [0, 1, 2, 3]
    np.testing.assert_allclose(result.thresholds["AP"], precision[:, :, present, 0].mean((1, 2)), **exact)
    np.testing.assert_allclose(result.classes["AP"], precision[..., 0].mean((0, 1)), **exact)
    np.testing.assert_allclose(result.classes["AP75"], precision[5, ..., 0].mean(0), **exact)
    np.testing.assert_allclose(result.classes["APs"], precision[..., 1].mean((0, 1)), **exact)
    assert 0.05 < result.summary["AP"] < 0.9
    assert result.classes["AP"].isna().tolist() == [False, False, False, False, True, True]


@pytest.mark.parametrize("seed", range(4))
def test_mean_iou_is_that_of_pycocotools_matches(seed):
    truths, detections = scenes(seed, integers=False)
    truths = [image | dict(crowd=np.zeros(len(image["labels"]), bool)) for image in truths]
    oracle = pycocotools_of(truths, detections)
    matched = []
    for entry in oracle.evalImgs:
        if entry and entry["aRng"] == [0, 1e10]:
            order = {
                one["id"]: column for column, one in enumerate(oracle._gts[entry["image_id"], entry["category_id"]])
            }
            overlaps = oracle.ious[entry["image_id"], entry["category_id"]]
            matched += [overlaps[row][order[match]] for row, match in enumerate(entry["dtMatches"][0]) if match]
    truths = [image | dict(difficult=image["crowd"]) for image in truths]
    assert len(matched) > 20
    assert average_precision.mean_iou(truths, detections, CLASSES) == pytest.approx(np.mean(matched), abs=1e-12)


def textbook_voc(truths, detections, label, overlap, threshold, points, plus_one):
    """The development kit's evaluation of one class, detection by detection."""

    def compare(a, b):
        one = float(plus_one)
        area = [(box[2] - box[0] + one) * (box[3] - box[1] + one) for box in (a, b)]
        width, height = min(a[2], b[2]) - max(a[0], b[0]) + one, min(a[3], b[3]) - max(a[1], b[1]) + one
        both = width * height if width > 0 and height > 0 else 0.0
        hull = (max(a[2], b[2]) - min(a[0], b[0]) + one) * (max(a[3], b[3]) - min(a[1], b[1]) + one)
        union = area[0] + area[1] - both
        return both / union - (0 if overlap == "iou" else (hull - union) / hull)

    taken, wanted, ranked = set(), 0, []
    for image, (one, other) in enumerate(zip(truths, detections, strict=True)):
        wanted += sum(
            1 for which, hard in zip(one["labels"], one["difficult"], strict=True) if which == label and not hard
        )
        ranked += [
            (-score, image, row)
            for row, (which, score) in enumerate(zip(other["labels"], other["scores"], strict=True))
            if which == label
        ]
    if wanted == 0:
        return np.nan
    recall, precision, right, wrong = [], [], 0, 0
    for _, image, row in sorted(ranked):
        box, one = detections[image]["boxes"][row], truths[image]
        best, which = max(
            ((compare(box, one["boxes"][k]), -k) for k in range(len(one["boxes"])) if one["labels"][k] == label),
            default=(-9, 0),
        )
        if best >= threshold and one["difficult"][-which]:
            continue
        if best >= threshold and (image, -which) not in taken:
            taken.add((image, -which))
            right += 1
        else:
            wrong += 1
        recall.append(right / wanted)
        precision.append(right / (right + wrong))
    if points == 11:
        return (
            sum(
                max([p for r, p in zip(recall, precision, strict=True) if r >= t], default=0.0)
                for t in np.arange(0, 1.1, 0.1)
            )
            / 11
        )
    corners = sorted({0.0, *recall})
    steps = itertools.pairwise(corners)
    return sum(
        (high - low) * max(p for r, p in zip(recall, precision, strict=True) if r >= high) for low, high in steps
    )


@pytest.mark.parametrize("plus_one", [False, True])
@pytest.mark.parametrize("points", [11, "all"])
@pytest.mark.parametrize("overlap", average_precision.OVERLAPS)
def test_voc_is_the_textbook_evaluation(overlap, points, plus_one):
    for seed in range(3):
        truths, detections = scenes(seed, integers=plus_one)
        truths = [image | dict(crowd=np.zeros(len(image["labels"]), bool)) for image in truths]
        for threshold in (0.5, 0.75):
            result = average_precision.voc(truths, detections, CLASSES, overlap, threshold, points, plus_one)
            expected = [
                textbook_voc(truths, detections, k, overlap, threshold, points, plus_one) for k in range(len(CLASSES))
            ]
            np.testing.assert_allclose(result.classes["AP"], expected, rtol=0, atol=1e-12)
            assert result.summary["AP"] == pytest.approx(np.nanmean(expected))


@pytest.mark.parametrize("overlap", average_precision.OVERLAPS)
def test_plus_one_on_pixels_is_the_continuous_evaluation(overlap):
    truths, detections = scenes(1, integers=True)
    pixels = [
        [image | dict(boxes=image["boxes"] + [1, 1, 0, 0]) for image in images] for images in (truths, detections)
    ]
    by_pixels = average_precision.voc(*pixels, CLASSES, overlap, average_precision.THRESHOLDS, plus_one=True)
    by_edges = average_precision.voc(truths, detections, CLASSES, overlap, average_precision.THRESHOLDS)
    assert by_pixels.thresholds.equals(by_edges.thresholds)


@pytest.mark.parametrize(
    "kind",
    [
        lambda values: values.tolist(),
        torch.tensor,
        lambda values: torch.tensor(values).requires_grad_(values.dtype == float),
        lambda values: values.astype(np.int32 if values.ndim == 2 else values.dtype),
        lambda values: torch.tensor(values, dtype=torch.bfloat16 if values.ndim == 2 else None),
    ],
    ids=["lists", "torch", "with gradients", "whole boxes", "bfloat16 boxes"],
)
def test_any_kind_of_array_gives_the_same_result(kind):
    images = scenes(2, integers=True)
    images = [
        [one | dict(boxes=one["boxes"].clip(0, 252)) for one in some] for some in images
    ]  # multiples of 4, whole in bfloat16 too
    expected = average_precision.evaluate(*images, CLASSES)
    again = average_precision.evaluate(
        *([{key: kind(values) for key, values in one.items()} for one in some] for some in images), CLASSES
    )
    assert again.summary == expected.summary
    assert again.classes.equals(expected.classes)


def test_evaluate_fills_a_run_folders_tables():
    truths, detections = scenes(0, integers=False)
    result = average_precision.evaluate(truths, detections, CLASSES)
    six = ["AP", "AP50", "AP75", "AP_giou", "AP50_giou", "AP75_giou"]
    assert list(result.summary) == [*six, "mean_iou", *(f"voc07_{name}" for name in six)]
    assert list(result.thresholds) == ["criterion", "threshold", "AP"]
    assert result.thresholds["threshold"].tolist() == [percent / 100 for percent in range(50, 100, 5)] * 2
    assert list(result.classes) == ["criterion", "class", "AP", "AP50", "AP75"] and len(result.classes) == 2 * len(
        CLASSES
    )
    for overlap, suffix in (("iou", ""), ("giou", "_giou")):
        coco = average_precision.coco(truths, detections, CLASSES, overlap)
        rows = result.thresholds[result.thresholds["criterion"] == overlap]
        assert rows["AP"].tolist() == coco.thresholds["AP"].tolist()
        assert result.summary[f"AP75{suffix}"] == coco.summary["AP75"]
        assert (
            result.summary[f"voc07_AP50{suffix}"]
            == average_precision.voc(truths, detections, CLASSES, overlap).summary["AP"]
        )
    assert result.summary["mean_iou"] == average_precision.mean_iou(truths, detections, CLASSES) > 0.5
    assert result.summary["AP_giou"] < result.summary["AP"]
