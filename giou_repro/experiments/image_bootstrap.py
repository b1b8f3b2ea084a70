"""Notebook 06: intervals that count the test images, by a bootstrap of them beside the seeds.

A draw of images is a test set in which an image stands as often as it was drawn. What a detection finds depends on its
own image alone, so matches are made once, and a draw weighs them: AP of a draw takes milliseconds.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy import stats

from giou_repro import boxes
from giou_repro.experiments import statistics
from giou_repro.training import detections as detections_file

THRESHOLDS, RECALLS = np.linspace(0.5, 0.95, 10).round(2), np.linspace(0, 1, 101)  # COCO's


class Matches(NamedTuple):
    """The n detections by falling score, and where the truths are."""

    image: np.ndarray  # (n,)
    label: np.ndarray  # (n,)
    found: np.ndarray  # (10, n): whether it finds a truth, at each of THRESHOLDS
    counted: np.ndarray  # (10, n): whether it counts: not where it found what is difficult or a crowd
    overlap: np.ndarray  # (n,): IoU with what it found at threshold .5
    truths: np.ndarray  # (C, N): how many truths of a class count in each image


def matches(truths, detections, classes) -> Matches:
    """COCO's matches: by falling score, each detection finds the truth of its class that it overlaps most of those not
    found yet, an ignored one only where there is no other. Takes what `training.detections.read` gives."""
    images = [_in_image(*pair) for pair in zip(truths, detections, strict=True)]
    found, counted, overlap = (np.concatenate(parts, -1) for parts in zip(*images, strict=True))
    score, label = (np.concatenate([of[key] for of in detections]) for key in ("scores", "labels"))
    image = np.repeat(np.arange(len(truths)), [len(of["labels"]) for of in detections])
    order = np.argsort(-score, kind="stable")
    wanted = [np.bincount(of["labels"][~of["difficult"] & ~of["crowd"]], minlength=len(classes)) for of in truths]
    return Matches(image[order], label[order], found[:, order], counted[:, order], overlap[order], np.stack(wanted, 1))


def _in_image(truth, detection):
    """found, counted and overlap of the detections of one image."""
    true, detected = (torch.as_tensor(of["boxes"]).double() for of in (truth, detection))
    iou, area = boxes.iou(detected[:, None], true[None]).numpy(), boxes.area(detected).numpy()[:, None]
    inside = iou / (1 + iou) * (area + boxes.area(true).numpy()) / np.maximum(area, 1e-300)  # share of the detection
    crowd, ignored = truth["crowd"], truth["difficult"] | truth["crowd"]
    iou = np.where(crowd, inside, iou) * (detection["labels"][:, None] == truth["labels"])
    found, counted = np.zeros((2, len(THRESHOLDS), len(iou)), bool)
    overlap, counted[:] = np.zeros(len(iou)), True
    for place, threshold in enumerate(THRESHOLDS):
        free = np.ones(len(crowd), bool)
        for number in np.flatnonzero((iou >= threshold).any(1)):
            able = (iou[number] >= threshold) & (free | crowd)
            if able.any():
                best = np.where(able, iou[number] - 2 * ignored, -np.inf).argmax()
                free[best] = False
                found[place, number] = counted[place, number] = not ignored[best]
                overlap[number] = iou[number, best] if place == 0 else overlap[number]
    return found, counted, overlap


def measures(table: Matches, weights) -> dict[str, np.ndarray]:
    """AP, AP50, AP75 and mean IoU of matches (draws,) where each image counts `weights` (draws, N) times."""
    average = np.full((len(table.truths), len(THRESHOLDS), len(weights)), np.nan)
    for label, of_class in enumerate(average):
        own = table.label == label
        times, wanted = weights[:, table.image[own]], weights @ table.truths[label]
        for found, counted, row in zip(table.found[:, own], table.counted[:, own], of_class, strict=True):
            true, all_of = (np.cumsum(times * which, axis=1) for which in (found, counted))
            precision = np.divide(true, all_of, out=np.zeros(true.shape), where=all_of > 0)
            best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            for draw in np.flatnonzero(wanted):
                row[draw] = np.append(best[draw], 0)[np.searchsorted(true[draw] / wanted[draw], RECALLS)].mean()
    average = np.nanmean(average, 0)
    times = weights[:, table.image] * table.found[0]
    mean_iou = times @ table.overlap / np.maximum(times.sum(1), 1)
    return dict(AP=average.mean(0), AP50=average[0], AP75=average[5], mean_iou=mean_iou)


def intervals(paired: pd.DataFrame, runs: pd.DataFrame, results, draws: int = 200, seed: int = 0) -> pd.DataFrame:
    """`comparison.paired` with low_images and high_images, the 95 % interval over seeds and test images, where all runs
    of a setting keep their detections, of the same images; missing elsewhere, and below 3 seeds.

    It is Student's interval over seeds with the variance that `draws` of the images, the same for all runs, give the
    mean difference added: a bootstrap of so few seeds would be too narrow.
    """
    table = paired.assign(low_images=np.nan, high_images=np.nan)
    for setting, group in runs.groupby("setting", sort=False):
        paths = [next(Path(results).glob(f"*/{run}/detections.npz"), None) for run in group.run]
        if None in paths or (group.dataset == "shapes").all():
            continue
        kept = [matches(*detections_file.read(path)) for path in paths]
        images = kept[0].truths.shape[1]
        weights = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), draws)
        keys = zip(group.loss, group.seed, strict=True)
        drawn = {key: measures(of, weights) for key, of in zip(keys, kept, strict=True)}
        for row in table[(table.setting == setting) & (table.n >= statistics.LEAST)].itertuples():
            means = [
                np.mean([drawn[loss, int(number)][row.measure] for number in row.seeds.split()], axis=0)
                for loss in (row.loss, row.against)
            ]
            spread = stats.t.ppf((1 + statistics.LEVEL) / 2, row.n - 1) * np.std(means[0] - means[1], ddof=1)
            half = np.hypot((row.high - row.low) / 2, spread)
            table.loc[row.Index, ["low_images", "high_images"]] = row.difference - half, row.difference + half
    return table
