"""The ledger: every claim of the papers, and its verdict, computed from the tables of complete runs. Its words are in
claims.toml.

A run is given by its folder (run.json and tables). Each `_<id>` function decides one claim: it takes the claim's tables
(name → pandas table) and the run's parameters, and returns value, low, high, n, verdict and a sentence. What a value
and its interval are, and what makes the claim hold, is said in claims.toml under `decided_by`. A claim is "undecided"
where it was tested and the intervals do not decide, and "not tested" where there is no run, no table, or fewer than
five paired seeds.
"""

import json
import re
import shlex
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from giou_repro.experiments import comparison, statistics
from giou_repro.registry import label
from giou_repro.runs import store

HOLDS, CONDITION, FAILS = "holds", "holds with a condition", "does not hold"
UNDECIDED, UNTESTED = "undecided", "not tested"
COLUMNS = ["id", "claim", "decided_by", "value", "low", "high", "n", "verdict", "run", "command"]
WAYS = ("published", "exact")  # gradients of the simulation
HALF_A_POINT, A_POINT = 0.005, 0.01  # of AP
LEARNED = 0.05  # mean AP below which detectors have nothing to say about losses
TOO_FEW = f"in detectors with a mean AP of {LEARNED} or more, fewer than {statistics.DECIDING} paired seeds"
TABLES = {
    1: "YOLOv3, VOC 2007",
    2: "YOLOv3, COCO",
    4: "Faster R-CNN, VOC 2007",
    5: "Faster R-CNN, COCO",
    7: "Mask R-CNN, COCO",
}
BOOK = tomllib.loads(Path(__file__).with_name("claims.toml").read_text())


def ledger(runs):
    """The verdicts from run folders (notebook → folder): a row a claim, with COLUMNS and source and words (what was
    found, in a sentence)."""
    return pd.DataFrame([_row(name, entry, runs.get(entry["notebook"])) for name, entry in BOOK["claims"].items()])


def _row(name, entry, folder):
    found, run = _untested("no run of this notebook"), ""
    command = f"giou-repro run {entry['notebook']}"
    if folder is not None:
        record = store.Run(folder).record
        run, command = f"{record['notebook']}/{record['run']}", repeat(record)
        missing = [table for table in entry["tables"] if not (Path(folder) / f"{table}.csv").exists()]
        if missing:
            found = _untested(f"the run has no table {', '.join(missing)}")
        elif record["status"] == "complete":
            tables = {table: pd.read_csv(Path(folder) / f"{table}.csv") for table in entry["tables"]}
            try:
                found = DECIDERS[name](tables, record["parameters"])
            except (KeyError, AttributeError) as error:
                found = _untested(f"the run's tables have no {error}: it had other losses, or was of another version")
            except ValueError as error:
                found = _untested(str(error))
    about = dict(id=name, claim=entry["claim"], decided_by=entry["decided_by"], run=run, command=command)
    return {column: (about | found)[column] for column in COLUMNS} | dict(source=entry["source"], words=found["words"])


def repeat(record):
    """The command that makes a run again, from its run.json."""
    given = dict(record["given"])
    flags = [f"--{name} {given.pop(name)}" for name in ("scale", "seed") if name in given]
    flags += [
        f"-p {name} {shlex.quote(value if isinstance(value, str) else json.dumps(value))}"
        for name, value in given.items()
    ]
    return " ".join(["giou-repro run", record["notebook"], *flags])


def paper_tables():
    """The GIoU paper's tables: table, detector, data, loss, AP, AP75, AP_giou, AP75_giou, as text; a question mark: as
    recalled."""
    return pd.DataFrame(
        BOOK["paper"]["rows"], columns=["table", "detector", "data", "loss", "AP", "AP75", "AP_giou", "AP75_giou"]
    )


def _found(value, interval, n, verdict, words):
    low, high = interval
    return dict(value=float(value), low=float(low), high=float(high), n=int(n), verdict=verdict, words=words)


def _untested(words):
    return _found(np.nan, (np.nan, np.nan), 0, UNTESTED, words)


def _graded(*parts):
    """The verdict from whether each part of a claim holds: all, some or none; of a part that is None the runs say too
    little."""
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
    spread = tables["spread"]
    at = spread[(spread.measure == "iou") & (spread.distance == 7)].set_index("norm")
    row = at.loc["l2"]
    holds = (figure >= 0.3).all() and (at.q95 - at.q05 >= 0.1).all()
    words = f"At ℓ2 distance 7, nine in ten predictions have an IoU of {row.q05:.2f} to {row.q95:.2f}; figure 1 spans {figure.min():.2f} and more."
    return _found(row["median"], (row.q05, row.q95), parameters["n_pairs"], HOLDS if holds else FAILS, words)


def _property(name):
    def decide(tables, parameters):
        checks = tables["properties"][tables["properties"].claim == name]
        if checks.empty:
            return _untested("the run did not check it")
        told = re.search(r"on (\d+) disjoint pairs", " ".join(checks.property))
        n = int(told[1]) if told else parameters["n_pairs"]
        if not checks.holds.all():
            return _found(np.nan, (np.nan, np.nan), n, FAILS, f"Broken: {'; '.join(checks.property[~checks.holds])}.")
        return _found(
            0,
            (0, 1 - 0.05 ** (1 / n)),
            n,
            HOLDS,
            f"{len(checks)} of {len(checks)} checks hold on {n:,} random cases; none against it.",
        )

    return decide


def _b1(tables, parameters):
    table = tables["rank_correlation"]
    one = table[(table.targets == "one") & (table.norm == "l1")].sort_values("size")
    n = parameters["n_pairs"] // 10 * 10  # ten repeats of a tenth
    tiny, large = (
        statistics.share_interval(round(share * n), n) for share in (one.wrong_pairs.iloc[0], one.wrong_pairs.iloc[-1])
    )
    if _below(tiny, 0.01) is False:
        verdict = CONDITION if tiny[1] < large[0] else FAILS
    else:
        verdict = {True: HOLDS, False: FAILS, None: UNDECIDED}[_both(_below(tiny, 0.01), _above(large, 0.01))]
    words = (
        f"{one.wrong_pairs.iloc[-1]:.0%} of the pairs are ranked wrongly for large errors, and still {one.wrong_pairs.iloc[0]:.0%} for tiny ones: "
        "smaller errors help, but the side that is wrong matters at any size."
    )
    return _found(one.wrong_pairs.iloc[0], tiny, n, verdict, words)


def _b2(tables, parameters):
    table = tables["ranges"].set_index(["kind", "overlap"])
    corners, equal = table.loc[("corners", True)], table.loc[("equal", True)]
    apart = table.xs(False, level="overlap")
    holds = corners.lowest < 0 and equal.lowest >= -0.5 and apart.lowest.min() >= -1 and apart.highest.max() <= 0
    words = f"Overlapping pairs go down to {corners.lowest:.2f} (equal sizes {equal.lowest:.2f}), disjoint ones from {apart.highest.max():.2f} to "
    words += f"{apart.lowest.min():.2f}."
    return _found(corners.lowest, (-1, 1), corners.pairs, HOLDS if holds else FAILS, words)


# ---- 02: the loss landscape


def _g7(tables, parameters):
    table = tables["steepness"].set_index(["loss", "iou_high"])
    giou, iou = table.loc[("giou", 0.1)], table.loc[("iou", 0.1)]
    ratio = giou["median"] / iou["median"]
    error = np.hypot(
        *(1.2533 * (row.q75 - row.q25) / 1.349 / np.sqrt(row.pairs) / row["median"] for row in (giou, iou))
    )  # of a median
    interval = ratio * (1 - 1.96 * error), ratio * (1 + 1.96 * error)
    top = table.loc[("giou", 1.0)]
    together = np.tanh(np.arctanh(min(top.correlation, 1 - 1e-12)) + np.array([-1.96, 1.96]) / np.sqrt(top.pairs - 3))
    words = (
        f"GIoU is {ratio:.1f} times as steep as IoU below IoU .1; above .9 they correlate with {top.correlation:.4f}."
    )
    return _found(ratio, interval, giou.pairs, _graded(_above(interval, 1), _above(together, 0.99)), words)


# ---- 03: the simulation, with published and with exact gradients


def _apart(tables, loss, count):
    """(share, its interval, cases) of each way: how many of the boxes that start apart did what `count` counts."""
    table = tables["apart"].set_index(["gradients", "loss"])
    found = {}
    for way in WAYS:
        row = table.loc[(way, loss)]
        found[way] = row[count] / row.cases, statistics.share_interval(row[count], row.cases), row.cases
    return found


def _g6(tables, parameters):
    (grew, grew_range, n), (shrank, shrank_range, _) = (
        _apart(tables, "giou", count)["exact"] for count in ("grew", "hull_shrank")
    )
    nearly_all, most = (_both(_above(grew_range, bar), _above(shrank_range, bar)) for bar in (0.9, 0.5))
    verdict = UNDECIDED if None in (nearly_all, most) else HOLDS if nearly_all else CONDITION if most else FAILS
    return _found(
        grew,
        grew_range,
        n,
        verdict,
        f"{grew:.0%} of the boxes grow before they meet their target, {shrank:.0%} shrink the enclosing box.",
    )


def _z1(tables, parameters):
    solved = _apart(tables, "iou", "solved")
    share, interval, n = solved["exact"]
    words = (
        f"{share:.0%} of them end above IoU .5 with exact gradients, {solved['published'][0]:.0%} with the published."
    )
    return _found(share, interval, n, _graded(*(_below(solved[way][1], 0.05) for way in WAYS)), words)


def _z4(tables, parameters):
    giou, diou = (_apart(tables, loss, "grew") for loss in ("giou", "diou"))
    growth = tables["apart"].set_index(["gradients", "loss"]).growth
    words = f"GIoU enlarges {giou['exact'][0]:.0%} of the boxes, DIoU {diou['exact'][0]:.0%} (median {growth['exact', 'giou']:.1f} and "
    words += f"{growth['exact', 'diou']:.1f} times; published gradients {growth['published', 'giou']:.1f} and {growth['published', 'diou']:.1f})."
    share, interval, n = diou["exact"]
    only_giou = [_both(_above(giou[way][1], 0.9), _below(diou[way][1], 0.1)) for way in WAYS]
    return _found(share, interval, n, _graded(*only_giou), words)


def _pair(tables, loss, against, way):
    """Final error of `loss` less that of `against`: (difference, low, high, points)."""
    table = tables["differences"].set_index(["run", "loss", "against"])
    if (way, loss, against) in table.index:
        row = table.loc[(way, loss, against)]
        return row.difference, row.low, row.high, row.points
    row = table.loc[(way, against, loss)]
    return -row.difference, -row.high, -row.low, row.points


def _z2(tables, parameters):
    standings = tables["standings"].set_index(["run", "loss"])
    half, error = standings.half_step.fillna(np.inf), standings.error
    slower = [
        _both(
            bool(half[way, "giou"] > half[way, "diou"]),
            _above(_pair(tables, "giou", "diou", way)[1:3], 0),
            bool(error[way, "giou"] > 10 * error[way, "diou"]),
        )
        for way in WAYS
    ]
    value, low, high, n = _pair(tables, "giou", "diou", "published")
    words = "; ".join(
        f"with {way} gradients GIoU ends at {error[way, 'giou']:.3f} and DIoU at {error[way, 'diou']:.3f}"
        for way in WAYS
    )
    return _found(value, (low, high), n, _graded(*slower), f"{words[0].upper()}{words[1:]}.")


def _start(tables):
    """The mean error of a case at the start."""
    return tables["curves_published"].error.iloc[0]


def _z3(tables, parameters):
    table = tables["alignment"].set_index(["run", "loss"])
    rows = {way: table.loc[(way, "giou")] for way in WAYS}
    large = [
        _both(_above((row["low"], row["high"]), 0), bool(row.aligned > max(1.5 * row.diagonal, _start(tables) / 10)))
        for row in rows.values()
    ]
    row = rows["published"]
    words = "; ".join(
        f"{way} gradients: {row.aligned:.3f} aligned, {row.diagonal:.3f} diagonal" for way, row in rows.items()
    )
    return _found(
        row.aligned - row.diagonal, (row.low, row.high), row.points, _graded(*large), f"{words[0].upper()}{words[1:]}."
    )


def _z5(tables, parameters):
    table = tables["points"].set_index(["run", "loss"])
    rows = {way: table.loc[(way, "diou")] for way in WAYS}
    row = rows["published"]
    words = "; ".join(
        f"{way} gradients: mean {row.error:.3f}, worst point {row.worst:.3f}" for way, row in rows.items()
    )
    flat = [bool(row.worst < _start(tables) / 100) for row in rows.values()]
    return _found(row.error, (row.low, row.high), row.points, _graded(*flat), f"{words[0].upper()}{words[1:]}.")


def _z6(tables, parameters):
    half = tables["standings"].set_index(["run", "loss"]).half_step.fillna(np.inf)
    as_fast = [
        _both(
            bool(half[way, "ciou"] <= half[way, "diou"]),
            _below(_pair(tables, "ciou", "diou", way)[1:3], _start(tables) / 1000),
        )
        for way in WAYS
    ]
    value, low, high, n = _pair(tables, "ciou", "diou", "published")
    words = "; ".join(
        f"{way} gradients: half the error after {half[way, 'ciou']:.0f} steps, DIoU {half[way, 'diou']:.0f}"
        for way in WAYS
    )
    return _found(value, (low, high), n, _graded(*as_fast), f"{words[0].upper()}{words[1:]}.")


# ---- 05: detectors


def settings(detectors):
    """The runs of each setting that are compared (comparison.at_one_weight): name of the setting → runs.

    Left out: settings whose detectors learned next to nothing (mean AP below LEARNED), and those whose losses share no
    weight.
    """
    try:
        chosen = comparison.at_one_weight(detectors)
    except ValueError:
        return {}
    return {name: group for name, group in chosen.groupby("setting", sort=False) if group.AP.mean() >= LEARNED}


def differences(groups):
    """comparison.paired of `settings`: every verdict on detectors is from this table."""
    return comparison.paired(pd.concat(groups.values())) if groups else comparison.PAIRED


def remark(group):
    """What has to be said of the published runs of a setting: how their seeds, losses and weights were chosen."""
    about = group.dataset.iloc[0], group.detector.iloc[0]
    return " ".join(entry["text"] for entry in BOOK["remarks"] if (entry["dataset"], entry["detector"]) == about)


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
    """The rows of a chain that compare GIoU with the coordinate loss, those of most seeds first."""
    rows = chain[(chain.measure == measure) & (chain.loss == "giou") & (chain.against == chain.base)]
    return rows.sort_values("n", kind="stable", ascending=False)


def _measured(groups, rows, measure):
    """statistics.compare of the losses that `rows` of a chain compare, in another measure."""
    tables = []
    for name, part in rows.groupby("setting", sort=False):
        pairs = part[["loss", "against"]].to_numpy().tolist()
        tables.append(statistics.compare(groups[name], measure, pairs))
    return pd.concat(tables, ignore_index=True)


def _g9(tables, parameters):
    groups = settings(tables["detectors"])
    chain = _chain(groups)
    gains, in_ap = _gains(chain), chain[chain.measure == "AP"]
    if gains.empty:
        return _untested(f"{TOO_FEW} of GIoU and a coordinate loss")
    whole = (in_ap.groupby("setting").size() == 3).all()
    won = whole and tables["detectors"][comparison.MEASURES].notna().all(axis=None)
    won &= (chain.verdict[chain.measure.isin(("AP", "AP75"))] == "better").all()
    if won and all((_measured(groups, in_ap, measure).low > 0).all() for measure in ("AP_giou", "AP75_giou")):
        verdict = HOLDS
    elif (in_ap.verdict == "better").any():
        verdict = CONDITION
    else:
        verdict = FAILS if (in_ap.verdict == "worse").any() or (in_ap.high < HALF_A_POINT).all() else UNDECIDED
    each = []
    for measure, part in chain.groupby("measure", sort=False):
        counts = part.verdict.value_counts().sort_index()
        each.append(f"in {comparison.measure_label(measure)} {', '.join(f'{n} {verdict}' for verdict, n in counts.items())}")
    row, words = gains.iloc[0], f"Of the chain's {len(in_ap)} differences: {'; '.join(each)}. "
    words += f"{row.setting}: GIoU {row.difference:+.3f} AP to {label(row.against)}."
    return _found(row.difference, (row.low, row.high), row.n, verdict, words)


def _g10(tables, parameters):
    groups = settings(tables["detectors"].assign(tilt=lambda t: t.AP75 - t.AP))
    chain = _chain(groups)
    gains, lows = _gains(chain), _gains(chain, "AP50").set_index("setting")
    if gains.empty:
        return _untested(f"{TOO_FEW} of GIoU and a coordinate loss")
    won = (gains.verdict == "better").to_numpy()
    tilts = statistics.judged(_measured(groups, gains[won] if won.any() else gains, "tilt")).set_index("setting")
    sits = (tilts.verdict == "better").all()
    still = ((lows.low > -A_POINT) & (lows.high < A_POINT)).loc[tilts.index].all()
    lost = (tilts.verdict == "worse").any() or (tilts.high < HALF_A_POINT).all()
    if not won.any():
        verdict = UNDECIDED
    elif sits:
        verdict = HOLDS if still else CONDITION
    else:
        verdict = CONDITION if (tilts.verdict == "better").any() else FAILS if lost else UNDECIDED
    name, row = tilts.index[0], tilts.iloc[0]
    words = f"{name}: AP75 gains {row.difference:+.3f} more than AP; AP50 changes by {lows.difference[name]:+.3f}."
    words = words if won.any() else f"GIoU gains AP beyond chance in no setting, so there is no gain to place. {words}"
    return _found(row.difference, (row.low, row.high), row.n, verdict, words)


def _g11(tables, parameters):
    gains = {}
    for group in sorted(settings(tables["detectors"]).values(), key=len):  # of several settings, the one with most runs
        values = group.pivot(index="seed", columns="loss", values="AP")
        base = _coordinate_loss(values)
        if {"giou", base} <= set(values):
            gain = (values.giou - values[base]).dropna()
            gains[group.dataset.iloc[0], group.detector.iloc[0]] = gain, group.disjoint.mean()
    stages = [
        (data, name)
        for data, detector in gains
        if detector == "yolov3"
        for name in ("faster_rcnn", "mask_rcnn")
        if (data, name) in gains
    ]
    pairs = [(gains[data, "yolov3"], gains[data, name]) for data, name in stages]
    pairs = [(one, two) for one, two in pairs if min(len(one[0]), len(two[0])) >= statistics.DECIDING]
    if not pairs:
        return _untested(f"{TOO_FEW} of YOLOv3 and of a two-stage detector on one data set")
    (one, one_apart), (two, two_apart) = pairs[0]
    low, high = stats.ttest_ind(one, two, equal_var=False).confidence_interval(statistics.LEVEL)
    value = one.mean() - two.mean()
    verdict = (
        (HOLDS if one_apart > two_apart else CONDITION) if low > 0 else FAILS if high < HALF_A_POINT else UNDECIDED
    )
    words = f"GIoU gains {one.mean():+.3f} AP with YOLOv3, {one_apart:.1%} of whose positives are disjoint, and {two.mean():+.3f} with two stages, "
    words += f"{two_apart:.1%}."
    return _found(value, (low, high), min(len(one), len(two)), verdict, words)


DECIDERS = {"G1": _g1, "G6": _g6, "G7": _g7, "G9": _g9, "G10": _g10, "G11": _g11, "B1": _b1, "B2": _b2}
DECIDERS |= {name: _property(name) for name in ("G2", "G3", "G4", "G5", "G8")}
DECIDERS |= {"Z1": _z1, "Z2": _z2, "Z3": _z3, "Z4": _z4, "Z5": _z5, "Z6": _z6}
