"""Notebook 05: how one training went, what its detector finds, and its AP by IoU and by GIoU."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from giou_repro import boxes
from giou_repro.experiments import style
from giou_repro.runs import outputs, store

LONGER_SIDE = 8  # inches of an image that is drawn alone
BEHIND_TEXT = {"facecolor": "black", "alpha": 0.55, "pad": 0.6, "linewidth": 0}


@style.styled
def plot_curves(table: pd.DataFrame, loss: str):
    """Box loss, mean IoU of the positives and AP by epoch (loop.Trained.curves)."""
    figure, (axes,) = style.panels(1, 3)
    labels = {"box": "weighted box loss", "mean_iou": "mean IoU of positives", "AP": "AP (validation)"}
    draw_curves(axes, table.assign(loss=loss), labels)
    for axis in axes:
        axis.set_ylim(bottom=0)
    style.legend_below(figure, axes)
    return figure


def describe_curves(table: pd.DataFrame) -> str:
    """Where the box loss and AP began and ended."""
    scores = table.dropna(subset="AP")
    words = f"The weighted box loss went from {table.box.iloc[0]:.3g} in the first epoch to {table.box.iloc[-1]:.3g}"
    if len(scores):
        best = scores.loc[scores.AP.idxmax()]
        words += (
            f", AP from {scores.AP.iloc[0]:.3f} after epoch {scores.epoch.iloc[0]:.0f} to {scores.AP.iloc[-1]:.3f}; "
            f"AP was highest ({best.AP:.3f}) after epoch {best.epoch:.0f}"
        )
    return f"**What we see.** {words}."


def draw_curves(axes, table: pd.DataFrame, labels: dict[str, str]):
    """A column of the table by epoch in each of `axes`, a line a loss."""
    for axis, (column, label) in zip(axes, labels.items(), strict=True):
        style.draw_losses(axis, table.dropna(subset=column), "epoch", column)
        axis.set(xlabel="epoch", ylabel=label)
        axis.xaxis.get_major_locator().set_params(integer=True)


@style.styled
def plot_detections(images, detections, class_names, rows: int = 2, columns: int = 4, score: float = 0.3):
    """Validation images (batches.Packed), evenly drawn from the set, each once: true boxes, and detections above
    `score`."""
    figure, axes = style.panels(rows, columns, width=2.6, height=2.7)
    drawn = np.unique(np.linspace(0, len(images) - 1, rows * columns).round().astype(int))
    for axis in axes.flat:
        style.hide_scales(axis)
    for axis, index in zip(axes.flat, drawn, strict=False):
        axis.imshow(images.images[index].permute(1, 2, 0).cpu().numpy())
        for corners in images.truths[index]["boxes"].tolist():
            style.draw_box(axis, corners, "#00E05A", linewidth=2.4)
        _draw_found(axis, detections[index], class_names, score)
    return figure


def describe_detections(truths, detections, score: float = 0.3) -> str:
    """How many of the true boxes of all validation images have a detection above `score` of their class with an IoU of
    0.5 or more."""
    found = total = shown = 0
    for truth, detection in zip(truths, detections, strict=True):
        kept = detection["scores"] > score
        pairs = boxes.iou(truth["boxes"][:, None], detection["boxes"][kept][None].to(truth["boxes"]))
        same = truth["labels"][:, None] == detection["labels"][kept][None].to(truth["labels"])
        found += ((pairs >= 0.5) & same).any(1).sum().item()
        total, shown = total + len(truth["boxes"]), shown + kept.sum().item()
    return (
        f"**What we see.** Of the {total:,} true boxes of all {len(truths):,} validation images, {found:,} have a "
        f"detection of their class with an IoU of 0.5 or more, among {shown:,} detections above a score of {score}."
    )


@style.styled
def plot_image(image, detection, class_names, score: float = 0.3):
    """One image (H, W, 3), all of the figure, and what was found in it above `score`."""
    height, width = image.shape[:2]
    size = np.array((width, height)) * LONGER_SIDE / max(width, height)
    figure = style.Figure(figsize=size, layout="none")
    axis = figure.add_axes((0, 0, 1, 1))
    style.hide_scales(axis)
    axis.imshow(image)
    _draw_found(axis, detection, class_names, score)
    return figure


def save_found(predictions, out: Path, score: float | None = 0.3) -> tuple[int, int]:
    """Write what predict.predict found: detections.json, COCO results, and a picture of each image with its boxes above
    `score`, or none; returns the numbers of boxes and of images."""
    out.mkdir(parents=True, exist_ok=True)
    results, images = [], 0
    for file, image, detection, classes, of_image in predictions:
        results.extend(of_image)
        images += 1
        if score is not None:
            figure = plot_image(image, detection, classes, score)
            store.write_atomic(out / f"{file.stem}.png", outputs.image(figure, "png"))
    store.write_atomic(out / "detections.json", json.dumps(results))
    return len(results), images


def _draw_found(axis, detection, class_names, score):
    found = (detection[key].tolist() for key in ("boxes", "labels", "scores"))
    for corners, label, confidence in (row for row in zip(*found, strict=True) if row[2] >= score):
        style.draw_box(axis, corners, "#FF3DBE", linewidth=1.1)
        words = f"{class_names[label]} {confidence:.2f}"
        at_top = "top" if corners[1] < axis.get_ylim()[0] / 20 else "baseline"  # inside, at the image's top
        axis.text(corners[0], corners[1] - 1, words, va=at_top, fontsize=7, color="white", bbox=BEHIND_TEXT)


@style.styled
def plot_thresholds(table: pd.DataFrame, ax=None):
    """AP against the threshold of the match, by IoU and by GIoU (columns criterion, threshold, AP)."""
    axis = style.one_panel(ax, 4, 2.9)
    for criterion, line in (("iou", "-"), ("giou", "--")):
        part, label = table[table.criterion == criterion], f"by {'GIoU' if criterion == 'giou' else 'IoU'}"
        axis.plot(part.threshold, part.AP, color="#222222", linestyle=line, marker="o", markersize=3, label=label)
    axis.set(xlabel="threshold of a match", ylabel="AP", ylim=(0, None))
    axis.legend()
    return axis.figure


def describe_training(evaluation: pd.Series, curves: pd.DataFrame) -> str:
    """What one training run came to."""
    if evaluation.isna().AP:
        return "The validation images have no object that counts, so there is no AP."
    row, start, end = evaluation, curves.mean_iou.iloc[0], curves.mean_iou.iloc[-1]
    return (
        f"**What we see.** **AP {row.AP:.3f}** (AP50 {row.AP50:.3f}, AP75 {row.AP75:.3f}; by GIoU {row.AP_giou:.3f}) "
        f"after {int(curves.epoch.iloc[-1])} epochs, one seed. The positives' mean IoU went from {start:.2f} in the "
        f"first epoch to {end:.2f} in the last; {row.disjoint:.1%} of them were disjoint from their target. Training "
        f"took in {row.images_per_second:.0f} images a second. One run does not say which loss is better: "
        "`06_compare_losses` pairs the seeds of several."
    )
