"""Which of two losses is better, from runs of the same seeds, and how sure that is.

Differences are taken seed by seed. They have a 95 % CI from three seeds and a verdict from five: "better" or "worse"
where Student's paired t test, corrected by Holm, and the exact test by sign flips agree, else "undecided"; where all
seeds are measured on the same test cases, Welch's unpaired test has to agree as well. How often "better" is said of one
comparison although there is no difference, without the unpaired test, which lowers it, measured on 20,000 draws each
(the tests repeat it):

                                               n = 5      10
    normal noise                              2.2 %    2.5 %
    heavy tails (Student's t, 2 d.o.f.)       1.4 %    1.8 %
    every difference +1 or −1                 3.1 %    1.0 %

Both tests assume that without a difference, d is as likely as −d, as it is when both losses' runs are drawn alike.
Where that fails, so does the verdict: 10 % for d drawn from 1 − exponential.
"""

import numpy as np
import pandas as pd
from scipy import optimize, stats

LEVEL = 0.95
LEAST = 3  # runs below which there is no interval
DECIDING = 5  # runs below which there is no verdict: of fewer, no exact p is below 5 % (1/2⁵ is)
POWER = 0.8  # of the least gain that runs can show
VERDICTS = ("better", "worse", "undecided", "too few seeds")


def mean_interval(values) -> tuple[float, float]:
    """Student's 95 % CI of the mean of (n,) values, missing below 3 values."""
    values = _finite(values)
    return tuple(stats.ttest_1samp(values, 0).confidence_interval(LEVEL)) if len(values) >= LEAST else (np.nan, np.nan)


def share_interval(count: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % CI of a share of which `count` in `n` independent cases were seen, missing below 3 cases."""
    return tuple(stats.binomtest(int(count), int(n)).proportion_ci(LEVEL, "wilson")) if n >= LEAST else (np.nan, np.nan)


def difference(a, b, seed: int = 0) -> dict:
    """A − B of paired runs (..., n), higher being better: n, mean difference, low and high (95 % CI), p, p_signs,
    p_unpaired.

    p is of Student's paired t test, p_unpaired of Welch's, both two-sided. p_signs is the share of the 2ⁿ ways to flip
    the differences' signs that give a mean as large, to the same side; above n = 13 of 9,999 ways drawn with `seed`.
    Below 3 runs all but the mean are missing.
    """
    a, b = _finite(a), _finite(b)
    d = a - b
    n = d.shape[-1]
    mean = d.mean(axis=-1) if n else np.nan
    if n < LEAST:
        return dict(n=n, difference=mean) | dict.fromkeys(("low", "high", "p", "p_signs", "p_unpaired"), np.nan)
    student = stats.ttest_rel(a, b, axis=-1)
    low, high = student.confidence_interval(LEVEL)
    signs = stats.permutation_test(
        (d * np.sign(mean)[..., None],),
        np.mean,
        permutation_type="samples",
        alternative="greater",
        axis=-1,
        rng=np.random.default_rng(seed),
    )
    p = np.where(d.any(axis=-1), student.pvalue, 1)[()]  # SciPy's is missing where every difference is 0
    varied = a.std(axis=-1) + b.std(axis=-1) > 0  # and missing or 0 here
    unpaired = np.where(varied, stats.ttest_ind(a, b, axis=-1, equal_var=False).pvalue, p)[()]
    return dict(n=n, difference=mean, low=low, high=high, p=p, p_signs=signs.pvalue, p_unpaired=unpaired)


def compare(runs: pd.DataFrame, measure: str, pairs, seed: int = 0) -> pd.DataFrame:
    """The differences between losses in one setting, on the seeds that both have: a row for each (loss, against) of
    `pairs`. `judged` adds the verdicts."""
    for again in runs[runs.duplicated(["loss", "seed"])].itertuples():
        raise ValueError(
            f"{again.loss} has two runs of seed {again.seed} ({again.setting}): keep one; of several weights choose "
            "with comparison.at_one_weight"
        )
    values = {loss: part.set_index("seed")[measure].sort_index() for loss, part in runs.groupby("loss")}
    rows = []
    for loss, against in pairs:
        a, b = values[loss].align(values[against], join="inner")
        pair = dict(setting=runs.setting.iloc[0], measure=measure, loss=loss, against=against)
        means = dict(seeds=" ".join(map(str, a.index)), mean=a.mean(), mean_against=b.mean())
        rows.append(pair | means | difference(a, b, seed))
    return pd.DataFrame(rows)


def judged(comparisons: pd.DataFrame, unpaired: bool = True) -> pd.DataFrame:
    """Rows of `compare`, taken as one family, with p_holm, their p corrected by Holm, and the verdict.

    `unpaired` asks Welch's test to agree: where all seeds are measured on the same test cases, pairs alone would take
    what these cases like for what is true of others.
    """
    comparisons = comparisons.reset_index(drop=True)
    p = comparisons.p.dropna().sort_values()
    comparisons["p_holm"] = (p * np.arange(len(p), 0, -1)).cummax().clip(upper=1)
    needed = comparisons[["p_holm", "p_unpaired"] if unpaired else ["p_holm"]].max(axis=1, skipna=False)
    return comparisons.assign(verdict=verdicts(comparisons, needed))


def least_gain(a, b, comparisons: int = 1, unpaired: bool = True) -> float:
    """The least true difference of means that runs like A and B (n,), paired, have four chances in five to show: that
    Student's test, and where `unpaired` Welch's, have a p below 5 % over `comparisons`.

    From the spread of these runs, taken as normal; the noncentral t distribution gives the power. With the test by sign
    flips, the verdict was "better" in 72 to 80 % of 2,000 draws of 5 to 10 seeds. Missing below 5 runs.
    """
    a, b = _finite(a), _finite(b)
    n, spreads = len(a), [((a - b).var(ddof=1), len(a) - 1)]
    if n < DECIDING:
        return np.nan
    if unpaired:
        variances = a.var(ddof=1), b.var(ddof=1)
        welch = sum(variances) ** 2 / max(sum(v**2 for v in variances), np.finfo(float).tiny) * (n - 1)
        spreads.append((sum(variances), welch))
    gains = []
    for variance, degrees in spreads:
        critical = stats.t.isf((1 - LEVEL) / 2 / comparisons, degrees)
        shift = optimize.brentq(lambda d: stats.nct.sf(critical, degrees, d) - POWER, 0, 3 * critical + 9)  # noqa: B023
        gains.append(shift * np.sqrt(variance / n))
    return max(gains)


def verdicts(differences, p) -> np.ndarray:
    """What the entries of `difference` allow to say, given their p, corrected for the comparisons beside them."""
    undecided = (p >= 1 - LEVEL) | (differences["p_signs"] > 1 - LEVEL)
    cases = [differences["n"] < DECIDING, undecided, differences["difference"] > 0]
    return np.select(cases, ["too few seeds", "undecided", "better"], "worse")


def _finite(values):
    values = np.asarray(values, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError(
            f"every run needs a finite value, got {values.tolist()}; "
            "leave out or repeat the failed run, for both losses"
        )
    return values
