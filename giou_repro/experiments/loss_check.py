"""Is a loss safe to train with? A verdict a line, on boxes that are well-scaled and on awkward ones.

`fails` is what breaks a training (a value or gradient that is not finite, a least value away from the target); `note`
is what one has to know to use the loss (it is asymmetric, depends on the unit of the boxes, is flat somewhere); else
`ok`.
"""

import pandas as pd
import torch

from giou_repro import boxes
from giou_repro.experiments import landscape
from giou_repro.experiments.metric_properties import loss_properties
from giou_repro.registry import LOSSES, label

AWKWARD = (0.0, 1.0, -1.0, 2.0, 0.5, 1e-30, -1e-30, 1e15, -1e15, 1e7, 1e7 + 1)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROUNDING = 1e-6  # below it a difference of float64 values of size 1 is none
STEP = 1e-6  # of the finite differences, boxes being about 1 wide
UNITS = 16  # units in the last place by which a value may differ from float64's
SLOPE_ERROR, SHARE = 1e-4, 0.01  # relative error of a gradient; share of the boxes beyond which it is told
BESIDE = ("l1", "giou")  # whose gradients are shown beside


def well_scaled(n, generator):
    """(n, 4), (n, 4): random pairs, half of them overlapping, sides from 0.1 to 3."""
    centre, size = (torch.rand(2, n, 2, generator=generator) * scale for scale in (4, 2.9))
    anywhere, target = torch.cat((centre - size / 2 - 0.05, centre + size / 2 + 0.05), -1)
    near = target + 0.6 * size[1].repeat(1, 2) * (torch.rand(n, 4, generator=generator) - 0.5)
    return torch.where(torch.arange(n)[:, None] % 2 == 0, anywhere, near), target


def nearly_equal(n, generator):
    """Pairs that differ by about 1e-5 of their sides."""
    target = well_scaled(n, generator)[1]
    return target + 2e-5 * (torch.rand(n, 4, generator=generator) - 0.5), target


def awkward(n, generator):
    """Pairs whose corners are any of AWKWARD: flipped, empty, touching, equal, contained, tiny, huge and far-off."""
    values = torch.tensor(AWKWARD)
    pred, target = values[torch.randint(len(values), (2, n, 4), generator=generator)]
    return pred, torch.where(torch.arange(n)[:, None] % 8 == 0, pred, target)


def check(name: str, n: int = 5_000, seed: int = 0) -> pd.DataFrame:
    """The checks of a loss of LOSSES on `n` pairs of boxes: check, verdict ("ok", "note" or "fails"), measured (in
    words). A loss that raises an exception fails the check, whatever the exception."""
    rows = []
    for check in (_finite, _dtypes, _slopes, _properties, _least, _flat, _steepness):
        try:
            rows += check(name, n, torch.Generator().manual_seed(seed))
        except Exception as error:  # the user's function may raise anything
            reason = next(iter(str(error).splitlines()), "")
            rows.append((check.__doc__, "fails", f"raised {type(error).__name__}: {reason}"))
    return pd.DataFrame(rows, columns=["check", "verdict", "measured"])


def text(table: pd.DataFrame) -> str:
    """The table, a line a check."""
    return "".join(f"{row.verdict:<7}{row.check:<60}{row.measured}\n" for row in table.itertuples())


def describe(table: pd.DataFrame) -> str:
    counts = table.verdict.value_counts()
    return ", ".join(f"{counts.get(verdict, 0)} {verdict}" for verdict in ("ok", "note", "fails"))


def _finite(name, n, generator):
    """finite"""
    pairs = [make(n, generator) for make in (well_scaled, nearly_equal, awkward)]
    pairs.append((pairs[0][1], pairs[0][1]))
    pred, target = (torch.cat(side) for side in zip(*pairs, strict=True))
    for what, result in zip(("value", "gradient"), _value_and_gradient(name, pred, target), strict=True):
        bad = (~result.isfinite()).view(len(pred), -1).any(1)
        words = f"{bad.sum()} of {len(pred)} are not finite"
        if bad.any():
            given = torch.stack((pred, target), 1)[bad]
            sizes = given.abs().where(given != 0, 1).log().abs().sum((1, 2))  # 0 where all numbers are 0 and ±1
            words += ", as of pred {}, target {}".format(*given[sizes.argmin()].tolist())
        yield f"finite {what}, awkward boxes too", "fails" if bad.any() else "ok", words


def _dtypes(name, n, generator):
    """dtypes"""
    pred, target = well_scaled(n, generator)
    for dtype in DTYPES:
        given = pred.to(dtype), target.to(dtype)
        value = LOSSES[name].function(*given).double()
        exact = LOSSES[name].function(*(side.double() for side in given))
        error = ((value - exact).abs() / exact.abs().clamp(min=1)).nan_to_num(float("inf")).max().item()
        good = error <= UNITS * torch.finfo(dtype).eps
        words = f"largest error {error:.1e}" + ("" if good else ": call it in float32, as the detectors here do")
        lost = dtype == torch.float32 and error > SHARE
        yield f"value in {str(dtype).split('.')[1]}", "ok" if good else "fails" if lost else "note", words


def _slopes(name, n, generator):
    """gradient against finite differences"""
    pred, target = (side.double() for side in well_scaled(n, generator))
    _, gradient = _value_and_gradient(name, pred, target)
    loss, steps = LOSSES[name], STEP * torch.eye(4, dtype=torch.float64)
    slopes = torch.stack([loss(pred + step, target) - loss(pred - step, target) for step in steps], -1) / (2 * STEP)
    error = (gradient - slopes).abs().amax(-1) / (slopes.abs().amax(-1) + 1e-3)
    share = (~(error <= SLOPE_ERROR)).double().mean().item()
    words = f"another for {share:.1%} of the boxes"
    words += ": a factor is held constant (detach), or the loss has steps" if share > SHARE else ""
    yield "gradient against finite differences", "note" if share > SHARE else "ok", words


def _properties(name, n, generator):
    """properties"""
    (row,) = loss_properties([name], n, generator.initial_seed()).itertuples()
    size = max(1, abs(row.highest))
    for title, value, meaning in (
        ("symmetry: largest |L(a, b) − L(b, a)|", row.asymmetry, "pred and target must not be exchanged"),
        ("scale: largest change, both boxes doubled", row.scaling, "its weight depends on the unit of the boxes"),
        ("cost at equal boxes", row.at_equal, "it is not 0 where the prediction is right"),
    ):
        yield title, *_verdict(value <= ROUNDING * size, value, meaning)
    lowest = min(row.lowest, row.at_equal)
    words = f"{lowest:.3g} to {row.highest:.3g} on random boxes"
    yield "range", *_verdict(lowest >= -ROUNDING, lowest, "a reward, below 0 for some boxes", words)


def _least(name, n, generator):
    """least at equal boxes"""
    pairs = [well_scaled(n, generator), nearly_equal(n, generator)]
    pred, target = (torch.cat(side).double() for side in zip(*pairs, strict=True))
    less = (LOSSES[name](pred, target) < LOSSES[name](target, target) - ROUNDING).double().mean().item()
    words = f"{less:.1%} of other boxes cost less than the target itself"
    yield "least at equal boxes", "fails" if less else "ok", words


def _flat(name, n, generator):
    """flat regions"""
    pred, target = (side.double() for side in well_scaled(n, generator))
    shares = torch.rand(n, 4, generator=generator, dtype=torch.float64).view(-1, 2, 2).sort(1).values.flatten(1)
    inside = target[:, :2].repeat(1, 2) + shares * (target[:, 2:] - target[:, :2]).repeat(1, 2)
    disjoint, gradient = boxes.iou(pred, target) == 0, _value_and_gradient(name, pred, target)[1]
    within = _value_and_gradient(name, inside, target)[1]
    flat = [part.abs().amax(-1) < ROUNDING**2 for part in (gradient, within[:, :2] + within[:, 2:])]
    outwards = ((gradient[:, :2] + gradient[:, 2:]) * boxes.convert(target - pred, "xyxy", "cxcywh")[:, :2]).sum(-1)
    for title, some, meaning in (
        ("zero gradient disjoint from the target", flat[0][disjoint], "such boxes are not moved"),
        ("zero gradient overlapping it", flat[0][~disjoint], "such boxes are not moved"),
        ("zero gradient inside it, by the centre", flat[1], "such boxes grow, but are not centred"),
        ("moved away from the target, disjoint boxes", outwards[disjoint] > ROUNDING, "their centre goes farther off"),
    ):
        share = some.double().mean().item()
        words = f"{share:.1%} of the boxes" + (f": {meaning}" if share > SHARE else "")
        yield title, "note" if share > SHARE else "ok", words


def _steepness(name, n, generator):
    """size of the gradient"""
    losses = list(dict.fromkeys((name, *BESIDE)))
    table = landscape.steepness(losses, n, generator.initial_seed())
    medians = table[table.iou_high.isin((0, 0.6, 1))].groupby("loss")["median"].apply(list)
    words = "; ".join(f"{label(loss)} " + ", ".join(f"{value:.2g}" for value in medians[loss]) for loss in losses)
    ratios = [own / of_giou for own, of_giou in zip(medians[name], medians["giou"], strict=True)]
    alike = all(0.1 < ratio < 10 for ratio in ratios)
    yield "median gradient of unit boxes at IoU 0, .5 to .6, .9 to 1", "ok" if alike else "note", words


def _verdict(holds, value, meaning, words=None):
    words = words or f"{value:.2g}"
    return "ok" if holds else "note" if value == value else "fails", words if holds else f"{words}: {meaning}"


def _value_and_gradient(name, pred, target):
    pred = pred.clone().requires_grad_()
    value = LOSSES[name](pred, target)
    return value.detach(), torch.autograd.grad(value.sum(), pred)[0]
