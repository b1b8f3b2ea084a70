"""The tables and sentences of the report and of what is published, each made in one place, from runs (notebook → Run)
and their ledger."""

import numpy as np
import pandas as pd

from giou_repro.experiments import comparison, dial, statistics
from giou_repro.registry import label
from giou_repro.report import detector_verdicts, verdicts
from giou_repro.runs import store
from giou_repro.simulation import CASES_PER_POINT, diou_code

DETECTORS, ONE_BOX, SIMULATION = "06_compare_losses", "04_one_box", "03_simulation"
HEADLINES = ("G1", "Z2", "G16", "G9")  # the claims that README begins with
DISJOINT = "Boxes that may start disjoint from their target"
MOVED = "Positives of which some are disjoint from their target, one stage"
SITUATIONS = [  # situation, detector, measure, loss, against (None: the detector's own loss)
    ("Anchors that overlap their target, one stage", "yolov3", "AP", "giou", None),
    ("The same, against ℓ1", "yolov3", "AP", "giou", "l1"),
    ("Anchors that overlap their target, two stages", "faster_rcnn", "AP", "giou", None),
    ("High thresholds", "yolov3", "AP75", "giou", None),
    ("Low thresholds", "yolov3", "AP50", "giou", None),
    ("Fit of the objects found (mean IoU)", "yolov3", "mean_iou", "giou", None),
]
ENCODINGS = [(DISJOINT, "linear"), ("Set prediction (sigmoid boxes, as in DETR; one box, no matching)", "sigmoid")]
UNMEASURED = [
    ("Small objects", "AP by the size of objects was not measured."),
    ("Noisy coordinates", "No run has noise added to its annotations."),
]
RULES = (
    "“Better” and “worse” take five paired seeds; all comparisons of a setting, in AP, AP50, AP75 and mean IoU, are "
    "corrected together (Holm), so a difference can be undecided although its own interval leaves out 0. Differences "
    "are means over the same seeds, with the 95 % interval of each alone; in "
    "square brackets, where detections were kept, that over images and seeds."
)


def text(table: pd.DataFrame) -> pd.DataFrame:
    """A table with its numbers as text: to three digits, thousands apart, a dash where there is none."""
    forms = {"f": "{:.3g}", "i": "{:,}"}
    return table.apply(lambda column: column.map(forms.get(column.dtype.kind, "{}").format)).replace("nan", "–")


# ---- the claims


def cards(ledger: pd.DataFrame, link) -> str:
    """What decides each claim, in Markdown, a heading a claim. `link(row)` is the address of the run of a row."""
    parts = []
    for row in ledger.itertuples():
        interval = f", 95 % interval {row.low:.3g} to {row.high:.3g}" if np.isfinite(row.low) else ""
        number = f" The number: {row.value:.3g}{interval}, n = {row.n:,}." if np.isfinite(row.value) else ""
        run = f" From [this run]({link(row)})." if row.run else ""
        whose = f" ({row.whose})" if "whose" in ledger else ""
        parts.append(
            f"### {row.id}{whose}\n\n{row.claim} ({row.source})\n\n**{_capital(row.verdict)}.** {row.words}\n\n"
            f"What decides: {row.decided_by}\n\n{f'{number}{run} To run it: `{row.command}`.'.strip()}\n"
        )
    return "\n".join(parts)


def _capital(words):
    return words[0].upper() + words[1:]


def headlines(runs: dict[str, store.Run], ledger: pd.DataFrame) -> str:
    """README's findings: a sentence each, with number, n and link."""
    rows = ledger.set_index("id").loc[list(HEADLINES)]
    lines = [
        f"**{row.claim.removesuffix('.')}: {row.verdict}.** {row.words} (n = {row.n:,}, [{row.Index}](docs/claims.md#"
        f"{row.Index.lower()}))"
        for row in rows.itertuples()
    ]
    row = answer(runs).set_index("situation").loc[DISJOINT]
    lines.append(f"**{DISJOINT}: {row.use}.** {row.measured} (n = {row.n}, [which loss](docs/which_loss.md))")
    return "".join(f"- {line}\n" for line in lines)


# ---- which loss to use


def answer(runs: dict[str, store.Run]) -> pd.DataFrame:
    """“Which loss should I use?”: situation, use, measured, n, notebook; from detectors and from single boxes."""
    (groups, tested), rows = settings(runs), []
    tested = tested.set_index(["setting", "measure", "loss", "against"], drop=False)
    for situation, detector, measure, loss, against in SITUATIONS:
        some = {name: group for name, group in groups.items() if group.detector.iloc[0] == detector}
        try:
            group = detector_verdicts.primary(some, loss, against)
            against = against or detector_verdicts.coordinate_loss(group.loss)
            row = tested.loc[(group.setting.iloc[0], measure, loss, against)]
            words = _advice(row)
            words[1] += detector_verdicts.unsearched(group, row)
            for beside in detector_verdicts.elsewhere(some, group, loss, against):
                for other in tested[tested.index == (beside.setting.iloc[0], measure, loss, against)].itertuples():
                    words[1] += detector_verdicts.said_of(beside, other, comparison.difference_label(other))
        except KeyError:
            words = ["not measured", "A run found no object.", 0]  # for which mean IoU is not compared
        except ValueError as error:
            words = ["not measured", _capital(f"{error}."), 0]
        rows.append([situation, *words, DETECTORS])
    rows.append([MOVED, *_moved(runs), DETECTORS])
    rows += [[situation, *_one_box(runs, encoding), ONE_BOX] for situation, encoding in ENCODINGS]
    rows += [[situation, "not measured", why, 0, ""] for situation, why in UNMEASURED]
    return pd.DataFrame(rows, columns=["situation", "use", "measured", "n", "notebook"])


def _advice(row):
    """What a difference allows to say: use, measured, n."""
    loss, against = label(row.loss), label(row.against)
    use = {"better": loss, "worse": against}.get(row.verdict, f"{loss} or {against}: {row.verdict}")
    measure = comparison.measure_label(row.measure)
    return [use, f"{loss} − {against}: {measure} {comparison.difference_label(row)}; {row.setting}.", row.n]


def _moved(runs):
    """What is better than GIoU, or was not told apart from it, where positives are disjoint: use, measured, n."""
    table = runs[DETECTORS].table("dial") if DETECTORS in runs else pd.DataFrame()
    if table.empty:
        return ["not measured", "No detector was trained with positives moved away from their target.", 0]
    table = dial.at_best_weights(table[(table.measure == dial.MEASURES[0]) & (table.cells_away > 0)])
    verdicts_of = {loss: set(part.verdict) for loss, part in table.groupby("against", sort=False)}
    ahead = [loss for loss, said in verdicts_of.items() if "worse" in said and "better" not in said]
    alike = [loss for loss, said in verdicts_of.items() if "better" not in said]
    use = " or ".join(map(label, ahead or ["giou", *alike]))
    if table.n.min() < statistics.DECIDING:
        use = "undecided: too few seeds"
    parts = (
        f"GIoU − {label(loss)} " + ", ".join(map(comparison.difference_label, part.itertuples()))
        for loss, part in table.groupby("against", sort=False)
    )
    cells = ", ".join(f"{cells:.0f}" for cells in table.cells_away.unique())
    measure = _capital(comparison.measure_label(dial.MEASURES[0]))
    return [use, f"{measure}, YOLOv3, {cells} cells away: {'; '.join(parts)}.", table.n.min()]


def _one_box(runs, encoding):
    """What is better than ℓ1 where 97 % of the first boxes are disjoint, and GIoU − IoU there and where all are: use,
    measured, n."""
    if ONE_BOX not in runs:
        return ["not measured", "No run of 04_one_box.", 0]
    table = runs[ONE_BOX].table("differences").query("encoding == @encoding")
    against_l1 = table[(table.first_box == 97) & (table.against == "l1")]
    better, undecided = (against_l1.loss[against_l1.verdict == verdict].tolist() for verdict in ("better", "undecided"))
    use = " or ".join(map(label, better or ["l1", *undecided]))
    if table.n.min() < statistics.DECIDING:
        use = "undecided: too few seeds"
    shown = [(row, "") for row in against_l1.itertuples() if row.loss in ("giou", *better)]
    giou = table[(table.loss == "giou") & (table.against == "iou") & (table.first_box >= 97)]
    shown += [(row, f" with {row.first_box} % disjoint") for row in giou.itertuples()]
    words = [f"{label(row.loss)} − {label(row.against)} {comparison.difference_label(row)}{at}" for row, at in shown]
    return [use, f"Mean IoU of a small network, 97 % of the first boxes disjoint: {', '.join(words)}.", table.n.min()]


# ---- what was reproduced: a row each


def reproduced(runs: dict[str, store.Run]) -> pd.DataFrame:
    """The table "what was reproduced", as text: the paper's number and ours."""
    makers = {"01_metric": _metric_rows, SIMULATION: _simulation_rows}
    rows = [row for notebook, maker in makers.items() if notebook in runs for row in maker(runs[notebook])]
    return pd.DataFrame(rows, columns=["what", "paper", "ours", "shown in"])


def _listed(values, form):
    """A number for each loss (loss → value) in words."""
    return ", ".join(f"{label(loss)} {form.format(value)}" for loss, value in values.items())


def _metric_rows(run):
    figure, properties = run.table("figure_1"), run.table("properties")
    same = sum((figure[key].round(2) == figure[f"printed_{key}"]).sum() for key in ("iou", "giou"))
    printed, measured = (", ".join(f"{value:.2f}" for value in figure[key]) for key in ("printed_iou", "iou"))
    held = f"{properties.holds.sum()} of {len(properties)} checks hold"
    return [
        ["Figure 1, IoU at equal distance", printed, f"{measured} ({same} of 12 IoU and GIoU equal to 2 digits)", "01"],
        ["properties of GIoU, random boxes", "proved", held, "01"],
    ]


def _simulation_rows(run):
    """Errors are those of all the paper's cases, in millions."""
    paper, ends, sweep = (run.table(name) for name in ("against_paper", "standings", "step_sizes"))
    millions, last = diou_code.CURVE_CASES / 1e6, paper.step.max()
    paper = paper[paper.step == last].set_index("loss").paper
    published, exact = (ends[ends.run == way].set_index("loss").error for way in verdicts.WAYS)
    names = [name for name in diou_code.PUBLISHED if name in published and name in exact]
    best = sweep.loc[sweep.groupby("loss").error.idxmin()].set_index("loss").loc[names]
    tuned = (f"{label(row.Index)} {row.error * millions:.3f} (at {row.step_size:g})" for row in best.itertuples())
    cases = run.parameters["sweep_points"] * CASES_PER_POINT
    searched = f"the same, each at the best of {sweep.step_size.nunique()} step sizes, scaled from {cases:,} cases"
    return [
        [
            f"simulation, error after {last} steps, millions, gradients as published",
            _listed(paper[names] * millions, "{:.2f}"),
            _listed(published[names] * millions, "{:.3f}"),
            "03",
        ],
        ["the same with exact gradients", "–", _listed(exact[names] * millions, "{:.3f}"), "03"],
        [searched, "–", ", ".join(tuned), "03"],
    ]


# ---- detectors: the settings of a run of 06, and what their tests say


def settings(runs: dict[str, store.Run]) -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
    """detector_verdicts.settings of the run of 06, and its differences; none without one."""
    run = runs.get(DETECTORS)
    if run is None or not (run.folder / "paired.csv").is_file():
        return {}, comparison.PAIRED
    return detector_verdicts.settings(run.table("detectors")), run.table("paired")


def setting_tables(runs: dict[str, store.Run]) -> dict[str, list[pd.DataFrame]]:
    """Of each of `settings`: its losses with their means, and every difference, with interval and verdict, as text: a
    row a pair of losses, a column a measure."""
    (groups, tested), tables = settings(runs), {}
    for name, group in groups.items():
        table = tested[tested.setting == name]
        table = table.assign(note=table.get("note", pd.Series("", table.index)).astype(object).fillna(""))
        words = [f"{comparison.difference_label(row)} {row.verdict}" for row in table.itertuples()]
        pairs = table.assign(words=words).groupby(["loss", "against"], sort=False)
        rows = [[*map(label, pair), part.n.min(), *part.words, part.note.iloc[0]] for pair, part in pairs]
        columns = ["loss", "against", "n", *map(comparison.measure_label, table.measure.unique()), "note"]
        means = comparison.paper_table(group).drop(columns="setting").rename(columns=comparison.measure_label)
        tables[name] = [means.assign(loss=means.loss.map(label)), pd.DataFrame(rows, columns=columns)]
    return tables
