"""The ledger: every claim of the papers with its verdict, computed from the tables of complete runs.

The claims' words, and what decides each (`decided_by`), are in claims.toml; the functions that decide are in verdicts.
"""

import json
import shlex
import tomllib
from pathlib import Path

import pandas as pd

from giou_repro.report import detector_verdicts, verdicts

COLUMNS = ["id", "claim", "decided_by", "value", "low", "high", "n", "verdict", "run", "command"]
DECIDERS = verdicts.DECIDERS | detector_verdicts.DECIDERS
BOOK = tomllib.loads(Path(__file__).with_name("claims.toml").read_text(encoding="utf-8"))


def ledger(runs: dict) -> pd.DataFrame:
    """The verdicts from runs (notebook → store.Run): a row a claim, with COLUMNS, and with source and words, a sentence
    on what was measured."""
    rows = []
    for name, entry in BOOK["claims"].items():
        run = runs.get(entry["notebook"])
        about = {"id": name, "run": "", "command": f"giou-repro run {entry['notebook']}"} | entry
        if run:
            about |= dict(run=f"{run.record['notebook']}/{run.record['run']}", command=command(run.record))
        rows.append(about | _decide(name, entry["tables"], run))
    return pd.DataFrame(rows)[[*COLUMNS, "source", "words"]]


def _decide(name, tables, run):
    """The finding of one claim from a run, which may be missing, incomplete, or of another version of the notebook."""
    if run is None:
        return verdicts.untested("no run of this notebook")
    missing = [table for table in tables if not (run.folder / f"{table}.csv").exists()]
    if missing:
        return verdicts.untested(f"the run has no table {', '.join(missing)}")
    if not run.complete:
        return verdicts.untested(f"the run is {run.record['status']}")
    try:
        return DECIDERS[name]({table: run.table(table) for table in tables}, run.parameters)
    except (KeyError, AttributeError) as error:
        missing = getattr(error, "name", error)
        return verdicts.untested(f"the run's tables have no {missing}: it had other losses, or was of another version")
    except ValueError as error:
        return verdicts.untested(str(error))


def command(record: dict) -> str:
    """The command that makes a run again, from its run.json."""
    given = dict(record["given"])
    flags = [f"--{name} {given.pop(name)}" for name in ("scale", "seed") if name in given]
    for name, value in given.items():
        flags.append(f"-p {name} {shlex.quote(value if isinstance(value, str) else json.dumps(value))}")
    return " ".join(["giou-repro run", record["notebook"], *flags])
