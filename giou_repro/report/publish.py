"""results/published/: the committed copy of finished runs, and the pages made of them: README's findings,
docs/claims.md, docs/which_loss.md, and claims.csv and README.md beside the runs."""

import ctypes
import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import pandas as pd

from giou_repro import losses
from giou_repro.experiments import convergence
from giou_repro.registry import LOSSES
from giou_repro.report import claims, findings
from giou_repro.runs import store
from giou_repro.wrappers import WRAPPERS

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux: paths from the current folder; two names change places
COPIED = (".png", ".json", ".csv")
LARGEST = 2_000_000  # bytes of a table; larger ones stay in the run folder
BEGIN, END = "<!-- made by giou-repro publish: begin -->\n", "<!-- end -->\n"


def add(run_folder: Path | str, project: Path | None = None) -> Path:
    """Copy a run to results/published/<notebook>/ and renew what is made of the published runs. Returns the new folder.

    Taken: run.json and those of the runs it compares, the figures as PNG, the tables up to 2 MB. The copy that was
    there before is exchanged in one step, once all that is made of it could be made. Raises ValueError for a folder
    without a run, and for a run that is not complete, not the runner's, not of scale "paper" unless it compares
    trainings, of code that is not committed, or with a loss from elsewhere, the runs it compares included.
    """
    project, run = Path(project or store.project_folder()), store.Run(run_folder)
    if run.folder.name not in {other.folder.name for other in store.runs(run.folder.resolve().parents[1])}:
        raise ValueError(
            f"{run_folder} is not a run folder: its run.json is missing, damaged or not a run's; name "
            "results/<notebook>/<run-id>"
        )
    _check(run)
    place = project / "results" / "published" / run.record["notebook"]
    new = place.with_name(f".{place.name}.new")
    shutil.rmtree(new, ignore_errors=True)  # of a run that was killed
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
    """Renew what is made of the published runs, and return its paths. Raises FileNotFoundError where there are none."""
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
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(run.folder.glob("runs/*.json"))]


def _texts(project, runs):
    """What is made of published runs (notebook → Run): path → text."""
    ledger, place = claims.ledger(runs), project / "results" / "published"
    before, rest = (project / "README.md").read_text(encoding="utf-8").split(BEGIN)
    return {
        project / "README.md": before + BEGIN + findings.headlines(runs, ledger) + END + rest.split(END, 1)[1],
        project / "docs" / "claims.md": claims_page(ledger),
        project / "docs" / "which_loss.md": which_loss_page(runs),
        place / "README.md": runs_page(runs),
        place / "claims.csv": ledger[claims.COLUMNS].to_csv(index=False),
    }


def _write(project, texts):
    for path, text in texts.items():
        store.write_atomic(path, text)
    for leftover in (project / "results" / "published").glob(".*.new"):
        shutil.rmtree(leftover)
    return list(texts)


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
    record = run.record
    compared = compared_records(run)
    foreign = _foreign_losses(run, [record, *compared])
    changed = [
        name
        for name, digest in record.get("outputs", {}).items()
        if name.endswith(COPIED) and _sha256(run.folder / name) != digest
    ]
    reasons = {
        "it compares runs of code that is not committed": any(entry["dirty"] is not False for entry in compared),
        f"it is {record['status']}": record["status"] != "complete",
        "it was not made by giou-repro run, so its notebook is elsewhere": not record["runner"],
        "its code is not committed": record["dirty"] is not False,
        f"not part of the package: {', '.join(foreign)}": foreign,
        f"not as the run left them: {', '.join(changed)}": changed,
        'its scale is not "paper"': record["notebook"] != findings.DETECTORS  # each of its settings says its own
        and record["parameters"].get("scale") != "paper",
    }
    if wrong := [reason for reason, holds in reasons.items() if holds]:
        raise ValueError(f"{run.folder} cannot be published: {'; '.join(wrong)}")


def _sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _foreign_losses(run, records):
    """The losses that are not of the package, nor sums of such, in the records and the table of a run, in words."""
    used = {}  # name → the run that has it
    for record in records:
        for parameters in (record["given"], record["parameters"]):
            used |= dict.fromkeys([parameters.get("loss") or "", *(parameters.get("losses") or [])], record["run"])
    if (run.folder / "detectors.csv").is_file():
        used |= dict(run.table("detectors")[["loss", "run"]].itertuples(index=False))
    own = {name for name, entry in LOSSES.items() if entry.function.__module__ == losses.__name__} | set(WRAPPERS)
    foreign = {name: source for name, source in used.items() if not set(re.findall(r"[^\W\d]\w*", name)) <= own}
    return [f"loss {name} of run {source}" for name, source in foreign.items()]


def markdown(table: pd.DataFrame) -> str:
    """A table in Markdown."""
    table = findings.text(table)
    lines = [f"| {' | '.join(cells)} |" for cells in (table.columns, *table.itertuples(index=False))]
    return "\n".join([lines[0], "|" + "---|" * len(table.columns), *lines[1:]]) + "\n"


# ---- the pages

CLAIMS = """# The papers' claims, each with its verdict

Made by `giou-repro publish` from [the published runs](../results/published/README.md). A verdict is computed from the
tables of a run: “undecided” where the interval contains the threshold that decides, “not tested” without a run, a table
or five paired seeds. “Holds for … only” names the cases in which a claim holds; the published code is that of the DIoU
paper's authors.
G: the GIoU paper (Rezatofighi et al., CVPR 2019); B: its authors' blog; Z: the DIoU paper (Zheng et al., AAAI 2020).

{table}
## What decides each claim

{cards}
## Where this reproduction departs from the papers

{deviations}"""

WHICH = """# Which loss should I use?

A loss is named where a difference is decided; losses joined by “or” were not told apart. n is the number of paired
seeds, in brackets stands the 95 % interval. Made by `giou-repro publish` from
[the published runs](../results/published/README.md). See also
[how losses are compared](methods.md), [every difference between detectors](../results/published/README.md) and
[every claim](claims.md).

{table}
{rules}
"""

RUNS = """# What was reproduced

Made by `giou-repro publish` from the runs in this folder. Hardware, versions, commit and time of each are in its
`run.json`; every detector run is a row of `06_compare_losses/detectors.csv`, and its record is in
`06_compare_losses/runs/`. What the papers claim, and the verdicts: [docs/claims.md](../../docs/claims.md).

{table}
{every_loss}

VOC2007 is 2,500 train and 1,000 val images of VOC 2007, encoded again as JPEG, reduced to 224 px, with rebuilt XML: AP
on it compares losses here, and is not that of the official test set. BCCD is 364 images of blood cells. Where they are
from: [data/README.md](../../data/README.md).

## Detectors: means, and every difference

For each setting, first the means over n seeds: the weight of the box loss and the weights it was searched among (at the
edge: a better one may lie beyond), the share of positives disjoint from their target, AP with IoU and with GIoU as the
matching criterion, and gains in per cent of the loss whose gain is 0. Then every difference.

{rules}
{differences}"""


def claims_page(ledger: pd.DataFrame) -> str:
    """docs/claims.md."""
    table = ledger[["id", "claim", "verdict", "words"]].assign(
        id=[f"[{name}](#{name.lower()})" for name in ledger.id], verdict="**" + ledger.verdict + "**"
    )
    cards = findings.cards(ledger, lambda row: f"../results/published/{row.run.partition('/')[0]}")
    deviations = markdown(pd.DataFrame(claims.BOOK["deviations"]))
    return CLAIMS.format(
        table=markdown(table.rename(columns={"words": "measured"})), cards=cards, deviations=deviations
    )


def which_loss_page(runs: dict[str, store.Run]) -> str:
    """docs/which_loss.md."""
    table = findings.answer(runs)
    links = [f"[{name}](../results/published/{name})" if name in runs else "" for name in table.notebook]
    return WHICH.format(table=markdown(table.assign(notebook=links)), rules=findings.RULES)


def runs_page(runs: dict[str, store.Run]) -> str:
    """results/published/README.md."""
    run, every_loss = runs.get(findings.SIMULATION), ""
    if run and (run.folder / "every_loss.csv").is_file():
        words = convergence.describe_every_loss(run.table("every_loss"), run.parameters["step_size"])
        every_loss = words.removeprefix("**What we see.** ")
    differences = ""
    for name, tables in findings.setting_tables(runs).items():
        differences += "\n".join([f"\n### {name}\n", *map(markdown, tables)])
    return RUNS.format(
        table=markdown(findings.reproduced(runs)), every_loss=every_loss, rules=findings.RULES, differences=differences
    )
