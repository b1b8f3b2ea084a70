"""Is what is published still what comes out? Published notebooks are run again and their headline numbers compared.

Tolerances, of a number up to 1, or of the number itself where it is larger: `exact` where every parameter is the
published one, so that only rounding is left, in another order on other hardware. Else it is another sample, of `budget`
draws, and may be off by spread/√budget of the smaller one.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from giou_repro.report import claims, publish
from giou_repro.runs import runner, store

COLUMNS = ["what", "published", "now", "tolerance", "ok"]
YES, NO, SKIPPED = "yes", "NO", "not compared"


class Headline(NamedTuple):
    """A column of a notebook's table: the keys that name its rows, its tolerances, and the parameter that is its
    sample's size."""

    notebook: str
    table: str
    keys: list[str]
    column: str
    exact: float
    spread: float = 0.0
    budget: str | None = None


HEADLINES = [
    Headline("01_metric", "figure_1", ["panel", "printed_iou"], "iou", 1e-9),
    Headline("01_metric", "figure_1", ["panel", "printed_iou"], "giou", 1e-9),
    Headline("01_metric", "spread", ["norm", "distance", "measure"], "median", 1e-9, 2.0, "n_pairs"),
    Headline("01_metric", "rank_correlation", ["targets", "norm", "size"], "spearman", 1e-9, 2.5, "n_pairs"),
    Headline("02_loss_landscape", "flat_parts", ["scenario", "loss"], "disjoint", 1e-9, 1.0, "n_places"),
    Headline("02_loss_landscape", "steepness", ["loss", "iou_high"], "correlation", 1e-9, 12.0, "n_pairs"),
    Headline("03_simulation", "standings", ["run", "loss"], "error", 5e-4, 8.0, "n_points"),
    Headline("03_simulation", "standings", ["run", "loss"], "mean_iou", 5e-4, 2.0, "n_points"),
    Headline("03_simulation", "step_sizes", ["loss", "step_size"], "mean_iou", 2e-3, 2.0, "sweep_points"),
]
FREE = {"scale", "run_dir", "device", *(headline.budget for headline in HEADLINES)}  # parameters that may differ


def verify(scale=None, project=None, results=None, progress=True):
    """Run what is published again, at `scale` (by default as it was run), and compare: a table of COLUMNS, a row a
    headline.

    A row shows the headline's entry that is furthest off. What has no headline is not run again (06 gathers trainings,
    which take hours), but the published claims are computed again from all published tables. Raises FileNotFoundError
    where nothing is published.
    """
    project = Path(project or store.project_folder())
    runs = publish.published_runs(project)
    if not runs:
        raise FileNotFoundError(f"nothing is published in {project / 'results' / 'published'}")
    rows = []
    for name, folder in sorted(runs.items()):
        if not any(headline.notebook == name for headline in HEADLINES):
            rows.append([f"{name}: not run again", np.nan, np.nan, np.nan, SKIPPED])
            continue
        given = store.Run(folder).record["given"]
        rows += compare(
            folder, runner.run_notebook(name, given | ({"scale": scale} if scale else {}), results, progress).folder
        )
    return pd.DataFrame([*rows, _claims(project, runs)], columns=COLUMNS)


def compare(published, now):
    """A row for each headline of two runs of one notebook, given by their folders."""
    old, new = (store.Run(folder).record for folder in (published, now))
    headlines = [headline for headline in HEADLINES if headline.notebook == new["notebook"]]
    return [
        _row(headline, Path(published), Path(now), _tolerance(headline, old["parameters"], new["parameters"]))
        for headline in headlines
    ]


def _row(headline, published, now, tolerance):
    what = f"{headline.notebook} {headline.table}: {headline.column}"
    if tolerance is None:
        return [f"{what}, of other parameters", np.nan, np.nan, np.nan, SKIPPED]
    old, new = (
        pd.read_csv(folder / f"{headline.table}.csv")[[*headline.keys, headline.column]] for folder in (published, now)
    )
    both = old.merge(new, on=headline.keys, how="outer", suffixes=("", "_now"))
    first, second = both[headline.column], both[f"{headline.column}_now"]
    allowed = tolerance * first.abs().clip(lower=1).fillna(1)
    off = ((first - second).abs() / allowed).fillna(np.inf).mask(first.isna() & second.isna(), 0)
    worst = off.idxmax()
    entry = ", ".join(str(value) for value in both.loc[worst, headline.keys])
    return [
        f"{what}, at {entry} (of {len(both)})",
        first[worst],
        second[worst],
        allowed[worst],
        YES if off[worst] <= 1 else NO,
    ]


def _tolerance(headline, old, new):
    """From the parameters of both runs; None where they are not comparable."""
    changed = {name for name in {*old, *new} - FREE if old.get(name) != new.get(name)}
    if changed - {"seed"}:
        return None
    if headline.budget is None or (not changed and old[headline.budget] == new[headline.budget]):
        return headline.exact
    return headline.spread / min(old[headline.budget], new[headline.budget]) ** 0.5


def _claims(project, runs):
    """Whether claims.csv is what the published tables say: how many claims are decided, in the file and by the
    tables."""
    path = project / "results" / "published" / "claims.csv"
    if not path.exists():
        return ["claims.csv: not published", np.nan, np.nan, np.nan, SKIPPED]
    written, ledger = pd.read_csv(path), claims.ledger(runs)
    same = written.verdict.tolist() == ledger.verdict.tolist() and np.allclose(
        written.value, ledger.value, rtol=1e-9, equal_nan=True
    )
    decided = [(~table.verdict.isin((claims.UNDECIDED, claims.UNTESTED))).sum() for table in (written, ledger)]
    return ["claims.csv, from the published tables: decided", *decided, 0, YES if same else NO]
