"""All detector runs found, side by side: the table of runs, the paper's tables in shape, and what differs with what interval."""

import contextlib
import json
import shutil
from pathlib import Path

import pandas as pd

from giou_repro import statistics
from giou_repro.losses import LOSSES, select

RUNS = ["dataset", "detector", "loss", "weight", "seed", "AP", "AP50", "AP75", "AP_giou", "AP75_giou", "mean_iou", "disjoint"]
MEASURES = ["AP", "AP75", "AP_giou", "AP75_giou"]
BASELINES = ("l2", "smooth_l1", "l1")  # the paper's MSE and smooth-ℓ1, whichever was run
FREE = {"loss", "weight", "seed", "scale", "device", "evaluations"}  # parameters that may differ between runs of one setting


def gather(results, dataset=None):
    """Every complete detector run (on `dataset`, or any) under the folder `results`: (runs, curves, thresholds), one row a run in the first.

    Of runs with the same parameters the newest counts. Column `setting` says all that must be equal for runs to be compared. Raises
    FileNotFoundError, saying how to make some, where there is none.
    """
    found = {}
    for path in sorted(Path(results).glob("*/*/run.json")):
        record = json.loads(path.read_text())
        wanted = dataset is None or dataset == Path(record["parameters"].get("dataset", "")).name
        if record["notebook"] == "04_train_detector" and record["status"] == "complete" and wanted:
            found[json.dumps(record["parameters"], sort_keys=True)] = path.parent, record
    if not found:
        on = f" on {dataset}" if dataset else ""
        raise FileNotFoundError(
            f"no complete run of 04_train_detector{on} under {results}; make some: giou-repro train --loss giou, or make reproduce"
        )
    tables = {"evaluation": [], "curves": [], "thresholds": []}
    for folder, record in found.values():
        for name, parts in tables.items():
            table = pd.read_csv(folder / f"{name}.csv")
            table = table.rename(columns={"loss": "total"}) if name == "curves" else table  # `loss` is the name of one, everywhere else
            parts.append(table.assign(run=folder.name, **_setting(record["parameters"])))
    runs = pd.concat(tables["evaluation"])
    runs["loss"] = [select([name])[0] for name in runs.loss]  # my_module:mine is imported, and called mine
    runs = runs.sort_values(["setting", "loss", "weight", "seed"], key=_order, ignore_index=True)
    key = runs[["run", "dataset", "detector", "loss", "weight", "seed"]]
    curves, thresholds = (pd.concat(tables[name]).merge(key, on="run") for name in ("curves", "thresholds"))
    return runs[[*RUNS, *(name for name in runs if name not in RUNS)]], curves, thresholds


def _order(column):
    names = list(LOSSES)
    return column.map(names.index) if column.name == "loss" else column


def _setting(parameters):
    """The words that name a setting; runs of one setting differ in nothing but loss, weight and seed."""
    p = parameters
    fixed = {name: value for name, value in p.items() if name not in FREE}
    words = f"{Path(p['dataset']).name} {p['train_split']} → {p['val_split']}, {p['detector']}"
    words += f" ({p['backbone']})" if p["backbone"] else ""
    words += f", {p['image_size']} px, {p['epochs']} epochs"
    usual = {"optimizer": "adamw", "schedule": "cosine", "augment": True, "precision": "auto"}
    words += "".join(f", {name} {fixed[name]}" for name, value in usual.items() if fixed[name] != value)
    words += f", {p['images']} images" if p["images"] else ""
    return {"setting": words, "epochs": p["epochs"], "image_size": p["image_size"]}


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
    are seeds enough to choose it on some and report others (statistics.at_best_weight).
    """
    parts = []
    for setting, group in runs.groupby("setting", sort=False):
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


def weights(runs):
    """AP against the weight in the settings where a loss was run at several (statistics.curve's columns, and setting)."""
    parts = [statistics.curve(group).assign(setting=setting) for setting, group in runs.groupby("setting", sort=False) if _several_weights(group)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _several_weights(group):
    return group.groupby("loss").weight.nunique().max() > 1


def paper_table(runs):
    """The paper's tables in shape: a row a setting and loss, each measure's mean over seeds, n, and the gain over the baseline in per cent."""
    tables = []
    for setting, group in runs.groupby("setting", sort=False):
        means = group.groupby("loss", sort=False)[MEASURES].mean()
        gains = (means / means.loc[baseline(means.index)] - 1).mul(100).add_suffix(" gain %")
        about = group.groupby("loss", sort=False).agg(n=("seed", "nunique"), weight=("weight", "first"), disjoint=("disjoint", "mean"))
        tables.append(about.join(means).join(gains).reset_index().assign(setting=setting))
    return pd.concat(tables, ignore_index=True)


def paired(runs, seed=0):
    """Every loss against its setting's baseline on the seeds both have, for each measure: statistics.compare's rows."""
    tables = []
    for _, group in runs.groupby("setting", sort=False):
        base = baseline(group.loss.unique())
        pairs = [(loss, base) for loss in group.loss.unique() if loss != base]
        tables += [statistics.compare(group, measure, pairs, by=("setting",)) for measure in ("AP", "AP50", "AP75", "AP_giou", "AP75_giou")]
    return pd.concat(tables, ignore_index=True)
