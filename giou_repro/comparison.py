"""All detector runs found, side by side: the table of runs, the paper's tables in shape, and what differs with what interval."""

import contextlib
import json
import shutil
from pathlib import Path

import pandas as pd

from giou_repro import statistics
from giou_repro.config import Config
from giou_repro.losses import LOSSES, select

RUNS = ["dataset", "detector", "loss", "weight", "seed", "AP", "AP50", "AP75", "AP_giou", "AP75_giou", "mean_iou", "disjoint"]
MEASURES = ["AP", "AP75", "AP_giou", "AP75_giou"]  # those of the paper's tables
TESTED = ["AP", "AP50", "AP75", "mean_iou"]  # those that a difference is tested in
BASELINES = ("l2", "smooth_l1", "l1")  # the paper's MSE and smooth-ℓ1, whichever was run
PAIRED = pd.DataFrame(columns=["setting", "measure", "loss", "against", "n", "difference", "low", "high", "p_holm", "verdict"])  # where none is
FREE = {"loss", "weight", "seed", "scale", "device", "evaluations"}  # parameters that may differ between runs of one setting


def gather(results, dataset=None):
    """Every complete detector run (on `dataset`, or any) under the folder `results`: (runs, curves, thresholds), one row a run in the first.

    Of runs alike in setting, loss, weight and seed the newest counts. Column `setting` says in words what is equal in runs that may be compared.
    Raises FileNotFoundError, saying how to make some, where there is none.
    """
    found = {}
    for path in sorted(Path(results).glob("*/*/run.json"), key=lambda path: path.parent.name):
        record = json.loads(path.read_text())
        wanted = dataset is None or dataset == Path(record["parameters"].get("dataset", "")).name
        if record["notebook"] == "04_train_detector" and record["status"] == "complete" and wanted:
            row = pd.read_csv(path.parent / "evaluation.csv").iloc[0]
            fixed = _fixed(record)
            found[json.dumps(fixed), row.loss, row.weight, row.seed] = path.parent, fixed
    if not found:
        on = f" on {dataset}" if dataset else ""
        remedy = "make some: giou-repro train --loss giou, or make reproduce"
        raise FileNotFoundError(f"no complete run of 04_train_detector{on} under {results}; {remedy}")
    titles = _titles([fixed for _, fixed in found.values()])
    tables = {"evaluation": [], "curves": [], "thresholds": []}
    for folder, fixed in found.values():
        about = {"run": folder.name, "setting": titles[json.dumps(fixed)], "epochs": fixed["epochs"], "image_size": fixed["image_size"]}
        for name, parts in tables.items():
            table = pd.read_csv(folder / f"{name}.csv")
            table = table.rename(columns={"loss": "total"}) if name == "curves" else table  # `loss` is the name of one, everywhere else
            parts.append(table.assign(**about))
    runs = pd.concat(tables["evaluation"])
    runs["loss"] = [select([name])[0] for name in runs.loss]  # my_module:mine is imported, and called mine
    runs = runs.sort_values(["setting", "loss", "weight", "seed"], key=_order, ignore_index=True)
    key = runs[["run", "dataset", "detector", "loss", "weight", "seed"]]
    curves, thresholds = (key.merge(pd.concat(tables[name]), on="run") for name in ("curves", "thresholds"))
    return runs[[*RUNS, *(name for name in runs if name not in RUNS)]], curves, thresholds


def _order(column):
    names = list(LOSSES)
    return column.map(names.index) if column.name == "loss" else column


def _fixed(record):
    """What must be equal in runs that are compared: their parameters but the FREE ones, and the contents of the data set."""
    defaults = {name: field.default for name, field in Config.model_fields.items()}  # of parameters that came after the run
    fixed = {name: value for name, value in (defaults | record["parameters"]).items() if name not in FREE}
    data = [part["checksum"][:8] for part in record.get("data", {}).values()]
    return fixed | {"dataset": Path(fixed["dataset"]).name, "data": " ".join(data)}


def _titles(settings):
    """Words for each setting, by its JSON; where the words of two are the same, what differs is added."""
    distinct = {json.dumps(fixed): fixed for fixed in settings}
    titles = {}
    for key, fixed in distinct.items():
        twins = [other for other in distinct.values() if _words(other) == _words(fixed)]
        differing = [name for name in fixed if len({str(other.get(name)) for other in twins}) > 1]
        titles[key] = ", ".join([_words(fixed), *(f"{name} {fixed[name]}" for name in differing)])
    return titles


def _words(fixed):
    backbone = f" ({'frozen ' if fixed['frozen_views'] else ''}{fixed['backbone']})" if fixed["backbone"] else ""
    words = f"{fixed['dataset']} {fixed['train_split']} → {fixed['val_split']}, {fixed['detector']}{backbone}"
    return f"{words}, {fixed['image_size']} px, {fixed['epochs']} epochs" + (f", {fixed['images']} images" if fixed["images"] else "")


def keep_records(runs, results, run):
    """Copy run.json of every run compared into the folder runs/ of `run`, so that the table's evidence travels with it."""
    (run.folder / "runs").mkdir(exist_ok=True)
    for name in runs.run:
        shutil.copy(next(Path(results).glob(f"*/{name}/run.json")), run.folder / "runs" / f"{name}.json")


def baseline(losses):
    """The loss the others are measured against: the detector's original where it was run, else the first."""
    names = list(losses)
    return next((name for name in BASELINES if name in names), names[0])


def at_one_weight(runs):
    """Runs in which each setting has one weight a loss, ready to be compared.

    A setting with several becomes a setting for each weight that all its losses were run at, and one for each loss at its own best, where there
    are seeds enough to choose it on some and report others (statistics.at_best_weight). With fewer seeds than an interval takes it was a search,
    which `weights` shows: it is left out, unless there is nothing else.
    """
    parts, groups = [], list(runs.groupby("setting", sort=False))
    only_searches = all(_is_search(group) for _, group in groups)
    for setting, group in groups:
        if _is_search(group) and not only_searches:
            continue
        if not _several_weights(group):
            parts.append(group)
            continue
        equal = statistics.at_equal_weight(group)
        parts += [part.assign(setting=f"{setting}, weight {weight:g}") for weight, part in equal.groupby("weight")]
        with contextlib.suppress(ValueError):  # too few seeds
            parts.append(statistics.at_best_weight(group).assign(setting=f"{setting}, best weights"))
    if not parts:
        raise ValueError("no weight is shared by all losses, and seeds are too few to choose each loss's best; run all losses at one weight")
    return pd.concat(parts)


def of_chosen(table, chosen):
    """The rows of `table` (curves, thresholds) of the runs in `chosen`, under the settings that they have there, in their order."""
    return chosen[["run", "setting"]].merge(table.drop(columns="setting"), on="run")


def weights(runs):
    """AP against the weight in the settings where a loss was run at several (statistics.curve's columns, and setting)."""
    parts = [statistics.curve(group).assign(setting=setting) for setting, group in runs.groupby("setting", sort=False) if _several_weights(group)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _is_search(group):
    return _several_weights(group) and group.seed.nunique() < statistics.LEAST


def _several_weights(group):
    return group.groupby("loss").weight.nunique().max() > 1


def paper_table(runs):
    """The paper's tables in shape: a row a setting and loss, each measure's mean over seeds, n, and the gain over the baseline in per cent."""
    tables = []
    for setting, group in runs.groupby("setting", sort=False):
        means = group.groupby("loss", sort=False)[[*MEASURES, "AP50", "mean_iou"]].mean()
        gains = (means[MEASURES] / means[MEASURES].loc[baseline(means.index)] - 1).mul(100).add_suffix(" gain %")
        about = group.groupby("loss", sort=False).agg(n=("seed", "nunique"), weight=("weight", "first"), disjoint=("disjoint", "mean"))
        tables.append(about.join(means).join(gains).reset_index().assign(setting=setting))
    return pd.concat(tables, ignore_index=True)


def paired(runs, seed=0):
    """The differences between losses that are tested, on the seeds both have: statistics.compare's rows with p_holm and verdict.

    In each setting all of its rows are one family, over which Holm corrects: the TESTED measures, each for every loss against the detector's
    coordinate loss (`baseline`), every other loss against ℓ1 where that was run, and GIoU against IoU. Where a run found no object at all,
    and so has no mean IoU, the setting's mean IoU is not compared. `seed` is that of the bootstrap.
    """
    families = []
    for _, group in runs.groupby("setting", sort=False):
        pairs = _pairs(group.loss.unique())
        measures = [name for name in TESTED if name != "mean_iou" or group[name].notna().all()]
        if pairs:
            rows = [statistics.compare(group, measure, pairs, by=("setting",), seed=seed) for measure in measures]
            families.append(statistics.judged(pd.concat(rows)))
    return pd.concat(families, ignore_index=True) if families else PAIRED


def _pairs(losses):
    """(loss, against) of the comparisons made of these losses, each pair once."""
    pairs = [(loss, against) for against in (baseline(losses), "l1") for loss in losses if loss != against and against in losses]
    pairs += [("giou", "iou")] if {"giou", "iou"} <= set(losses) else []
    return [pair for number, pair in enumerate(pairs) if set(pair) not in map(set, pairs[:number])]
