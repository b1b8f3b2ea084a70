"""results/published/: the committed copy of finished runs; what was found in them, in ten lines; the README's table and
ledger made from it."""

import ctypes
import json
import os
import shutil
from pathlib import Path

import pandas as pd

from giou_repro import losses
from giou_repro.experiments import comparison, convergence
from giou_repro.registry import LOSSES, label
from giou_repro.report import claims
from giou_repro.runs import store
from giou_repro.simulation import CASES_PER_POINT, diou_code

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux: paths from the current folder; two names change places
LARGEST = 500_000  # bytes of a table; larger ones stay in the run folder
BEGIN, END = "<!-- made by giou-repro publish: begin -->\n", "<!-- end -->\n"
LEDGER = "<!-- claims, made by giou-repro publish: begin -->\n", "<!-- claims end -->\n"


def publish(run_folder, project=None):
    """Copy a run to results/published/<notebook>/ and renew what is made of the published runs. Returns the new folder.

    Taken: run.json and those of the runs it compares, the figures as PNG, the tables up to 500 kB. The copy that was
    there before is exchanged in one step, once all that is made of it could be made. Raises ValueError for a folder
    without a run, and for a run that is not complete, not the runner's, not of scale "paper", of code that is not
    committed, or with a loss from elsewhere, the runs it compares included.
    """
    project, run_folder = Path(project or store.project_folder()), Path(run_folder)
    if not (run_folder / "run.json").is_file():
        raise ValueError(f"{run_folder} is not a run folder: it has no run.json; name results/<notebook>/<run-id>")
    record = store.Run(run_folder).record
    _check(run_folder, record)
    place = project / "results" / "published" / record["notebook"]
    fresh = place.with_name(f".{place.name}.new")
    _remove_leftovers(project)
    for source in [run_folder / name for name in ("run.json", *record["outputs"])]:
        if source.suffix in (".png", ".json") or (source.suffix == ".csv" and source.stat().st_size <= LARGEST):
            target = fresh / source.relative_to(run_folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    texts = _texts(project, published_runs(project) | {record["notebook"]: fresh})
    if place.exists():
        _exchange(fresh, place)
    else:
        fresh.rename(place)
    _write(project, texts)
    return place


def renew(project=None):
    """Renew claims.csv and the page in results/published/, and the README's table and ledger, from the published runs.

    Returns their paths. Raises FileNotFoundError where nothing is published.
    """
    project = Path(project or store.project_folder())
    runs = published_runs(project)
    if not runs:
        place = project / "results" / "published"
        raise FileNotFoundError(f"nothing is published in {place}; name a run folder: results/<notebook>/<run-id>")
    return _write(project, _texts(project, runs))


def _texts(project, runs):
    """What is made of published runs (notebook → folder): path → text."""
    ledger, place = claims.ledger(runs), project / "results" / "published"
    tables = {place / "claims.csv": ledger[claims.COLUMNS].to_csv(index=False), place / "README.md": page(runs, ledger)}
    return tables | {project / "README.md": with_tables((project / "README.md").read_text(), runs, ledger)}


def _write(project, texts):
    for path, text in texts.items():
        store.write_atomic(path, text)
    _remove_leftovers(project)
    return list(texts)


def _remove_leftovers(project):
    for folder in (project / "results" / "published").glob(".*.new"):
        shutil.rmtree(folder)


def _exchange(one, other):
    """Let two folders change places in one step, so that a kill at any moment leaves both whole (Linux's renameat2)."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None or renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE):
        why = os.strerror(ctypes.get_errno()) if renameat2 else "it has no renameat2"
        raise OSError(
            f"{other} cannot be exchanged for the new one in one step ({why}); move it away and publish again"
        )


def _check(run_folder, record):
    """Raise ValueError, with every reason, where a run or one that it compares is not fit to be published."""
    compared = [json.loads(path.read_text()) for path in sorted(run_folder.glob("runs/*.json"))]
    foreign = [f"loss {name} of run {run}" for name, run in _foreign_losses(run_folder, [record, *compared]).items()]
    reasons = {
        "it compares runs of code that is not committed": any(each["dirty"] is not False for each in compared),
        f"it is {record['status']}": record["status"] != "complete",
        "it was not made by giou-repro run, so its notebook is elsewhere": not record["runner"],
        "its code is not committed": record["dirty"] is not False,
        f"not part of the package: {', '.join(foreign)}": bool(foreign),
        'its scale is not "paper"': record["parameters"].get("scale") != "paper",
    }
    wrong = [reason for reason, holds in reasons.items() if holds]
    if wrong:
        raise ValueError(f"{run_folder} cannot be published: {'; '.join(wrong)}")


def _foreign_losses(run_folder, records):
    """The losses that are not of the package, in the records of a run and of those it compares and in its table: name →
    a run."""
    used = {}
    for record in records:
        for parameters in (record["given"], record["parameters"]):
            used |= dict.fromkeys([parameters.get("loss"), *(parameters.get("losses") or [])], record["run"])
    if (run_folder / "detectors.csv").is_file():
        used |= dict(pd.read_csv(run_folder / "detectors.csv")[["loss", "run"]].itertuples(index=False))
    ours = {None, *(name for name, entry in LOSSES.items() if entry.function.__module__ == losses.__name__)}
    return {name: run for name, run in used.items() if name not in ours}


def published_runs(project):
    """The folders of the runs that are published: notebook → folder."""
    return {path.parent.name: path.parent for path in (Path(project) / "results" / "published").glob("[0-9]*/run.json")}


def with_tables(readme, runs, ledger):
    """The README's text with the parts between its marks made new from published runs (notebook → folder) and their
    ledger."""
    found = _markdown(HEAD, reproduced(runs, detector_settings(runs))) + f"\n{VERDICTS}\n" * (
        "06_compare_losses" in runs
    )
    rows = [[row.id, row.claim, f"**{row.verdict}**", row.words] for row in ledger.itertuples()]
    for begin, end, table in ((BEGIN, END, found), (*LEDGER, _markdown(["", "claim", "verdict", "measured"], rows))):
        before, rest = readme.split(begin, 1)
        readme = before + begin + table + end + rest.split(end, 1)[1]
    return readme


def _markdown(head, rows):
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]]) + "\n"


# ---- what was reproduced: a row each


HEAD = ["what", "paper", "ours", "shown in"]
VERDICTS = (
    "On detectors, “better” and “worse” take five paired seeds; all comparisons of a setting, in AP, AP50, AP75 and "
    "mean IoU, are corrected together (Holm)."
)


def reproduced(runs, settings, numbers=False, remarks=True):
    """The table "what was reproduced", rows of text under HEAD, from runs (notebook → folder) and their
    `detector_settings`.

    For detectors `numbers` adds differences and intervals, and `remarks` what has to be said of the published runs.
    """
    makers = {"01_metric": _metric_rows, "03_simulation": _simulation_rows}
    rows = [row for notebook, maker in makers.items() if notebook in runs for row in maker(runs[notebook])]
    for name, group, table in settings:
        n = f"{table.n.min()} paired seeds" if len(table) else f"{group.seed.nunique()} seeds, one loss"
        means = ", ".join(f"{label(loss)} {ap:.3f}" for loss, ap in group.groupby("loss", sort=False).AP.mean().items())
        said = [f"{means}.", verdicts(table, numbers), claims.remark(group) if remarks else ""]
        rows.append([f"AP, {name}; {n}", "GIoU best", " ".join(filter(None, said)), "06"])
    return rows


def _metric_rows(folder):
    figure, properties = pd.read_csv(folder / "figure_1.csv"), pd.read_csv(folder / "properties.csv")
    same = sum((figure[key].round(2) == figure[f"printed_{key}"]).sum() for key in ("iou", "giou"))
    printed, ours = (", ".join(f"{value:.2f}" for value in figure[key]) for key in ("printed_iou", "iou"))
    return [
        ["Figure 1, IoU at equal distance", printed, f"{ours} ({same} of 12 IoU and GIoU equal to 2 digits)", "01"],
        [
            "properties of GIoU, random boxes",
            "proved",
            f"{properties.holds.sum()} of {len(properties)} checks hold",
            "01",
        ],
    ]


def _simulation_rows(folder):
    against = pd.read_csv(folder / "against_paper.csv").set_index(["loss", "step"])
    ends = pd.read_csv(folder / "standings.csv").set_index(["run", "loss"])
    sweep = pd.read_csv(folder / "step_sizes.csv")
    best = sweep.loc[sweep.groupby("loss").error.idxmin()].set_index("loss")
    swept = store.Run(folder).record["parameters"]["sweep_points"] * CASES_PER_POINT
    millions, last = diou_code.CURVE_CASES / 1e6, against.index.get_level_values("step").max()
    names = [
        name for name in diou_code.PUBLISHED if ("published", name) in ends.index and ("exact", name) in ends.index
    ]

    def listed(value):
        return ", ".join(f"{label(name)} {value(name)}" for name in names)

    paper = listed(lambda name: f"{against.paper[name, last] * millions:.2f}")
    printed, exact = (
        listed(lambda name, run=run: f"{ends.error[run, name] * millions:.3f}") for run in ("published", "exact")
    )
    tuned = listed(lambda name: f"{best.error[name] * millions:.3f} (at {best.step_size[name]:g})")
    searched = f"the same, each at the best of {sweep.step_size.nunique()} step sizes, scaled from {swept:,} cases"
    return [
        [f"simulation, error after {last} steps, millions, gradients as published", paper, printed, "03"],
        ["the same with exact gradients", "–", exact, "03"],
        [searched, "–", tuned, "03"],
    ]


# ---- detectors: the settings of a run of 06, and what their tests say


def detector_settings(runs):
    """(name, its runs, its differences) of each of claims.settings, from runs (notebook → folder)."""
    path = runs.get("06_compare_losses", Path()) / "detectors.csv"
    groups = claims.settings(pd.read_csv(path)) if "06_compare_losses" in runs and path.is_file() else {}
    table = claims.differences(groups)
    return [(name, group, table[table.setting == name]) for name, group in groups.items()]


def verdicts(table, numbers=False):
    """The verdicts of a setting's differences in sentences; `numbers` adds the difference and its interval."""
    decided, sentences = table.verdict.isin(("better", "worse")), []
    for against, part in table[decided].groupby("against", sort=False):
        words = []
        for (measure, verdict), rows in part.groupby(["measure", "verdict"], sort=False):
            each = (label(row.loss) + f" {comparison.difference_label(row)}" * numbers for row in rows.itertuples())
            words.append(f"{comparison.measure_label(measure)} {verdict}: {', '.join(each)}")
        sentences.append(f"Against {label(against)}: {'; '.join(words)}.")
    for verdict, part in table[~decided].groupby("verdict", sort=False):
        which = f"{'All' if len(part) == len(table) else 'The other'} {len(part)} comparisons"
        sentences.append(f"{which}, against {', '.join(map(label, part.against.unique()))}: {verdict}.")
    return " ".join(sentences)


def difference_table(table):
    """Every difference of a setting, with interval and verdict, as text: (head, rows), a row a pair of losses."""
    measures, rows = list(table.measure.unique()), []
    for (loss, against), part in table.groupby(["loss", "against"], sort=False):
        found = {row.measure: f"{comparison.difference_label(row)} {row.verdict}" for row in part.itertuples()}
        rows.append([label(loss), label(against), *(found[measure] for measure in measures)])
    return ["loss", "against", *map(comparison.measure_label, measures)], rows


# ---- the page


PAGE = """# What was found

Made by `giou-repro publish` from the runs in this folder. Hardware, versions, commit and time of each are in its `run.json`; every detector run is
a row of `06_compare_losses/detectors.csv`, and its record is in `06_compare_losses/runs/`.

{lines}

VOC2007 is 2,500 train and 1,000 val images of VOC 2007, encoded again as JPEG, with rebuilt XML: AP on it compares losses here, and is not that of
the official test set. BCCD is 364 images of blood cells. Where they are from: [data/README.md](../../data/README.md). Every claim:
[claims.csv](claims.csv).
"""
DIFFERENCES = """
## Every difference between detectors

{verdicts} Differences are means over the same seeds, with the 95 % interval of each alone.
"""


def page(runs, ledger):
    """results/published/README.md: what was found, in about ten lines, from published runs (notebook → folder) and the
    ledger made of them."""
    lines, settings = [], detector_settings(runs)
    for what, paper, ours, _ in reproduced(runs, settings, numbers=True):
        beside = "" if paper == "–" else f" (The paper: {paper}.)"
        lines.append(f"{what[0].upper()}{what[1:]}: {ours.removesuffix('.')}.{beside}")
    every = runs.get("03_simulation", Path()) / "every_loss.csv"
    if every.is_file():
        step_size = store.Run(every.parent).parameters["step_size"]
        lines.append(convergence.describe_every_loss(pd.read_csv(every), step_size).removeprefix("**What we see.** "))
    found = (f"{verdict}: {', '.join(part.id)}" for verdict, part in ledger.groupby("verdict", sort=False))
    lines.append(f"The papers' {len(ledger)} claims. {'; '.join(found)}.")
    text = PAGE.format(lines="\n".join(f"{number}. {line}" for number, line in enumerate(lines, 1)))
    tables = [f"\n### {name}\n\n{_markdown(*difference_table(table))}" for name, _, table in settings]
    return text + (DIFFERENCES.format(verdicts=VERDICTS) + "".join(tables) if tables else "")
