"""Notebook 06: all detector runs side by side, the paper's tables in shape, and which differences are beyond chance."""

import json
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from giou_repro import registry
from giou_repro.experiments import detector, statistics, style
from giou_repro.runs import store
from giou_repro.training.config import SCALES, Config

TABLES = ["evaluation", "curves", "thresholds"]  # of a training; its record is its run.json
KEY = ["run", "dataset", "detector", "loss", "weight", "seed"]
MEASURES = ["AP", "AP75", "AP_giou", "AP75_giou"]  # those of the paper's tables
TESTED = ["AP", "AP50", "AP75", "mean_iou"]  # those that a difference is tested in
RUNS = [*KEY[1:], "AP", "AP50", "AP75", "AP_giou", "AP75_giou", "mean_iou", "disjoint"]  # the first columns of a run
BASELINES = ("l2", "smooth_l1", "l1")  # the paper's MSE and smooth-ℓ1, whichever was run
PAIRED = pd.DataFrame(  # where there is no pair
    columns=["setting", "measure", "loss", "against", "n", "difference", "low", "high", "p_holm", "verdict"]
)
OUTPUTS = (  # without which a run of the notebook is not complete
    *("detectors.csv", "paper_tables.csv", "paired.csv", "curves.csv", "thresholds.csv", "weights.csv"),
    *("figures/every_run.png", "figures/curves.png", "figures/thresholds.png"),
)
FREE = ("loss", "weight", "seed", "scale", "device", "evaluations")  # parameters that may differ within a setting


# ---- the trainings, and which of them may be compared


def gather(results, dataset: str | None = None, scale: str = "smoke") -> tuple[pd.DataFrame, ...]:
    """Every complete training under the folder `results`: (runs, curves, thresholds), one row a training in the first.

    Where the folder has no training, but a comparison of some, as results/published has, those are gathered again from
    its tables and records. `dataset` is the only data set that counts, `scale` the least scale; the newest counts of
    trainings alike in setting (what must be equal, in words), loss, weight and seed. Raises FileNotFoundError for none.
    """
    newest, settings, checksums, smaller = {}, {}, {}, 0
    for record, tables in _trainings(results):
        if dataset not in (None, Path(record["parameters"].get("dataset", "")).name):
            continue
        if list(SCALES).index(record["parameters"].get("scale", "paper")) < list(SCALES).index(scale):
            smaller += 1
            continue
        row, fixed = tables["evaluation"].iloc[0], _fixed(record)
        data = _data(record, "checksum")
        if data != checksums.setdefault((json.dumps(fixed), row.seed), data):
            fixed["data"] = data  # in a setting, one seed means one set of images
        settings[setting := json.dumps(fixed)] = fixed
        newest[setting, row.loss, row.weight, row.seed] = record["run"], tables
    if not newest:
        on, remedy = f" on {dataset}" if dataset else "", "make some: giou-repro train --loss giou, or make reproduce"
        if smaller:
            remedy = f"{smaller} of a smaller scale do not count at scale {scale}, but at --scale smoke; or {remedy}"
        raise FileNotFoundError(f"no complete run of 05_train_detector{on} under {results}; {remedy}")
    titles = _titles(settings)

    def stacked(name):
        sizes = {setting: {key: fixed[key] for key in ("epochs", "image_size")} for setting, fixed in settings.items()}
        return pd.concat(
            tables[name].assign(run=run, setting=titles[setting], **sizes[setting])
            for (setting, *_), (run, tables) in newest.items()
        )

    runs = stacked("evaluation")
    runs["loss"] = [_registered(name, run) for name, run in zip(runs.loss, runs.run, strict=True)]
    order = [*registry.LOSSES, *sorted(set(runs.loss) - set(registry.LOSSES))]
    runs["loss"] = pd.Categorical(runs.loss, order)
    runs = runs.sort_values(["setting", "loss", "weight", "seed"], ignore_index=True).astype({"loss": str})
    curves, thresholds = (runs[KEY].merge(stacked(name), on="run") for name in TABLES[1:])
    return runs[list(dict.fromkeys([*RUNS, *runs]))], curves, thresholds


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
        yield json.loads((kept / "runs" / f"{run}.json").read_text()), tables


def _registered(reference, run):
    """The name in LOSSES of a training's loss; of one that cannot be imported any more, what follows the colon."""
    try:
        return registry.select([reference])[0]
    except Exception as error:  # a user's module may raise anything
        name = reference if (name := reference.rpartition(":")[2]) in registry.LOSSES else name
        print(f"{run}: its loss {reference} could not be imported ({error}); its numbers count, under the name {name}")
        return name


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


def _words(fixed):
    backbone = f" ({'frozen ' if fixed['frozen_views'] else ''}{fixed['backbone']})" if fixed["backbone"] else ""
    images = f", {fixed['images']} images" if fixed["images"] else ""
    words = f"{fixed['dataset']} {fixed['train_split']} → {fixed['val_split']}, {fixed['detector']}{backbone}"
    return f"{words}, {fixed['image_size']} px, {fixed['epochs']} epochs{images}"


def keep_records(runs: pd.DataFrame, results, run: store.Run):
    """Copy the record of every training compared into runs/ of the run's folder: the table's evidence goes with it."""
    for name in runs.run:
        copy = Path(results) / "06_compare_losses" / "runs" / f"{name}.json"
        path = next(Path(results).glob(f"*/{name}/run.json"), copy)
        run.save(f"runs/{name}.json", path.read_bytes())


def at_one_weight(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs in which each setting has one weight a loss, ready to be compared.

    A setting with several becomes a setting for each weight that all its losses were run at, and one for each loss at
    its own best, where there are seeds enough to choose it on some and report others (at_best_weight). With fewer seeds
    than an interval takes it was a search, which `weights` shows: it is left out, unless there is nothing else.
    """
    groups, parts = [group for _, group in runs.groupby("setting", sort=False)], []
    enough = [group for group in groups if not _has_several_weights(group) or group.seed.nunique() >= statistics.LEAST]
    for group in enough or groups:
        if not _has_several_weights(group):
            parts.append(group)
            continue
        name = group.setting.iloc[0]
        equal = group[group.groupby("weight").loss.transform("nunique") == group.loss.nunique()]
        parts += [part.assign(setting=f"{name}, weight {weight:g}") for weight, part in equal.groupby("weight")]
        parts.append(at_best_weight(group).assign(setting=f"{name}, best weights"))
    chosen = pd.concat(parts)
    if chosen.empty:
        raise ValueError(
            "no weight is shared by all losses, and seeds are too few to choose each; run all at one weight"
        )
    return chosen


def at_best_weight(group: pd.DataFrame) -> pd.DataFrame:
    """The runs of each loss of a setting at the weight of its highest mean AP, which is chosen on seeds that are then
    left out.

    A third of the seeds that every loss was run with at all its weights (rounded down, at least one, the lowest)
    choose. Empty where there is no such seed or no other.
    """
    complete = group.pivot(index="seed", columns=["loss", "weight"], values="AP").dropna()
    if complete.empty:
        return group[:0]
    choosing = complete[: max(1, len(complete) // 3)]
    best = choosing.mean().groupby("loss").idxmax()  # loss → (loss, weight)
    rest = group[~group.seed.isin(choosing.index)]
    return rest[[best[row.loss] == (row.loss, row.weight) for row in rest.itertuples()]]


def _has_several_weights(group):
    return group.groupby("loss").weight.nunique().max() > 1


# ---- the paper's tables, in shape


def baseline(losses) -> str:
    """The loss the others are measured against: the detector's original where it was run, else the first."""
    return next(name for name in (*BASELINES, *losses) if name in set(losses))


def paper_table(runs: pd.DataFrame) -> pd.DataFrame:
    """The paper's tables in shape: a row a setting and loss, each measure's mean over seeds, n, and the gain over the
    baseline in per cent."""
    tables = []
    for setting, group in runs.groupby("setting", sort=False):
        losses = group.groupby("loss", sort=False)
        means = losses[[*TESTED, "AP_giou", "AP75_giou"]].mean()
        gains = (means[MEASURES] / means[MEASURES].loc[baseline(means.index)] - 1).mul(100).add_suffix(" gain %")
        about = losses.agg(n=("seed", "nunique"), weight=("weight", "first"), disjoint=("disjoint", "mean"))
        tables.append(about.join(means).join(gains).reset_index().assign(setting=setting))
    return pd.concat(tables, ignore_index=True)


# ---- every run, and the mean


@style.styled
def plot_every_run(runs: pd.DataFrame):
    """AP, AP75 and AP by GIoU of every run as dots, by loss, their means as bars; a row a setting."""
    figure, rows = _row_a_setting(runs, 3)
    for axes, part in rows:
        losses = list(part.loss.unique())
        turned = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if len(losses) > 4 else {}
        for axis, measure in zip(axes, ("AP", "AP75", "AP_giou"), strict=True):
            for place, loss in enumerate(losses):
                values = part[part.loss == loss][measure]
                places = place + (np.arange(len(values)) - (len(values) - 1) / 2) * 0.06
                style.draw_loss(axis, loss, places, values, linestyle="none", markevery=1, alpha=0.75)
                axis.hlines(values.mean(), place - 0.3, place + 0.3, color=style.color(loss), linewidth=2.2)
            axis.set(ylabel=measure_label(measure))
            axis.set_xticks(range(len(losses)), map(registry.label, losses), **turned)
    return figure


def _row_a_setting(table, columns, width=3.2, height=2.6, **options):
    """A figure with a row of panels, and its title, for each setting of a table: (figure, [(axes, part)])."""
    parts = [part for _, part in table.groupby("setting", sort=False)]
    figure, axes = style.panels(len(parts), columns, width, height, **options)
    for row, part in zip(axes, parts, strict=True):
        _set_title(row[0], part.setting.iloc[0])
    return figure, list(zip(axes, parts, strict=True))


def _set_title(axis, setting):
    axis.set_title("\n".join(textwrap.wrap(setting, 58)), fontsize=8, loc="left")


def measure_label(measure: str) -> str:
    """What figures, tables and sentences call a measure."""
    return measure.replace("mean_iou", "mean IoU").replace("_giou", " by GIoU")


# ---- differences, seed by seed


def paired(runs: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """The differences between losses that are tested, on the seeds both have: statistics.compare's rows with p_holm and
    verdict.

    In each setting all of its rows are one family, over which Holm corrects: the TESTED measures, each for every loss
    against the detector's coordinate loss (`baseline`), every other loss against ℓ1 where that was run, and GIoU
    against IoU. Where a run found no object at all, and so has no mean IoU, the setting's mean IoU is not compared.
    `seed` is that of the sign flips, which are drawn from 14 seeds on.
    """
    families = []
    for _, group in runs.groupby("setting", sort=False):
        pairs = _pairs(list(group.loss.unique()))
        measures = [name for name in TESTED if name != "mean_iou" or group[name].notna().all()]
        if pairs:
            rows = [statistics.compare(group, measure, pairs, seed) for measure in measures]
            families.append(statistics.judged(pd.concat(rows)))
    return pd.concat(families, ignore_index=True) if families else PAIRED


def _pairs(losses):
    """(loss, against) of the comparisons made of these losses, each pair once."""
    references = [name for name in (baseline(losses), "l1") if name in losses]
    pairs = [(loss, against) for against in references for loss in losses if loss != against]
    pairs += [("giou", "iou")] if {"giou", "iou"} <= set(losses) else []
    return [pair for number, pair in enumerate(pairs) if set(pair) not in map(set, pairs[:number])]


@style.styled
def plot_paired(table: pd.DataFrame):
    """Paired differences in points (hundredths) with 95 % CI, full dots where the verdict is better or worse.

    A row a setting, a panel a measure; a line parts what is against one loss from what is against another.
    """
    measures = table.measure.unique()
    heights = 0.9 + 0.2 * table[table.measure == measures[0]].groupby("setting", sort=False).size().to_numpy()
    figure, rows = _row_a_setting(table, len(measures), 2.2, heights.mean(), sharey="row", height_ratios=heights)
    for axes, part in rows:
        for axis, measure in zip(axes, measures, strict=True):
            entries = part[part.measure == measure].reset_index()
            colors, decided = entries.loss.map(style.color), entries.verdict.isin(("better", "worse"))
            fill = colors.where(decided, "white")
            axis.hlines(entries.index, 100 * entries.low, 100 * entries.high, color=colors, linewidth=2)
            axis.scatter(100 * entries.difference, entries.index, 25, fill, edgecolors=colors, zorder=3)
            for place in np.flatnonzero(entries.against != entries.against.shift())[1:]:
                axis.axhline(place - 0.5, color="#999999", linewidth=0.6)
            axis.axvline(0, color="#999999", linewidth=1)
            pairs = entries.loss.map(registry.label) + " − " + entries.against.map(registry.label)
            axis.set(yticks=entries.index, yticklabels=pairs + " (n " + entries.n.astype(str) + ")")
            axis.set(xlabel=f"Δ {measure_label(measure)}, points", ylim=(len(entries) - 0.4, -0.6))
            axis.locator_params(axis="x", nbins=3)
            axis.grid(axis="y", visible=False)
    return figure


NOTE = """
In brackets: the 95 % CI of the mean difference, from three seeds on. There is no verdict below five seeds; verdicts
are corrected for the number of differences of their setting (Holm), intervals are not."""


def describe_paired(table: pd.DataFrame) -> str:
    """What each setting's differences allow to say, all of them, by what they are against and by verdict."""
    if table.empty:
        return "No setting has two losses, so there is nothing to compare yet."
    lines = []
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
        lines.append("- mean IoU is not compared: a training found no object\n" * ("mean_iou" not in set(part.measure)))
    return "\n".join(lines) + NOTE


def difference_label(row) -> str:
    """The mean difference and its 95 % CI, of a row of `paired`."""
    return f"{row.difference:+.3f}" + (f" ({row.low:+.3f} to {row.high:+.3f})" if row.n >= statistics.LEAST else "")


# ---- during training, and against the threshold of a match


def of_chosen(table: pd.DataFrame, chosen: pd.DataFrame) -> pd.DataFrame:
    """The rows of `table` (curves, thresholds) of the runs in `chosen`, under the settings and in the order there."""
    return chosen[["run", "setting"]].merge(table.drop(columns="setting"), on="run")


@style.styled
def plot_curves(table: pd.DataFrame):
    """Classification loss, mean IoU of positives and AP by epoch, mean over seeds; a row a setting."""
    labels = {"classification": "classification loss", "mean_iou": "mean IoU of positives", "AP": "AP (validation)"}
    figure, rows = _row_a_setting(table, len(labels))
    for axes, part in rows:
        means = part.groupby(["loss", "epoch"], sort=False, as_index=False)[list(labels)].mean()
        detector.draw_curves(axes, means, labels)
    style.legend_below(figure, figure.axes)
    return figure


@style.styled
def plot_thresholds(table: pd.DataFrame):
    """AP against the threshold of the match by IoU and by GIoU, mean over seeds, and the difference to the baseline."""
    figure, rows = _row_a_setting(table, 3)
    for axes, part in rows:
        base = baseline(part.loss.unique())
        means = part.groupby(["criterion", "loss", "threshold"], sort=False, as_index=False).AP.mean()
        iou, giou = (means[means.criterion == criterion] for criterion in ("iou", "giou"))
        gain = iou.assign(AP=iou.AP - iou.threshold.map(iou[iou.loss == base].set_index("threshold").AP))
        for axis, lines, criterion in zip(axes, (iou, giou, gain), ("IoU", "GIoU", "IoU"), strict=True):
            style.draw_losses(axis, lines, "threshold", "AP")
            axis.set(xlabel=f"threshold of {criterion}", ylabel="AP", ylim=(None if lines is gain else 0, None))
        axes[2].set_ylabel(f"AP − AP of {registry.label(base)}")
    style.legend_below(figure, figure.axes)
    return figure


# ---- the weight of the loss


def weights(runs: pd.DataFrame) -> pd.DataFrame:
    """AP against the weight in the settings where a loss was run at several: mean, 95 % CI and n over seeds."""
    keys, rows = ["dataset", "detector", "loss", "weight", "setting"], []
    for key, part in runs.groupby("setting").filter(_has_several_weights).groupby(keys, sort=False):
        low, high = statistics.mean_interval(part.AP)
        rows.append(dict(zip(keys, key, strict=True)) | dict(mean=part.AP.mean(), low=low, high=high, n=len(part)))
    return pd.DataFrame(rows)


@style.styled
def plot_weights(table: pd.DataFrame):
    """AP against the weight of the box loss, mean and 95 % CI, a panel a setting."""
    settings = list(table.groupby("setting", sort=False))
    figure, axes = style.panels(1, len(settings), width=4)
    for axis, (setting, part) in zip(axes[0], settings, strict=True):
        style.draw_losses(axis, part, "weight", "mean", ("low", "high"), markevery=1)
        axis.set(xscale="log", xlabel="weight of the box loss", ylabel="AP")
        axis.set_xticks(part.weight.unique(), [f"{weight:g}" for weight in part.weight.unique()])
        axis.minorticks_off()
        _set_title(axis, setting)
    style.legend_below(figure, axes)
    return figure
