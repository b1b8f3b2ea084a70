"""results/published/: the committed copy of finished runs; what was found in them, in ten lines; the README's table and ledger made from it."""

import json
import shutil
from pathlib import Path

import pandas as pd

from giou_repro import claims, comparison, findings, published, statistics, store
from giou_repro.losses import LOSSES
from giou_repro.simulation import CASES_PER_POINT

LARGEST = 500_000  # bytes of a table; larger ones stay in the run folder
BEGIN, END = "<!-- made by giou-repro publish: begin -->\n", "<!-- end -->\n"
LEDGER_BEGIN, LEDGER_END = "<!-- claims, made by giou-repro publish: begin -->\n", "<!-- claims end -->\n"


def publish(run_folder, project=None):
    """Copy a run to results/published/<notebook>/, renew claims.csv and the page beside it and the README's table and ledger. Returns the new
    folder.

    Taken: run.json and those of the runs it compares, the figures as PNG, the tables up to 500 kB. The copy that was there before is replaced in
    one move, once the new table could be made. Raises ValueError for a folder without a run, and for a run that is not complete, not the
    runner's, not of scale "paper", or of code that is not committed, a loss from elsewhere and the runs it compares included.
    """
    project = Path(project or store.project_folder())
    if not (Path(run_folder) / "run.json").is_file():
        raise ValueError(f"{run_folder} is not a run folder: it has no run.json; name results/<notebook>/<run-id>")
    record = json.loads((Path(run_folder) / "run.json").read_text())
    _check(run_folder, record)
    place = project / "results" / "published" / record["notebook"]
    fresh, old = place.with_name(f".{place.name}.new"), place.with_name(f".{place.name}.old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    for source in [Path(run_folder) / name for name in ("run.json", *record["outputs"])]:
        if source.suffix in (".png", ".json") or (source.suffix == ".csv" and source.stat().st_size <= LARGEST):
            target = fresh / source.relative_to(run_folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    readme, runs = project / "README.md", published_runs(project) | {record["notebook"]: fresh}
    ledger = claims.ledger(runs)
    text, found = with_ledger(with_table(readme.read_text(), runs), ledger), page(runs, ledger)
    if place.exists():
        place.rename(old)
    fresh.rename(place)
    shutil.rmtree(old, ignore_errors=True)
    store.write_atomic(place.with_name("claims.csv"), ledger[claims.COLUMNS].to_csv(index=False))
    store.write_atomic(place.with_name("README.md"), found)
    store.write_atomic(readme, text)
    return place


def refresh(project):
    """Renew results/published/claims.csv and README.md, and the README's table and ledger, from the published runs. Returns the ledger, or None
    without runs."""
    runs = published_runs(project)
    if not runs:
        return None
    ledger, readme = claims.ledger(runs), Path(project) / "README.md"
    text, place = with_ledger(with_table(readme.read_text(), runs), ledger), Path(project) / "results" / "published"
    store.write_atomic(place / "claims.csv", ledger[claims.COLUMNS].to_csv(index=False))
    store.write_atomic(place / "README.md", page(runs, ledger))
    store.write_atomic(readme, text)
    return ledger


def _check(run_folder, record):
    own = [name for name in record["given"].get("losses", []) if ":" in name]
    compared = [json.loads(path.read_text()) for path in Path(run_folder).glob("runs/*.json")]
    reasons = {
        "it compares runs of code that is not committed": any(each["dirty"] is not False for each in compared),
        f"it is {record['status']}": record["status"] != "complete",
        "it was not made by giou-repro run, so its notebook is elsewhere": not record["runner"],
        "its code is not committed": record["dirty"] is not False,
        f"its loss {', '.join(own)} is not part of the package": bool(own),
        'its scale is not "paper"': record["parameters"].get("scale") != "paper",
    }
    wrong = [reason for reason, holds in reasons.items() if holds]
    if wrong:
        raise ValueError(f"{run_folder} cannot be published: {'; '.join(wrong)}")


def published_runs(project):
    """The folders of the runs that are published: notebook → folder."""
    return {path.parent.name: path.parent for path in (Path(project) / "results" / "published").glob("[0-9]*/run.json")}


def with_table(readme, runs):
    """The README's text with the part between its marks made new from published runs (notebook → folder)."""
    before, rest = readme.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    return before + BEGIN + reproduced(runs) + END + after


def with_ledger(readme, ledger):
    """The README's text with the part between the ledger's marks made new from claims.ledger; unchanged without the marks."""
    if LEDGER_BEGIN not in readme:
        return readme
    before, rest = readme.split(LEDGER_BEGIN)
    after = rest.split(LEDGER_END)[1]
    rows = [f"| {row.id} | {row.claim} | **{row.verdict}** | {row.words} |" for row in ledger.itertuples()]
    return before + LEDGER_BEGIN + "\n".join(["| | claim | verdict | measured |", "|---|---|---|---|", *rows]) + "\n" + LEDGER_END + after


def reproduced(runs):
    """The table "what was reproduced", in Markdown, from published runs (notebook → folder)."""
    makers = {"01_metric": _metric_rows, "03_simulation": _simulation_rows, "05_compare_losses": _detector_rows}
    rows = [row for notebook, maker in makers.items() if notebook in runs for row in maker(runs[notebook])]
    return "\n".join(["| what | paper | ours | shown in |", "|---|---|---|---|", *rows]) + "\n"


def _metric_rows(folder):
    figure, properties = pd.read_csv(folder / "figure_1.csv"), pd.read_csv(folder / "properties.csv")
    same = sum((figure[key].round(2) == figure[f"printed_{key}"]).sum() for key in ("iou", "giou"))
    printed, ours = (", ".join(f"{value:.2f}" for value in figure[key]) for key in ("printed_iou", "iou"))
    return [
        f"| Figure 1, IoU at equal distance | {printed} | {ours} ({same} of 12 IoU and GIoU equal to 2 digits) | 01 |",
        f"| properties of GIoU, random boxes | proved | {properties.holds.sum()} of {len(properties)} checks hold | 01 |",
    ]


def _simulation_rows(folder):
    against = pd.read_csv(folder / "against_paper.csv").set_index(["loss", "step"])
    ends = pd.read_csv(folder / "standings.csv").set_index(["run", "loss"])
    sweep = pd.read_csv(folder / "step_sizes.csv")
    best = sweep.loc[sweep.groupby("loss").error.idxmin()].set_index("loss")
    swept = json.loads((folder / "run.json").read_text())["parameters"]["sweep_points"] * CASES_PER_POINT
    millions, last = published.CURVE_CASES / 1e6, against.index.get_level_values("step").max()
    names = [name for name in published.PUBLISHED if ("published", name) in ends.index and ("exact", name) in ends.index]

    def listed(value):
        return ", ".join(f"{LOSSES[name].label} {value(name)}" for name in names)

    paper = listed(lambda name: f"{against.paper[name, last] * millions:.2f}")
    printed, exact = (listed(lambda name, run=run: f"{ends.error[run, name] * millions:.3f}") for run in ("published", "exact"))
    tuned = listed(lambda name: f"{best.error[name] * millions:.3f} (at {best.step_size[name]:g})")
    return [
        f"| simulation, error after {last} steps, millions, gradients as published | {paper} | {printed} | 03 |",
        f"| the same with exact gradients | – | {exact} | 03 |",
        f"| the same, each at its best step size, scaled from {swept:,} cases | – | {tuned} | 03 |",
    ]


def _detector_rows(folder):
    """A row for each setting with runs enough for an interval."""
    tables, verdicts = pd.read_csv(folder / "paper_tables.csv"), pd.read_csv(folder / "paired.csv")
    rows = []
    for setting, part in tables.groupby("setting", sort=False):
        if part.n.min() < statistics.LEAST:
            continue
        base = comparison.baseline(part.loss)
        told = verdicts[(verdicts.setting == setting) & (verdicts.measure == "AP")].set_index("loss").verdict
        ours = ", ".join(f"{LOSSES[row.loss].label} {row.AP:.3f} ({told.get(row.loss, 'baseline')})" for row in part.itertuples())
        rows.append(f"| AP, {setting}; {part.n.min()} paired seeds, against {LOSSES[base].label} | GIoU best | {ours} | 05 |")
    return rows


# ---- the page


PAGE = """# What was found

Made by `giou-repro publish` from the runs in this folder. Hardware, versions, commit and time of each are in its `run.json`; every detector run is
a row of `05_compare_losses/detectors.csv`, and its record is in `05_compare_losses/runs/`.

{lines}

VOC2007 is 2,500 train and 1,000 val images of VOC 2007, encoded again as JPEG, with rebuilt XML: AP on it compares losses here, and is not that of
the official test set. BCCD is 364 images of blood cells. Where they are from: [data/README.md](../../data/README.md). Every claim:
[claims.csv](claims.csv).
"""


def page(runs, ledger):
    """results/published/README.md: what was found, in about ten lines, from published runs (notebook → folder) and the ledger made of them."""
    makers = {"01_metric": _metric_lines, "03_simulation": _simulation_lines, "05_compare_losses": _detector_lines}
    lines = [line for notebook, maker in makers.items() if notebook in runs for line in maker(runs[notebook], ledger)]
    verdicts = (f"{verdict}: {', '.join(part.id)}" for verdict, part in ledger.groupby("verdict", sort=False))
    lines.append(f"The papers' {len(ledger)} claims. {'; '.join(verdicts)}.")
    return PAGE.format(lines="\n".join(f"{number}. {line}" for number, line in enumerate(lines, 1)))


def _metric_lines(folder, ledger):
    said = ledger.set_index("id").words
    return [said["G1"], f"GIoU's properties: {_metric_rows(folder)[1].split(' | ')[2]}. {said['B1']}"]


def _simulation_lines(folder, ledger):
    cells = [row.strip("| ").split(" | ") for row in _simulation_rows(folder)]
    lines = [f"{what[0].upper()}{what[1:]}: {ours}" + ("." if paper == "–" else f" (the paper: {paper}).") for what, paper, ours, _ in cells]
    if (folder / "every_loss.csv").exists():
        step_size = json.loads((folder / "run.json").read_text())["parameters"]["step_size"]
        lines.append(findings.every_loss(pd.read_csv(folder / "every_loss.csv"), step_size).removeprefix("**What we see.** "))
    return lines


def _detector_lines(folder, ledger):
    """A line for each setting with runs enough for an interval."""
    tables, verdicts = pd.read_csv(folder / "paper_tables.csv"), pd.read_csv(folder / "paired.csv")
    lines = []
    for setting, part in tables.groupby("setting", sort=False):
        if part.n.min() < statistics.LEAST:
            continue
        base, here = comparison.baseline(part.loss), verdicts[verdicts.setting == setting]
        told = [f"{measure} {_told(here[here.measure == measure])}" for measure in ("AP", "AP75")]
        ap = part.set_index("loss").AP[base]
        lines.append(
            f"{setting}, {part.n.min()} paired seeds, against {LOSSES[base].label} (AP {ap:.3f}), difference and 95 % interval: {'; '.join(told)}."
        )
    return lines


def _told(verdicts):
    """The losses of each verdict, with their differences."""
    words = []
    for verdict, part in verdicts.groupby("verdict", sort=False):
        each = (f"{LOSSES[row.loss].label} {row.difference:+.3f} ({row.low:+.3f} to {row.high:+.3f})" for row in part.itertuples())
        words.append(f"{verdict}: {', '.join(each)}")
    return ", ".join(words)
