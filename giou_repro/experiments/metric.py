"""What notebook 01 measures: how ℓn distance, IoU and GIoU of two boxes relate. Every function returns a pandas table,
in float64."""

import numpy as np
import pandas as pd
import torch
from scipy import stats

from giou_repro import boxes, polygons
from giou_repro.registry import LOSSES

OUTPUTS = (  # without which a run of the notebook is not complete
    *("figure_1.csv", "circle.csv", "spread.csv", "rank_correlation.csv", "ranges.csv", "pairs.csv", "rotation.csv"),
    *("properties.csv", "losses.csv", "figures/figure_1.png", "figures/spread.png", "figures/spread_of_losses.png"),
    *("figures/rank_correlation.png", "figures/iou_against_giou.png", "figures/shorthand.png", "figures/rotation.png"),
)
TARGET = (0.0, 0.0, 10.0, 20.0)  # the paper's figure 1, panel (a), xyxy
QUANTILES = {"low": 0.0, "q05": 0.05, "median": 0.5, "q95": 0.95, "high": 1.0}


def figure_1(losses):
    """The six pairs of the paper's figure 1: ours and the printed IoU, GIoU and distance, and the value of each loss.

    Panel (a): the free corner keeps its distance of 7 from the target's, the other one is at (−1, −1). Panel (b):
    centre and size. The prediction's coordinates were fitted to the paper's picture.
    """
    angles = np.deg2rad([188.6, -44, 90])
    panel_a = [(-1, -1, 10 + 7 * np.cos(a), 20 + 7 * np.sin(a)) for a in angles]
    panel_b = [(1.0, 1.0, 2.93, 20.0), (1.0, 1.0, 7.8, 15.13), (1.0, 1.0, 7.9, 24.97)]
    target_b = (0.0, 0.0, 10.0, 20.0)
    pred = torch.cat((_tensor(panel_a), boxes.convert(_tensor(panel_b), "cxcywh", "xyxy")))
    target = torch.cat((_tensor([TARGET] * 3), boxes.convert(_tensor([target_b] * 3), "cxcywh", "xyxy")))
    corners = _tensor(panel_a) - _tensor(TARGET)
    table = pd.DataFrame(pred.numpy(), columns=["x1", "y1", "x2", "y2"])
    table[["target_x1", "target_y1", "target_x2", "target_y2"]] = target.numpy()
    table.insert(0, "panel", list("aaabbb"))
    table["distance"] = [
        *(corners[:, :2].norm(dim=-1) + corners[:, 2:].norm(dim=-1)).tolist(),
        *(_tensor(panel_b) - _tensor(target_b)).abs().sum(-1).tolist(),
    ]
    table["printed_distance"] = [8.41] * 3 + [9.07] * 3
    table["l2_of_corners"] = [*corners.norm(dim=-1).tolist(), *[np.nan] * 3]
    table["iou"], table["printed_iou"] = boxes.iou(pred, target).numpy(), [0.26, 0.49, 0.65, 0.27, 0.59, 0.66]
    table["giou"], table["printed_giou"] = boxes.giou(pred, target).numpy(), [0.23, 0.41, 0.65, 0.24, 0.59, 0.62]
    for name in losses:
        table[f"loss_{name}"] = LOSSES[name](pred, target).numpy()
    return table


def circle(radius, n=720):
    """IoU and GIoU against the angle (degrees) of the free corner, which circles the target's at `radius`; the other
    corner is right."""
    angle = np.linspace(0, 360, n, endpoint=False)
    free = np.array(TARGET[2:]) + radius * np.stack((np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))), 1)
    pred, target = torch.cat((torch.zeros(n, 2).double(), _tensor(free)), 1), _tensor(TARGET)
    return pd.DataFrame(dict(angle=angle, iou=boxes.iou(pred, target), giou=boxes.giou(pred, target)))


def spread(losses, distances, n, seed):
    """Quantiles of IoU, GIoU and each loss over `n` predictions at each ℓ1 and ℓ2 distance of their corners from a 10 x
    20 target's.

    Columns: norm, distance, measure ("iou", "giou", or the loss's name as "loss_…"), low, q05, median, q95, high.
    """
    rng, target, rows = np.random.default_rng(seed), _tensor(TARGET), []
    for norm, order, draw in (("l1", 1, rng.laplace), ("l2", 2, rng.normal)):
        for distance in distances:
            direction = draw(size=(n, 4))
            pred = target + distance * _tensor(direction / np.linalg.norm(direction, order, axis=1, keepdims=True))
            measures = {"iou": boxes.iou(pred, target), "giou": boxes.giou(pred, target)}
            measures |= {f"loss_{name}": LOSSES[name](pred, target) for name in losses}
            for measure, values in measures.items():
                quantiles = dict(zip(QUANTILES, np.quantile(values, list(QUANTILES.values())), strict=True))
                rows.append(dict(norm=norm, distance=distance, measure=measure) | quantiles)
    return pd.DataFrame(rows)


def rank_correlation(sizes, n, repeats, seed):
    """How well the ℓ1 and ℓ2 distance ranks predictions by IoU, against the size of the error (claim B1).

    Errors of the corners have a random direction and a length uniform in [0, size], in units of the target's diagonal;
    `targets` is "one" (all predictions are of one 10 x 20 target) or "many" (targets of every size and shape). Columns:
    targets, norm, size, then mean and 95 % range over the repeats of Spearman's correlation of −distance and IoU, and
    the mean share of pairs of predictions in which the nearer one has the lower IoU (0 if distance decides, 0.5 if it
    says nothing).
    """
    if n < 10:
        raise ValueError(f"n must be at least 10 to rank, got {n}")
    rng, rows = np.random.default_rng(seed), []
    for targets in ("one", "many"):
        for size in sizes:
            for norm, order in (("l1", 1), ("l2", 2)):
                found = np.array([_one_correlation(rng, targets, size, order, n) for _ in range(repeats)])
                low, high = np.quantile(found[:, 0], (0.025, 0.975))
                entry = dict(targets=targets, norm=norm, size=size, spearman=found[:, 0].mean(), low=low, high=high)
                rows.append(entry | dict(wrong_pairs=found[:, 1].mean()))
    return pd.DataFrame(rows)


def _one_correlation(rng, targets, size, order, n):
    extent = np.full((n, 2), [10.0, 20.0]) if targets == "one" else np.exp(rng.uniform(np.log(5), np.log(100), (n, 2)))
    target = np.concatenate((np.zeros((n, 2)), extent), 1)
    direction = rng.normal(size=(n, 4))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    error = direction * rng.uniform(0, size, (n, 1)) * np.linalg.norm(extent, axis=1, keepdims=True)
    iou = boxes.iou(_tensor(target + error), _tensor(target)).numpy()
    distance = np.linalg.norm(error, order, axis=1)
    shuffled = rng.permutation(n)
    wrong = (distance < distance[shuffled]) & (iou < iou[shuffled]) | (distance > distance[shuffled]) & (
        iou > iou[shuffled]
    )
    return stats.spearmanr(-distance, iou).statistic, wrong.mean()


def pairs(kind, n, seed):
    """IoU, GIoU and the shorthand IoU − (C − (A + B))/C of `n` random pairs.

    kind "equal": two unit squares with random centres. "corners": both boxes with random corners in the unit square.
    """
    rng = np.random.default_rng(seed)
    if kind == "equal":
        first = np.tile([0.0, 0.0, 1.0, 1.0], (n, 1))
        second = first + np.tile(rng.uniform(-3, 3, (n, 2)), 2)
    elif kind == "corners":
        first, second = (np.sort(rng.random((n, 2, 2)), axis=1).reshape(n, 4) for _ in range(2))
    else:
        raise ValueError(f"kind must be 'equal' or 'corners', got {kind!r}")
    a, b = _tensor(first), _tensor(second)
    iou, hull = boxes.iou(a, b), boxes.area(boxes.enclosing(a, b))
    shorthand = iou - (hull - (boxes.area(a) + boxes.area(b))) / hull
    return pd.DataFrame(dict(kind=kind, iou=iou, giou=boxes.giou(a, b), shorthand=shorthand, overlap=iou > 0))


def ranges(tables):
    """Between which values GIoU lies (claim B2), for overlapping and for disjoint pairs of each kind: kind, overlap,
    pairs, lowest, highest."""
    groups = pd.concat(tables).groupby(["kind", "overlap"], sort=False).giou
    return groups.agg(pairs="count", lowest="min", highest="max").reset_index()


def rotated_pair(angle):
    """A 4 x 1 rectangle turned by `angle` degrees, beside an upright 2 x 3 one: polygons (4, 2), (4, 2)."""
    turned = polygons.rotated(_tensor([2.5, 0.5, 4, 1, np.deg2rad(angle)]))
    return turned, polygons.rotated(_tensor([0, 0, 2, 3, 0]))


def rotation(n):
    """IoU and GIoU of `rotated_pair` at `n` angles from 0° to 180°: as polygons with the convex hull as C, and by their
    bounding boxes.

    Columns: angle, iou, giou, box_iou, box_giou.
    """
    angles = np.linspace(0, 180, n)
    turned, upright = (torch.stack(polygons) for polygons in zip(*map(rotated_pair, angles), strict=True))
    bounds = [torch.cat((polygon.amin(-2), polygon.amax(-2)), -1) for polygon in (turned, upright)]
    columns = dict(iou=polygons.polygon_iou(turned, upright), giou=polygons.polygon_giou(turned, upright))
    return pd.DataFrame(dict(angle=angles) | columns | dict(box_iou=boxes.iou(*bounds), box_giou=boxes.giou(*bounds)))


def properties(n, seed):
    """The properties the GIoU paper states (claims G2 to G5 and G8), each measured on `n` random boxes: claim,
    property, measured, holds."""
    rng = np.random.default_rng(seed)
    a, b, c = (_random_boxes(rng, n) for _ in range(3))
    iou, giou = boxes.iou(a, b), boxes.giou(a, b)
    inner = _inside(rng, a)
    free = _tensor(rng.normal(size=(n, 4)))
    hull = boxes.enclosing(a, c)
    detour = (1 - boxes.giou(a, b)) + (1 - boxes.giou(b, c)) - (1 - boxes.giou(a, c))
    ac_apart = boxes.iou(a, c) == 0
    through_hull = (1 - boxes.giou(a, hull)) + (1 - boxes.giou(hull, c)) - (1 - boxes.giou(a, c))
    stretch = _tensor([3.0, 0.2, 3.0, 0.2])
    far = boxes.giou(_tensor([0.0, 0, 1, 1]), _tensor([1e6, 1e6, 1e6 + 1, 1e6 + 1])).item()
    apart = iou == 0
    gradients = {name: _gradient(LOSSES[name], a[apart], b[apart]).abs().amax(-1) for name in ("iou", "giou")}
    loss_iou, loss_giou = 1 - boxes.iou(free, b), 1 - boxes.giou(free, b)
    rows = [
        ("G2", "GIoU ≤ IoU: largest GIoU − IoU", (giou - iou).max(), (giou <= iou + 1e-12).all()),
        ("G2", "−1 ≤ GIoU ≤ 1: smallest", giou.min(), giou.min() >= -1),
        ("G2", "−1 ≤ GIoU ≤ 1: largest", giou.max(), giou.max() <= 1),
        (
            "G2",
            "equal when one box contains the other: largest |GIoU − IoU|",
            (boxes.giou(inner, a) - boxes.iou(inner, a)).abs().max(),
            None,
        ),
        ("G2", "1 for equal boxes: largest |1 − GIoU|", (1 - boxes.giou(a, a)).abs().max(), None),
        ("G2", "→ −1 as |A∪B|/|C| → 0: two unit squares a million apart, 1 + GIoU", 1 + far, None),
        ("G3", "1 − GIoU keeps the triangle inequality: smallest detour", detour.min(), detour.min() >= -1e-12),
        (
            "G3",
            "no detour through the hull of disjoint boxes: largest |detour|",
            through_hull[ac_apart].abs().max(),
            None,
        ),
        (
            "G4",
            "scale invariance, each axis by its own factor: largest change",
            (boxes.giou(a * stretch, b * stretch) - giou).abs().max(),
            None,
        ),
        ("G5", f"∂L_IoU = 0 on {int(apart.sum())} disjoint pairs: largest |∂L_IoU|", gradients["iou"].max(), None),
        (
            "G5",
            "∂L_GIoU ≠ 0 on them: smallest of the largest components",
            gradients["giou"].min(),
            gradients["giou"].min() > 0,
        ),
        ("G8", "0 ≤ L_IoU ≤ 1 for predictions anywhere in R⁴: smallest", loss_iou.min(), loss_iou.min() >= 0),
        ("G8", "0 ≤ L_IoU ≤ 1: largest", loss_iou.max(), loss_iou.max() <= 1),
        ("G8", "0 ≤ L_GIoU ≤ 2 for predictions anywhere in R⁴: smallest", loss_giou.min(), loss_giou.min() >= 0),
        ("G8", "0 ≤ L_GIoU ≤ 2: largest", loss_giou.max(), loss_giou.max() <= 2),
    ]
    table = pd.DataFrame(rows, columns=["claim", "property", "measured", "holds"])
    table["measured"] = table.measured.astype(float)
    table["holds"] = [
        abs(value) < 1e-9 if holds is None else bool(holds)
        for value, holds in zip(table.measured, table.holds, strict=True)
    ]
    return table


def compared(losses, n, seed):
    """The same questions put to each loss, on `n` random boxes: what it costs, and what it is invariant to.

    Columns: loss, lowest, highest (over predictions anywhere in R⁴), at_equal (largest value for equal boxes),
    asymmetry, scaling (largest change when both boxes double), triangle (largest excess of the direct way over a
    detour; above 0 it is not a metric), and blind (share of disjoint pairs without a gradient).
    """
    rng = np.random.default_rng(seed)
    a, b, c = (_random_boxes(rng, n) for _ in range(3))
    free, apart, rows = _tensor(rng.normal(size=(n, 4))), boxes.iou(a, b) == 0, []
    for name in losses:
        loss = LOSSES[name]
        anywhere, direct = loss(free, b), loss(a, c)
        blind = (_gradient(loss, a[apart], b[apart]).abs().amax(-1) < 1e-12).double().mean()
        rows.append(
            dict(
                loss=name,
                lowest=anywhere.min().item(),
                highest=anywhere.max().item(),
                at_equal=loss(a, a).abs().max().item(),
                asymmetry=(loss(a, b) - loss(b, a)).abs().max().item(),
                scaling=(loss(2 * a, 2 * b) - loss(a, b)).abs().max().item(),
                triangle=(direct - loss(a, b) - loss(b, c)).max().item(),
                blind=blind.item(),
            )
        )
    return pd.DataFrame(rows)


def _gradient(loss, pred, target):
    pred = pred.clone().requires_grad_()
    return torch.autograd.grad(loss(pred, target).sum(), pred)[0]


def _random_boxes(rng, n):
    """`n` boxes with centres uniform in a square of side 4 and sides log-uniform from 0.1 to 3."""
    centre, size = rng.uniform(-2, 2, (n, 2)), np.exp(rng.uniform(np.log(0.1), np.log(3), (n, 2)))
    return _tensor(np.concatenate((centre - size / 2, centre + size / 2), 1))


def _inside(rng, outer):
    """A random box inside each of the outer ones."""
    shares = _tensor(np.sort(rng.random((len(outer), 2, 2)), axis=1).reshape(-1, 4))
    low, size = outer[:, :2].repeat(1, 2), (outer[:, 2:] - outer[:, :2]).repeat(1, 2)
    return low + shares * size


def _tensor(values):
    return torch.as_tensor(np.asarray(values, dtype=np.float64))
