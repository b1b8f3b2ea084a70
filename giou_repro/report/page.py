"""The report: one page, for someone who has never seen the project, of what is published and of the reader's own runs.

The page is one file without scripts or links to the net; figures are inside, links lead to the run folders beside it.
"""

import base64
import html
import json
import os
from pathlib import Path

import pandas as pd

from giou_repro.experiments import comparison
from giou_repro.registry import label
from giou_repro.report import claims, publish
from giou_repro.runs import store

OUTPUTS = ("report.html", "claims.csv")  # without which a run of the notebook is not complete
SCALES = ("smoke", "laptop", "paper")
SIGNS = {
    claims.HOLDS: ("✔", "holds"),
    claims.CONDITION: ("◐", "condition"),
    claims.FAILS: ("✘", "fails"),
    claims.UNDECIDED: ("?", "untested"),
    claims.UNTESTED: ("…", "untested"),
}
FIGURES = [  # notebook, figure, what to look at
    (
        "01_metric",
        "figure_1",
        "The paper's figure 1: predictions (black) equally far from the target (green) overlap it very differently.",
    ),
    (
        "02_loss_landscape",
        "steepness",
        "How steep each loss is (left), and how IoU and GIoU go together (right), against the overlap.",
    ),
    (
        "03_simulation",
        "convergence",
        "Boxes moved by gradient steps: with the published formulae (circles: the paper) and the exact gradients.",
    ),
    (
        "03_simulation",
        "surfaces",
        "Where the error stays: each dot is a starting point around the targets in the middle.",
    ),
    ("03_simulation", "step_sizes", "The order of the losses depends on the step size."),
    ("06_compare_losses", "every_run", "Every detector run as a dot, the means as bars."),
    (
        "06_compare_losses",
        "paired",
        "Differences between losses on the same seeds, with 95 % intervals: those that cross the line say nothing.",
    ),
    ("06_compare_losses", "thresholds", "AP against the threshold of the match, by IoU and by GIoU."),
    ("06_compare_losses", "curves", "Training: classification loss, mean IoU of the positives, AP."),
]
QUESTION = (
    "Object detectors learn to place boxes by minimising a loss, usually a distance between coordinates, although they are judged by overlap (IoU). "
    "Rezatofighi et al. (CVPR 2019) proposed to minimise 1 − GIoU, an overlap that still tells near from far when boxes are disjoint; Zheng et al. "
    "(AAAI 2020) answered that it converges slowly. Here every claim of these papers is computed again, from the losses themselves to trained "
    "detectors, and each ends in a verdict with the number and the run that decide it."
)
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1b1b; max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
h1 { line-height: 1.2 } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc }
table { border-collapse: collapse; font-size: .9rem; margin: 1rem 0 } th { text-align: left; border-bottom: 2px solid #666 }
td, th { padding: .35rem .6rem; vertical-align: top } tr + tr td { border-top: 1px solid #ddd } td.number { text-align: right; white-space: nowrap }
small, figcaption, .note { color: #555; font-size: .85rem } code { font-size: .85em } figure { margin: 1.5rem 0 } img { max-width: 100% }
.wide { overflow-x: auto } .verdict { display: inline-block; white-space: nowrap; padding: .1rem .4rem; border: 2px solid; border-radius: .3rem;
  font-weight: 600; font-size: .85rem }
.holds { background: #0b5394; border-color: #0b5394; color: #fff } .condition { background: #dbe9f6; border-color: #0b5394; border-style: dashed }
.fails { background: #fff; border-color: #b45309; border-width: 4px; color: #8a3c00 }
.untested { background: #f1f1f1; border-color: #999; color: #444 }
"""


def sources(results, scale="laptop"):
    """Whose runs a report speaks of: "published" and "yours", each notebook → folder; one without runs is left out.

    Published are the project's; yours are the newest complete ones under the folder `results`, at `scale` or larger.
    """
    smaller = SCALES[: SCALES.index(scale)]
    complete = [run for run in store.runs(results, status="complete") if run.parameters.get("scale") not in smaller]
    yours = {run.record["notebook"]: run.folder for run in complete if run.record["notebook"] != "07_report"}
    found = {"published": publish.published_runs(store.project_folder()), "yours": yours}
    return {whose: dict(sorted(runs.items())) for whose, runs in found.items() if runs}


def ledger(found):
    """claims.ledger of each of `sources`, told apart by the column `whose`: a row a claim, and one for yours where you
    have a run."""
    tables = [claims.ledger(runs).assign(whose=whose) for whose, runs in found.items()]
    table = pd.concat(tables).sort_index(kind="stable", ignore_index=True)
    return table[(table.run != "") | ~table.id.duplicated()]


def describe_ledger(table):
    """The verdicts of `ledger`, by whose runs they are."""
    words = []
    for whose, part in table.groupby("whose", sort=False):
        each = (f"{len(ids)} {verdict} ({', '.join(ids)})" for verdict, ids in part.groupby("verdict", sort=False).id)
        words.append(f"{whose.capitalize()}: {'; '.join(each)}.")
    return f"**What we see.** {' '.join(words)}"


def page(found, beside):
    """The page as HTML text, from `sources`; links are relative to the folder `beside`."""
    table, detectors = ledger(found), {whose: publish.detector_settings(runs) for whose, runs in found.items()}
    summary = describe_ledger(table).removeprefix("**What we see.** ")
    ours = "".join(_reproduced(whose, found[whose], detectors[whose]) for whose in found)
    parts = [
        f"<h1>Which box-regression loss to use, measured</h1><p>{_text(QUESTION)}</p><p>{_text(summary)}</p>",
        f"<h2>The claims</h2>{_claims(table, found, beside)}",
        f"<h2>The main figures</h2>{''.join(_figure(found, *entry) for entry in FIGURES)}",
        f"<h2>Ours and the papers'</h2>{ours}{_paper_tables(detectors)}",
        f"<h2>Where we depart from the papers, and why</h2>{_deviations()}",
        f"<h2>Runs, hardware and cost</h2>{_costs(found, beside)}",
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>giou-repro: the report</title><style>{STYLE}</style>'
    body = "\n".join(parts)
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def write(results, out, scale="laptop"):
    """Write the page to the file `out`, and nothing else. Returns `sources` of the folder `results`.

    `results` None stands for the folder that `out` lies in as <results>/07_report/<run-id>/report.html, and else for
    the project's. Raises FileNotFoundError where there is no run at all.
    """
    out = Path(out).resolve()
    if results is None:
        results = out.parents[2] if out.parents[1].name == "07_report" else store.project_folder() / "results"
    found = sources(results, scale)
    if not found:
        raise FileNotFoundError(
            f"no complete run under {results}, and none published; make some: giou-repro run 01_metric"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    store.write_atomic(out, page(found, out.parent))
    return found


def _text(value):
    return html.escape(str(value))


def _number(value, digits=3):
    if pd.isna(value):
        return "–"
    return "0" if value == 0 else f"{value:.{digits}f}" if 10**-digits <= abs(value) < 1e5 else f"{value:.1e}"


def _table(head, rows):
    """An HTML table; cells are HTML already, those of numbers are set to the right."""
    body = "".join(
        "<tr>"
        + "".join(f'<td class="number">{c[1]}</td>' if isinstance(c, tuple) else f"<td>{c}</td>" for c in row)
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="wide"><table><tr>{"".join(f"<th>{_text(name)}</th>" for name in head)}</tr>{body}</table></div>'
    )


def _verdict(verdict):
    sign, kind = SIGNS[verdict]
    return f'<span class="verdict {kind}">{sign} {_text(verdict)}</span>'


def _link(folder, beside, text):
    return f'<a href="{_text(os.path.relpath(folder, beside))}">{_text(text)}</a>'


def _claims(table, found, beside):
    rows = []
    for claim, again in zip(table.itertuples(), table.id.duplicated(), strict=True):
        measured = (
            f"{_number(claim.value)} <small>[{_number(claim.low)}, {_number(claim.high)}], n = {claim.n:,}</small><br>"
            if claim.n
            else ""
        )
        notebook, runs = claims.BOOK["claims"][claim.id]["notebook"], found[claim.whose]
        run = _link(runs[notebook], beside, notebook) if notebook in runs else _text(notebook)
        rows.append(
            [
                f"<b>{claim.id}</b>",
                "" if again else f"{_text(claim.claim)}<br><small>{_text(claim.source)}</small>",
                f"{_verdict(claim.verdict)}<br><small>{claim.whose}</small>",
                f"{measured}{_text(claim.words)}<br><small>{'' if again else _text(claim.decided_by)}</small>",
                f"{run}<br><code>{_text(claim.command)}</code>",
            ]
        )
    head = ["", "claim", "verdict, by whose runs", "what was measured, and what decides", "shown by, repeated by"]
    return _table(head, rows)


def _figure(found, notebook, name, caption):
    """The reader's own figure where there is one, else the published."""
    for whose in ("yours", "published"):
        path = found.get(whose, {}).get(notebook, Path()) / "figures" / f"{name}.png"
        if path.is_file():
            image = f'<img src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}" alt="{_text(caption)}">'
            return f"<figure>{image}<figcaption>{_text(caption)} ({notebook}, {whose})</figcaption></figure>\n"
    return ""


def _reproduced(whose, runs, settings):
    """The table "what was reproduced", and for each setting of detectors the means and every difference."""
    rows = publish.reproduced(runs, settings, remarks=whose == "published")
    parts = [f"<h3>{whose.capitalize()}</h3>", _plain_table(publish.HEAD, rows) if rows else ""]
    if "06_compare_losses" in runs:
        said = f"{publish.VERDICTS} Differences are means over the same seeds, with the 95 % interval of each alone."
        parts.append(
            f'<p class="note">{said if settings else f"No detector reached a mean AP of {claims.LEARNED}."}</p>'
        )
    for name, group, table in settings:
        parts.append(f"<h4>{_text(name)} ({whose})</h4>{_means(group)}")
        parts.append(_plain_table(*publish.difference_table(table)) if len(table) else "")
    return "".join(parts)


def _plain_table(head, rows):
    return _table(head, [[_text(cell) for cell in row] for row in rows])


def _means(group):
    """A setting's losses: weight, number of runs and the mean of each measure over them."""
    measures = list(dict.fromkeys([*comparison.TESTED, *comparison.MEASURES]))
    rows = []
    for loss, part in group.groupby("loss", sort=False):
        cells = [_text(label(loss)), ("n", ", ".join(f"{w:g}" for w in part.weight.unique())), ("n", len(part))]
        rows.append(cells + [("n", _number(part[measure].mean())) for measure in measures])
    return _table(["loss", "weight", "n", *map(comparison.measure_label, measures)], rows)


def _paper_tables(detectors):
    """The paper's detector tables, a column of the paper and one of ours for each measure."""
    groups = [group.assign(whose=whose) for whose, settings in detectors.items() for _, group, _ in settings]
    rows = []
    for row in claims.paper_tables().itertuples():
        ours, protocol = _ours(row, groups)
        cells = [
            str(row.table),
            f"{claims.TABLES[row.table]}",
            _text(label(row.loss) if row.loss != "l2" else "MSE (ℓ2)"),
        ]
        for measure in comparison.MEASURES:
            told = getattr(row, measure)
            paper = f"{told.rstrip('?')}{' <small>as recalled</small>' if told.endswith('?') else ''}" if told else "–"
            cells += [
                ("n", paper),
                ("n", _number(ours[protocol + measure].mean()) if len(ours) and protocol + measure in ours else "–"),
            ]
        rows.append([*cells, ("n", f"{len(ours)} {ours.whose.iloc[0]}" if len(ours) else "–")])
    head = [part for measure in comparison.MEASURES for part in (comparison.measure_label(measure), "ours")]
    note = "Numbers “as recalled” were not read in the paper: they are shown and decide nothing. Ours on VOC are in the VOC 2007 protocol."
    note = note if groups else f"No detector runs to set beside them yet. {note}"
    return f'<h3>The GIoU paper\'s detector tables</h3><p class="note">{note}</p>' + _table(
        ["table", "", "loss", *head, "n"], rows
    )


def _ours(row, groups):
    """The runs closest to a row of the paper's tables, those of the setting with most, and the prefix of their AP's
    protocol."""
    family = row.data.split()[0].lower()
    alike = [group[(group.detector == row.detector) & (group.loss == row.loss)] for group in groups]
    alike = [runs for runs in alike if len(runs) and family in str(runs.dataset.iloc[0]).lower()]
    best = max(alike, key=len, default=pd.DataFrame())
    return best, "voc07_" if family == "voc" and "voc07_AP" in best else ""


def _deviations():
    return _plain_table(["what differs", "why"], [[entry["what"], entry["why"]] for entry in claims.BOOK["deviations"]])


def _costs(found, beside):
    rows = []
    for whose, notebook, folder in [(whose, *run) for whose, runs in found.items() for run in runs.items()]:
        records = [json.loads(path.read_text()) for path in sorted(folder.glob("runs/*.json"))]
        rows.append([_link(folder, beside, notebook), whose, *_cost([store.Run(folder).record])])
        if records:
            rows.append([f"the {len(records)} trainings it compares", whose, *_cost(records)])
    return _table(["run", "whose", "scale", "commit", "hardware", "wall time"], rows)


def _cost(records):
    """Scale, commit, hardware and wall time of runs, each told once."""
    hardware = {
        f"{r['hardware']['processor']}, {r['hardware']['cores']} cores, {r['hardware']['device']}" for r in records
    }
    scales, commits = (
        {str(value) for value in column}
        for column in zip(*((r["parameters"].get("scale"), r["commit"][:7]) for r in records), strict=True)
    )
    seconds = sum(r.get("wall_seconds", 0) for r in records)
    time = (
        f"{seconds:.0f} s"
        if seconds < 600
        else f"{seconds / 60:.0f} min"
        if seconds < 36_000
        else f"{seconds / 3600:.1f} h"
    )
    dirty = " (with changes)" if any(r["dirty"] for r in records) else ""
    return [
        _text(", ".join(sorted(scales))),
        _text(", ".join(sorted(commits)) + dirty),
        _text("; ".join(sorted(hardware))),
        ("n", time),
    ]
