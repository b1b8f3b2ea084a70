"""All detector runs found, side by side: the table of runs, the paper's tables in shape, and what differs with what
interval."""

import contextlib
import json
from pathlib import Path

import pandas as pd

from giou_repro.experiments import statistics
from giou_repro.registry import LOSSES, select
from giou_repro.runs import store
from giou_repro.training.config import SCALES, Config

TABLES = ["evaluation", "curves", "thresholds"]  # of a training; its record is its run.json
KEY = ["run", "dataset", "detector", "loss", "weight", "seed"]
RUNS = [*KEY[1:], "AP", "AP50", "AP75", "AP_giou", "AP75_giou", "mean_iou", "disjoint"]
MEASURES = ["AP", "AP75", "AP_giou", "AP75_giou"]  # those of the paper's tables
TESTED = ["AP", "AP50", "AP75", "mean_iou"]  # those that a difference is tested in
BASELINES = ("l2", "smooth_l1", "l1")  # the paper's MSE and smooth-ℓ1, whichever was run
# The table of differences where there is none
PAIRED = pd.DataFrame(columns=["setting", "measure", "loss", "against", "n", *("difference", "low", "high", "verdict")])
OUTPUTS = (  # without which a run of the notebook is not complete
    *("detectors.csv", "paper_tables.csv", "paired.csv", "curves.csv", "thresholds.csv", "weights.csv"),
    *("figures/every_run.png", "figures/curves.png", "figures/thresholds.png"),
)
# Parameters that may differ between trainings of one setting
FREE = {"loss", "weight", "seed", "scale", "device", "evaluations"}


def gather(results, dataset=None, scale="smoke"):
    """Every complete training under the folder `results`: (runs, curves, thresholds), one row a training in the first.

    Where the folder has no training, but a comparison of some, as results/published has, those are gathered again from
    its tables and records. `dataset` says the only data set that counts, `scale` the least scale. Of trainings alike in
    setting, loss, weight and seed the newest counts. Column `setting` says in words what is equal in those that may be
    compared. Raises FileNotFoundError, saying how to make some, where there is none.
    """
    found, images_of, smaller, scales = {}, {}, 0, list(SCALES)
    for record, tables in _trainings(results):
        if dataset not in (None, Path(record["parameters"].get("dataset", "")).name):
            continue
        if scales.index(record["parameters"].get("scale", "paper")) < scales.index(scale):
            smaller += 1
            continue
        row, fixed = tables["evaluation"].iloc[0], _fixed(record)
        images = _data(record, "checksum")
        if images != images_of.setdefault((json.dumps(fixed), row.seed), images):  # other images cannot be paired
            fixed["data"] = images
        found[json.dumps(fixed), row.loss, row.weight, row.seed] = record["run"], fixed, tables
    if not found:
        on = f" on {dataset}" if dataset else ""
        remedy = f"{smaller} of a smaller scale do not count at scale {scale}, but at --scale smoke; or " * bool(
            smaller
        )
        remedy += "make some: giou-repro train --loss giou, or make reproduce"
        raise FileNotFoundError(f"no complete run of 05_train_detector{on} under {results}; {remedy}")
    titles = _titles([fixed for _, fixed, _ in found.values()])
    parts = {name: [] for name in TABLES}
    for run, fixed, tables in found.values():
        about = {"run": run, "setting": titles[json.dumps(fixed)]} | {
            name: fixed[name] for name in ("epochs", "image_size")
        }
        for name, table in tables.items():
            parts[name].append(table.assign(**about))
    runs = pd.concat(parts["evaluation"])
    runs["loss"] = [_registered(name, run) for name, run in zip(runs.loss, runs.run, strict=True)]
    runs = runs.sort_values(["setting", "loss", "weight", "seed"], key=_order, ignore_index=True)
    curves, thresholds = (runs[KEY].merge(pd.concat(parts[name]), on="run") for name in ("curves", "thresholds"))
    return runs[[*RUNS, *(name for name in runs if name not in RUNS)]], curves, thresholds


def _trainings(results):
    """(record, its TABLES by name) of every complete training under `results`, oldest first, else of those that a
    comparison there kept."""
    finished = store.runs(results, "05_train_detector", "complete")
    for run in finished:
        tables = {name: run.table(name) for name in TABLES}
        tables["curves"] = tables["curves"].rename(columns={"loss": "total"})  # elsewhere, `loss` is the name of one
        yield run.record, tables
    kept = Path(results) / "06_compare_losses"
    if finished or not (kept / "detectors.csv").is_file():
        return
    rows = pd.read_csv(kept / "detectors.csv")
    others = [pd.read_csv(kept / f"{name}.csv").drop(columns=[*KEY[1:], "setting"]) for name in TABLES[1:]]
    for run in sorted(rows.run):
        tables = dict(
            zip(TABLES, (table[table.run == run].drop_duplicates() for table in [rows, *others]), strict=True)
        )
        yield json.loads((kept / "runs" / f"{run}.json").read_text()), tables


def _registered(reference, run):
    """The name in LOSSES of a training's loss; of one that cannot be imported any more, what follows the colon."""
    try:
        return select([reference])[0]
    except Exception as error:  # a user's module may raise anything
        name = reference.rpartition(":")[2]
        name = reference if name in LOSSES else name
        print(f"{run}: its loss {reference} could not be imported ({error}); its numbers count, under the name {name}")
        return name


def _order(column):
    names = [*LOSSES, *sorted(set(column) - set(LOSSES))] if column.name == "loss" else []
    return column.map(names.index) if names else column


def _fixed(record):
    """What must be equal in trainings that are compared: their parameters but the FREE ones, and the data set but for
    the seed of generated ones."""
    # The defaults are those of parameters that came after the run
    defaults = {name: field.default for name, field in Config.model_fields.items()}
    fixed = {name: value for name, value in (defaults | record["parameters"]).items() if name not in FREE}
    return fixed | {"dataset": Path(fixed["dataset"]).name, "data": _data(record, "recipe")}


def _data(record, entry):
    """The start of an entry of a training's data sets: "recipe", or "checksum", as all have."""
    return " ".join(part.get(entry, part["checksum"])[:8] for part in record.get("data", {}).values())


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
    words += f", {fixed['image_size']} px, {fixed['epochs']} epochs"
    return words + (f", {fixed['images']} images" if fixed["images"] else "")


def keep_records(runs, results, run):
    """Copy the record of every training compared into the folder runs/ of `run`, so that the table's evidence travels
    with it."""
    (run.folder / "runs").mkdir(exist_ok=True)
    for name in runs.run:
        kept = Path(results) / "06_compare_losses" / "runs" / f"{name}.json"
        path = next(Path(results).glob(f"*/{name}/run.json"), kept)
        store.write_atomic(run.folder / "runs" / f"{name}.json", path.read_bytes())


def baseline(losses):
    """The loss the others are measured against: the detector's original where it was run, else the first."""
    names = list(losses)
    return next((name for name in BASELINES if name in names), names[0])


def at_one_weight(runs):
    """Runs in which each setting has one weight a loss, ready to be compared.

    A setting with several becomes a setting for each weight that all its losses were run at, and one for each loss at
    its own best, where there are seeds enough to choose it on some and report others (statistics.at_best_weight). With
    fewer seeds than an interval takes it was a search, which `weights` shows: it is left out, unless there is nothing
    else.
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
        raise ValueError(
            "no weight is shared by all losses, and seeds are too few to choose each loss's best; "
            "run all losses at one weight"
        )
    return pd.concat(parts)


def of_chosen(table, chosen):
    """The rows of `table` (curves, thresholds) of the runs in `chosen`, under the settings that they have there, in
    their order."""
    return chosen[["run", "setting"]].merge(table.drop(columns="setting"), on="run")


def weights(runs):
    """AP against the weight in the settings where a loss was run at several (statistics.curve's columns, and
    setting)."""
    parts = [
        statistics.curve(group).assign(setting=setting)
        for setting, group in runs.groupby("setting", sort=False)
        if _several_weights(group)
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _is_search(group):
    return _several_weights(group) and group.seed.nunique() < statistics.LEAST


def _several_weights(group):
    return group.groupby("loss").weight.nunique().max() > 1


def paper_table(runs):
    """The paper's tables in shape: a row a setting and loss, each measure's mean over seeds, n, and the gain over the
    baseline in per cent."""
    tables = []
    for setting, group in runs.groupby("setting", sort=False):
        means = group.groupby("loss", sort=False)[[*TESTED, "AP_giou", "AP75_giou"]].mean()
        gains = (means[MEASURES] / means[MEASURES].loc[baseline(means.index)] - 1).mul(100).add_suffix(" gain %")
        about = group.groupby("loss", sort=False).agg(
            n=("seed", "nunique"), weight=("weight", "first"), disjoint=("disjoint", "mean")
        )
        tables.append(about.join(means).join(gains).reset_index().assign(setting=setting))
    return pd.concat(tables, ignore_index=True)


def paired(runs, seed=0):
    """The differences between losses that are tested, on the seeds both have: statistics.compare's rows with p_holm and
    verdict.

    In each setting all of its rows are one family, over which Holm corrects: the TESTED measures, each for every loss
    against the detector's coordinate loss (`baseline`), every other loss against ℓ1 where that was run, and GIoU
    against IoU. Where a run found no object at all, and so has no mean IoU, the setting's mean IoU is not compared.
    `seed` is that of the bootstrap.
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
    pairs = [
        (loss, against)
        for against in (baseline(losses), "l1")
        for loss in losses
        if loss != against and against in losses
    ]
    pairs += [("giou", "iou")] if {"giou", "iou"} <= set(losses) else []
    return [pair for number, pair in enumerate(pairs) if set(pair) not in map(set, pairs[:number])]
