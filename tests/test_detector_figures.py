"""Notebook 05's pictures and sentence."""

from dataclasses import dataclass

import pandas as pd
import torch
from matplotlib import pyplot as plt

from giou_repro.experiments import comparison_figures, detector

CURVES = pd.DataFrame(dict(epoch=[1, 2], loss=[3.0, 2.0], box=[1.0, 0.5], mean_iou=[0.2, 0.6], AP=[None, 0.4]))


@dataclass
class Validation:
    images: torch.Tensor
    truths: list

    def __len__(self):
        return len(self.images)


def test_curves_are_of_the_loss_and_start_at_zero():
    axes = detector.plot_curves(CURVES, "giou").axes
    assert [len(axis.lines[0].get_xdata()) for axis in axes] == [2, 2, 1]  # AP is not measured in every epoch
    assert [axis.get_ylim()[0] for axis in axes] == [0, 0, 0]
    assert axes[0].lines[0].get_label() == "GIoU"


def test_detections_above_the_score_are_drawn_and_no_image_twice():
    box = torch.tensor([[1.0, 1, 5, 5]])
    validation = Validation(torch.zeros(3, 3, 8, 8), [{"boxes": box}] * 3)
    found = {"boxes": box.repeat(2, 1), "labels": torch.tensor([0, 0]), "scores": torch.tensor([0.9, 0.1])}
    axes = detector.plot_detections(validation, [found] * 3, ["cell"]).axes
    assert [len(axis.images) for axis in axes] == [1, 1, 1, 0, 0, 0, 0, 0]
    assert [text.get_text() for text in axes[0].texts] == ["cell 0.90"] and len(axes[0].patches) == 2


def test_an_image_alone_is_all_of_its_figure():
    found = {"boxes": torch.tensor([[1.0, 0, 5, 4], [1, 6, 5, 8]]), "labels": torch.tensor([0, 0])}
    figure = detector.plot_image(torch.zeros(10, 20, 3).numpy(), found | {"scores": torch.tensor([0.9, 0.2])}, ["cell"])
    (axis,) = figure.axes
    assert figure.get_size_inches().tolist() == [8, 4] and axis.get_position().bounds == (0, 0, 1, 1)
    assert [text.get_text() for text in axis.texts] == ["cell 0.90"] and len(axis.patches) == 1


def test_thresholds_are_drawn_into_given_axes():
    axis = plt.figure().subplots()
    table = pd.DataFrame(dict(criterion=["iou", "iou", "giou"], threshold=[0.5, 0.6, 0.5], AP=[0.6, 0.5, 0.7]))
    assert detector.plot_thresholds(table, axis) is axis.figure
    assert [line.get_label() for line in axis.lines] == ["by IoU", "by GIoU"]


def test_the_sentence_follows_the_numbers():
    row = pd.Series(dict(AP=0.4, AP50=0.6, AP75=0.3, AP_giou=0.35, disjoint=0.1, images_per_second=12.0))
    words = detector.describe_training(row, CURVES)
    assert "**AP 0.400** (AP50 0.600, AP75 0.300; by GIoU 0.350) after 2 epochs, one seed." in words
    assert "from 0.20 in the first epoch to 0.60 in the last; 10.0% of them were disjoint" in words
    assert "no object that counts" in detector.describe_training(row * float("nan"), CURVES)


def test_the_curves_sentence_names_the_best_epoch():
    words = detector.describe_curves(CURVES.assign(AP=[0.5, 0.4]))
    assert "loss went from 1 in the first epoch to 0.5, AP from 0.500 after epoch 1 to 0.400; AP was highest" in words
    assert "AP" not in detector.describe_curves(CURVES.assign(AP=None))


def test_a_true_box_is_found_by_a_detection_of_its_class_above_the_score():
    pair = torch.tensor([[0.0, 0, 4, 4], [10.0, 0, 14, 4]])
    truth = {"boxes": pair, "labels": torch.tensor([0, 1])}
    found = {"boxes": pair, "labels": torch.tensor([0, 0]), "scores": torch.tensor([0.9, 0.8])}
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=int), "scores": torch.zeros(0)}
    words = detector.describe_detections([truth, truth], [found, none])
    assert "Of the 4 true boxes of all 2 validation images, 1 have" in words and "among 2 detections above" in words


def table(**columns):
    return pd.DataFrame(dict(setting="s", loss=["l2", "l2", "giou", "giou"]) | columns)


def test_the_comparisons_sentences_follow_the_numbers():
    runs = table(AP=[0.1, 0.2, 0.2, 0.6])
    words = comparison_figures.describe_every_run(runs)
    assert "mean AP is 0.150 (ℓ2) to 0.400 (GIoU); runs of one loss differ by up to 0.400 (GIoU)" in words
    assert "ranges of the runs of 1 of 1 pairs of losses overlap" in words
    assert "of 0 of 1 pairs" in comparison_figures.describe_every_run(runs.assign(AP=[0.1, 0.2, 0.3, 0.4]))

    curves = table(run=[1, 1, 2, 2], epoch=[2, 1, 1, 2], mean_iou=[0.6, 0.9, 0.2, 0.7], AP=[0.5, 0.9, 0.4, None])
    words = comparison_figures.describe_curves(curves)
    assert "positives ends highest with GIoU (0.700) and lowest with ℓ2 (0.600); AP ends highest with ℓ2 (0.5" in words
    assert "; AP" not in comparison_figures.describe_curves(curves.assign(AP=float("nan")))

    thresholds = table(criterion="iou", threshold=[0.5, 0.75] * 2, AP=[0.4, 0.2, 0.3, 0.4])
    words = comparison_figures.describe_thresholds(thresholds)
    assert "GIoU − ℓ2 is -0.100 at 0.50, +0.200 at 0.75, and largest at 0.75 (+0.200)" in words
    assert "only one loss was run" in comparison_figures.describe_thresholds(thresholds[:2])

    weights = pd.DataFrame(dict(setting="s", loss="giou", weight=[1, 2, 5], mean=[0.1, 0.3, 0.2]))
    assert "are 2 for GIoU (AP 0.300)." in comparison_figures.describe_weights(weights)
    assert "are 2 for GIoU (AP 0.300, the end of its grid)" in comparison_figures.describe_weights(weights[:2])
