"""Which of two losses is better, from runs of the same seeds, and how sure that is.

A difference is taken seed by seed. It has an interval from three seeds and a verdict from five: "better", "worse" or
"undecided", and "too few seeds" below. How often "better" is said of one comparison although there is no difference,
measured on 20,000 draws each (tests/test_statistics.py repeats it):

                                              n = 5      10
    normal noise                             1.9 %    2.4 %
    heavy tails (Student's t, 2 d.o.f.)      1.5 %    1.8 %
    normal noise, by bootstrap interval      9 %      5 %

So the bootstrap interval is shown, but Student's decides: with few runs the bootstrap's is too short (it covers 82 and
90 % instead of 95). The one assumption is that without a difference, d is as likely as −d, as it is when both losses'
runs are drawn alike. Where it fails, so does the verdict: 10 % for d drawn from 1 − exponential.

`compare` makes the rows, `judged` the verdicts of all rows that answer one question together; comparison.paired says
which those are.

Tables of runs have the columns dataset, detector, loss, weight, seed, and measures such as AP; one row a run.
"""

import itertools

import numpy as np
import pandas as pd
from scipy import special, stats

LEVEL = 0.95
LEAST = 3  # runs below which there is no interval
DECIDING = 5  # runs below which there is no verdict: the exact test can say something from here, 1/2⁵ < 5 %
VERDICTS = ("better", "worse", "undecided", "too few seeds")
GROUP = ("dataset", "detector")


def mean_interval(values):
    """Student's 95 % interval of the mean of (n,) values: (low, high), missing below 3 values."""
    values = _finite(values)
    return _student(values, values.std(ddof=1) if len(values) > 1 else np.nan)[:2]


def share_interval(count, n):
    """The 95 % interval of a share of which `count` in `n` independent cases were seen (Wilson): (low, high), missing
    below 3 cases."""
    return tuple(stats.binomtest(int(count), int(n)).proportion_ci(LEVEL, "wilson")) if n >= LEAST else (np.nan, np.nan)


def bootstrap_interval(values, seed=0):
    """The 95 % percentile bootstrap interval of the mean: (low, high), missing below 3 values. Too short for few
    values, see above."""
    values = _finite(values)
    if len(values) < LEAST:
        return np.nan, np.nan
    found = stats.bootstrap(
        (values,), np.mean, confidence_level=LEVEL, method="percentile", rng=np.random.default_rng(seed)
    )
    return tuple(map(float, found.confidence_interval))


def interquartile_mean(values):
    """The mean of the middle half: a quarter of the values, rounded down, is left out at each end (Agarwal et al.,
    NeurIPS 2021)."""
    values = _finite(values)
    return float(stats.trim_mean(values, 0.25)) if len(values) else np.nan


def probability_of_improvement(a, b):
    """P(A > B): the share of all pairs of one run of A and one of B in which A's is higher; equal ones count half
    (Agarwal et al.)."""
    a, b = _finite(a)[:, None], _finite(b)[None]
    return float(((a > b) + (a == b) / 2).mean()) if a.size and b.size else np.nan


def difference(a, b, seed=0):
    """What can be said of A − B from paired runs, (n,) each, higher being better: a dict.

    n, difference (the mean), low, high (95 %, Student), boot_low, boot_high (95 %, percentile bootstrap), iqm
    (interquartile mean of the differences), probability (of improvement), p (Student, two-sided), p_signs (exact: the
    share of the 2ⁿ ways to flip the differences' signs with as large a sum). Up to four runs, equal differences show
    less spread than there is: the smallest step between values is then the least spread assumed. Raises ValueError
    where lengths differ or a value is not finite.
    """
    a, b = _finite(a), _finite(b)
    if len(a) != len(b):
        raise ValueError(f"paired runs needed: A has {len(a)}, B has {len(b)}")
    d = a - b
    low, high, p = _student(d, _spread(a, b))
    found = dict(n=len(d), difference=d.mean() if len(d) else np.nan, low=low, high=high)
    found |= dict(zip(("boot_low", "boot_high"), bootstrap_interval(d, seed), strict=True))
    return found | dict(
        iqm=interquartile_mean(d), probability=probability_of_improvement(a, b), p=p, p_signs=_sign_flips(d, seed)
    )


def compare(runs, measure="AP", pairs=None, higher=True, by=GROUP, seed=0):
    """Every loss against every other, on the seeds both have: a row for each data set, detector and pair.

    Columns: those of `by`, measure, loss, against, seeds, mean, mean_against and the entries of `difference`; a
    positive difference says that `loss` is better (for errors say higher=False). `pairs` are (loss, against); by
    default all, in the table's order. `judged` adds the verdicts. Raises ValueError for two runs of a seed, for several
    weights of a loss (at_equal_weight or at_best_weight choose), and for a run without the measure.
    """
    rows = []
    for key, group in runs.groupby(list(by), sort=False):
        rows += _compare_group(group, measure, pairs, higher, dict(zip(by, key, strict=True)), seed)
    return pd.DataFrame(rows)


def judged(comparisons):
    """Rows of `compare`, taken as one family, with p_holm, Holm's correction of p over all of them, and the verdict
    that follows from it."""
    if comparisons.empty:
        return comparisons
    p = comparisons.p.to_numpy(dtype=float)
    corrected = np.full(len(p), np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    verdicts = [verdict(row, holm) for row, holm in zip(comparisons.to_dict("records"), corrected, strict=True)]
    return comparisons.assign(p_holm=corrected, verdict=verdicts)


def verdict(found, p):
    """In words, what the entries `found` of `difference` and p, corrected for the comparisons made beside it, allow to
    say."""
    if found["n"] < DECIDING:
        return "too few seeds"
    if p >= 1 - LEVEL or found["p_signs"] > 1 - LEVEL:
        return "undecided"
    return "better" if found["difference"] > 0 else "worse"


def at_equal_weight(runs, knob="weight"):
    """The runs at weights (or another knob, as step_size) at which every loss of their data set and detector was run.

    Compare them with by=(*GROUP, knob): each weight is a comparison of its own.
    """

    def shared(group):
        return group[group.groupby(knob, dropna=False).loss.transform("nunique") == group.loss.nunique()]

    return _each_group(runs, shared)


def at_best_weight(runs, measure="AP", knob="weight", higher=True):
    """The runs of each loss at its own best weight (or other knob), the selection made on seeds that are then left out.

    Where every loss of a data set and detector has a single weight, all of its runs are returned. Else a third of the
    seeds at which all was run (rounded down, at least one, the lowest) selects, by the mean of `measure`; what the
    other seeds give is returned. Raises ValueError where no seed has all weights, or none is left.
    """
    return _each_group(runs, lambda group: _best_of_group(group, measure, knob, higher))


def curve(runs, measure="AP", knob="weight"):
    """The measure against the weight (or another knob): dataset, detector, loss, the knob, mean, low, high (95 %,
    Student), n."""
    rows = []
    for key, part in runs.groupby([*GROUP, "loss", knob], sort=False, dropna=False):
        low, high = mean_interval(part[measure])
        rows.append(
            dict(zip((*GROUP, "loss", knob), key, strict=True))
            | dict(mean=part[measure].mean(), low=low, high=high, n=len(part))
        )
    return pd.DataFrame(rows, columns=[*GROUP, "loss", knob, "mean", "low", "high", "n"]).sort_values(
        [*GROUP, "loss", knob], ignore_index=True
    )


def _finite(values):
    values = np.asarray(values, dtype=np.float64).reshape(-1)
    if not np.isfinite(values).all():
        raise ValueError(
            f"every run needs a finite value, got {values.tolist()}; "
            "leave out or repeat the failed run, for both losses"
        )
    return values


def _student(values, spread):
    """(low, high, p) of the mean, given the standard deviation; all missing below LEAST values."""
    n = len(values)
    if n < LEAST:
        return np.nan, np.nan, np.nan
    mean, error = values.mean(), spread / np.sqrt(n)
    reach = special.stdtrit(n - 1, (1 + LEVEL) / 2) * error
    p = 2 * special.stdtr(n - 1, -abs(mean) / error) if error > 0 else float(mean == 0)
    return float(mean - reach), float(mean + reach), float(p)


def _spread(a, b):
    """The standard deviation of a − b; up to four pairs with equal differences, at least the smallest step between
    values."""
    d = a - b
    if len(d) < 2:
        return np.nan
    grain = 1e-9 * max(np.abs(a).max(), np.abs(b).max())  # what rounding makes of equal numbers
    spread = d.std(ddof=1) if np.ptp(d) > grain else 0.0
    if len(d) >= DECIDING or (np.diff(np.sort(d)) > grain).all():
        return spread
    steps = np.diff(np.sort(np.concatenate((a, b))))
    return max(spread, steps[steps > grain].min(initial=np.inf)) if (steps > grain).any() else spread


def _sign_flips(d, seed):
    """P(a sum at least as far from zero, to the same side | signs are random): exact up to 12 runs, else from 10,000
    random flips."""
    n = len(d)
    if n == 0:
        return np.nan
    exact = 1 - 2 * (np.arange(2 ** min(n, 12))[:, None] >> np.arange(n) & 1)  # every way to set n signs
    signs = exact if n <= 12 else np.random.default_rng(seed).choice((1, -1), (10_000, n))
    as_far = (signs @ d) * np.sign(d.sum()) >= abs(d.sum()) - 1e-9 * np.abs(d).sum()
    return float(as_far.mean()) if n <= 12 else float((as_far.sum() + 1) / (len(signs) + 1))


def _compare_group(group, measure, pairs, higher, key, seed):
    twice = group[group.duplicated(["loss", "seed"], keep=False)]
    if len(twice):
        first = twice.iloc[0]
        several = group[group.loss == first.loss]["weight"].nunique() > 1 if "weight" in group else False
        remedy = (
            "several weights: choose with at_equal_weight or at_best_weight"
            if several
            else "two runs of one seed: keep one"
        )
        raise ValueError(f"{first.loss} has {remedy} ({', '.join(map(str, key.values()))}, seed {first.seed})")
    values = group.pivot(index="seed", columns="loss", values=measure)
    ran = group.assign(ran=True).pivot(index="seed", columns="loss", values="ran").notna()
    names, rows = list(group.loss.unique()), []
    for loss, against in [(b, a) for a, b in itertools.combinations(names, 2)] if pairs is None else pairs:
        if loss not in names or against not in names:
            continue
        seeds = ran.index[ran[loss] & ran[against]]
        ours, theirs = values.loc[seeds, loss], values.loc[seeds, against]
        found = difference(ours, theirs, seed) if higher else difference(-ours, -theirs, seed)
        head = key | dict(measure=measure, loss=loss, against=against, seeds=" ".join(map(str, seeds)))
        rows.append(head | dict(mean=ours.mean(), mean_against=theirs.mean()) | found)
    return rows


def _each_group(runs, choose):
    parts = [choose(group) for _, group in runs.groupby(list(GROUP), sort=False)]
    return pd.concat(parts) if parts else runs


def _best_of_group(group, measure, knob, higher):
    weights = {loss: set(part[knob].dropna()) for loss, part in group.groupby("loss")}
    if all(len(values) <= 1 for values in weights.values()):
        return group
    runs = {seed: {loss: set(p[knob]) for loss, p in part.groupby("loss")} for seed, part in group.groupby("seed")}
    swept = sorted(
        seed for seed, have in runs.items() if all(values <= have.get(loss, set()) for loss, values in weights.items())
    )
    name = ", ".join(str(group[column].iloc[0]) for column in GROUP)
    if not swept:
        raise ValueError(
            f"{name}: no seed was run with every {knob} of every loss, so none can be chosen; run the missing ones"
        )
    selection = swept[: max(1, len(swept) // 3)]
    chosen, rest = group[group.seed.isin(selection)], group[~group.seed.isin(selection)]
    means = chosen.groupby(["loss", knob])[measure].mean().reset_index()
    best = means.loc[means.groupby("loss")[measure].agg("idxmax" if higher else "idxmin")].set_index("loss")[knob]
    found = rest[rest[knob] == rest.loss.map(best)]
    if found.empty:
        raise ValueError(
            f"{name}: no seed is left after the selection of the {knob} on seed {', '.join(map(str, selection))}; "
            "run more seeds"
        )
    return found
