"""What notebook 04 trains: pictures with one box each, three encodings of a box, and many small networks at once.

Boxes are in units of the picture's side, cxcywh unless said otherwise. Every network is a perceptron with two hidden
layers, whose last layer is 0 at the start: the first box that it predicts is then the same for every picture.
"""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from giou_repro import _fast, boxes
from giou_repro.registry import LOSSES

SIZE = 16  # px, the picture's side
MARGIN, SHORTEST, LONGEST = 0.06, 0.15, 0.45  # of the targets: how far from the border, and their sides
FIRST_BOXES = {  # about how many % of the targets are disjoint from it → the first box, cxcywh
    0: (0.5, 0.5, 0.9, 0.9),
    40: (0.38, 0.38, 0.25, 0.25),
    80: (0.2, 0.2, 0.2, 0.2),
    97: (0.1, 0.1, 0.12, 0.12),
    100: (0.03, 0.03, 0.05, 0.05),
}
WEIGHTED = "5l1 + 2giou"  # ℓ1 of cxcywh and GIoU as DETR weighs them: Carion et al., ECCV 2020
ENCODINGS = ("linear", "log-size", "sigmoid")
LARGEST = math.log(1000 / 16)  # the log of a side is held there, as in torchvision: beyond it there is no gradient
HIDDEN = 64  # units of each hidden layer
BATCH = 64  # pictures a step
RATES = ["learning_rate", "beta2"]  # of Adam
STREAMS = ("train", "test", "search", "order", "weights")
AT_ONCE = 64  # networks trained at once; with more their weights leave the processor's cache


def pictures(n: int, seed: int, stream: str) -> tuple[Tensor, Tensor]:
    """`n` grey pictures (n, SIZE²) and their one box each (n, 4).

    A striped rectangle, brighter than the ground, on noise with two bars that are no objects. Seed and stream ("train",
    "test", "search") decide what is drawn.
    """
    rng = _generator(seed, stream)
    sides = rng.uniform(SHORTEST, LONGEST, (n, 2))
    low = MARGIN + rng.random((n, 2)) * (1 - 2 * MARGIN - sides)
    inside = _cover(low, low + sides)
    picture = 0.35 * rng.standard_normal((n, SIZE, SIZE))
    for bar in rng.permuted(np.tile([0.05, 0.6], (2, n, 1)), axis=2):
        at = rng.random((n, 2))
        picture += rng.standard_normal((n, 1, 1)) * _cover(at - bar / 2, at + bar / 2)
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    waves = 2 * np.pi * rng.uniform(2, 6, (2, n, 1, 1))
    stripes = 1 + 0.5 * np.sin(waves[0] * x + waves[1] * y + 2 * np.pi * rng.random((n, 1, 1)))
    picture += inside * (stripes - 0.7 * picture)
    return _tensor(picture.reshape(n, -1)), _tensor(np.concatenate((low + sides / 2, sides), 1))


def _generator(seed, stream):
    return np.random.default_rng([16, seed, STREAMS.index(stream)])


def _cover(low, high):
    """The share (n, SIZE, SIZE) of each pixel that the rectangles from low (n, 2) to high (n, 2) cover."""
    edges = np.arange(SIZE) / SIZE
    shared = np.minimum(high[..., None], edges + 1 / SIZE) - np.maximum(low[..., None], edges)
    x, y = np.moveaxis(shared.clip(0) * SIZE, 1, 0)
    return y[:, :, None] * x[:, None, :]


def _tensor(values):
    return torch.tensor(np.asarray(values), dtype=torch.float32)


def encode(encoding: str, box: Tensor) -> Tensor:
    """What a network has to put out for a box (..., 4): the box itself ("linear"), with the logarithm of its sides
    ("log-size"), or the logits of all four ("sigmoid")."""
    if encoding == "log-size":
        return torch.cat((box[..., :2], box[..., 2:].log()), -1)
    return box.logit() if encoding == "sigmoid" else box


def decode(encoding: str, code: Tensor) -> Tensor:
    """The box (..., 4) of a code (..., 4)."""
    if encoding == "log-size":
        return torch.cat((code[..., :2], code[..., 2:].clamp(max=LARGEST).exp()), -1)
    return code.sigmoid() if encoding == "sigmoid" else code


def corners(box: Tensor) -> Tensor:
    return boxes.convert(box, "cxcywh", "xyxy")


def of_code(name: str, encoding: str, code: Tensor, target: Tensor) -> Tensor:
    """The loss (...) of codes (..., 4) against target boxes (..., 4); `name` is in LOSSES."""
    return LOSSES[name](*compared(name, encoding, code, target), box_format="cxcywh")


def compared(name: str, encoding: str, code: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """What a loss takes, and compares as cxcywh, for codes (..., 4) and target boxes (..., 4): (..., 4) each.

    An overlap loss takes the boxes. A coordinate loss takes what is regressed: centre and side, centre and log side, or
    with "sigmoid", as DETR, the box after the sigmoid; in a sum of both, as DETR's, the box.
    """
    if LOSSES[name].space == "coordinates" and encoding == "log-size":
        return code, encode(encoding, target)
    return decode(encoding, code), target


def predict(weights: list[Tensor], pixels: Tensor, normalise: bool) -> Tensor:
    """Codes (seeds, networks, n, 4) of each seed's pictures (seeds, n, SIZE²). Batch normalisation, without scale, is
    that of these pictures."""
    first, *hidden, last, shift = weights
    layer = torch.einsum("skup,snp->skun", first, pixels)  # one product for all networks of a seed
    for bias, matrix in zip(hidden[::2], [*hidden[1::2], last], strict=True):
        if normalise:
            deviation = layer - layer.mean(-1, keepdim=True)
            layer = deviation / (deviation.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        layer = matrix @ torch.relu(layer + bias)
    return (layer + shift).mT


def train(
    arms: pd.DataFrame,
    seeds: list[int],
    steps: int,
    measured_on: str = "test",
    normalise: bool = False,
    n_images: int = 8192,
    n_measured: int = 1000,
    evaluations: int = 25,
    label: str | None = None,
) -> pd.DataFrame:
    """Train a network for each arm and seed with Adam on batches of BATCH, the rate falling to 0 along a cosine.

    `arms` has the columns loss, encoding, first_box (of FIRST_BOXES), learning_rate, and beta2 where it is not .999.
    Networks of one seed start from the same weights and see the same of the seed's `n_images` pictures in the same
    order. Returns `arms` with a row for each seed and measured step, and its measures on `n_measured` pictures of the
    stream `measured_on`: mean_iou, iou_50, iou_75 and disjoint (shares), area (median, in pictures), and the median box
    x, y, w, h. `label` names the progress bar; None shows none. As many groups of networks are trained side by side as
    torch has threads, each on one; their number changes no result.
    """
    _fast.keep_freed_memory()
    arms = arms if "beta2" in arms else arms.assign(beta2=0.999)
    sets = [(n_images, "train"), (n_measured, measured_on)]
    data = [map(torch.stack, zip(*(pictures(n, seed, of) for seed in seeds), strict=True)) for n, of in sets]
    training, test = map(tuple, data)
    size = max(1, AT_ONCE // len(seeds))
    by_loss = arms.reset_index(drop=True).sort_values("loss", kind="stable")  # one call for many boxes is faster
    parts = [by_loss[at : at + size].sort_values(RATES, kind="stable") for at in range(0, len(arms), size)]
    with ThreadPoolExecutor(torch.get_num_threads(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        trained = pool.map(lambda part: _train(part, seeds, steps, training, test, normalise, evaluations), parts)
        bar = tqdm(trained, desc=label, total=len(parts), disable=label is None, mininterval=1)
        return pd.concat(bar).sort_index(kind="stable").reset_index(drop=True)


def _train(arms, seeds, steps, training, test, normalise, evaluations):
    """`train` for arms in the order of RATES: those of equal ones share a group of Adam's parameters."""
    groups = [
        dict(params=_initial(part, seeds), lr=rate, betas=(0.9, beta2)) for (rate, beta2), part in arms.groupby(RATES)
    ]
    adam = torch.optim.Adam(groups, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)

    def codes_of(pixels):
        return torch.cat([predict(group["params"], pixels, normalise) for group in groups], 1)

    losses = {
        name: [(encoding, torch.tensor(at.to_numpy())) for encoding, at in part.groupby("encoding").groups.items()]
        for name, part in arms.reset_index(drop=True).groupby("loss")
    }
    draws, each, rows = [_generator(seed, "order") for seed in seeds], torch.arange(len(seeds))[:, None], []
    measured = {0, *np.geomspace(steps, 1, evaluations).round().astype(int).tolist()}
    for step in range(steps + 1):  # the last one at a rate of 0
        if step in measured:
            with torch.no_grad():
                rows.append(_measured(arms, seeds, step, codes_of(test[0]), test[1]))
        n_images = training[0].shape[1]
        batch = each, torch.as_tensor(np.stack([draw.integers(n_images, size=BATCH) for draw in draws]))
        pixels, target = (values[batch] for values in training)
        codes = codes_of(pixels)
        target = target[:, None].expand_as(codes)
        total = 0
        for name, encodings in losses.items():
            pairs = [compared(name, encoding, codes[:, at], target[:, at]) for encoding, at in encodings]
            predicted, wanted = (torch.cat(parts, 1) for parts in zip(*pairs, strict=True))
            total += LOSSES[name](predicted, wanted, box_format="cxcywh").mean(-1).sum()
        adam.zero_grad()
        total.backward()
        adam.step()
        schedule.step()
    return pd.concat(rows)


def _initial(arms, seeds):
    """The weights of each seed's networks, those of one seed equal and He's, but for the last layer, whose biases are
    the first boxes: matrices (seeds, arms, out, in), each with its biases (seeds, arms, out, 1)."""
    generators, weights = [_generator(seed, "weights") for seed in seeds], []
    for wide, narrow in ((SIZE**2, HIDDEN), (HIDDEN, HIDDEN)):
        drawn = np.stack([generator.standard_normal((wide, narrow)) for generator in generators])
        weights += [_tensor(drawn * (2 / wide) ** 0.5).mT[:, None], torch.zeros(len(seeds), 1, narrow, 1)]
    start = [encode(row.encoding, _tensor(FIRST_BOXES[row.first_box])) for row in arms.itertuples()]
    weights += [torch.zeros(len(seeds), 1, 4, HIDDEN), torch.stack(start)[None, ..., None]]
    sizes = len(seeds), len(arms), -1, -1
    return [w.expand(sizes).clone(memory_format=torch.contiguous_format).requires_grad_() for w in weights]


def _measured(arms, seeds, step, predicted, target):
    for encoding, at in arms.groupby("encoding").indices.items():
        predicted[:, at] = decode(encoding, predicted[:, at])
    overlap = boxes.iou(corners(predicted), corners(target)[:, None]).nan_to_num(0)  # of a network that diverged
    area = boxes.area(corners(predicted)).nan_to_num(math.inf)
    values = dict(mean_iou=overlap.mean(-1), disjoint=(overlap == 0).float().mean(-1), area=area.median(-1).values)
    values |= {f"iou_{percent}": (overlap > percent / 100).float().mean(-1) for percent in (50, 75)}
    values |= dict(zip(("x", "y", "w", "h"), predicted.median(-2).values.unbind(-1), strict=True))
    table = pd.concat([arms.assign(seed=seed, step=step) for seed in seeds])
    return table.assign(**{name: value.flatten().numpy() for name, value in values.items()})
