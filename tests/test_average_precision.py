"""Average precision: numbers that a reader can check in the head, and what cannot be evaluated."""

import numpy as np
import pytest
import torch

from giou_repro.training import average_precision

SQUARE = [0, 0, 20, 20]
FAR = [200, 200, 220, 220]


def truth(*boxes, **more):
    return dict(boxes=boxes, labels=[0] * len(boxes)) | more


def found(*boxes, scores=None):
    """Detections of class 0, their scores falling from .9 unless given."""
    return dict(
        boxes=boxes, labels=[0] * len(boxes), scores=scores or [0.9 - 0.1 * index for index in range(len(boxes))]
    )


# --- by hand


@pytest.mark.parametrize("overlap", average_precision.OVERLAPS)
@pytest.mark.parametrize("height", range(10, 21))
def test_a_detection_on_a_threshold_reaches_it(height, overlap):
    """The lower `height` twentieths of a square: IoU and GIoU are height/20, which 10 of .50, .55, …, .95 reach at 19
    and 20, 1 at 10."""
    result = average_precision.coco([truth(SQUARE)], [found([0, 0, 20, height])], ["a"], overlap)
    assert result.summary["AP"] == pytest.approx(min(height - 9, 10) / 10)
    assert (result.summary["AP50"], result.summary["AP75"]) == (1, float(height >= 15))


@pytest.mark.parametrize("protocol", [average_precision.coco, average_precision.voc])
def test_giou_asks_for_more_than_iou(protocol):
    """A square a twentieth off along both axes: IoU is 361/439 = .822, GIoU 2/441 less, .818."""
    images = [truth(SQUARE)], [found([1, 1, 21, 21])], ["a"]
    name = "thresholds" if protocol is average_precision.coco else "threshold"
    assert protocol(*images, overlap="iou", **{name: 0.82}).summary["AP"] == 1
    assert protocol(*images, overlap="giou", **{name: 0.82}).summary["AP"] == 0
    assert protocol(*images, overlap="giou", **{name: 0.81}).summary["AP"] == 1


@pytest.mark.parametrize("overlap", average_precision.OVERLAPS)
@pytest.mark.parametrize(("inside", "ap50", "ap75"), [(20, 1, 1), (12, 1, 1 / 2), (8, 1 / 2, 1 / 2)])
def test_what_lies_in_a_crowd_is_no_error(inside, ap50, ap75, overlap):
    """Before the truth is found, a detection of width 20 has the best score; `inside` of its width lies in a crowd ten
    times as large."""
    crowd = [100, 0, 300, 20]
    images = [truth(SQUARE, crowd, crowd=[False, True])], [found([80 + inside, 0, 100 + inside, 20], SQUARE)], ["a"]
    summary = average_precision.coco(*images, overlap).summary
    assert (summary["AP50"], summary["AP75"]) == pytest.approx((ap50, ap75))


@pytest.mark.parametrize("overlap", average_precision.OVERLAPS)
def test_a_difficult_truth_is_neither_found_nor_missed(overlap):
    """One truth is found, one difficult truth is found with a better score, a third, difficult too, is not."""
    images = [truth(SQUARE, FAR, [50, 50, 60, 60], difficult=[False, True, True])], [found(FAR, SQUARE)], ["a"]
    assert average_precision.coco(*images, overlap).summary["AP"] == pytest.approx(1)
    assert average_precision.voc(*images, overlap).summary["AP"] == pytest.approx(1)
    easy = [truth(SQUARE, FAR, [50, 50, 60, 60])]
    assert average_precision.voc(easy, *images[1:], overlap, points="all").summary["AP"] == pytest.approx(2 / 3)


def test_voc_counts_a_truth_found_twice_as_an_error():
    """Right, its duplicate wrong, right: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1."""
    images = [truth(SQUARE, FAR)], [found(SQUARE, SQUARE, FAR)], ["a"]
    assert average_precision.voc(*images, points="all").summary["AP"] == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision.voc(*images, points=11).summary["AP"] == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    assert average_precision.voc(*images, points=101).summary["AP"] == pytest.approx((51 * 1 + 50 * 2 / 3) / 101)


def test_voc_looks_at_the_best_truth_only_and_coco_at_the_next():
    """Truths 20 and 16 high at one place; the second detection, 19 high, is nearest to the first truth, which is
    taken."""
    images = [truth(SQUARE, [0, 0, 20, 16])], [found(SQUARE, [0, 0, 20, 19])], ["a"]
    assert average_precision.voc(*images, points="all").summary["AP"] == pytest.approx(1 / 2)
    assert average_precision.coco(*images).summary["AP50"] == pytest.approx(1)


def test_the_published_example_of_24_detections():
    """15 truths; the 1st, 3rd, 10th, 12th, 13th, 14th and 23rd of 24 are right: 24.57 % and, with 11 points, 26.84 %
    (Padilla et al., 2020)."""
    boxes = [[30 * index, 300, 30 * index + 20, 320] for index in range(15)]
    unfound, right = iter(boxes), {1, 3, 10, 12, 13, 14, 23}
    detections = found(
        *(next(unfound) if rank in right else FAR for rank in range(1, 25)),
        scores=[1 - rank / 100 for rank in range(1, 25)],
    )
    assert average_precision.voc([truth(*boxes)], [detections], ["person"], points="all").summary[
        "AP"
    ] == pytest.approx(0.2457, abs=5e-5)
    assert average_precision.voc([truth(*boxes)], [detections], ["person"], points=11).summary["AP"] == pytest.approx(
        0.2684, abs=5e-5
    )


def test_plus_one_is_the_width_of_inclusive_pixels():
    """Pixels 1 to 10 against 1 to 5 of a row: 5 of 10 with `plus_one` and as the continuous boxes from 0 to 10 and to
    5."""
    pixels = [truth([1, 1, 10, 1])], [found([1, 1, 5, 1])], ["a"]
    continuous = [truth([0, 0, 10, 1])], [found([0, 0, 5, 1])], ["a"]
    assert average_precision.voc(*pixels, threshold=0.5, plus_one=True).summary["AP"] == pytest.approx(1)
    assert average_precision.voc(*continuous, threshold=0.5).summary["AP"] == pytest.approx(1)
    assert average_precision.voc(*pixels, threshold=0.5).summary["AP"] == 0  # of no height


def test_mean_iou_of_matches():
    """The best score takes the nearer truth at .95, the next what is left at .8; the third has none left, the others
    find none of theirs."""
    truths = [truth(SQUARE, [0, 0, 20, 16], FAR, difficult=[False, False, True])]
    boxes = [[0, 0, 20, 19], SQUARE, SQUARE, SQUARE, FAR]
    detections = [dict(boxes=boxes, labels=[0, 0, 0, 1, 0], scores=[0.9, 0.8, 0.7, 1, 1])]
    assert average_precision.mean_iou(truths, detections, ["a", "b"]) == pytest.approx((19 / 20 + 16 / 20) / 2)
    assert average_precision.mean_iou(truths, detections, ["a", "b"], threshold=0.9) == pytest.approx(19 / 20)
    assert np.isnan(average_precision.mean_iou(truths, [None], ["a", "b"]))


def test_a_class_without_truths_has_no_ap_and_one_never_found_has_none_left():
    result = average_precision.coco(
        [dict(boxes=[SQUARE, FAR], labels=[0, 1])], [dict(boxes=[SQUARE, SQUARE], labels=[0, 2], scores=[1, 1])], "abc"
    )
    np.testing.assert_allclose(result.classes["AP"], [1, 0, np.nan])
    assert result.summary["AP"] == pytest.approx(1 / 2)
    np.testing.assert_allclose(average_precision.voc([truth(SQUARE)], [None], "ab").classes["AP"], [0, np.nan])


def test_a_flipped_box_overlaps_nothing():
    images = [truth(SQUARE)], [found([20, 20, 0, 0])], ["a"]
    assert (
        average_precision.coco(*images).summary["AP"]
        == average_precision.coco(*images, "giou").summary["AP"]
        == average_precision.voc(*images).summary["AP"]
        == 0
    )


def test_no_images_and_empty_images_have_no_ap():
    assert np.isnan(list(average_precision.evaluate([], [], ["a"]).summary.values())).all()
    empty = dict(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    assert np.isnan(
        list(average_precision.evaluate([empty], [empty | dict(scores=torch.zeros(0))], ["a"]).summary.values())
    ).all()
    assert np.isnan(list(average_precision.evaluate([empty], [found(SQUARE)], ["a"]).summary.values())).all()


@pytest.mark.parametrize(
    ("truths", "detections", "message"),
    [
        ([truth(SQUARE)], [], "1 truths and 0 detections"),
        ([truth(SQUARE)] * 2, [None, found([0, 0, np.nan, 1])], r"detections\[1\]: boxes must be finite, got nan"),
        ([truth([0, 0, np.inf, 1])], [None], r"truths\[0\]: boxes must be finite, got inf"),
        ([truth(SQUARE)], [found(SQUARE, scores=[np.nan])], r"detections\[0\]: scores must be finite"),
        ([truth(SQUARE, area=[np.nan])], [None], r"truths\[0\]: area must be finite"),
        ([truth(SQUARE) | dict(labels=[1])], [None], r"truths\[0\]: label 1 is none of the 1 classes"),
        ([truth(SQUARE)], [found(SQUARE) | dict(labels=[-1])], r"detections\[0\]: label -1 is none of the 1 classes"),
        ([truth(SQUARE)], [found(SQUARE) | dict(labels=[0.5])], r"detections\[0\]: label 0.5 is none"),
        (
            [truth(SQUARE)],
            [truth(SQUARE)],
            r"detections\[0\] must be a dict with boxes, labels, scores; it has no scores",
        ),
        ([None], [None], r"truths\[0\] must be a dict with boxes, labels"),
        ([truth(SQUARE)], [found(SQUARE, scores=[0.5, 0.5])], r"detections\[0\]: scores must be \(1,\)"),
        ([truth(SQUARE) | dict(boxes=[[0, 0, 1]])], [None], r"truths\[0\]: boxes must be \(n, 4\), got \(1, 3\)"),
    ],
)
def test_what_cannot_be_evaluated_is_named(truths, detections, message):
    for protocol in (
        average_precision.coco,
        average_precision.voc,
        average_precision.mean_iou,
        average_precision.evaluate,
    ):
        with pytest.raises(ValueError, match=message):
            protocol(truths, detections, ["a"])


def test_unknown_choices_are_named():
    images = [truth(SQUARE)], [None], ["a"]
    with pytest.raises(ValueError, match="overlap must be one of iou, giou, got 'diou'"):
        average_precision.coco(*images, overlap="diou")
    with pytest.raises(ValueError, match=r"thresholds must lie in \(0, 1\], got \[0.5, 0.0\]"):
        average_precision.coco(*images, thresholds=[0.5, 0.0])
    with pytest.raises(ValueError, match="points must be 11, 101 or 'all', got 10"):
        average_precision.voc(*images, points=10)


@pytest.mark.parametrize("crowd_first", [True, False])
def test_an_object_in_a_crowd_is_found_by_vocs_protocol(crowd_first):
    boxes, crowd = [[0.0, 0, 100, 100], [20, 20, 40, 40]], [True, False]
    order = [0, 1] if crowd_first else [1, 0]
    truth = {"boxes": [boxes[i] for i in order], "labels": [0, 0], "crowd": [crowd[i] for i in order]}
    found = {"boxes": [[21.0, 21, 41, 41]], "labels": [0], "scores": [0.9]}
    assert average_precision.voc([truth], [found], ("a",)).summary["AP50"] == 1
