"""What decides each claim: a function `_<id>` takes the claim's tables (name → pandas table) and the run's parameters,
and returns a `finding`: a value, its 95 % interval where it has one, the sample size, the verdict and a sentence.

A claim is "undecided" where the intervals hold the bar; a KeyError or ValueError says that the run cannot test it.
One that holds in some of several cases names them: "holds for the published code only".
"""

import functools
import re

import numpy as np
import pandas as pd

from giou_repro.experiments import statistics

HOLDS, FAILS, UNDECIDED, UNTESTED = "holds", "does not hold", "undecided", "not tested"
WAYS = {"published": "the published code", "exact": "exact gradients"}  # of the simulation
PUBLISHED, EXACT = WAYS.values()
BEST = "exact gradients at best step sizes"
CASES = WAYS | {"best": BEST}
NO_INTERVAL = (np.nan, np.nan)


def finding(value, interval, n, holds, words):
    """`holds` is True, False, or None where undecided; or such for each case by its name."""
    low, high = map(float, interval)
    verdict = graded(holds if isinstance(holds, dict) else {"": holds})
    return dict(value=float(value), low=low, high=high, n=int(n), verdict=verdict, words=words)


def untested(words):
    return finding(np.nan, NO_INTERVAL, 0, None, words) | dict(verdict=UNTESTED)


def graded(cases: dict) -> str:
    """The verdict from whether a claim holds in each case: its name → True, False, or None where undecided."""
    held, failed, open_ = ([name for name, holds in cases.items() if holds == which] for which in (True, False, None))
    if not held:
        return UNDECIDED if open_ else FAILS
    rest = f", undecided for {' and '.join(open_)}" if open_ else " only"
    return f"{HOLDS} for {' and '.join(held)}{rest}" if failed or open_ else HOLDS


def above(interval, bar):
    """Whether a number is above `bar`, by its interval: True, False, or None where the interval holds the bar."""
    low, high = interval
    return True if low > bar else False if high <= bar else None


def below(interval, bar):
    low, high = interval
    return above((-high, -low), -bar)


def all_of(*parts):
    """Whether all of several parts hold, each True, False or None."""
    return False if False in parts else None if None in parts else True


def sentence(clauses):
    words = "; ".join(clauses)
    return f"{words[0].upper()}{words[1:]}."


# ---- 01: the metric


def _g1(tables, parameters):
    figure = tables["figure_1"].groupby("panel").iou.agg(np.ptp)
    at = tables["spread"].query("measure == 'iou' and distance == 7").set_index("norm")
    words = (
        f"At ℓ2 distance 7, nine in ten predictions have an IoU of {at.q05.l2:.2f} to {at.q95.l2:.2f}; "
        f"in each row of figure 1 IoU spans {figure.min():.2f} or more."
    )
    spans = (figure >= 0.3).all() and (at.q95 - at.q05 >= 0.1).all()
    return finding(at["median"].l2, NO_INTERVAL, parameters["n_pairs"], spans, words)


def _property(name, tables, parameters):
    """What no random case may contradict, so that the interval of the share that does is one-sided: 0 to 1 − ⁿ√.05."""
    checks = tables["properties"].set_index("claim").loc[[name]]
    broken = "; ".join(checks.property[~checks.holds])
    disjoint = re.search(r"on (\d+) disjoint pairs", " ".join(checks.property))
    n = int(disjoint[1]) if disjoint else parameters["n_pairs"]
    if broken:
        return finding(np.nan, NO_INTERVAL, n, False, f"Broken: {broken}.")
    words = f"{len(checks)} of {len(checks)} checks hold: no counterexample among {n:,} random cases."
    return finding(0, (0, 1 - 0.05 ** (1 / n)), n, True, words)


def _b1(tables, parameters):
    by_size = tables["rank_correlation"].sort_values("size").groupby(["targets", "norm"]).wrong_pairs
    tiny, large = by_size.first(), by_size.last()["one", "l1"]
    shares = {
        "large errors": large,
        "tiny errors in pixels": tiny["one", "l1"],
        "tiny errors of a square": tiny["square", "l1"],
        "tiny errors in units of each side": tiny["one", "l1_per_side"],
    }
    n = parameters["n_pairs"] // 10 * 10  # ten repeats of a tenth
    intervals = {name: statistics.share_interval(round(share * n), n) for name, share in shares.items()}
    cases = {name: below(interval, 0.01) for name, interval in intervals.items()}
    cases["large errors"] = above(intervals["large errors"], 0.01)
    words = "Pairs ranked wrongly: " + ", ".join(f"{share:.2%} for {name}" for name, share in shares.items()) + "."
    return finding(tiny["one", "l1"], intervals["tiny errors in pixels"], n, cases, words)


def _b2(tables, parameters):
    table = tables["ranges"].set_index(["kind", "overlap"])
    corners, equal = table.loc[("corners", True)], table.loc[("equal", True)]
    apart = table.xs(False, level="overlap")
    holds = corners.lowest < 0 and equal.lowest >= -0.5 and apart.lowest.min() >= -1 and apart.highest.max() <= 0
    words = (
        f"Overlapping pairs go down to {corners.lowest:.2f} (equal sizes {equal.lowest:.2f}), disjoint ones from "
        f"{apart.highest.max():.2f} to {apart.lowest.min():.2f}."
    )
    return finding(corners.lowest, NO_INTERVAL, corners.pairs, holds, words)


# ---- 02: the loss landscape


def _g7(tables, parameters):
    table = tables["steepness"].set_index(["loss", "iou_high"])
    giou, iou, top = (table.loc[key] for key in (("giou", 0.1), ("iou", 0.1), ("giou", 1.0)))
    ratio = giou["median"] / iou["median"]
    errors = (1.2533 * (row.q75 - row.q25) / 1.349 / np.sqrt(row.pairs) / row["median"] for row in (giou, iou))
    interval = ratio * (1 + 1.96 * np.hypot(*errors) * np.array([-1, 1]))  # by relative standard errors of medians
    together = np.tanh(np.arctanh(min(top.correlation, 1 - 1e-12)) + np.array([-1.96, 1.96]) / np.sqrt(top.pairs - 3))
    words = (
        f"GIoU is {ratio:.1f} times as steep as IoU below IoU .1; above .9 they correlate with {top.correlation:.4f}."
    )
    cases = {"low overlap": above(interval, 1), "high overlap": above(together, 0.99)}
    return finding(ratio, interval, giou.pairs, cases, words)


# ---- 03: the simulation, with published and with exact gradients


def _rows(table, loss, way="run"):
    """What a table has of a loss: case → row; not every table has the best step sizes."""
    rows = table[table.loss == loss].set_index(way)
    return {case: rows.loc[name] for name, case in CASES.items() if case != BEST or name in rows.index}


def _interval(row, count):
    """Of the share of boxes that start disjoint and did what `count` counts."""
    return statistics.share_interval(row[count], row.cases)


def _gaps(tables, loss, against):
    """Final error of `loss` less that of `against`, and its interval: case → row."""
    table = tables["differences"]
    turned = dict(
        loss=table.against, against=table.loss, difference=-table.difference, low=-table.high, high=-table.low
    )
    both = pd.concat([table, table.assign(**turned)])
    return _rows(both[both.against == against], loss)


def _standings(tables):
    """Error and half_step, infinite where it is not reached, of each (loss, case): those of WAYS, and BEST."""
    sizes = tables["step_sizes"].dropna(subset="error")
    best = sizes.loc[sizes.groupby("loss").error.idxmin()].assign(run=BEST)
    standings = pd.concat([tables["standings"].replace({"run": WAYS}), best])
    return standings.fillna({"half_step": np.inf}).set_index(["loss", "run"])[["error", "half_step"]]


def _start(tables):
    """The mean error of a case at the start."""
    return tables["curves_published"].error.iloc[0]


def _g6(tables, parameters):
    row = _rows(tables["apart"], "giou", "gradients")[EXACT]
    intervals = _interval(row, "grew"), _interval(row, "hull_shrank")
    bars = {"nearly all boxes": 0.9, "most boxes": 0.5}
    cases = {name: all_of(*(above(interval, bar) for interval in intervals)) for name, bar in bars.items()}
    grew, shrank = row.grew / row.cases, row.hull_shrank / row.cases
    words = f"{grew:.0%} of the boxes grow before they meet their target, {shrank:.0%} shrink the enclosing box."
    return finding(grew, intervals[0], row.cases, cases, words)


def _z1(tables, parameters):
    rows = _rows(tables["apart"], "iou", "gradients")
    cases = {case: below(_interval(row, "solved"), 0.05) for case, row in rows.items()}
    ends = ", ".join(f"{row.solved / row.cases:.0%} with {case}" for case, row in rows.items())
    row = rows[EXACT]
    words = f"Share of these boxes that end with an IoU above .5: {ends}."
    return finding(row.solved / row.cases, _interval(row, "solved"), row.cases, cases, words)


def _z2(tables, parameters):
    gaps, table = _gaps(tables, "giou", "diou"), _standings(tables)
    giou, diou = table.loc["giou"], table.loc["diou"]
    slower = (giou.half_step > diou.half_step) & (giou.error > 10 * diou.error)
    cases = {case: all_of(slower[case], above((row.low, row.high), 0)) for case, row in gaps.items()}
    words = sentence(
        f"with {case} GIoU ends at {giou.error[case]:.3f} and DIoU at {diou.error[case]:.3f}" for case in (*gaps, BEST)
    )
    words += " The error is the sum of those of x, y, w and h, mean over the cases; targets have area 1."
    row = gaps[PUBLISHED]
    return finding(row.difference, (row.low, row.high), row.points, cases | {BEST: slower[BEST]}, words)


def _z3(tables, parameters):
    giou, diou = (_rows(tables["alignment"], loss) for loss in ("giou", "diou"))
    cases = {
        case: all_of(above((row.low, row.high), 0), row.aligned > max(1.5 * row.diagonal, _start(tables) / 10))
        for case, row in giou.items()
    }
    words = sentence(
        f"{case}: {row.aligned:.3f} aligned, {row.diagonal:.3f} diagonal, under DIoU {diou[case].aligned:.3f} and "
        f"{diou[case].diagonal:.3f}"
        for case, row in giou.items()
    )
    row = giou[PUBLISHED]
    return finding(row.aligned - row.diagonal, (row.low, row.high), row.points, cases, words)


def _z4(tables, parameters):
    giou, diou = (_rows(tables["apart"], loss, "gradients") for loss in ("giou", "diou"))
    cases = {
        case: all_of(above(_interval(giou[case], "grew"), 0.9), below(_interval(diou[case], "grew"), 0.1))
        for case in giou
    }
    words = sentence(
        f"with {case} GIoU enlarges {giou[case].grew / giou[case].cases:.0%} of the boxes and closes "
        f"{giou[case].by_growing:.0%} of the gap by growing (median), DIoU {row.grew / row.cases:.0%} and "
        f"{row.by_growing:.0%}"
        for case, row in diou.items()
    )
    row = diou[EXACT]
    return finding(row.grew / row.cases, _interval(row, "grew"), row.cases, cases, words)


def _z5(tables, parameters):
    rows = _rows(tables["points"], "diou")
    cases = {case: row.worst < _start(tables) / 100 for case, row in rows.items()}
    words = sentence(f"{case}: mean {row.error:.3f}, worst point {row.worst:.3f}" for case, row in rows.items())
    row = rows[PUBLISHED]
    return finding(row.error, (row.low, row.high), row.points, cases, words)


def _z6(tables, parameters):
    gaps, table, bar = _gaps(tables, "ciou", "diou"), _standings(tables), _start(tables) / 1000
    ciou, diou = table.loc["ciou"], table.loc["diou"]
    as_fast = (ciou.half_step <= diou.half_step) & (ciou.error < diou.error + bar)
    cases = {case: all_of(as_fast[case], below((row.low, row.high), bar)) for case, row in gaps.items()}
    words = sentence(
        f"{case}: half the error after {ciou.half_step[case]:.0f} steps, DIoU {diou.half_step[case]:.0f}"
        for case in (*gaps, BEST)
    )
    row = gaps[PUBLISHED]
    return finding(row.difference, (row.low, row.high), row.points, cases | {BEST: as_fast[BEST]}, words)


def _z9(tables, parameters):
    longer, half = _rows(tables["more_steps"], "giou"), _standings(tables).half_step
    cases = {
        case: half["giou", case] > half["diou", case] and row.error < _start(tables) / 100
        for case, row in longer.items()
    }
    words = sentence(
        f"{case}: half the error after {half['giou', case]:.0f} steps, DIoU {half['diou', case]:.0f}; after five times "
        f"the steps GIoU ends at {row.error:.4f}"
        for case, row in longer.items()
    )
    return finding(longer[PUBLISHED].error, NO_INTERVAL, parameters["sweep_points"], cases, words)


def _z10(tables, parameters):
    ends = {case: tables[f"curves_{way}"].groupby("loss").last() for way, case in WAYS.items()}
    shape = {case: (end.error_w + end.error_h)[["ciou", "diou"]] for case, end in ends.items()}
    words = sentence(
        f"{case}: error of width and height {error.ciou:.4f} under CIoU, {error.diou:.4f} under DIoU"
        for case, error in shape.items()
    )
    cases = {case: error.ciou < error.diou for case, error in shape.items()}
    return finding(shape[EXACT].ciou - shape[EXACT].diou, NO_INTERVAL, parameters["n_points"], cases, words)


DECIDERS = {name: functools.partial(_property, name) for name in ("G2", "G3", "G4", "G5", "G8")}
DECIDERS |= {"G15": functools.partial(_property, "equal IoU"), "Z7": functools.partial(_property, "contained")}
DECIDERS |= {"G1": _g1, "G6": _g6, "G7": _g7, "B1": _b1, "B2": _b2, "Z1": _z1, "Z2": _z2, "Z3": _z3}
DECIDERS |= {"Z4": _z4, "Z5": _z5, "Z6": _z6, "Z9": _z9, "Z10": _z10}
