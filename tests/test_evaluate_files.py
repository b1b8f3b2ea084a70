"""`giou-repro evaluate`: files of any framework, AP as pycocotools has it, and the rule that makes the difference."""

import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from giou_repro.__main__ import main
from giou_repro.training import evaluate_files

CATEGORIES = [dict(id=90, name="cat"), dict(id=3, name="dog"), dict(id=17, name="cow")]


def write(folder, images, annotations, detections, categories=CATEGORIES):
    paths = folder / "truth.json", folder / "found.json"
    paths[0].write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))
    paths[1].write_text(json.dumps(detections))
    return paths


def image(id):
    return dict(id=id, width=100, height=100, file_name=f"{id}.jpg")


def true(id, bbox=(10, 10, 20, 20), image_id=7, category_id=3, **more):
    return dict(id=id, image_id=image_id, category_id=category_id, bbox=list(bbox), area=bbox[2] * bbox[3]) | more


def found(score=0.9, bbox=(10, 10, 20, 20), image_id=7, category_id=3, **more):
    return dict(image_id=image_id, category_id=category_id, bbox=list(bbox), score=score) | more


@pytest.fixture(params=["numbers", "text"])
def foreign(request, tmp_path):
    """Category ids with gaps and out of order, image ids as a framework gives them, crowds, an image without any."""
    rng = np.random.default_rng(0)
    ids = [397133, 42, 9_000_000_000, 5] if request.param == "numbers" else ["b/2", "a/1", "z", "000012"]
    annotations, detections = [], []
    for _ in range(60):
        bbox = [*rng.uniform(0, 60, 2), *rng.uniform(4, 40, 2)]
        about = dict(image_id=ids[rng.integers(3)], category_id=[90, 3, 17][rng.integers(3)])
        annotations.append(true(len(annotations) + 1, bbox, **about, iscrowd=int(rng.random() < 0.1)))
        for _ in range(rng.integers(3)):
            detections.append(found(rng.random(), np.add(bbox, rng.normal(0, 1.5, 4)).tolist(), **about))
    return write(tmp_path, [image(id) for id in ids], annotations, detections)


def test_ap_is_that_of_pycocotools_reading_the_same_files(foreign):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(foreign[0])
        oracle = COCOeval(truth, truth.loadRes(str(foreign[1])), "bbox")
        oracle.evaluate()
        oracle.accumulate()
        oracle.summarize()
    *data, notes = evaluate_files.read(*foreign)
    measures, _, classes = evaluate_files.evaluate(*data)
    expected = np.where(oracle.stats < 0, np.nan, oracle.stats)[:6]  # no truth is large
    np.testing.assert_allclose(measures.iou[:6], expected, rtol=0, atol=1e-12)
    by_class = oracle.eval["precision"][..., 0, -1].mean((0, 1))
    assert classes["class"].tolist() == ["dog", "cow", "cat"]  # by id: 3, 17, 90
    np.testing.assert_allclose(classes["COCO AP"], by_class, rtol=0, atol=1e-12)
    assert 0.1 < measures.iou[0] < 0.9 and not notes


def test_the_rule_that_makes_the_difference_is_named(tmp_path):
    """Right, its duplicate wrong, right: precision 1, then 2/3 from recall 1/2 on."""
    far = (60, 60, 20, 20)
    detections = [found(0.9), found(0.8), found(0.7, far)]
    *data, _ = evaluate_files.read(*write(tmp_path, [image(7)], [true(1), true(2, far)], detections))
    measures, table, _ = evaluate_files.evaluate(*data)
    coco, voc_2010, voc_2007 = (51 + 50 * 2 / 3) / 101, (1 + 2 / 3) / 2, (6 + 5 * 2 / 3) / 11
    np.testing.assert_allclose(table.AP, [coco, coco, coco, voc_2010, voc_2007])
    assert evaluate_files.describe(table).endswith("The rule that changes it most, by +0.015: 11 recalls: VOC 2007.")
    by_iou = dict(zip(measures.measure, measures.iou, strict=True))
    assert by_iou["mean IoU"] == 1 and by_iou["VOC 2007 AP"] == pytest.approx(voc_2007)


def test_a_difficult_object_counts_by_coco_and_not_by_voc(tmp_path):
    annotations = [true(1), true(2, (60, 60, 20, 20), ignore=1)]
    *data, _ = evaluate_files.read(*write(tmp_path, [image(7)], annotations, [found()]))
    _, table, _ = evaluate_files.evaluate(*data)
    assert table.AP.tolist() == pytest.approx([51 / 101, 51 / 101, 51 / 101, 1, 1, 1])
    assert "difficult objects are ignored" in evaluate_files.describe(table)


def test_more_than_a_hundred_detections_of_a_class_are_told(tmp_path):
    """The 101st by score is the right one: COCO does not look at it, VOC does."""
    wrong = [found(0.9, (60, 60, 5, 5))] * 100
    *data, _ = evaluate_files.read(*write(tmp_path, [image(7)], [true(1)], [*wrong, found(0.1)]))
    _, table, _ = evaluate_files.evaluate(*data)
    assert table.AP[:3].tolist() == pytest.approx([0, 0, 1 / 101])
    assert "and all 101 of a class in an image count, not 100" in table.rule[2]


def test_a_match_by_giou_needs_more_than_one_by_iou(tmp_path):
    """Squares of 20 moved by (5, 5): IoU 225/575 = .39, and by (3, 3): IoU 289/511 = .57, GIoU .57 − 18/529 = .53."""
    near = write(tmp_path, [image(7)], [true(1)], [found(bbox=(13, 13, 20, 20))])
    measures, *_ = evaluate_files.evaluate(*evaluate_files.read(*near)[:3])
    first = measures.set_index("measure").loc["COCO AP"]
    assert (first.iou, first.giou) == pytest.approx((0.2, 0.1))  # thresholds .5 and .55, and .5 alone


def test_the_command_prints_both_tables_and_what_was_left_out(foreign, capsys):
    entries = json.loads(foreign[1].read_text())
    foreign[1].write_text(json.dumps([*entries, entries[0] | dict(category_id=1)]))
    assert main(["evaluate", *map(str, foreign), "--per-class"]) == 0
    text = capsys.readouterr().out
    assert "VOC 2010 AP" in text and "11 recalls: VOC 2007" in text and "cow" in text
    assert (
        f"NOTE: found.json: 1 of {len(entries) + 1} entries left out: the truth does not list category 1; its" in text
    )


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (found(image_id="8"), "entry 0: image_id '8' is none of the truth's, an id as 7 or a file's name as '7'"),
        (found(category_id=1), "does not list category 1; its categories are 3, 17, 90"),
        (found(file_name="b/8.jpg"), "file_name of 7, 3 is b/8.jpg here, 7.jpg there"),
        (found(score=None), "entry 0 must have four finite numbers in bbox, and a score"),
        (found(bbox=[1, 2, 3]), "entry 0 must have four finite numbers"),
        (dict(image_id=7), "entry 0 has no category_id, bbox, score"),
        (found(category="cat"), "category of 7, 3 is cat here, dog there: .*--truth"),
    ],
)
def test_what_is_not_in_the_format_is_refused_by_entry(wrong, named, tmp_path):
    with pytest.raises(ValueError, match=named):
        evaluate_files.read(*write(tmp_path, [image(7)], [true(1)], [wrong]))


def test_an_image_may_be_named_by_its_file_and_annotations_of_other_images_stay_out(tmp_path):
    detections = [found(image_id="7", file_name="7.jpg")]
    *data, notes = evaluate_files.read(*write(tmp_path, [image(7)], [true(1), true(2, image_id=8)], detections))
    assert evaluate_files.evaluate(*data)[0].iou[0] == pytest.approx(1)
    assert notes == [
        "truth.json: 1 of 2 entries left out: the truth does not list image 8; its categories are 3, 17, 90",
        "found.json: 1 of 1 entries name their image's file, not its id; taken by it",
    ]


@pytest.mark.parametrize(
    ("bbox", "doubt"), [((60, 60, 80, 80), "x1, y1, x2, y2"), ((0.1, 0.2, 0.3, 0.3), "shares of the image")]
)
def test_boxes_that_look_like_another_format_are_doubted(bbox, doubt, tmp_path):
    *_, notes = evaluate_files.read(*write(tmp_path, [image(7)], [true(1)], [found(bbox=bbox)] * 3))
    assert doubt in notes[0]


def test_files_that_are_not_coco_are_refused(tmp_path):
    truth, detections = write(tmp_path, [image(7)], [true(1)], [found()])
    with pytest.raises(ValueError, match="must be COCO results: a list"):
        evaluate_files.read(truth, truth)
    with pytest.raises(ValueError, match="must be COCO annotations"):
        evaluate_files.read(detections, detections)
    truth.write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        evaluate_files.read(truth, detections)
