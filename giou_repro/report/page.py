"""The report: the tables and figures that notebook 07_report shows, of published runs and of the reader's own, and the
page that nbconvert makes of the executed notebook: one file, without scripts or links to the net."""

import html
import os
import tempfile
from pathlib import Path

import pandas as pd
from IPython.display import Image, Markdown

from giou_repro.experiments import comparison
from giou_repro.registry import label
from giou_repro.report import claims, detector_verdicts, findings, publish, verdicts
from giou_repro.runs import pages, runner, store

NOTEBOOK = "07_report"
OUTPUTS = ("report.html", "claims.csv")  # without which a run of the notebook is not complete
SCALES = ("smoke", "laptop", "paper")
SIGNS = {verdicts.HOLDS: "✔", verdicts.FAILS: "✘", verdicts.UNDECIDED: "?", verdicts.UNTESTED: "…"}
FIGURES = [  # notebook, figure, caption
    (
        "01_metric",
        "figure_1",
        "The paper's figure 1. In a row all predictions (black) are equally far from the target (green): compare IoU.",
    ),
    (
        "02_loss_landscape",
        "steepness",
        "Left, the size of each loss's gradient at each IoU; right, the correlation of IoU and GIoU.",
    ),
    (
        "03_simulation",
        "convergence",
        "Mean error of a box against the gradient step, with the published formulae (circles: the paper's curves) and "
        "with the exact gradients; lower is better.",
    ),
    (
        "03_simulation",
        "surfaces",
        "A dot is a starting point, its colour the mean error after the last step; the targets are in the middle.",
    ),
    (
        "03_simulation",
        "departures",
        "A row is a set of corrections of the published gradients, from none (black) to all (white); "
        "left the error after the last step, right the steps to half the error.",
    ),
    (
        "03_simulation",
        "step_sizes",
        "Error left against the step size, exact gradients: compare the lowest points of the lines.",
    ),
    (
        "04_one_box",
        "dose",
        "A small network: above, mean IoU at the end against the share of targets disjoint from the first box; below, "
        "the difference to ℓ1 with its 95 % interval, above 0 where a loss is better.",
    ),
    (
        "06_compare_losses",
        "every_run",
        "A marker is a detector run (a seed), a bar the mean. Where markers mix, two runs rank by their seeds.",
    ),
    (
        "06_compare_losses",
        "paired",
        "Differences between losses on the same seeds with 95 % intervals, in points; a full dot is a verdict, better "
        "or worse, after correction for all differences of a setting.",
    ),
    (
        "06_compare_losses",
        "dial",
        "The gain of GIoU over another loss, with its 95 % interval, against the share of disjoint positives.",
    ),
    (
        "06_compare_losses",
        "thresholds",
        "AP at each threshold of a match, by IoU (left) and GIoU (middle), and its difference to the coordinate loss.",
    ),
    ("06_compare_losses", "curves", "By epoch, means over seeds: classification loss, mean IoU of the positives, AP."),
]
Sources = dict[str, dict[str, store.Run]]


def sources(results: Path | str, scale: str = "laptop") -> Sources:
    """The runs that a report is about: "published" and "yours", each notebook → Run; one without runs is left out.

    Published are the project's; yours are the newest complete ones under the folder `results`, at `scale` or larger.
    Raises FileNotFoundError where there is no run at all.
    """
    smaller = SCALES[: SCALES.index(scale)]
    complete = [run for run in store.runs(results, status="complete") if run.parameters.get("scale") not in smaller]
    yours = {run.record["notebook"]: run for run in complete if run.record["notebook"] != NOTEBOOK}
    both = {"published": publish.published_runs(store.project_folder()), "yours": dict(sorted(yours.items()))}
    if not any(both.values()):
        raise FileNotFoundError(
            f"no complete run under {results}, and none published; make some: giou-repro run 01_metric"
        )
    return {whose: runs for whose, runs in both.items() if runs}


def results_around(folder: Path) -> Path:
    """The results folder that holds the run folder <results>/07_report/<run-id>; of any other folder the project's."""
    return folder.parents[1] if folder.parent.name == NOTEBOOK else store.project_folder() / "results"


def write(out: Path | str, results: Path | str, scale: str = "laptop") -> Sources:
    """Run the notebook in a temporary folder and write its page to the file `out`, and nothing else. Returns `sources`.

    Raises FileNotFoundError where there is no run, RuntimeError where the notebook fails.
    """
    out, results = Path(out).resolve(), Path(results).resolve()
    runs = sources(results, scale)
    out.parent.mkdir(parents=True, exist_ok=True)
    given = dict(scale=scale, results=str(results), links_from=str(out.parent))
    with tempfile.TemporaryDirectory() as folder:
        run = runner.run_notebook(NOTEBOOK, given, folder, progress=False)
        store.write_atomic(out, (run.folder / "report.html").read_bytes())
    return runs


def save(run: store.Run, results: Path | str) -> None:
    """Write report.html into the run folder of a notebook at its end, from its executed copy there.

    Without the runner there is no copy: the page is then that of a second, headless run.
    """
    copy, out = run.folder / "notebook.ipynb", run.folder / "report.html"
    if copy.is_file():
        run.save(out.name, exported(copy))
    else:
        write(out, results, run.parameters["scale"])


def exported(notebook: Path) -> str:
    """The page of an executed notebook: its text, tables and figures, without code and prompts."""
    template = Path(__file__).with_name("page.html.j2").read_text(encoding="utf-8")
    without = dict.fromkeys(("exclude_input", "exclude_output_prompt", "exclude_anchor_links"), True)
    return pages.exported(notebook, raw_template=template, **without)


# ---- the tables


def ledger(sources: Sources) -> pd.DataFrame:
    """claims.ledger of each of `sources`, named in the column `whose`: a row a claim, and one for yours where you have
    a run."""
    tables = [claims.ledger(runs).assign(whose=whose) for whose, runs in sources.items()]
    table = pd.concat(tables).sort_index(kind="stable", ignore_index=True)
    return table[(table.run != "") | ~table.id.duplicated()]


def counted(ledger: pd.DataFrame):
    """Which claims have each verdict."""
    return styled(ledger.groupby(["whose", "verdict"], sort=False).id.agg(", ".join).reset_index(name="claims"))


def evidence(ledger: pd.DataFrame, sources: Sources, beside: Path) -> Markdown:
    """findings.cards, with links to the runs from the folder `beside`."""
    folders = {(whose, name): run.folder for whose, runs in sources.items() for name, run in runs.items()}
    return Markdown(
        findings.cards(ledger, lambda row: os.path.relpath(folders[row.whose, row.run.partition("/")[0]], beside))
    )


def styled(table: pd.DataFrame):
    """A table for the notebook and the page: text escaped but for links in the column `run`, verdicts with a sign."""
    table = findings.text(table)
    if "verdict" in table:
        table["verdict"] = [f"{SIGNS.get(verdict, '◐')} {verdict}" for verdict in table.verdict]
    return table.style.hide(axis="index").format(escape="html", subset=table.columns.difference(["run"]))


def answer(sources: Sources, beside: Path) -> list:
    """“Which loss should I use?”, from the published runs, and from yours where they measured any of it."""
    shown = []
    for whose, runs in sources.items():
        table = findings.answer(runs)
        links = [_link(runs[name], beside) if name in runs else "" for name in table.pop("notebook")]
        shown += [Markdown(f"### {whose.capitalize()}"), styled(table.assign(run=links))] if table.n.any() else []
    return shown


def _link(run, beside):
    """A link to the folder of a run from the folder `beside`."""
    return f'<a href="{html.escape(os.path.relpath(run.folder, beside))}">{run.record["notebook"]}</a>'


def figures(sources: Sources) -> list:
    """The main figures, each before its caption: the reader's own where there is one, else the published."""
    shown = []
    for notebook, name, caption in FIGURES:
        folders = {whose: runs[notebook].folder for whose, runs in sources.items() if notebook in runs}
        paths = [(whose, folder / "figures" / f"{name}.png") for whose, folder in folders.items()]
        for whose, path in [(whose, path) for whose, path in paths if path.is_file()][-1:]:
            number = len(shown) // 2 + 1
            words = f"**Figure {number}.** *How to read it*: {caption} ({notebook}, {whose})"
            shown += [Image(path, alt=caption), Markdown(words)]
    return shown


def reproduced(whose: str, runs: dict[str, store.Run]) -> list:
    """The table "what was reproduced", and for each setting of detectors the means and every difference."""
    shown = [Markdown(f"### {whose.capitalize()}"), styled(findings.reproduced(runs))]
    tables = findings.setting_tables(runs)
    if findings.DETECTORS in runs:
        none = f"No detector reached a mean AP of {detector_verdicts.LEARNED}."
        shown.append(Markdown(findings.RULES if tables else none))
    for name, parts in tables.items():
        shown += [Markdown(f"#### {name} ({whose})"), *map(styled, parts)]
    return shown


def paper_tables(sources: Sources) -> pd.DataFrame:
    """The GIoU paper's detector tables, a column of the paper and one of our runs of the same detector, loss and data
    for each measure, those of the setting with most; a question mark follows a number as recalled."""
    groups = [
        group.assign(whose=whose) for whose, runs in sources.items() for group in findings.settings(runs)[0].values()
    ]
    rows = []
    for number, detector, data, loss, *printed in claims.BOOK["paper"]["rows"]:
        family = data.split()[0].lower()
        alike = [group[(group.detector == detector) & (group.loss == loss)] for group in groups]
        alike = [runs for runs in alike if family in "".join(runs.dataset[:1]).lower()]
        runs = max(alike, key=len, default=pd.DataFrame())
        protocol = "voc07_" * (family == "voc" and "voc07_AP" in runs)
        cells = {"table": str(number), "detector": f"{detector}, {data}", "loss": label(loss)}
        for measure, value in zip(map(comparison.measure_label, comparison.MEASURES), printed, strict=True):
            cells[measure] = value.replace("?", " as recalled") or "–"
        for measure in comparison.MEASURES:
            name = f"{comparison.measure_label(measure)}, measured"
            cells[name] = runs[protocol + measure].mean() if protocol + measure in runs else float("nan")
        rows.append(cells | {"n": f"{len(runs)} {runs.whose.iloc[0]}" if len(runs) else "–"})
    return pd.DataFrame(rows)


def costs(sources: Sources, beside: Path):
    """Scale, commit, hardware and wall time of every run, together with the trainings that it compares, each once."""
    rows = []
    for whose, run in [(whose, run) for whose, runs in sources.items() for run in runs.values()]:
        records = [run.record, *publish.compared_records(run)]
        machines = ["{processor}, {cores} cores, {device}".format(**record["hardware"]) for record in records]
        commits = [record["commit"][:7] + " (with changes)" * bool(record["dirty"]) for record in records]
        scales = [str(record["parameters"].get("scale")) for record in records]
        minutes = sum(record.get("wall_seconds", 0) for record in records) / 60
        values = (", ".join(sorted(set(column))) for column in (scales, commits, machines))
        rows.append([_link(run, beside), whose, len(records), *values, f"{minutes:,.1f} min"])
    return styled(pd.DataFrame(rows, columns=["run", "whose", "runs", "scale", "commit", "hardware", "wall time"]))
