"""results/published/: the committed copy of finished runs, the README's two tables, and a page on what was found."""

import ctypes
import hashlib
import json
import os
import shutil
from pathlib import Path

import pandas as pd

from giou_repro import losses
from giou_repro.experiments import comparison, convergence
from giou_repro.registry import LOSSES, label
from giou_repro.report import claims, verdicts
from giou_repro.runs import store
from giou_repro.simulation import CASES_PER_POINT, diou_code

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux: paths from the current folder; two names change places
COPIED = (".png", ".json", ".csv")
LARGEST = 500_000  # bytes of a table; larger ones stay in the run folder
BEGIN, END = "<!-- made by giou-repro publish: begin -->\n", "<!-- end -->\n"
LEDGER = "<!-- claims, made by giou-repro publish: begin -->\n", "<!-- claims end -->\n"


def add(run_folder: Path | str, project: Path | None = None) -> Path:
    """Copy a run to results/published/<notebook>/ and renew what is made of the published runs. Returns the new folder.

    Taken: run.json and those of the runs it compares, the figures as PNG, the tables up to 500 kB. The copy that was
    there before is exchanged in one step, once all that is made of it could be made. Raises ValueError for a folder
    without a run, and for a run that is not complete, not the runner's, not of scale "paper", of code that is not
    committed, or with a loss from elsewhere, the runs it compares included.
    """
    project, run = Path(project or store.project_folder()), store.Run(run_folder)
    if not (run.folder / "run.json").is_file():
        raise ValueError(f"{run_folder} is not a run folder: it has no run.json; name results/<notebook>/<run-id>")
    if run.folder.name not in {other.folder.name for other in store.runs(run.folder.resolve().parents[1])}:
        raise ValueError(f"{run_folder} is not a run folder: its run.json is damaged, or not a run's")
    _check(run)
    place = project / "results" / "published" / run.record["notebook"]
    new = place.with_name(f".{place.name}.new")
    _remove_leftovers(project)
    for source in [run.folder / name for name in ("run.json", *run.record["outputs"])]:
        if source.suffix in COPIED and (source.suffix != ".csv" or source.stat().st_size <= LARGEST):
            target = new / source.relative_to(run.folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    texts = _texts(project, published_runs(project) | {place.name: store.Run(new)})
    if place.exists():
        _exchange(new, place)
    else:
        new.rename(place)
    _write(project, texts)
    return place


def renew(project: Path | None = None) -> list[Path]:
    """Renew claims.csv and README.md in results/published/, and the project's README, from the published runs.

    Returns their paths. Raises FileNotFoundError where nothing is published.
    """
    project = Path(project or store.project_folder())
    runs = published_runs(project)
    if not runs:
        place = project / "results" / "published"
        raise FileNotFoundError(f"nothing is published in {place}; name a run folder: results/<notebook>/<run-id>")
    return _write(project, _texts(project, runs))


def published_runs(project: Path) -> dict[str, store.Run]:
    """The runs that are published: notebook → Run."""
    paths = (Path(project) / "results" / "published").glob("[0-9]*/run.json")
    return {path.parent.name: store.Run(path.parent) for path in sorted(paths)}


def compared_records(run: store.Run) -> list[dict]:
    """The records of the runs that a run compares, which it keeps under runs/."""
    return [json.loads(path.read_text()) for path in sorted(run.folder.glob("runs/*.json"))]


def _texts(project, runs):
    """What is made of published runs (notebook → Run): path → text."""
    ledger, place = claims.ledger(runs), project / "results" / "published"
    readme = with_tables((project / "README.md").read_text(), runs, ledger)
    return {
        place / "claims.csv": ledger[claims.COLUMNS].to_csv(index=False),
        place / "README.md": summary(runs, ledger),
        project / "README.md": readme,
    }


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


def _check(run):
    """Raise ValueError, with every reason, where a run or one that it compares is not fit to be published."""
    record, compared = run.record, compared_records(run)
    foreign = [f"loss {name} of run {source}" for name, source in _foreign_losses(run, [record, *compared]).items()]
    changed = [name for name, digest in record.get("outputs", {}).items() if _sha256(run.folder / name) != digest]
    changed = [name for name in changed if name.endswith(COPIED)]
    reasons = {
        "it compares runs of code that is not committed": any(entry["dirty"] is not False for entry in compared),
        f"it is {record['status']}": record["status"] != "complete",
        "it was not made by giou-repro run, so its notebook is elsewhere": not record["runner"],
        "its code is not committed": record["dirty"] is not False,
        f"not part of the package: {', '.join(foreign)}": bool(foreign),
        f"not as the run left them: {', '.join(changed)}": bool(changed),
        'its scale is not "paper"': record["parameters"].get("scale") != "paper",
    }
    wrong = [reason for reason, holds in reasons.items() if holds]
    if wrong:
        raise ValueError(f"{run.folder} cannot be published: {'; '.join(wrong)}")


def _sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _foreign_losses(run, records):
    """The losses that are not of the package, in the records and the table of a run: name → the run that has it."""
    used = {}
    for record in records:
        for parameters in (record["given"], record["parameters"]):
            used |= dict.fromkeys([parameters.get("loss"), *(parameters.get("losses") or [])], record["run"])
    if (run.folder / "detectors.csv").is_file():
        used |= dict(run.table("detectors")[["loss", "run"]].itertuples(index=False))
    own = {None, *(name for name, entry in LOSSES.items() if entry.function.__module__ == losses.__name__)}
    return {name: source for name, source in used.items() if name not in own}


def with_tables(readme: str, runs: dict[str, store.Run], ledger: pd.DataFrame) -> str:
    """The README's text with the parts between its marks made new from published runs and their ledger."""
    note = f"\n{VERDICTS}\n" if "06_compare_losses" in runs else ""
    measured = ledger[["id", "claim", "verdict", "words"]].assign(verdict="**" + ledger.verdict + "**")
    measured.columns = ["", "claim", "verdict", "measured"]
    parts = [(BEGIN, END, markdown(reproduced(runs, detector_settings(runs))) + note), (*LEDGER, markdown(measured))]
    for begin, end, text in parts:
        before, rest = readme.split(begin, 1)
        readme = before + begin + text + end + rest.split(end, 1)[1]
    return readme


def markdown(table: pd.DataFrame) -> str:
    """A table of text in Markdown."""
    lines = [f"| {' | '.join(cells)} |" for cells in (table.columns, *table.itertuples(index=False))]
    return "\n".join([lines[0], "|" + "---|" * len(table.columns), *lines[1:]]) + "\n"


# ---- what was reproduced: a row each


VERDICTS = (
    "On detectors, “better” and “worse” take five paired seeds; all comparisons of a setting, in AP, AP50, AP75 and "
    "mean IoU, are corrected together (Holm)."
)

INTERVALS = "Differences are means over the same seeds, with the 95 % interval of each alone."


def reproduced(
    runs: dict[str, store.Run], settings: list[tuple], numbers: bool = False, remarks: bool = True
) -> pd.DataFrame:
    """The table "what was reproduced", as text, from runs (notebook → Run) and their `detector_settings`.

    For detectors `numbers` adds differences and intervals, and `remarks` what has to be said of the published runs.
    """
    makers = {"01_metric": _metric_rows, "03_simulation": _simulation_rows}
    rows = [row for notebook, maker in makers.items() if notebook in runs for row in maker(runs[notebook])]
    for name, group, table in settings:
        n = f"{table.n.min()} paired seeds" if len(table) else f"{group.seed.nunique()} seeds, one loss"
        means = _listed(group.groupby("loss", sort=False).AP.mean(), "{:.3f}")
        words = [f"{means}.", verdict_sentences(table, numbers), claims.remark(group) if remarks else ""]
        paper = "GIoU best" if any(data in name.lower() for data in ("voc", "coco")) else "–"
        rows.append([f"AP, {name}; {n}", paper, " ".join(filter(None, words)), "06"])
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
    published, exact = (ends[ends.run == way].set_index("loss").error for way in verdicts.GRADIENTS)
    names = [name for name in diou_code.PUBLISHED if name in published and name in exact]
    best = sweep.loc[sweep.groupby("loss").error.idxmin()].set_index("loss").loc[names]
    tuned = (f"{label(row.Index)} {row.error * millions:.3f} (at {row.step_size:g})" for row in best.itertuples())
    cases = run.parameters["sweep_points"] * CASES_PER_POINT
    searched = f"the same, each at the best of {sweep.step_size.nunique()} step sizes, scaled from {cases:,} cases"
    what = f"simulation, error after {last} steps, millions, gradients as published"
    printed, measured, corrected = (
        _listed(errors[names] * millions, form)
        for errors, form in [(paper, "{:.2f}"), (published, "{:.3f}"), (exact, "{:.3f}")]
    )
    return [
        [what, printed, measured, "03"],
        ["the same with exact gradients", "–", corrected, "03"],
        [searched, "–", ", ".join(tuned), "03"],
    ]


# ---- detectors: the settings of a run of 06, and what their tests say


def detector_settings(runs: dict[str, store.Run]) -> list[tuple[str, pd.DataFrame, pd.DataFrame]]:
    """(name, its runs, its differences) of each of verdicts.settings, from runs (notebook → Run)."""
    run = runs.get("06_compare_losses")
    groups = verdicts.settings(run.table("detectors")) if run and (run.folder / "detectors.csv").is_file() else {}
    table = verdicts.differences(groups)
    return [(name, group, table[table.setting == name]) for name, group in groups.items()]


def verdict_sentences(table: pd.DataFrame, numbers: bool = False) -> str:
    """The verdicts of a setting's differences in sentences; `numbers` adds the difference and its interval."""
    decided = table.verdict.isin(("better", "worse"))
    text = [label(row.loss) + f" {comparison.difference_label(row)}" * numbers for row in table.itertuples()]
    sentences = []
    for against, part in table.assign(text=text)[decided].groupby("against", sort=False):
        lists = part.groupby(["measure", "verdict"], sort=False).text.agg(", ".join)
        clauses = (
            f"{comparison.measure_label(measure)} {verdict}: {losses}" for (measure, verdict), losses in lists.items()
        )
        sentences.append(f"Against {label(against)}: {'; '.join(clauses)}.")
    for verdict, part in table[~decided].groupby("verdict", sort=False):
        which = f"{'All' if len(part) == len(table) else 'The other'} {len(part)} comparisons"
        sentences.append(f"{which}, against {', '.join(map(label, part.against.unique()))}: {verdict}.")
    return " ".join(sentences)


def difference_table(table: pd.DataFrame) -> pd.DataFrame:
    """Every difference of a setting, with interval and verdict, as text: a row a pair of losses, a column a measure."""
    table = table.assign(text=[f"{comparison.difference_label(row)} {row.verdict}" for row in table.itertuples()])
    measures = list(table.measure.unique())
    rows = [
        [label(loss), label(against), *part.set_index("measure").text[measures]]
        for (loss, against), part in table.groupby(["loss", "against"], sort=False)
    ]
    return pd.DataFrame(rows, columns=["loss", "against", *map(comparison.measure_label, measures)])


# ---- results/published/README.md


SUMMARY = """# What was found

Made by `giou-repro publish` from the runs in this folder. Hardware, versions, commit and time of each are in its
`run.json`; every detector run is a row of `06_compare_losses/detectors.csv`, and its record is in
`06_compare_losses/runs/`.

{lines}

VOC2007 is 2,500 train and 1,000 val images of VOC 2007, encoded again as JPEG, with rebuilt XML: AP on it compares
losses here, and is not that of the official test set. BCCD is 364 images of blood cells. Where they are from:
[data/README.md](../../data/README.md). Every claim: [claims.csv](claims.csv).
"""
DIFFERENCES = """
## Every difference between detectors

{verdicts} {intervals}
"""


def summary(runs: dict[str, store.Run], ledger: pd.DataFrame) -> str:
    """results/published/README.md: what was found, in about ten lines, from published runs and the ledger made of
    them."""
    lines, settings = [], detector_settings(runs)
    for row in reproduced(runs, settings, numbers=True).itertuples():
        paper = "" if row.paper == "–" else f" (The paper: {row.paper}.)"
        lines.append(f"{row.what[0].upper()}{row.what[1:]}: {row.ours.removesuffix('.')}.{paper}")
    run = runs.get("03_simulation")
    if run and (run.folder / "every_loss.csv").is_file():
        words = convergence.describe_every_loss(run.table("every_loss"), run.parameters["step_size"])
        lines.append(words.removeprefix("**What we see.** "))
    counts = (f"{verdict}: {', '.join(ids)}" for verdict, ids in ledger.groupby("verdict", sort=False).id)
    lines.append(f"The papers' {len(ledger)} claims. {'; '.join(counts)}.")
    text = SUMMARY.format(lines="\n".join(f"{number}. {line}" for number, line in enumerate(lines, 1)))
    tables = [f"\n### {name}\n\n{markdown(difference_table(table))}" for name, _, table in settings if len(table)]
    return text + (DIFFERENCES.format(verdicts=VERDICTS, intervals=INTERVALS) + "".join(tables) if tables else "")
