"""The claims on detectors, decided from made-up runs whose answer is plain."""

import re

import numpy as np
import pandas as pd
import pytest
from test_claims import decide as decide_from

from giou_repro.experiments import comparison
from giou_repro.report import detector_verdicts
from giou_repro.report.verdicts import FAILS, HOLDS, UNDECIDED


def decide(name, detectors, **tables):
    """The finding of one claim from detector runs, and from the differences that notebook 06 makes of them."""
    try:
        paired = comparison.paired(comparison.at_one_weight(detectors))
    except ValueError:
        paired = comparison.PAIRED
    return decide_from(name, detectors=detectors, paired=paired, **tables)


def untested(name, **tables):
    """Why its tables cannot test a claim."""
    with pytest.raises(ValueError) as raised:
        decide(name, **tables)
    return str(raised.value)


def detectors(gain, n=5, noise=0.001, ap50=0.0, detector="yolov3", disjoint=0.2, seed=0):
    """Runs of l2, IoU and GIoU with gains in AP of 0, gain/2 and gain, twice that in AP75, and ap50 in AP50."""
    rng, other, rows = np.random.default_rng(seed), np.random.default_rng(seed + 1), []
    for run in range(n):
        common = rng.normal(0, 0.01)
        for share, loss in zip((0, 0.5, 1), ("l2", "iou", "giou"), strict=True):
            ap, ap75, giou, giou75, half = 0.4 + common + rng.normal(0, noise, 5)
            row = dict(
                dataset="voc",
                detector=detector,
                trained_as=detector,
                loss=loss,
                weight=1.0,
                seed=run,
                disjoint=disjoint,
                mean_iou=0.8 + other.normal(0, noise),
                AP=ap + share * gain,
            )
            row |= dict(
                AP50=half + share * ap50,
                AP75=ap75 + 2 * share * gain,
                AP_giou=giou + share * gain,
                AP75_giou=giou75 + 2 * share * gain,
            )
            rows.append(row)
    return pd.DataFrame(rows).assign(setting=f"voc, {detector}")


def test_g9_by_known_gains():
    found = decide("G9", detectors=detectors(0.05))
    assert found["verdict"] == HOLDS
    assert (found["low"] < 0.05 < found["high"], found["n"]) == (True, 5)
    assert "GIoU − ℓ2 AP +0.049 (" in found["words"] and "+0.021 AP, lies outside the interval" in found["words"]
    assert "Weights were not searched." in found["words"]
    assert decide("G9", detectors=detectors(-0.05))["verdict"] == FAILS
    assert decide("G9", detectors=detectors(0.0))["verdict"] == FAILS  # less than half a point
    noisy = decide("G9", detectors=detectors(0.02, noise=0.02))
    assert noisy["verdict"] == UNDECIDED and "lies inside" in noisy["words"]
    assert "fewer than 5 paired seeds of GIoU, a coordinate loss in" in untested("G9", detectors=detectors(0.05, n=4))
    against_iou = decide("G12", detectors=detectors(0.05))
    assert against_iou["verdict"] == HOLDS and "GIoU − IoU AP +0.02" in against_iou["words"]


def test_the_primary_comparison_is_that_named_in_advance():
    named = detectors(0.0).assign(dataset="VOC2007", setting="voc, best weights")
    equal = detectors(0.1).assign(dataset="VOC2007", setting="voc, weight 5")
    more = detectors(0.05, n=8).assign(dataset="bccd", setting="bccd")
    found = decide("G9", detectors=pd.concat([equal, more, named]))
    assert found["words"].startswith("voc, best weights: ") and "too few seeds" not in found["words"]
    assert re.search(r" On bccd \(n = 8\): AP \+0\.05\d \(.*\), better\. Weights were not searched\.$", found["words"])
    few = decide("G9", detectors=pd.concat([more, named[named.seed < 4]]))  # then the setting with most seeds
    assert few["n"] == 8 and "The primary comparison, on VOC 2007, has too few seeds." in few["words"]


def test_g10_is_tested_whatever_the_gain():
    assert decide("G10", detectors=detectors(0.05))["verdict"] == HOLDS
    assert decide("G10", detectors=detectors(0.05, ap50=0.05))["verdict"] == "holds for AP75 only"
    flat = detectors(0.05)
    assert decide("G10", detectors=flat.assign(AP75=flat.AP - 0.1))["verdict"] == FAILS
    none = decide("G10", detectors=detectors(0.0))  # no gain in AP, and none in AP75 beyond it
    assert none["verdict"] == FAILS and none["n"] == 5
    assert "fewer than 5" in untested("G10", detectors=detectors(0.05, n=4))


def test_g13_and_g14_by_hand():
    runs = detectors(0.05).reset_index(drop=True).reset_index(names="run")
    curves = pd.DataFrame(dict(run=np.repeat(runs.run, 2), epoch=[1, 2] * len(runs), setting="voc, yolov3"))
    curves["mean_iou"] = [0.1, 0.7] * len(runs)
    curves = runs[["run", "loss", "seed"]].merge(curves[["run", "epoch", "setting", "mean_iou"]], on="run")
    assert decide("G13", detectors=runs, curves=curves)["verdict"] == FAILS  # equal: no gain of half a point
    better = curves.assign(mean_iou=curves.mean_iou + (0.1 + 0.001 * curves.seed) * (curves.loss == "giou"))
    twice = better.assign(setting="voc, yolov3, weight 1")  # a run may be in two settings
    found = decide("G13", detectors=runs, curves=pd.concat([better, twice]))
    assert found["verdict"] == HOLDS and found["value"] == pytest.approx(0.102)
    sets = ("voc2007", better), ("bccd", curves)  # the first has the verdict
    both = [[table.assign(dataset=name, setting=name) for table in (runs, own)] for name, own in sets]
    found = decide("G13", **dict(zip(("detectors", "curves"), map(pd.concat, zip(*both, strict=True)), strict=True)))
    beside = " On bccd (n = 5): 0.700 and 0.700, undecided. Weights were not searched."
    assert found["verdict"] == HOLDS and found["words"].endswith(beside)
    assert decide("G14", detectors=runs.assign(AP_giou=runs.AP, AP75_giou=runs.AP75))["verdict"] == HOLDS
    one = runs.assign(AP_giou=runs.AP + (runs.run == 3), AP75_giou=runs.AP75)
    assert decide("G14", detectors=one)["verdict"] == FAILS and decide("G14", detectors=one)["value"] == 1 / 15


def test_g16_by_hand():
    table = pd.DataFrame(
        dict(dial="shapes", measure=["AP", "val_positives_iou"], against="iou", n=5, difference=[0.0, 0.2])
    )
    table = table.assign(low=0.1, high=0.3, verdict="better")
    gains = pd.DataFrame(dict(dial="shapes", measure="val_positives_iou", against="iou", n=5, cells_away=[0, 4]))
    gains = gains.assign(difference=[0.01, 0.16], low=0.0, high=0.2, disjoint=[0.0, 0.4])
    runs = pd.DataFrame(dict(setting=["shapes", "shapes, positives 4 cells away"] * 2, cells_away=[0, 4] * 2))
    runs = runs.assign(weight=1.0, seed=0, AP=0.1, dataset="shapes", trained_as="yolov3")
    others = dict(dial=gains, detectors=runs.assign(loss=["iou", "iou", "giou", "giou"], disjoint=[0, 0.7, 0, 0.1]))
    found = decide_from("G16", dial_slopes=table, **others)
    assert (found["verdict"], found["value"], found["n"]) == (HOLDS, 0.2, 5)
    assert "+0.160 (+0.000 to +0.200), where 70% of them stay disjoint under IoU and 10% under GIoU" in found["words"]
    assert decide_from("G16", dial_slopes=table.assign(verdict="worse"), **others)["verdict"] == FAILS
    assert decide_from("G16", dial_slopes=table.assign(verdict="undecided"), **others)["verdict"] == UNDECIDED
    with pytest.raises(ValueError, match="fewer than 5"):
        decide_from("G16", dial_slopes=table.assign(n=4), **others)
    with pytest.raises(ValueError, match="no setting was trained at several cells_away"):
        decide_from("G16", dial_slopes=table[:0], **others)


def test_z8_takes_each_step_of_the_order():
    runs = detectors(0.05)
    four = [
        runs[runs.loss == "l2"].assign(loss=loss, AP=lambda t, gain=gain: t.AP + gain * (1 + t.seed / 10))
        for loss, gain in (("iou", 0), ("giou", 0.05), ("diou", 0.1), ("ciou", 0.15))
    ]
    assert decide("Z8", detectors=pd.concat(four))["verdict"] == HOLDS
    four[3]["AP"] = four[2].AP.to_numpy()
    assert decide("Z8", detectors=pd.concat(four))["verdict"] == "holds for DIoU over GIoU and GIoU over IoU only"
    assert "of CIoU, DIoU, GIoU, IoU in" in untested("Z8", detectors=pd.concat(four[:3]))


def test_detectors_that_learned_nothing_decide_nothing():
    runs = detectors(0.05).assign(AP=0.01)
    assert detector_verdicts.settings(runs) == {}
    assert all("mean AP of 0.05 or more" in untested(name, detectors=runs) for name in ("G9", "G10", "G11", "Z8"))


def test_g11_compares_stages():
    one, two = detectors(0.05), detectors(0.01, detector="faster_rcnn", disjoint=0.01, seed=1)
    found = decide("G11", detectors=pd.concat([one, two]))
    assert found["verdict"] == HOLDS
    assert found["value"] == pytest.approx(0.04, abs=0.003)
    apart = decide("G11", detectors=pd.concat([one, two.assign(disjoint=0.5)]))
    assert apart["verdict"] == "holds for the gain only" and "20.0%" in apart["words"] and "50.0%" in apart["words"]
    assert decide("G11", detectors=pd.concat([one, two.assign(AP=one.AP.to_numpy())]))["verdict"] == FAILS
    for runs in ([one], [one, two[two.seed < 4]], [one, two.assign(dataset="other")]):
        assert "fewer than 5" in untested("G11", detectors=pd.concat(runs))
    noisy = detectors(0.05, noise=0.05, detector="faster_rcnn")
    assert decide("G11", detectors=pd.concat([one, noisy]))["verdict"] == UNDECIDED
