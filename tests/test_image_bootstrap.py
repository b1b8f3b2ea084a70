"""The bootstrap over images: AP of a draw is that of the images as often as drawn, and its interval counts them."""

import numpy as np
import pandas as pd
import pytest

from giou_repro.experiments import image_bootstrap, statistics
from giou_repro.training import average_precision
from giou_repro.training import detections as detections_file

CLASSES = ("a", "b", "c")


def scenes(n, seed=0, noise=4.0):
    """Truths, some difficult or a crowd, and detections around them, of `n` images."""
    rng, truths, detections = np.random.default_rng(seed), [], []
    for number in range(n):
        count = rng.integers(0, 6)
        centre, size = rng.uniform(20, 180, (count, 2)), rng.uniform(10, 60, (count, 2))
        corners, labels = np.concatenate((centre - size / 2, centre + size / 2), 1), rng.integers(0, 3, count)
        marks = dict(difficult=rng.random(count) < 0.2, crowd=rng.random(count) < 0.1, area=size.prod(1))
        truths.append(dict(boxes=corners, labels=labels, image_id=number) | marks)
        near = rng.integers(0, count, 12 * (count > 0))
        found = np.sort((corners[near] + rng.normal(0, noise, (len(near), 4))).reshape(-1, 2, 2), 1).reshape(-1, 4)
        right = rng.random(len(near)) < 0.8
        own = np.where(right, labels[near], rng.integers(0, 3, len(near)))
        detections.append(dict(boxes=found, labels=own, scores=np.sort(rng.random(len(near)))[::-1]))
    return truths, detections


def test_ap_of_a_draw_is_that_of_the_images_as_often_as_drawn():
    truths, detections = scenes(40)
    weights = np.random.default_rng(1).multinomial(40, np.full(40, 1 / 40), 2)
    weights[0] = 1
    found = image_bootstrap.measures(image_bootstrap.matches(truths, detections, CLASSES), weights)
    for draw, times in enumerate(weights):
        drawn = np.repeat(np.arange(40), times)
        again = [truths[image] | dict(image_id=number) for number, image in enumerate(drawn)]
        expected = average_precision.evaluate(again, [detections[image] for image in drawn], CLASSES).summary
        for measure in ("AP", "AP50", "AP75"):
            assert found[measure][draw] == pytest.approx(expected[measure], abs=1e-12)
        assert found["mean_iou"][draw] == pytest.approx(expected["mean_iou"], abs=0.01)  # a crowd's is not among these


def test_the_interval_counts_images_and_seeds(tmp_path):
    rows = []
    for loss, noise in (("l2", 8), ("giou", 4)):
        for seed in range(5):
            truths, detections = scenes(30, noise=noise)
            run = tmp_path / "05_train_detector" / f"{loss}-{seed}"
            run.mkdir(parents=True)
            detections[0]["boxes"] = detections[0]["boxes"] + 0.1 * seed
            np.savez(run / "detections.npz", **detections_file.arrays(truths, detections, CLASSES))
            summary = average_precision.evaluate(truths, detections, CLASSES).summary
            rows.append(dict(setting="one", dataset="bccd", loss=loss, seed=seed, run=run.name) | summary)
    runs = pd.DataFrame(rows)
    paired = statistics.compare(runs, "AP", [("giou", "l2")])
    (row,) = image_bootstrap.intervals(paired, runs, tmp_path, draws=40).itertuples()
    assert (row.low_images + row.high_images) / 2 == pytest.approx(row.difference)
    assert row.high - row.low < 0.02 and row.high_images - row.low_images > 0.05, "the seeds hardly differ, images do"
    (run,) = tmp_path.glob("*/giou-4/detections.npz")
    run.unlink()
    assert image_bootstrap.intervals(paired, runs, tmp_path).low_images.isna().all()
