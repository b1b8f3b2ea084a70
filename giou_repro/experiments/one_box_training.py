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

from giou_repro import boxes
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
STREAMS = ("train", "test", "search", "order", "weights")
AT_ONCE = 48  # networks trained at once; with more their weights leave the processor's cache


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
    """The loss (...) of codes (..., 4) against target boxes (..., 4); `name` is in LOSSES.

    An overlap loss takes the boxes. A coordinate loss takes what is regressed: centre and side, centre and log side, or
    with "sigmoid", as DETR, the box after the sigmoid; in a sum of both, as DETR's, the box.
    """
    box = decode(encoding, code)
    if LOSSES[name].space == "both":
        return LOSSES[name](box, target, box_format="cxcywh")
    if LOSSES[name].space == "boxes":
        return LOSSES[name](corners(box), corners(target))
    return LOSSES[name](code, encode(encoding, target)) if encoding == "log-size" else LOSSES[name](box, target)


def predict(weights: list[Tensor], pixels: Tensor, normalise: bool) -> Tensor:
    """Codes (..., n, 4) of pictures (..., n, SIZE²). Batch normalisation, without scale, is that of these pictures."""
    *hidden, last, shift = weights
    layer = pixels
    for matrix, bias in zip(hidden[::2], hidden[1::2], strict=True):
        layer = layer @ matrix
        if normalise:
            deviation = layer - layer.mean(-2, keepdim=True)
            layer = deviation / (deviation.square().mean(-2, keepdim=True) + 1e-5).sqrt()
        layer = torch.relu(layer + bias)
    return layer @ last + shift


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
    arms = arms if "beta2" in arms else arms.assign(beta2=0.999)
    sets = [(n_images, "train"), (n_measured, measured_on)]
    data = [map(torch.stack, zip(*(pictures(n, seed, of) for seed in seeds), strict=True)) for n, of in sets]
    training, test = map(tuple, data)
    size = max(1, AT_ONCE // len(seeds))
    parts = [arms[at : at + size].reset_index(drop=True) for at in range(0, len(arms), size)]
    with ThreadPoolExecutor(torch.get_num_threads(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        trained = pool.map(lambda part: _train(part, seeds, steps, training, test, normalise, evaluations), parts)
        bar = tqdm(trained, desc=label, total=len(parts), disable=label is None, mininterval=1)
        return pd.concat(bar, ignore_index=True)


def _train(arms, seeds, steps, training, test, normalise, evaluations):
    pixels, targets = training
    groups = arms.groupby(["loss", "encoding"]).indices
    start = [encode(row.encoding, _tensor([[[FIRST_BOXES[row.first_box]]]])) for row in arms.itertuples()]
    weights = [w.expand(len(arms), *w.shape).clone() for w in _initial(seeds)]
    weights[-1] += torch.cat(start)
    mean, square = ([torch.zeros_like(w) for w in weights] for _ in range(2))
    weights = [w.requires_grad_() for w in weights]
    rate, beta2 = (_tensor(arms[name]).view(-1, 1, 1, 1) for name in ("learning_rate", "beta2"))
    draws, each, rows = [_generator(seed, "order") for seed in seeds], torch.arange(len(seeds))[:, None], []
    measured = {0, *np.geomspace(steps, 1, evaluations).round().astype(int).tolist()}
    for step in range(steps + 1):  # the last one at a rate of 0
        if step in measured:
            rows.append(_measured(arms, seeds, step, groups, weights, test, normalise))
        batch = each, torch.as_tensor(np.stack([draw.integers(pixels.shape[1], size=BATCH) for draw in draws]))
        codes = predict(weights, pixels[batch], normalise)
        total = sum(of_code(*key, codes[at], targets[batch]).mean(-1).sum() for key, at in groups.items())
        gradients = torch.autograd.grad(total, weights)
        now = rate * (1 + math.cos(math.pi * step / steps)) / 2 / (1 - 0.9 ** (step + 1))
        with torch.no_grad():
            for w, g, m, s in zip(weights, gradients, mean, square, strict=True):
                m.lerp_(g, 0.1)
                s.mul_(beta2).add_((1 - beta2) * g * g)
                w.sub_(now * m / ((s / (1 - beta2 ** (step + 1))).sqrt() + 1e-8))
    return pd.concat(rows)


def _initial(seeds):
    """The weights of each seed's network, He's but for the last layer: matrices (seeds, in, out), each with its biases
    (seeds, 1, out)."""
    generators, weights = [_generator(seed, "weights") for seed in seeds], []
    for wide, narrow in ((SIZE**2, HIDDEN), (HIDDEN, HIDDEN)):
        drawn = np.stack([generator.standard_normal((wide, narrow)) for generator in generators])
        weights += [_tensor(drawn * (2 / wide) ** 0.5), torch.zeros(len(seeds), 1, narrow)]
    return [*weights, torch.zeros(len(seeds), HIDDEN, 4), torch.zeros(len(seeds), 1, 4)]


@torch.no_grad()
def _measured(arms, seeds, step, groups, weights, test, normalise):
    predicted = predict(weights, test[0], normalise)
    for (_, encoding), at in groups.items():
        predicted[at] = decode(encoding, predicted[at])
    overlap = boxes.iou(corners(predicted), corners(test[1])).nan_to_num(0)  # of a network that diverged
    area = boxes.area(corners(predicted)).nan_to_num(math.inf)
    values = dict(mean_iou=overlap.mean(-1), disjoint=(overlap == 0).float().mean(-1), area=area.median(-1).values)
    values |= {f"iou_{percent}": (overlap > percent / 100).float().mean(-1) for percent in (50, 75)}
    values |= dict(zip(("x", "y", "w", "h"), predicted.median(-2).values.unbind(-1), strict=True))
    table = arms.loc[arms.index.repeat(len(seeds))].assign(seed=seeds * len(arms), step=step)
    return table.assign(**{name: value.flatten().numpy() for name, value in values.items()})
