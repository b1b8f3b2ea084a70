"""Notebook 06: all detector runs side by side, the paper's tables in shape, and which differences are beyond chance."""

import json
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from giou_repro import registry
from giou_repro.experiments import statistics
from giou_repro.runs import store
from giou_repro.training.config import SCALES, Config

TABLES = ["evaluation", "curves", "thresholds"]  # of a training; its record is its run.json
KEY = ["run", "dataset", "detector", "loss", "weight", "seed"]
MEASURES = ["AP", "AP75", "AP_giou", "AP75_giou"]  # those of the paper's tables
TESTED = ["AP", "AP50", "AP75", "mean_iou"]  # those that a difference is tested in
SHARES = {"disjoint": "positives disjoint from their target", "clipped": "steps clipped"}  # shown beside each loss
BASELINES = ("l2", "smooth_l1", "l1")  # the paper's MSE and smooth-ℓ1, whichever was run
PAIRED = pd.DataFrame(  # where there is no pair
    columns=["setting", "measure", "loss", "against", "n", "difference", "low", "high", "p_holm", "verdict", "note"]
)
OUTPUTS = (  # without which a run of the notebook is not complete
    *("detectors.csv", "paper_tables.csv", "paired.csv", "curves.csv", "thresholds.csv", "weights.csv"),
    *("dial.csv", "dial_slopes.csv"),
    *("figures/every_run.png", "figures/curves.png", "figures/thresholds.png"),
)
FREE = ("loss", "weight", "seed", "scale", "device", "evaluations")  # parameters that may differ within a setting
AWAY = ", positives {} cells away"
AT_ONE_WEIGHT = r", weight [\d.]+$"  # ends the name of a setting with one weight for all losses
FIT = "val_positives_iou"  # the measure that decides, and chooses weights, where positives are moved away
SHOWN = ("epochs", "image_size", "cells_away")  # parameters that are a column of every table


# ---- the trainings, and which of them may be compared


def gather(results, dataset: str | None = None, scale: str = "smoke") -> tuple[pd.DataFrame, ...]:
    """Every complete training under the folder `results`: (runs, curves, thresholds), one row a training in the first.

    Where the folder has no training, but a comparison of some, as results/published has, those are gathered again from
    its tables and records. `dataset` is the only data set that counts, `scale` the least scale; the newest counts of
    trainings alike in setting (what must be equal, in words), loss, weight and seed. `after_look` says that a training
    began after a comparison had shown others of its setting. Raises FileNotFoundError for none.
    """
    newest, settings, checksums, smaller = {}, {}, {}, 0
    for record, tables in _trainings(results):
        row, fixed = tables["evaluation"].iloc[0], _fixed(record)
        if dataset not in (None, fixed["dataset"]):
            continue
        if list(SCALES).index(record["parameters"].get("scale", "paper")) < list(SCALES).index(scale):
            smaller += 1
            continue
        data = _data(record, "checksum")
        if data != checksums.setdefault((json.dumps(fixed), row.seed), data):
            fixed["data"] = data  # in a setting, one seed means one set of images
        setting = json.dumps(fixed)
        settings[setting] = fixed
        about = dict(run=record["run"], setting=setting) | {name: fixed[name] for name in SHOWN if name in fixed}
        newest[setting, row.loss, row.weight, row.seed] = {
            name: table.assign(**about) for name, table in tables.items()
        }
    if not newest:
        on, remedy = f" on {dataset}" if dataset else "", "make some: giou-repro train --loss giou, or make reproduce"
        if smaller:
            remedy = f"{smaller} of a smaller scale do not count at scale {scale}, but at --scale smoke; or {remedy}"
        raise FileNotFoundError(f"no complete run of 05_train_detector{on} under {results}; {remedy}")
    runs, curves, thresholds = (pd.concat([tables[name] for tables in newest.values()]) for name in TABLES)
    runs["loss"] = [_registered(name, run) for name, run in zip(runs.loss, runs.run, strict=True)]
    runs["trained_as"] = runs.setting.map({key: _trained_as(fixed) for key, fixed in settings.items()})
    runs["after_look"] = _after_look(runs, results)
    titles = _titles(settings)
    order = [*registry.LOSSES, *sorted(set(runs.loss) - set(registry.LOSSES))]
    runs = runs.assign(loss=pd.Categorical(runs.loss, order), setting=runs.setting.map(titles))
    runs = runs.sort_values(["setting", "loss", "weight", "seed"], ignore_index=True).astype({"loss": str})
    first = [*KEY[1:], *dict.fromkeys([*TESTED, *MEASURES]), "disjoint"]
    others = (table.assign(setting=table.setting.map(titles)) for table in (curves, thresholds))
    return runs[list(dict.fromkeys([*first, *runs]))], *(runs[KEY].merge(table, on="run") for table in others)


def _trainings(results):
    """(record, TABLES) of every complete training under `results`, oldest first, else of those a comparison kept."""
    finished = store.runs(results, "05_train_detector", "complete")
    for run in finished:
        try:
            tables = {name: run.table(name) for name in TABLES}
        except (OSError, ValueError) as error:  # pandas raises ValueErrors for a table that is empty or damaged
            warnings.warn(f"{run.folder} does not count, as a table of it cannot be read: {error}", stacklevel=3)
            continue
        tables["curves"] = tables["curves"].rename(columns={"loss": "total"})  # elsewhere `loss` is the name of one
        yield run.record, tables
    kept = Path(results) / "06_compare_losses"
    if finished or not (kept / "detectors.csv").is_file():
        return
    rows, *others = (pd.read_csv(kept / f"{name}.csv") for name in ("detectors", *TABLES[1:]))
    others = [table.drop(columns=[*KEY[1:], "setting"]).drop_duplicates() for table in others]  # some are in 2 settings
    for run in sorted(rows.run):
        tables = {name: table[table.run == run] for name, table in zip(TABLES, [rows, *others], strict=True)}
        yield json.loads((kept / "runs" / f"{run}.json").read_text(encoding="utf-8")), tables


def _registered(reference, run):
    """The name in LOSSES of a training's loss; of one that cannot be imported any more, what follows the colon."""
    try:
        return registry.select([reference])[0]
    except Exception as error:  # a user's module may raise anything
        name = reference if (name := reference.rpartition(":")[2]) in registry.LOSSES else name
        print(f"{run}: its loss {reference} could not be imported ({error}); its numbers count, under the name {name}")
        return name


def _after_look(runs, results):
    """Whether each training is younger than a comparison of its setting; the names of runs sort by time."""
    first, settings = {}, runs.set_index("run").setting
    for look in store.runs(results, "06_compare_losses", "complete"):
        for setting in settings[settings.index.isin(look.table("detectors").run)]:
            first.setdefault(setting, look.record["run"])
    known = runs.get("after_look", pd.Series(False, runs.index)).eq(True).to_numpy()
    pairs = zip(runs.run, runs.setting, strict=True)
    return known | np.array([setting in first and run > first[setting] for run, setting in pairs])


def _fixed(record):
    """What must be equal in trainings that are compared: their parameters but the FREE ones, and the data set but for
    the seed of generated ones."""
    parameters = {name: field.default for name, field in Config.model_fields.items()} | record["parameters"]
    fixed = {name: value for name, value in parameters.items() if name not in FREE}
    return fixed | {"dataset": Path(fixed["dataset"]).name, "data": _data(record, "recipe")}


def _data(record, entry):
    """The start of an entry of a training's data sets: "recipe", or "checksum", as all have."""
    return " ".join(part.get(entry, part["checksum"])[:8] for part in record.get("data", {}).values())


def _titles(settings):
    """Words for each setting, by its JSON; where the words of two are the same, what differs is added."""
    words, titles = {key: _words(fixed) for key, fixed in settings.items()}, {}
    for key, fixed in settings.items():
        twins = [other for name, other in settings.items() if words[name] == words[key]]
        differing = [name for name in fixed if len({str(other.get(name)) for other in twins}) > 1]
        titles[key] = ", ".join([words[key], *(f"{name} {fixed[name]}" for name in differing)])
    return titles


def _network(fixed):
    backbone = f" ({'frozen ' if fixed['frozen_views'] else ''}{fixed['backbone']})" if fixed["backbone"] else ""
    return fixed["detector"] + backbone


def _trained_as(fixed):
    """What a search of weights has to share with the comparison that it serves, beside the data set."""
    return f"{_network(fixed)}, batches of {fixed['batch_size']}, rate {fixed['learning_rate']}, ema {fixed['ema']}"


def _words(fixed):
    words = f"{fixed['dataset']} {fixed['train_split']} → {fixed['val_split']}, {_network(fixed)}"
    words += f", {fixed['image_size']} px, {fixed['epochs']} epochs"
    words += f", {fixed['images']} images" if fixed["images"] else ""
    return words + (AWAY.format(fixed["cells_away"]) if fixed.get("cells_away") else "")


def keep_records(runs: pd.DataFrame, results, run: store.Run):
    """Copy the record of every training compared into runs/ of the run's folder: the table's evidence goes with it."""
    for name in runs.run:
        copy = Path(results) / "06_compare_losses" / "runs" / f"{name}.json"
        path = next(Path(results).glob(f"*/{name}/run.json"), copy)
        run.save(f"runs/{name}.json", path.read_bytes())


# ---- one weight a loss


def at_one_weight(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs in which each setting has one weight a loss, ready to be compared.

    A setting with several becomes a setting for each weight that two or more of its losses were run at, and one for
    each loss at its own best, by AP, or by FIT where settings differ in cells_away alone: that of the search on the
    same data, trained in the same way, else one chosen on seeds that are left out (at_best_weight). One with three
    weights or more and fewer seeds than a verdict takes was a search, which `weights` shows: it is left out, unless
    there is nothing else. The column `search` has the weights that were searched where a loss's own is one of them, and
    says where it is the least or the greatest.
    """
    parts, is_search, away = [], runs.groupby("setting").apply(_is_search), re.compile(AWAY.format(r"\d+"))
    dials = {away.sub("", name) for name in runs.setting.unique() if away.search(name)}
    searches = runs[runs.setting.map(is_search)]
    for name, group in runs[~runs.setting.map(is_search) | is_search.all()].groupby("setting", sort=False):
        alike = searches[["trained_as", "dataset"]] == group[["trained_as", "dataset"]].iloc[0]
        search = searches[alike.all(axis=1)]
        if group.groupby("loss").weight.nunique().max() == 1:
            parts.append(group.assign(search=_grid(group, search)))
            continue
        equal = group[group.groupby("weight").loss.transform("nunique") > 1]
        parts += [
            part.assign(setting=f"{name}, weight {weight:g}", search="") for weight, part in equal.groupby("weight")
        ]
        measure = FIT if away.sub("", name) in dials else "AP"
        best = at_best_weight(group, search if len(search) and not is_search.all() else None, measure)
        parts.append(
            best.assign(setting=f"{name}, best weights", search=_grid(best, group if search.empty else search))
        )
    chosen = pd.concat(parts)
    if chosen.empty:
        raise ValueError(
            "no weight is shared by two losses, and seeds are too few to choose each; run all at one weight"
        )
    return chosen


def _is_search(group):
    """Of three weights or more, as an optimum inside takes, and of fewer seeds than a verdict does."""
    return group.groupby("loss").weight.nunique().max() > 2 and group.seed.nunique() < statistics.DECIDING


def _grid(runs, search):
    """For each run the weights its loss was searched over, in words; nothing where its weight is not their best."""
    grids = search.groupby("loss").weight.unique().map(sorted).to_dict()
    words = {}
    for loss, weight in set(zip(runs.loss, runs.weight, strict=True)):
        grid = grids.get(loss, [])
        if len(grid) > 1 and weight in grid:
            edge = ": at the edge" if weight in (grid[0], grid[-1]) else ""
            words[loss, weight] = ", ".join(f"{tried:g}" for tried in grid) + edge
    return [words.get(key, "") for key in zip(runs.loss, runs.weight, strict=True)]


def at_best_weight(group: pd.DataFrame, search: pd.DataFrame | None = None, measure: str = "AP") -> pd.DataFrame:
    """The runs of each loss of a setting at the weight of its highest mean `measure` in `search`.

    Without one, a third of the seeds that every loss was run with at all its weights (rounded down, at least one, the
    lowest) choose, and are left out. Empty where there is no such seed or no other.
    """
    complete = group.pivot(index="seed", columns=["loss", "weight"], values=measure).dropna()
    choosing = complete[: max(1, len(complete) // 3)]
    rest = group[~group.seed.isin(choosing.index)] if search is None else group
    means = choosing.mean() if search is None else search.groupby(["loss", "weight"])[measure].mean()
    best = means.dropna().groupby("loss").idxmax()  # loss → (loss, weight)
    chosen = [best.get(loss) == (loss, weight) for loss, weight in zip(rest.loss, rest.weight, strict=True)]
    return rest[np.array(chosen, dtype=bool)]


def weights(runs: pd.DataFrame) -> pd.DataFrame:
    """AP against the weight where a loss was run at several: mean, 95 % CI and n over seeds. A setting with seeds
    enough for a verdict and fewer than three weights is a comparison, and left out."""
    keys, rows = ["dataset", "detector", "loss", "weight", "setting"], []
    most = runs.groupby(["setting", "loss"]).weight.nunique().groupby("setting").max()
    few = runs.groupby("setting").seed.nunique() < statistics.DECIDING
    several = runs[runs.setting.map((most > 2) | (most > 1) & few)]
    for key, part in several.groupby(keys, sort=False):
        low, high = statistics.mean_interval(part.AP)
        rows.append(dict(zip(keys, key, strict=True)) | dict(mean=part.AP.mean(), low=low, high=high, n=len(part)))
    return pd.DataFrame(rows)


# ---- the paper's tables, in shape


def baseline(losses) -> str:
    """The loss the others are measured against: the detector's original where it was run, else the first."""
    return next(name for name in (*BASELINES, *losses) if name in set(losses))


def paper_table(runs: pd.DataFrame) -> pd.DataFrame:
    """The paper's tables in shape: a row a setting and loss, each measure's mean over seeds, n, the gain over the
    baseline in per cent, and the SHARES."""
    tables = []
    for setting, group in runs.groupby("setting", sort=False):
        losses = group.groupby("loss", sort=False)
        means = losses[[*TESTED, "AP_giou", "AP75_giou"]].mean()
        gains = (means[MEASURES] / means[MEASURES].loc[baseline(means.index)] - 1).mul(100).add_suffix(" gain %")
        about = losses.agg(n=("seed", "nunique"), weight=("weight", "first"))
        texts = losses[[name for name in ("search",) if name in group]].first()
        tables.append(about.join([texts, _shares(group), means, gains]).reset_index().assign(setting=setting))
    return pd.concat(tables, ignore_index=True)


def _shares(group):
    return group.groupby("loss", sort=False)[[name for name in SHARES if name in group]].mean()


def measure_label(measure: str) -> str:
    """What figures, tables and sentences call a measure."""
    names = {"mean_iou": "mean IoU", "val_positives_iou": "mean IoU of the positives", "_giou": " by GIoU"}
    for name, words in names.items():
        measure = measure.replace(name, words)
    return measure


# ---- differences, seed by seed


def paired(runs: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """The differences between losses that are tested, on the seeds both have: statistics.compare's rows with p_holm and
    verdict, the SHARES of both losses, and a note: what was added after a look, and which weight is at the edge of its
    search.

    In each setting all of its rows are one family, over which Holm corrects: the TESTED measures, each for every loss
    against the detector's coordinate loss (`baseline`), every other loss against ℓ1 where that was run, and GIoU
    against IoU. Where the test images are the same for all seeds, as they are but for generated ones, the unpaired test
    has to agree. Where a run found no object at all, and so has no mean IoU, the setting's mean IoU is not compared.
    `seed` is that of the sign flips, which are drawn from 14 seeds on.
    """
    families = []
    for _, group in runs.groupby("setting", sort=False):
        pairs = _pairs(list(group.loss.unique()))
        measures = [name for name in TESTED if name != "mean_iou" or group[name].notna().all()]
        if pairs:
            rows = pd.concat([statistics.compare(group, measure, pairs, seed) for measure in measures])
            rows = rows.merge(_shares(group), on="loss").merge(
                _shares(group).rename_axis("against"), on="against", suffixes=("", "_against")
            )
            generated = "dataset" in group and (group.dataset == "shapes").all()
            families.append(statistics.judged(_noted(rows, group), unpaired=not generated))
    return pd.concat(families, ignore_index=True) if families else PAIRED


def _pairs(losses):
    """(loss, against) of the comparisons made of these losses, each pair once."""
    references = [name for name in (baseline(losses), "l1") if name in losses]
    pairs = [(loss, against) for against in references for loss in losses if loss != against]
    pairs += [("giou", "iou")] if {"giou", "iou"} <= set(losses) else []
    return [pair for number, pair in enumerate(pairs) if set(pair) not in map(set, pairs[:number])]


def _noted(rows, group):
    """`rows` with a note of their losses' weights and seeds."""
    at_edge, added = {}, {}
    for loss, part in group.groupby("loss"):
        search = part.get("search", pd.Series([""])).iloc[0]
        if search.endswith("edge"):
            tried = search.partition(":")[0]
            at_edge[loss] = f"the weight of {registry.label(loss)} is {part.weight.iloc[0]:g}, at the edge of {tried}"
        added[loss] = set(part.seed[part.after_look]) if "after_look" in part else set()
    notes = []
    for row in rows.itertuples():
        seeds = [seed for seed in map(int, row.seeds.split()) if seed in added[row.loss] | added[row.against]]
        words = [at_edge[loss] for loss in (row.loss, row.against) if loss in at_edge]
        if 0 < len(seeds) < row.n:
            words.append(f"seeds {', '.join(map(str, seeds))} were added after a look")
        notes.append("; ".join(words))
    return rows.assign(note=notes)


NOTE = """
In brackets: the 95 % CI of the mean difference over seeds, from three seeds on; in square ones that over seeds and
test images, where the trainings keep their detections. There is no verdict below five seeds; verdicts are corrected
for the number of differences of their setting (Holm), intervals are not."""


def describe_paired(table: pd.DataFrame) -> str:
    """What each setting's differences allow to say, all of them, by what they are against and by verdict."""
    if table.empty:
        return "No setting has two losses, so there is nothing to compare yet."
    counts = table.verdict.value_counts().reindex(statistics.VERDICTS).dropna()
    found = ", ".join(f"{n:.0f} {verdict}" for verdict, n in counts.items())
    lines = [f"**What we see.** Of {len(table)} differences between losses: {found}.\n"]
    for setting, part in table.groupby("setting", sort=False):
        lines.append(f"**{setting}** ({len(part)} differences)\n")
        order = [pd.Categorical(part.against, part.against.unique()), pd.Categorical(part.verdict, statistics.VERDICTS)]
        for (against, verdict), rows in part.groupby(order, observed=True):
            seeds = " to ".join(f"{n}" for n in sorted({rows.n.min(), rows.n.max()}))
            words = (
                f"{measure_label(measure)}: "
                + ", ".join(f"{registry.label(row.loss)} {difference_label(row)}" for row in some.itertuples())
                for measure, some in rows.groupby("measure", sort=False)
            )
            lines.append(f"- against {registry.label(against)} (n = {seeds}), **{verdict}**: {'; '.join(words)}")
        for share, name in SHARES.items():
            if share in part and part[share].notna().all():
                of = dict(zip(part.against, part[f"{share}_against"], strict=True))
                of |= dict(zip(part.loss, part[share], strict=True))
                lines.append(
                    f"- {name}: {', '.join(f'{registry.label(loss)} {value:.2%}' for loss, value in of.items())}"
                )
        notes = dict.fromkeys(words for note in part.get("note", ()) for words in note.split("; ") if words)
        lines += [f"- {words}" for words in notes]
        lines.append("- mean IoU is not compared: a training found no object\n" * ("mean_iou" not in set(part.measure)))
    return "\n".join(lines) + NOTE


def difference_label(row) -> str:
    """The mean difference, its 95 % CI and where known that over images and seeds, of a row of `paired`."""
    interval = f" ({row.low:+.3f} to {row.high:+.3f})" if row.n >= statistics.LEAST else ""
    low, high = getattr(row, "low_images", np.nan), getattr(row, "high_images", np.nan)
    return f"{row.difference:+.3f}" + interval.replace(")", f"; [{low:+.3f} to {high:+.3f}])" if low == low else ")")


def of_chosen(table: pd.DataFrame, chosen: pd.DataFrame) -> pd.DataFrame:
    """The rows of `table` (curves, thresholds) of the runs in `chosen`, under the settings and in the order there."""
    return chosen[["run", "setting"]].merge(table.drop(columns="setting"), on="run")
