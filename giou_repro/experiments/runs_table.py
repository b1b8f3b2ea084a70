"""Which loss is better in a table of the user's own runs, and the least gain that so many seeds can show."""

import pandas as pd

from giou_repro.experiments import statistics
from giou_repro.spelling import unknown

KEYS = ("loss", "seed", "setting")  # columns that are no measure
PRINTED = ["loss", "against", "measure", "n", "difference", "low", "high", "p_holm", "verdict", "least_gain"]


def compare(path, against=None, measures=None, unpaired: bool = True) -> pd.DataFrame:
    """Every other loss against one, in each measure of a CSV, as PRINTED: the paired difference with its 95 % CI, p
    corrected by Holm over all rows, the verdict, and the least true gain that so many seeds show four times in five.

    The file has a row a run, `loss`, `seed`, and a column a measure, higher being better. `against` is the first loss
    by default, `measures` all other columns of numbers. `unpaired`: all seeds were measured on the same test images, so
    that the unpaired test has to agree. Raises OSError, or ValueError naming the column or the row.
    """
    runs = pd.read_csv(path)
    for name in KEYS[:2]:
        if name not in runs:
            raise ValueError(f"{path} has no column {name!r}; it has {', '.join(runs)}")
    numbers = [name for name in runs.select_dtypes("number") if name not in KEYS]
    measures, losses = measures or numbers, list(dict.fromkeys(runs.loss))
    for name in measures:
        if name not in numbers:
            raise ValueError(f"{path}: {unknown('measure', name, numbers)}")
    against = against or losses[0]
    if against not in losses:
        raise ValueError(f"{path}: {unknown('loss', against, losses)}")
    pairs = [(loss, against) for loss in losses if loss != against]
    if not pairs or not measures:
        raise ValueError(f"{path} needs two losses and a measure; it has {', '.join(losses)} and {', '.join(measures)}")
    for again in runs[runs.duplicated(list(KEYS[:2]))].itertuples():
        raise ValueError(
            f"{path} has two runs of {again.loss} with seed {again.seed}; a table holds one setting, keep one"
        )
    runs = runs.assign(setting=str(path))
    incomplete = [name for name in measures if runs[name].isna().any()]
    if incomplete:
        raise ValueError(
            f"{path}: {', '.join(incomplete)} is missing in a row; fill it, or name the others in --measures"
        )
    rows = pd.concat([statistics.compare(runs, measure, pairs) for measure in measures])
    rows = statistics.judged(rows, unpaired)
    values = {key: part.set_index("seed") for key, part in runs.groupby("loss")}
    least = []
    for row in rows.itertuples():
        a, b = values[row.loss][row.measure].align(values[row.against][row.measure], join="inner")
        least.append(statistics.least_gain(a, b, len(rows), unpaired))
    return rows.assign(least_gain=least)[PRINTED]


def describe(table: pd.DataFrame) -> str:
    """The table, and what its verdicts rest on."""
    counts = table.verdict.value_counts().reindex(statistics.VERDICTS).dropna()
    found = ", ".join(f"{n:.0f} {verdict}" for verdict, n in counts.items())
    return (
        f"{table.to_string(index=False, na_rep='–', float_format='{:.4f}'.format)}\n\n"
        f"Of {len(table)} differences: {found}. low and high are the 95 % CI of the mean difference over paired seeds; "
        f"verdicts are corrected for {len(table)} comparisons (Holm) and begin at {statistics.DECIDING} seeds. "
        "least_gain is the least true difference that so many seeds, spread like these, show four times in five."
    )
