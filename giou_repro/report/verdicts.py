"""What decides each claim: a function `_<id>` takes the claim's tables (name → pandas table) and the run's parameters,
and returns a `_finding`: a value, its interval, the sample size, the verdict and a sentence.

A claim is "undecided" where the intervals hold the bar, and "not tested" without a run, a table, or five paired seeds.
"""

import functools
import re

import numpy as np
import pandas as pd
from scipy import stats

from giou_repro.experiments import comparison, statistics
from giou_repro.registry import label

HOLDS, CONDITION, FAILS = "holds", "holds with a condition", "does not hold"
UNDECIDED, UNTESTED = "undecided", "not tested"
GRADIENTS = ("published", "exact")  # of the simulation
HALF_A_POINT, A_POINT = 0.005, 0.01  # of AP
LEARNED = 0.05  # mean AP below which detectors say nothing about losses
TOO_FEW = f"in detectors with a mean AP of {LEARNED} or more, fewer than {statistics.DECIDING} paired seeds"


def _finding(value, interval, n, verdict, words):
    low, high = interval
    return dict(value=float(value), low=float(low), high=float(high), n=int(n), verdict=verdict, words=words)


def untested(words):
    return _finding(np.nan, (np.nan, np.nan), 0, UNTESTED, words)


def _graded(*parts):
    """The verdict from whether each part of a claim holds (True, False, or None where the run does not decide it)."""
    if None in parts and not {True, False} <= set(parts):
        return UNDECIDED
    return HOLDS if all(parts) else CONDITION if any(parts) else FAILS


def _above(interval, bar):
    """Whether a number is above `bar`, by its interval: True, False, or None where the interval holds the bar."""
    low, high = interval
    return True if low > bar else False if high <= bar else None


def _below(interval, bar):
    return {True: False, False: True, None: None}[_above(interval, bar)]


def _both(*parts):
    """Whether all of several parts hold, each True, False or None."""
    return False if False in parts else None if None in parts else True


# ---- 01: the metric


def _g1(tables, parameters):
    figure = tables["figure_1"].groupby("panel").iou.agg(np.ptp)
    at = tables["spread"].query("measure == 'iou' and distance == 7").set_index("norm")
    row = at.loc["l2"]
    spans = (figure >= 0.3).all() and (at.q95 - at.q05 >= 0.1).all()
    words = (
        f"At ℓ2 distance 7, nine in ten predictions have an IoU of {row.q05:.2f} to {row.q95:.2f}; "
        f"figure 1 spans {figure.min():.2f} and more."
    )
    return _finding(row["median"], (row.q05, row.q95), parameters["n_pairs"], _graded(spans), words)


def _property(name, tables, parameters):
    """What no random case may contradict, so that the interval of the share that does is one-sided: 0 to 1 − ⁿ√.05."""
    checks = tables["properties"][tables["properties"].claim == name]
    if checks.empty:
        return untested("the run did not check it")
    disjoint = re.search(r"on (\d+) disjoint pairs", " ".join(checks.property))
    n = int(disjoint[1]) if disjoint else parameters["n_pairs"]
    if not checks.holds.all():
        broken = "; ".join(checks.property[~checks.holds])
        return _finding(np.nan, (np.nan, np.nan), n, FAILS, f"Broken: {broken}.")
    words = f"{len(checks)} of {len(checks)} checks hold: no counterexample among {n:,} random cases."
    return _finding(0, (0, 1 - 0.05 ** (1 / n)), n, HOLDS, words)


def _b1(tables, parameters):
    shares = tables["rank_correlation"].query("targets == 'one' and norm == 'l1'").sort_values("size").wrong_pairs
    n = parameters["n_pairs"] // 10 * 10  # ten repeats of a tenth
    tiny, large = (statistics.share_interval(round(share * n), n) for share in (shares.iloc[0], shares.iloc[-1]))
    rare = _below(tiny, 0.01)
    verdict = CONDITION if rare is False and tiny[1] < large[0] else _graded(_both(rare, _above(large, 0.01)))
    words = (
        f"{shares.iloc[-1]:.0%} of the pairs are ranked wrongly for large errors, and still {shares.iloc[0]:.0%} "
        "for tiny ones: smaller errors help, but how much IoU falls depends at any size on which side is off."
    )
    return _finding(shares.iloc[0], tiny, n, verdict, words)


def _b2(tables, parameters):
    table = tables["ranges"].set_index(["kind", "overlap"])
    corners, equal = table.loc[("corners", True)], table.loc[("equal", True)]
    apart = table.xs(False, level="overlap")
    holds = corners.lowest < 0 and equal.lowest >= -0.5 and apart.lowest.min() >= -1 and apart.highest.max() <= 0
    words = (
        f"Overlapping pairs go down to {corners.lowest:.2f} (equal sizes {equal.lowest:.2f}), disjoint ones from "
        f"{apart.highest.max():.2f} to {apart.lowest.min():.2f}."
    )
    return _finding(corners.lowest, (-1, 1), corners.pairs, _graded(holds), words)


# ---- 02: the loss landscape


def _g7(tables, parameters):
    table = tables["steepness"].set_index(["loss", "iou_high"])
    giou, iou, top = (table.loc[key] for key in (("giou", 0.1), ("iou", 0.1), ("giou", 1.0)))
    ratio = giou["median"] / iou["median"]
    errors = (1.2533 * (row.q75 - row.q25) / 1.349 / np.sqrt(row.pairs) / row["median"] for row in (giou, iou))
    error = np.hypot(*errors)  # relative standard errors, of medians
    interval = ratio * (1 - 1.96 * error), ratio * (1 + 1.96 * error)
    together = np.tanh(np.arctanh(min(top.correlation, 1 - 1e-12)) + np.array([-1.96, 1.96]) / np.sqrt(top.pairs - 3))
    words = (
        f"GIoU is {ratio:.1f} times as steep as IoU below IoU .1; above .9 they correlate with {top.correlation:.4f}."
    )
    return _finding(ratio, interval, giou.pairs, _graded(_above(interval, 1), _above(together, 0.99)), words)


# ---- 03: the simulation, with published and with exact gradients


def _share(tables, gradients, loss, count):
    """(share, its interval, cases) of the boxes that start disjoint and did what `count` counts."""
    row = tables["apart"].set_index(["gradients", "loss"]).loc[(gradients, loss)]
    return row[count] / row.cases, statistics.share_interval(row[count], row.cases), row.cases


def _gap(tables, loss, against, gradients):
    """(difference, interval, points) of the final error of `loss` less that of `against`."""
    table = tables["differences"].set_index(["run", "loss", "against"])
    if (gradients, loss, against) in table.index:
        row = table.loc[(gradients, loss, against)]
        return row.difference, (row.low, row.high), row.points
    row = table.loc[(gradients, against, loss)]
    return -row.difference, (-row.high, -row.low), row.points


def _half_steps(tables):
    """Steps to half the error, infinite where it is not reached."""
    return tables["standings"].set_index(["run", "loss"]).half_step.fillna(np.inf)


def _start(tables):
    """The mean error of a case at the start."""
    return tables["curves_published"].error.iloc[0]


def _rows(table, loss):
    return {way: table.set_index(["run", "loss"]).loc[(way, loss)] for way in GRADIENTS}


def _sentence(clauses):
    words = "; ".join(clauses)
    return f"{words[0].upper()}{words[1:]}."


def _g6(tables, parameters):
    (grew, grew_range, n), (shrank, shrank_range, _) = (
        _share(tables, "exact", "giou", count) for count in ("grew", "hull_shrank")
    )
    nearly_all, most = (_both(_above(grew_range, bar), _above(shrank_range, bar)) for bar in (0.9, 0.5))
    verdict = UNDECIDED if None in (nearly_all, most) else _graded(nearly_all, most)
    words = f"{grew:.0%} of the boxes grow before they meet their target, {shrank:.0%} shrink the enclosing box."
    return _finding(grew, grew_range, n, verdict, words)


def _z1(tables, parameters):
    published, exact = (_share(tables, way, "iou", "solved") for way in GRADIENTS)
    words = f"{exact[0]:.0%} of them end above IoU .5 with exact gradients, {published[0]:.0%} with the published."
    return _finding(*exact, _graded(*(_below(interval, 0.05) for _, interval, _ in (published, exact))), words)


def _z2(tables, parameters):
    half, error = _half_steps(tables), tables["standings"].set_index(["run", "loss"]).error
    slower = [
        _both(
            bool(half[way, "giou"] > half[way, "diou"]),
            _above(_gap(tables, "giou", "diou", way)[1], 0),
            bool(error[way, "giou"] > 10 * error[way, "diou"]),
        )
        for way in GRADIENTS
    ]
    words = _sentence(
        f"with {way} gradients GIoU ends at {error[way, 'giou']:.3f} and DIoU at {error[way, 'diou']:.3f}"
        for way in GRADIENTS
    )
    return _finding(*_gap(tables, "giou", "diou", "published"), _graded(*slower), words)


def _z3(tables, parameters):
    rows = _rows(tables["alignment"], "giou")
    large = [
        _both(_above((row.low, row.high), 0), bool(row.aligned > max(1.5 * row.diagonal, _start(tables) / 10)))
        for row in rows.values()
    ]
    words = _sentence(
        f"{way} gradients: {row.aligned:.3f} aligned, {row.diagonal:.3f} diagonal" for way, row in rows.items()
    )
    row = rows["published"]
    return _finding(row.aligned - row.diagonal, (row.low, row.high), row.points, _graded(*large), words)


def _z4(tables, parameters):
    giou, diou = ({way: _share(tables, way, loss, "grew") for way in GRADIENTS} for loss in ("giou", "diou"))
    growth = tables["apart"].set_index(["gradients", "loss"]).growth
    only_giou = [_both(_above(giou[way][1], 0.9), _below(diou[way][1], 0.1)) for way in GRADIENTS]
    words = (
        f"GIoU enlarges {giou['exact'][0]:.0%} of the boxes, DIoU {diou['exact'][0]:.0%} "
        f"(median {growth['exact', 'giou']:.1f} and {growth['exact', 'diou']:.1f} times; "
        f"published gradients {growth['published', 'giou']:.1f} and {growth['published', 'diou']:.1f})."
    )
    return _finding(*diou["exact"], _graded(*only_giou), words)


def _z5(tables, parameters):
    rows = _rows(tables["points"], "diou")
    flat = [bool(row.worst < _start(tables) / 100) for row in rows.values()]
    words = _sentence(
        f"{way} gradients: mean {row.error:.3f}, worst point {row.worst:.3f}" for way, row in rows.items()
    )
    row = rows["published"]
    return _finding(row.error, (row.low, row.high), row.points, _graded(*flat), words)


def _z6(tables, parameters):
    half = _half_steps(tables)
    as_fast = [
        _both(
            bool(half[way, "ciou"] <= half[way, "diou"]),
            _below(_gap(tables, "ciou", "diou", way)[1], _start(tables) / 1000),
        )
        for way in GRADIENTS
    ]
    words = _sentence(
        f"{way} gradients: half the error after {half[way, 'ciou']:.0f} steps, DIoU {half[way, 'diou']:.0f}"
        for way in GRADIENTS
    )
    return _finding(*_gap(tables, "ciou", "diou", "published"), _graded(*as_fast), words)


# ---- 06: detectors


def settings(detectors: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The runs of each setting that are compared (comparison.at_one_weight): name of the setting → runs.

    Left out: settings whose detectors learned next to nothing (mean AP below LEARNED), and those whose losses share no
    weight.
    """
    try:
        chosen = comparison.at_one_weight(detectors)
    except ValueError:
        return {}
    return {name: group for name, group in chosen.groupby("setting", sort=False) if group.AP.mean() >= LEARNED}


def differences(groups: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """comparison.paired of `settings`: every verdict on detectors is from this table."""
    return comparison.paired(pd.concat(groups.values())) if groups else comparison.PAIRED


def _coordinate_loss(losses):
    """The detector's own loss, MSE or smooth ℓ1, whichever was run; None without one."""
    return next((name for name in comparison.BASELINES if name in list(losses)), None)


def _chain(groups):
    """The rows of `differences` from the coordinate loss (`base`) over IoU to GIoU, on seeds enough for a verdict."""
    table = differences(groups)
    base = table.setting.map({name: _coordinate_loss(group.loss) for name, group in groups.items()})
    links = (table.against == base) & table.loss.isin(("iou", "giou"))
    links |= (table.against == "iou") & (table.loss == "giou") & base.notna()
    return table.assign(base=base)[links & (table.n >= statistics.DECIDING)]


def _gains(chain, measure="AP"):
    """The rows of a chain that compare GIoU with the coordinate loss, by setting, those of most seeds first."""
    rows = chain[(chain.measure == measure) & (chain.loss == "giou") & (chain.against == chain.base)]
    return rows.sort_values("n", kind="stable", ascending=False).set_index("setting", drop=False).rename_axis(None)


def _measured(groups, rows, measure):
    """statistics.compare of the losses that `rows` of a chain compare, in another measure."""
    pairs = {name: part[["loss", "against"]].to_numpy().tolist() for name, part in rows.groupby("setting", sort=False)}
    return pd.concat([statistics.compare(groups[name], measure, pairs[name]) for name in pairs])


def _g9(tables, parameters):
    groups = settings(tables["detectors"])
    chain = _chain(groups)
    gains, in_ap = _gains(chain), chain[chain.measure == "AP"]
    if gains.empty:
        return untested(f"{TOO_FEW} of GIoU and a coordinate loss")
    row = gains.iloc[0]
    words = (
        f"Of the chain's {len(in_ap)} differences: {_counted(chain)}. "
        f"{row.setting}: GIoU {row.difference:+.3f} AP to {label(row.against)}."
    )
    holds = _wins_throughout(tables["detectors"], groups, chain)
    verdict = HOLDS if holds else CONDITION if (in_ap.verdict == "better").any() else _no_gain(in_ap)
    return _finding(row.difference, (row.low, row.high), row.n, verdict, words)


def _counted(chain):
    """How often each verdict falls in each measure, in words."""
    counts = chain.groupby("measure", sort=False).verdict.apply(lambda part: part.value_counts().sort_index())
    words = {
        measure: ", ".join(f"{n} {verdict}" for (_, verdict), n in part.items())
        for measure, part in counts.groupby(level=0, sort=False)
    }
    return "; ".join(f"in {comparison.measure_label(measure)} {counted}" for measure, counted in words.items())


def _wins_throughout(detectors, groups, chain):
    """Whether every link of every chain is there, better in AP and AP75, and above 0 in both by GIoU."""
    links = chain[chain.measure == "AP"]
    whole = (links.groupby("setting").size() == 3).all() and detectors[comparison.MEASURES].notna().all(axis=None)
    return (
        whole
        and (chain.verdict[chain.measure.isin(("AP", "AP75"))] == "better").all()
        and all((_measured(groups, links, measure).low > 0).all() for measure in ("AP_giou", "AP75_giou"))
    )


def _no_gain(rows):
    """The verdict on a gain that is better nowhere: refuted where one is worse, or all are below half a point."""
    return FAILS if (rows.verdict == "worse").any() or (rows.high < HALF_A_POINT).all() else UNDECIDED


def _g10(tables, parameters):
    groups = settings(tables["detectors"].assign(tilt=lambda t: t.AP75 - t.AP))
    chain = _chain(groups)
    gains, in_ap50 = _gains(chain), _gains(chain, "AP50")
    if gains.empty:
        return untested(f"{TOO_FEW} of GIoU and a coordinate loss")
    won = gains[gains.verdict == "better"]
    tilts = _measured(groups, gains if won.empty else won, "tilt")
    tilts = statistics.judged(tilts).set_index("setting")
    name, row = tilts.index[0], tilts.iloc[0]
    words = f"{name}: AP75 gains {row.difference:+.3f} more than AP; AP50 changes by {in_ap50.difference[name]:+.3f}."
    if won.empty:
        words = f"GIoU gains AP beyond chance in no setting, so there is no gain to place. {words}"
        verdict = UNDECIDED
    elif (tilts.verdict == "better").all():
        kept = ((in_ap50.low > -A_POINT) & (in_ap50.high < A_POINT)).loc[tilts.index].all()
        verdict = HOLDS if kept else CONDITION
    else:
        verdict = CONDITION if (tilts.verdict == "better").any() else _no_gain(tilts)
    return _finding(row.difference, (row.low, row.high), row.n, verdict, words)


def _g11(tables, parameters):
    groups = settings(tables["detectors"]).values()
    gains = {}  # by data set and detector; of several settings, the one with most runs
    for group in sorted(groups, key=len):
        values = group.pivot(index="seed", columns="loss", values="AP")
        base = _coordinate_loss(values)
        if {"giou", base} <= set(values):
            gain = (values.giou - values[base]).dropna()
            gains[group.dataset.iloc[0], group.detector.iloc[0]] = gain, group.disjoint.mean()
    gains = {key: entry for key, entry in gains.items() if len(entry[0]) >= statistics.DECIDING}
    datasets = [data for data, detector in gains if detector == "yolov3"]
    two_stage = [(data, name) for data in datasets for name in ("faster_rcnn", "mask_rcnn") if (data, name) in gains]
    if not two_stage:
        return untested(f"{TOO_FEW} of YOLOv3 and of a two-stage detector on one data set")
    (one, one_apart), (two, two_apart) = gains[two_stage[0][0], "yolov3"], gains[two_stage[0]]
    low, high = stats.ttest_ind(one, two, equal_var=False).confidence_interval(statistics.LEVEL)
    gained = HOLDS if one_apart > two_apart else CONDITION
    verdict = gained if low > 0 else FAILS if high < HALF_A_POINT else UNDECIDED
    words = (
        f"GIoU gains {one.mean():+.3f} AP with YOLOv3, {one_apart:.1%} of whose positives are disjoint, "
        f"and {two.mean():+.3f} with two stages, {two_apart:.1%}."
    )
    return _finding(one.mean() - two.mean(), (low, high), min(len(one), len(two)), verdict, words)


DECIDERS = {name: functools.partial(_property, name) for name in ("G2", "G3", "G4", "G5", "G8")}
DECIDERS |= {"G1": _g1, "G6": _g6, "G7": _g7, "G9": _g9, "G10": _g10, "G11": _g11, "B1": _b1, "B2": _b2}
DECIDERS |= {"Z1": _z1, "Z2": _z2, "Z3": _z3, "Z4": _z4, "Z5": _z5, "Z6": _z6}
