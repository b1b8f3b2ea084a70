"""Times of this package and of other libraries, in one process, as a table.

    python -m benchmarks [--gpu] [--only losses simulation startup average_precision training]

Prints the table, writes it with the hardware's and the packages' names to benchmarks/results/, and renews the part of
docs/benchmarks.md between its marks. About five minutes on two cores, two on a GPU.
"""

import argparse
import importlib
import json
import logging
import os
import re
import sys
import time
from pathlib import Path

from giou_repro.runs import store

SUBJECTS = ("losses", "simulation", "startup", "average_precision", "training")
MADE_BY = {False: "make bench", True: "make bench GPU=1"}  # by whether it is on a GPU
BEGIN, END = "<!-- made by {}: begin -->\n", "<!-- end -->\n"
COLUMNS = ("what", "unit", "ours", "peer", "theirs", "ratio", "aim", "met")


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", action="store_true", help="on a GPU, with its own clock")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=SUBJECTS,
        default=SUBJECTS,
        metavar="SUBJECT",
        help=f"some of {', '.join(SUBJECTS)}",
    )
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # before torch is imported: its profiler prints lines of its own
    rows, started = [], time.perf_counter()
    print(line(dict(zip(COLUMNS, COLUMNS, strict=True))))
    for subject in options.only:
        for row in measured(subject, options.gpu):
            print(line(row), flush=True)
            rows.append(row)
    seconds = time.perf_counter() - started
    missed = [row for row in rows if row["met"] is False]
    print(f"\n{len(rows)} rows in {seconds:.0f} s; aims not met: {len(missed)}")
    if set(options.only) == set(SUBJECTS):
        print(f"written to {write(rows, options.gpu)}")
    return 0


def measured(subject, gpu):
    """The rows of one subject: none where its file or a package it needs is missing, or, on a GPU, where it has nothing
    to say."""
    if not Path(__file__).with_name(f"{subject}.py").exists():
        return []
    try:
        module = importlib.import_module(f"benchmarks.{subject}")
    except ModuleNotFoundError as error:
        print(f"{subject} left out: {error}", file=sys.stderr)
        return []
    if not gpu:
        rows = module.measure()
    elif subject == "training":
        rows = module.measure("cuda")
    else:
        rows = module.measure_on_gpu() if hasattr(module, "measure_on_gpu") else []
    return [row if isinstance(row, dict) else _as_row(*row) for row in rows]


def _as_row(what, ours, peer, theirs, ratio, least, met):
    """A row from the plain form, in seconds, with a number for the least ratio or None."""
    return dict(
        what=what,
        unit="s",
        ours=ours,
        peer=peer,
        theirs=theirs,
        ratio=ratio,
        aim=f"≥ {least:g} ×" if least else "",
        met=met,
    )


def line(row):
    """A row, or the heading, as a line of the printed table."""
    cells = [number(row[key]) if key in ("ours", "theirs", "ratio") else row[key] for key in COLUMNS]
    cells[-1] = {True: "met", False: "NOT met", None: ""}.get(cells[-1], cells[-1])
    return "{:<62}{:<19}{:>8}  {:<27}{:>8}{:>8}  {:<22}{}".format(*cells)


def number(value):
    """A number to three digits; nothing for None, and text as it is."""
    if value is None or isinstance(value, str):
        return value or ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def write(rows, gpu):
    """Write the rows to benchmarks/results/<hardware>.json and into docs/benchmarks.md; return the file."""
    machine = store.hardware()
    name = machine["device"] if gpu else f"{machine['processor']} {machine['cores']} cores"
    path = Path(__file__).parent / "results" / (re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower() + ".json")
    path.parent.mkdir(exist_ok=True)
    commit, dirty = store.git_commit()
    record = dict(hardware=machine, versions=store.versions(), commit=commit, dirty=dirty, rows=rows)
    store.write_atomic(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    page = store.project_folder() / "docs" / "benchmarks.md"
    if page.exists():
        store.write_atomic(page, with_section(page.read_text(encoding="utf-8"), record, gpu))
    return path


def with_section(page, record, gpu):
    """The page with the part between the marks of a CPU or a GPU made new from a record."""
    begin = BEGIN.format(MADE_BY[gpu])
    before, rest = page.split(begin)
    return before + begin + section(record, gpu) + END + rest.split(END, 1)[1]


def section(record, gpu):
    """The table in Markdown: the rows that have an aim."""
    rows = ["| what | ours | peer | | ratio | aim | |", "|---|---|---|---|---|---|---|"]
    for row in record["rows"]:
        if row["met"] is not None:
            ratio = f"{row['ratio']:.2g} ×" if row["ratio"] is not None else ""
            theirs = number(row["theirs"])
            cells = (
                row["what"],
                f"{number(row['ours'])} {row['unit']}",
                row["peer"],
                theirs,
                ratio,
                row["aim"],
                "met" if row["met"] else "not met",
            )
            rows.append("| " + " | ".join(cells) + " |")
    machine, versions = record["hardware"], record["versions"]
    on = f"{machine['device']}, " if gpu else ""
    on += f"{machine['processor']}, {machine['cores']} cores, torch {versions['torch']}, commit {record['commit'][:7]}"
    clock = "losses and simulation by the GPU's clock" if gpu else "losses on one thread by CPU time"
    return "\n".join(rows) + f"\n\nMeasured by `{MADE_BY[gpu]}` on {on}; {clock}.\n"


if __name__ == "__main__":
    sys.exit(main())
