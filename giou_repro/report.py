"""The report: one page, for someone who has never seen the project, from the newest complete run of each notebook.

The page is one file without scripts or links to the net; figures are inside, links lead to the run folders beside it.
"""

import base64
import html
import json
import os
from pathlib import Path

import pandas as pd

from giou_repro import claims, comparison, publish, store
from giou_repro.losses import LOSSES

SCALES = ("smoke", "laptop", "paper")
SIGNS = {claims.HOLDS: ("✔", "holds"), claims.CONDITION: ("◐", "condition"), claims.FAILS: ("✘", "fails"), claims.UNTESTED: ("…", "untested")}
FIGURES = [  # notebook, figure, what to look at
    ("01_metric", "figure_1", "The paper's figure 1: predictions (black) equally far from the target (green) overlap it very differently."),
    ("02_loss_landscape", "steepness", "How steep each loss is (left), and how IoU and GIoU go together (right), against the overlap."),
    (
        "03_simulation",
        "convergence",
        "1,715,000 boxes moved by gradient steps: with the published formulae (circles: the paper) and the exact gradients.",
    ),
    ("03_simulation", "surfaces", "Where the error stays: each dot is a starting point around the targets in the middle."),
    ("03_simulation", "step_sizes", "The order of the losses depends on the step size."),
    ("05_compare_losses", "every_run", "Every detector run as a dot, the means as bars."),
    (
        "05_compare_losses",
        "paired",
        "Differences to the detector's own loss on the same seeds, with 95 % intervals: those that cross the line say nothing.",
    ),
    ("05_compare_losses", "thresholds", "AP against the threshold of the match, by IoU and by GIoU."),
    ("05_compare_losses", "curves", "Training: classification loss, mean IoU of the positives, AP."),
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


def newest(results, scale="laptop"):
    """The runs a report speaks of: notebook → folder of its newest complete run under the folder `results`, else of its published one.

    Runs at a smaller scale than `scale` do not count. Published runs are those of `results`/published, else of the project's.
    """
    found = next((runs for runs in map(publish.published_runs, (Path(results).parent, store.project_folder())) if runs), {})
    for path in sorted(Path(results).glob("[0-9]*/*/run.json")):
        record = json.loads(path.read_text())
        large_enough = SCALES.index(record["parameters"].get("scale", "paper")) >= SCALES.index(scale)
        if record["status"] == "complete" and large_enough and record["notebook"] == path.parents[1].name:
            found[record["notebook"]] = path.parent
    return {name: found[name] for name in sorted(found) if name != "06_report"}


def page(runs, beside):
    """The page as HTML text, from run folders (notebook → folder); links are relative to the folder `beside`."""
    ledger = claims.ledger(runs)
    counts = ledger.verdict.value_counts()
    summary = ", ".join(f"{counts.get(verdict, 0)} {_verdict(verdict)}" for verdict in SIGNS)
    parts = [
        f"<h1>Which box-regression loss to use, measured</h1><p>{_text(QUESTION)}</p><p>Of {len(ledger)} claims: {summary}.</p>",
        f"<h2>The claims</h2>{_claims(ledger, runs, beside)}",
        f"<h2>The main figures</h2>{''.join(_figure(runs, *entry) for entry in FIGURES)}",
        f"<h2>Ours and the papers'</h2>{_metric_and_simulation(runs)}{_detector_tables(runs)}",
        f"<h2>Where we depart from the papers, and why</h2>{_deviations()}",
        f"<h2>Runs, hardware and cost</h2>{_costs(runs, beside)}",
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>giou-repro: the report</title><style>{STYLE}</style>'
    body = "\n".join(parts)
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def write(results, out, scale="laptop"):
    """Write the page of the newest runs under the folder `results` to the file `out`. Raises FileNotFoundError where there is no run at all."""
    runs = newest(results, scale)
    if not runs:
        raise FileNotFoundError(f"no complete run under {results}, and none published; make some: giou-repro run 01_metric")
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    store.write_atomic(out, page(runs, Path(out).parent))
    return runs


def _text(value):
    return html.escape(str(value))


def _number(value, digits=3):
    if pd.isna(value):
        return "–"
    return "0" if value == 0 else f"{value:.{digits}f}" if 10**-digits <= abs(value) < 1e5 else f"{value:.1e}"


def _table(head, rows):
    """An HTML table; cells are HTML already, those of numbers are set to the right."""
    body = "".join(
        "<tr>" + "".join(f'<td class="number">{c[1]}</td>' if isinstance(c, tuple) else f"<td>{c}</td>" for c in row) + "</tr>" for row in rows
    )
    return f'<div class="wide"><table><tr>{"".join(f"<th>{_text(name)}</th>" for name in head)}</tr>{body}</table></div>'


def _verdict(verdict):
    sign, kind = SIGNS[verdict]
    return f'<span class="verdict {kind}">{sign} {_text(verdict)}</span>'


def _link(folder, beside, text):
    return f'<a href="{_text(os.path.relpath(folder, beside))}">{_text(text)}</a>'


def _claims(ledger, runs, beside):
    rows = []
    for claim in ledger.itertuples():
        measured = f"{_number(claim.value)} <small>[{_number(claim.low)}, {_number(claim.high)}], n = {claim.n:,}</small><br>" if claim.n else ""
        notebook = claims.BOOK["claims"][claim.id]["notebook"]
        run = _link(runs[notebook], beside, notebook) if notebook in runs else _text(notebook)
        rows.append(
            [
                f"<b>{claim.id}</b>",
                f"{_text(claim.claim)}<br><small>{_text(claim.source)}</small>",
                _verdict(claim.verdict),
                f"{measured}{_text(claim.words)}<br><small>{_text(claim.decided_by)}</small>",
                f"{run}<br><code>{_text(claim.command)}</code>",
            ]
        )
    return _table(["", "claim", "verdict", "what was measured, and what decides", "shown by, repeated by"], rows)


def _figure(runs, notebook, name, caption):
    path = runs.get(notebook, Path()) / "figures" / f"{name}.png"
    if notebook not in runs or not path.is_file():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<figure><img src="data:image/png;base64,{data}" alt="{_text(caption)}"><figcaption>{_text(caption)} ({notebook})</figcaption></figure>\n'


def _metric_and_simulation(runs):
    lines = publish.reproduced(runs).splitlines()
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return _table(head, [[_text(cell) for cell in row] for row in rows]) if rows else ""


def _detector_tables(runs):
    path = runs.get("05_compare_losses", Path()) / "detectors.csv"
    if "05_compare_losses" not in runs or not path.is_file():
        return '<p class="note">No detector runs yet: the papers\' tables stand alone.</p>' + _paper_tables({})
    settings = claims.settings(pd.read_csv(path))
    return "".join(_setting(name, group) for name, group in settings.items()) + _paper_tables(settings)


def _setting(name, group):
    """A setting's losses: mean of each measure over the seeds, and the paired difference in AP to the detector's own loss."""
    base = comparison.baseline(group.loss.unique())
    compared = comparison.paired(group)
    compared = compared[(compared.measure == "AP") & (compared.against == base)].set_index("loss")
    rows = []
    for loss, part in group.groupby("loss", sort=False):
        cells = [_text(LOSSES[loss].label if loss in LOSSES else loss), ("n", ", ".join(f"{w:g}" for w in part.weight.unique())), ("n", len(part))]
        cells += [("n", _number(part[measure].mean())) for measure in comparison.MEASURES]
        if loss in compared.index:
            row = compared.loc[loss]
            cells += [("n", f"{row.difference:+.3f} [{_number(row.low)}, {_number(row.high)}]"), _text(row.verdict)]
        rows.append(cells + ["", ""] * (loss not in compared.index))
    head = ["loss", "weight", "n", *(measure.replace("_giou", " by GIoU") for measure in comparison.MEASURES)]
    return f"<h3>{_text(name)}</h3>" + _table([*head, f"AP less {LOSSES[base].label}'s, 95 %", "verdict"], rows)


def _paper_tables(settings):
    """The paper's detector tables, a column of the paper and one of ours for each measure."""
    rows = []
    for row in claims.paper_tables().itertuples():
        ours, protocol = _ours(row, settings)
        cells = [str(row.table), f"{claims.TABLES[row.table]}", _text(LOSSES[row.loss].label if row.loss != "l2" else "MSE (ℓ2)")]
        for measure in comparison.MEASURES:
            told = getattr(row, measure)
            paper = f"{told.rstrip('?')}{' <small>as recalled</small>' if told.endswith('?') else ''}" if told else "–"
            cells += [("n", paper), ("n", _number(ours[protocol + measure].mean()) if len(ours) and protocol + measure in ours else "–")]
        rows.append([*cells, ("n", len(ours) or "–")])
    head = [part for measure in comparison.MEASURES for part in (measure.replace("_giou", " by GIoU"), "ours")]
    note = "Numbers “as recalled” were not read in the paper: they are shown and decide nothing. Ours on VOC are in the VOC 2007 protocol."
    return f'<h3>The GIoU paper\'s detector tables</h3><p class="note">{note}</p>' + _table(["table", "", "loss", *head, "n"], rows)


def _ours(row, settings):
    """Our runs that come closest to a row of the paper's tables, those of the setting with most, and the prefix of their AP's protocol."""
    family = row.data.split()[0].lower()
    alike = [group for group in settings.values() if group.detector.iloc[0] == row.detector and family in str(group.dataset.iloc[0]).lower()]
    runs = [group[group.loss == row.loss] for group in alike]
    best = max(runs, key=len, default=pd.DataFrame())
    return best, "voc07_" if family == "voc" and "voc07_AP" in best else ""


def _deviations():
    return _table(["what differs", "why"], [[_text(entry["what"]), _text(entry["why"])] for entry in claims.BOOK["deviations"]])


def _costs(runs, beside):
    rows = []
    for notebook, folder in runs.items():
        records = [json.loads(path.read_text()) for path in sorted(folder.glob("runs/*.json"))]
        rows.append([_link(folder, beside, notebook), *_cost([json.loads((folder / "run.json").read_text())])])
        if records:
            rows.append([f"the {len(records)} trainings it compares", *_cost(records)])
    return _table(["run", "scale", "commit", "hardware", "wall time"], rows)


def _cost(records):
    """Scale, commit, hardware and wall time of runs, each told once."""
    hardware = {f"{r['hardware']['processor']}, {r['hardware']['cores']} cores, {r['hardware']['device']}" for r in records}
    scales, commits = (
        {str(value) for value in column} for column in zip(*((r["parameters"].get("scale"), r["commit"][:7]) for r in records), strict=True)
    )
    seconds = sum(r.get("wall_seconds", 0) for r in records)
    time = f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min" if seconds < 36_000 else f"{seconds / 3600:.1f} h"
    dirty = " (with changes)" if any(r["dirty"] for r in records) else ""
    return [_text(", ".join(sorted(scales))), _text(", ".join(sorted(commits)) + dirty), _text("; ".join(sorted(hardware))), ("n", time)]
