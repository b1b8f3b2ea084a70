"""What decides each claim on detectors, as in verdicts, from the tables of a run of 06_compare_losses."""

import contextlib
import functools
import itertools
import re

import pandas as pd
from scipy import stats

from giou_repro.experiments import comparison, dial, statistics
from giou_repro.registry import label
from giou_repro.report.verdicts import finding, sentence

HALF_A_POINT, A_POINT = 0.005, 0.01  # of AP
LEARNED = 0.05  # mean AP below which detectors say nothing about losses
PRIMARY = ("voc2007", "yolov3")  # data set and detector of the primary comparison: docs/protocol.md
PAPER_GAIN = 0.335 - 0.314  # AP of GIoU − MSE with YOLOv3 on COCO: table 2 of the GIoU paper
TWO_STAGE = ("faster_rcnn", "mask_rcnn")


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


def coordinate_loss(losses) -> str | None:
    """The detector's own loss, MSE or smooth ℓ1, whichever was run; None without one."""
    return next((name for name in comparison.BASELINES if name in list(losses)), None)


def primary(groups: dict[str, pd.DataFrame], *losses: str | None) -> pd.DataFrame:
    """The runs of the setting of PRIMARY, else of that with most seeds, in which `losses` (None: the detector's own)
    have seeds enough for a verdict; of several that of its detector, and best weights before equal ones. None of a
    dial, whose weights are chosen for the fit of the positives. Raises ValueError where there is none."""
    able, turned = [], set(dial.dialled(pd.concat(groups.values())).setting) if groups else set()
    for name, group in groups.items():
        if name in turned:
            continue
        wanted = {loss or coordinate_loss(group.loss) for loss in losses}
        n = (group[group.loss.isin(wanted)].groupby("seed").loss.nunique() == len(wanted)).sum()
        likeness = group.detector.iloc[0] == PRIMARY[1], not re.search(comparison.AT_ONE_WEIGHT, name)
        rank = is_primary(group), n, *likeness
        able += [(rank, group)] if n >= statistics.DECIDING else []
    if not able:
        names = ", ".join(label(loss) if loss else "a coordinate loss" for loss in losses)
        raise ValueError(
            f"fewer than {statistics.DECIDING} paired seeds of {names} in detectors with a mean AP of {LEARNED} or more"
        )
    return max(able, key=lambda entry: entry[0])[1]


def elsewhere(groups: dict[str, pd.DataFrame], chosen: pd.DataFrame, *losses: str | None) -> list[pd.DataFrame]:
    """What `primary` chooses of the same detector on each other data set that has seeds enough."""
    others = {}
    for name, group in groups.items():
        if group.detector.iloc[0] == chosen.detector.iloc[0] and group.dataset.iloc[0] != chosen.dataset.iloc[0]:
            others.setdefault(group.dataset.iloc[0], {})[name] = group
    found = []
    for some in others.values():
        with contextlib.suppress(ValueError):
            found.append(primary(some, *losses))
    return found


def unsearched(group: pd.DataFrame, row) -> str:
    """A sentence where a weight of the difference `row` was not searched, else nothing: weights can turn it."""
    return " Weights were not searched." * bool((group.search[group.loss.isin([row.loss, row.against])] == "").any())


def said_of(group: pd.DataFrame, row, words: str) -> str:
    """A sentence on a difference that stands beside the one that decides: data set, n, `words` and verdict."""
    return f" On {group.dataset.iloc[0]} (n = {row.n}): {words}, {row.verdict}.{unsearched(group, row)}"


def is_primary(group: pd.DataFrame) -> bool:
    return (str(group.dataset.iloc[0]).lower(), group.detector.iloc[0]) == PRIMARY


def _judged(runs, measure, *pairs):
    return list(statistics.judged(statistics.compare(runs, measure, pairs)).itertuples())


def _won(row):
    """Whether a difference is better; None where undecided, but False where it can only be below half a point."""
    return True if row.verdict == "better" else False if row.verdict == "worse" or row.high < HALF_A_POINT else None


def _found(row, holds, words):
    return finding(row.difference, (row.low, row.high), row.n, holds, f"{row.setting}: {words}")


def _g9(against, tables, parameters):
    """GIoU against the detector's own loss (None), or another."""
    groups = settings(tables["detectors"])
    group = primary(groups, "giou", against)
    against_own, against = against is None, against or coordinate_loss(group.loss)
    tested = tables["paired"].query("measure == 'AP' and loss == 'giou' and against == @against")
    rows = {row.setting: row for row in tested.itertuples()}
    row = rows[group.setting.iloc[0]]
    words = f"GIoU − {label(against)} AP {comparison.difference_label(row)}.{unsearched(group, row)}"
    place = "inside" if row.low <= PAPER_GAIN <= row.high else "outside"
    words += " The primary comparison, on VOC 2007, has too few seeds." * (not is_primary(group))
    words += f" The paper's gain on COCO, {PAPER_GAIN:+.3f} AP, lies {place} the interval." * against_own
    small = row.verdict != "worse" and row.high < HALF_A_POINT
    words += f" A gain of half a point, {HALF_A_POINT} AP, lies above the interval." * small
    for some in elsewhere(groups, group, "giou", against):
        other = rows[some.setting.iloc[0]]
        words += said_of(some, other, f"AP {comparison.difference_label(other)}")
    return _found(row, _won(row), words)


def _g10(tables, parameters):
    group = primary(settings(tables["detectors"].assign(tilt=lambda t: t.AP75 - t.AP)), "giou", None)
    pair = "giou", coordinate_loss(group.loss)
    (row,), (low,) = _judged(group, "tilt", pair), _judged(group, "AP50", pair)
    kept = True if low.low > -A_POINT and low.high < A_POINT else False if abs(low.difference) > A_POINT else None
    cases = {"AP75": _won(row), "AP50": kept}
    words = (
        f"AP75 gains {comparison.difference_label(row)} more than AP; "
        f"AP50 changes by {comparison.difference_label(low)}."
    )
    return _found(row, cases if cases["AP75"] else cases["AP75"], words)


def _g11(tables, parameters):
    groups = settings(tables["detectors"])
    one_stage = {name: group for name, group in groups.items() if group.detector.iloc[0] == "yolov3"}
    data = {group.dataset.iloc[0] for group in one_stage.values()}
    two_stage = {n: g for n, g in groups.items() if g.detector.iloc[0] in TWO_STAGE and g.dataset.iloc[0] in data}
    two = primary(two_stage, "giou", None)
    same_data = {name: group for name, group in one_stage.items() if group.dataset.iloc[0] == two.dataset.iloc[0]}
    pair, gains = (primary(same_data, "giou", None), two), []
    for group in pair:
        values = group.pivot(index="seed", columns="loss", values="AP")
        gains.append((values.giou - values[coordinate_loss(values)]).dropna())
    low, high = stats.ttest_ind(*gains, equal_var=False).confidence_interval(statistics.LEVEL)
    smaller = True if low > 0 else False if high < HALF_A_POINT else None
    (one_apart, two_apart), (one, two) = ([x.mean() for x in some] for some in ([g.disjoint for g in pair], gains))
    words = (
        f"GIoU gains {one:+.3f} AP with YOLOv3, {one_apart:.1%} of whose positives are disjoint, and {two:+.3f} with "
        f"two stages, {two_apart:.1%}."
    )
    cases = {"the gain": smaller, "its reason": one_apart > two_apart}
    return finding(one - two, (low, high), min(map(len, gains)), cases if smaller else smaller, words)


def _g13(tables, parameters):
    groups, curves = settings(tables["detectors"]), tables["curves"]
    group = primary(groups, "giou", None)
    pair = "giou", coordinate_loss(group.loss)
    last = curves[curves.epoch == curves.groupby(["setting", "run"]).epoch.transform("max")]

    def fit(group):
        (row,) = _judged(last[last.setting == group.setting.iloc[0]], "mean_iou", pair)
        return row

    row = fit(group)
    words = (
        f"mean IoU of the positives in the last epoch {row.mean:.3f} with GIoU and {row.mean_against:.3f} with "
        f"{label(row.against)}."
    )
    for some in elsewhere(groups, group, *pair):
        other = fit(some)
        words += said_of(some, other, f"{other.mean:.3f} and {other.mean_against:.3f}")
    return _found(row, _won(row), words)


def _g14(tables, parameters):
    runs = tables["detectors"].dropna(subset=["AP_giou", "AP75_giou"])
    higher = (runs.AP_giou > runs.AP) | (runs.AP75_giou > runs.AP75)
    words = f"AP or AP75 is higher by GIoU than by IoU in {higher.sum()} of {len(runs)} detector runs."
    interval = statistics.share_interval(higher.sum(), len(runs))
    return finding(higher.mean(), interval, len(runs), not higher.any(), words)


def _g16(tables, parameters):
    slopes = tables["dial_slopes"].query(f"measure == '{dial.MEASURES[0]}' and against == 'iou'")
    if slopes.empty:
        raise ValueError("no setting was trained at several cells_away")
    row = dial.at_best_weights(slopes).iloc[0]
    if row.n < statistics.DECIDING:
        raise ValueError(f"fewer than {statistics.DECIDING} paired seeds of GIoU and IoU at several shares disjoint")
    gains = tables["dial"].query("measure == @row.measure and against == 'iou' and dial == @row.dial")
    first, last = gains.loc[gains.disjoint.idxmin()], gains.loc[gains.disjoint.idxmax()]
    runs = dial.dialled(comparison.at_one_weight(tables["detectors"]))
    apart = runs[(runs.dial == row.dial) & (runs.cells_away == last.cells_away)].groupby("loss").disjoint.mean()
    words = (
        f"YOLOv3, positives moved 0 to {last.cells_away:.0f} cells away: GIoU − IoU in "
        f"{comparison.measure_label(row.measure)} {comparison.difference_label(first)} to "
        f"{comparison.difference_label(last)}, where {apart.iou:.0%} of them stay disjoint under IoU and "
        f"{apart.giou:.0%} under GIoU; for a share of 1 {comparison.difference_label(row)}."
    ) + "".join(
        f" At {other.dial.rpartition(', ')[2]} for both: {comparison.difference_label(other)}."
        for other in slopes[slopes.dial != row.dial].itertuples()
    )
    holds = {"better": True, "worse": False}.get(row.verdict)
    return finding(row.difference, (row.low, row.high), row.n, holds, words)


def _z8(tables, parameters):
    order = ("ciou", "diou", "giou", "iou")
    rows = _judged(primary(settings(tables["detectors"]), *order), "AP", *itertools.pairwise(order))
    words = (f"{label(row.loss)} − {label(row.against)} {comparison.difference_label(row)}" for row in rows)
    won = {f"{label(row.loss)} over {label(row.against)}": _won(row) for row in rows}
    return _found(rows[0], won, f"AP {sentence(words)}")


DECIDERS = {"G9": functools.partial(_g9, None), "G10": _g10, "G11": _g11, "G12": functools.partial(_g9, "iou")}
DECIDERS |= {"G13": _g13, "G14": _g14, "G16": _g16, "Z8": _z8}
