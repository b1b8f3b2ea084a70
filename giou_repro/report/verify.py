"""Published notebooks are run again, and their headline numbers compared with the published ones.

Tolerances, of a number up to 1, or of the number itself where it is larger: `exact` where every parameter is the
published one, so that only rounding is left, in another order on other hardware. Else it is another sample, of `budget`
draws, and may be off by spread/√budget of the smaller one.
"""

from collections import namedtuple
from pathlib import Path

import numpy as np
import pandas as pd

from giou_repro.report import claims, publish
from giou_repro.runs import runner, store

COLUMNS = ["what", "published", "now", "tolerance", "ok"]
YES, NO, SKIPPED = "yes", "NO", "not compared"


# A column of a notebook's table: the keys of its rows, its tolerances, and the parameter that is its sample's size.
Headline = namedtuple("Headline", "notebook table keys column exact spread budget", defaults=(0.0, None))
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
FREE |= {"every_loss", "departure_points"}  # of tables without a headline


def run_again(
    scale: str | None = None, project: Path | None = None, results: Path | None = None, progress: bool = True
) -> pd.DataFrame:
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
    for name, published in runs.items():
        if any(headline.notebook == name for headline in HEADLINES):
            given = published.record["given"] | ({"scale": scale} if scale else {})
            rows += compare(published, runner.run_notebook(name, given, results, progress))
        else:
            rows.append(dict(what=f"{name}: not run again", ok=SKIPPED))
    return pd.DataFrame([*rows, _claims(project, runs)], columns=COLUMNS)


def compare(published: store.Run, now: store.Run) -> list[dict]:
    """A row for each headline of two runs of one notebook."""
    return [_row(headline, published, now) for headline in HEADLINES if headline.notebook == now.record["notebook"]]


def _row(headline, published, now):
    what = f"{headline.notebook} {headline.table}: {headline.column}"
    tolerance = _tolerance(headline, published.parameters, now.parameters)
    if tolerance is None:
        return dict(what=f"{what}, of other parameters", ok=SKIPPED)
    old, new = (run.table(headline.table)[[*headline.keys, headline.column]] for run in (published, now))
    how = "outer" if tolerance == headline.exact else "inner"  # of another sample a searched grid may end elsewhere
    both = old.merge(new, on=headline.keys, how=how, suffixes=("", "_now")).set_index(headline.keys)
    first, second = both[headline.column], both[f"{headline.column}_now"]
    allowed = tolerance * first.abs().clip(lower=1).fillna(1)
    off = ((first - second).abs() / allowed).fillna(np.inf).mask(first.isna() & second.isna(), 0).to_numpy()
    worst = off.argmax()
    numbers = dict(published=first.iloc[worst], now=second.iloc[worst], tolerance=allowed.iloc[worst])
    what = f"{what}, at {', '.join(map(str, np.atleast_1d(both.index[worst])))} (of {len(both)})"
    return dict(what=what, ok=YES if off[worst] <= 1 else NO) | numbers


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
        return dict(what="claims.csv: not published", ok=SKIPPED)
    written, ledger = pd.read_csv(path), claims.ledger(runs)
    same = written.verdict.tolist() == ledger.verdict.tolist() and np.allclose(
        written.value, ledger.value, rtol=1e-9, equal_nan=True
    )
    first, second = ((~table.verdict.isin(("undecided", "not tested"))).sum() for table in (written, ledger))
    what = "claims.csv, from the published tables: decided"
    return dict(what=what, published=first, now=second, tolerance=0, ok=YES if same else NO)
