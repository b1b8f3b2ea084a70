"""One gradient step of the simulation: its direction for any loss, the update, and what is measured on the way.

Boxes are four columns (rows, n), and targets are the same in every row; a clock is (rate of the first two columns, rate
of the last two, Adam's two bias corrections) of one step.
"""

import functools
import inspect
import math
import operator
import pickle
import random
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from giou_repro import boxes
from giou_repro.registry import LOSSES
from giou_repro.simulation import diou_code
from giou_repro.simulation.compiled import Compiled

ADAM_BETAS, ADAM_EPS = (0.9, 0.999), 1e-8
CORNERS_AS_CENTRE = (0.5, 2, 1, 1)  # times a clock, see `moved_as`
_ENGINES = {}


def clock(steps: int, step_size: float, schedule) -> torch.Tensor:
    """(steps + 1, 4), a clock for each step: the rate, twice, and Adam's two corrections; a last row of rate 0 only
    measures."""
    if not isinstance(step_size, int | float | np.number) or not (step_size > 0 and math.isfinite(step_size)):
        raise ValueError(f"step_size must be a positive number, got {step_size!r}")
    k = np.arange(1, steps + 1)
    if isinstance(schedule, str):
        if schedule not in ("paper", "constant"):
            raise ValueError(f"schedule must be 'paper', 'constant' or a list of {steps} factors, got {schedule!r}")
        divisor = np.where(k * 10 <= steps * 8, 1, np.where(k * 10 <= steps * 9, 10, 100)) if schedule == "paper" else 1
        rates = step_size / divisor * np.ones(steps)
    else:
        rates = step_size * np.asarray(schedule, dtype=np.float64)
        if rates.shape != (steps,) or not np.isfinite(rates).all():
            raise ValueError(f"schedule must have one finite factor for each of the {steps} steps, got {schedule!r}")
    corrections = [1 - beta**k for beta in ADAM_BETAS]
    return torch.from_numpy(np.stack((*2 * [np.append(rates, 0)], *(np.append(c, 1) for c in corrections)), 1))


def moved_as(loss, encoding, optimizer):
    """The encoding that a step moves, and what to multiply the clock by.

    Of an overlap loss with derivatives d1 and d2 by x1 and x2, those by x = (x1 + x2) / 2 and w = x2 − x1 are d1 + d2
    and (d2 − d1) / 2. A step of rate r on the corners moves x by −r (d1 + d2) / 2 and w by −r (d2 − d1): it is one on
    centre and size, of half the rate and of twice the rate, and needs no compilation of its own.
    """
    if encoding == "xyxy" and optimizer == "plain" and loss.space == "boxes":
        return "cxcywh", CORNERS_AS_CENTRE
    return encoding, (1, 1, 1, 1)


class Engine(NamedTuple):
    """What runs a loss: its step, the same compiled, the IoU it measures, how many columns the optimizer remembers, and
    whether the loss depends on its earlier calls."""

    step: Callable
    compiled: Compiled
    overlap: Callable
    slots: int
    changes: bool


def engine(name, gradients, repairs, encoding, iou_factor, optimizer, device) -> Engine:
    """The engine of a loss, the same for the same arguments, so that what is compiled serves later calls."""
    loss = LOSSES[name]
    key = (loss.function, loss.space, name, gradients, repairs, encoding, iou_factor, optimizer, device)
    if key not in _ENGINES:
        made = _published(name, repairs) if gradients == "published" else _exact(loss, encoding)
        direction, overlap, stacked, changes = made
        update, slots = OPTIMIZERS[optimizer]
        step = _step(direction, encoding, iou_factor, update)
        _ENGINES[key] = Engine(step, Compiled(step, name, device, stacked), overlap, slots, changes)
    return _ENGINES[key]


def _published(name, repairs):
    """As `_exact`, of the DIoU authors' code, for columns in centre and size. Its IoU is 0 for flipped boxes too."""
    ascent = diou_code.PUBLISHED[name]
    return (
        lambda state, target: (ascent(state, target, repairs), diou_code.iou(state, target)),
        diou_code.iou,
        False,
        False,
    )


def _exact(loss, encoding):
    """For columns in `encoding`: (the direction −∂loss/∂state by automatic differentiation, IoU), IoU alone, whether
    the loss needs its boxes stacked, and whether it depends on its earlier calls: draws random numbers, or counts."""
    decodes = {"coordinates": encoding, "boxes": "xyxy"}
    terms = [(weight, part.function, decodes[part.space]) for weight, part in loss.parts]
    before = states(loss.function)
    stacked = not takes_columns(loss)
    changes = states(loss.function) != before
    arrange = _stacked if stacked else tuple

    def overlap(state, target):
        return boxes.overlap(*(boxes.convert(box, encoding, "xyxy") for box in (state, target))).iou

    def direction(state, target):
        goals = [boxes.convert(target, encoding, decode) for _, _, decode in terms]

        def objective(moving):
            values = (
                weight * function(arrange(boxes.convert(moving, encoding, decode)), arrange(goal))
                for (weight, function, decode), goal in zip(terms, goals, strict=True)
            )
            return functools.reduce(operator.add, values).sum()

        if torch.compiler.is_compiling():  # in this form both are of the same terms, which it computes once
            with_iou = torch.func.grad(lambda moving: (objective(moving), overlap(moving, target)), has_aux=True)
            gradient, iou = with_iou(state)
        else:  # the form that every loss supports
            moving = tuple(column.detach().requires_grad_() for column in state)
            gradient = torch.autograd.grad(objective(moving), moving, materialize_grads=True)
            iou = overlap(state, target)
        return tuple(-g for g in gradient), iou

    return direction, overlap, stacked, changes


def states(function):
    """What Python, NumPy and torch will draw next, and what the function may remember: the attributes of an object, and
    the variables outside that its code names."""
    code = inspect.unwrap(function) if inspect.isroutine(function) else type(function).__call__
    outside = inspect.getclosurevars(code) if inspect.isfunction(code) or inspect.ismethod(code) else None
    remembered = [getattr(function, "__self__", function)]
    remembered += [*outside.nonlocals.values(), *outside.globals.values()] if outside else []
    return [_content(value) for value in (random.getstate(), np.random.get_state(), torch.get_rng_state(), *remembered)]


def _content(value):
    """A value's content in bytes, as far as it can be written down."""
    try:
        if isinstance(value, torch.Tensor):
            return value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes()
        return pickle.dumps(None if inspect.ismodule(value) else getattr(value, "__dict__", value))
    except Exception:  # what an object refuses to be pickled with is its own
        return b""


def takes_columns(loss):
    """Whether the loss gives the same on four columns as on (..., 4) boxes, as any written with ``boxes.columns`` does:
    the fast path."""
    pred = torch.tensor([[0.0, 0, 2, 1], [1, 0, 3, 3], [0, 0, 1, 1]], device="cpu")
    target = torch.tensor([[0.5, 0, 2, 2], [1, 0, 3, 3], [4, 4, 5, 7]], device="cpu")
    with torch.enable_grad():
        expected = loss(pred.clone().requires_grad_(), target).detach()
    try:
        value = loss.function(pred.unbind(-1), target.unbind(-1))
    except Exception:  # a user's function may fail in any way on columns
        return False
    alike = isinstance(value, torch.Tensor) and value.shape == expected.shape
    return alike and torch.allclose(value.to(expected), expected, equal_nan=True)


def _stacked(columns):
    """Columns as (N, 4) boxes. Stacked on the first dimension, they stay contiguous."""
    return torch.stack([column.reshape(-1) for column in columns]).movedim(0, -1)


def _plain(direction, factor, memory, clock):
    first, last = clock[0] * factor, clock[1] * factor
    return tuple(rate * d for rate, d in zip((first, first, last, last), direction, strict=True)), memory


def _adam(direction, factor, memory, clock):
    rate, _, first_correction, second_correction = clock.unbind()
    (b1, b2), gradient = ADAM_BETAS, [factor * d for d in direction]
    first = tuple(b1 * m + (1 - b1) * g for m, g in zip(memory[:4], gradient, strict=True))
    second = tuple(b2 * v + (1 - b2) * g * g for v, g in zip(memory[4:], gradient, strict=True))
    means, scales = (m / first_correction for m in first), ((v / second_correction).sqrt() + ADAM_EPS for v in second)
    return tuple(rate * m / scale for m, scale in zip(means, scales, strict=True)), first + second


OPTIMIZERS = {"plain": (_plain, 0), "adam": (_adam, 8)}  # the update, and how many columns it remembers


def _step(direction, encoding, iou_factor, update):
    """One step as a pure function of columns (rows, n): (state, memory, target, clock) -> (next state, next memory,
    measures).

    The measures, (8, rows), are sums over each row of the state before the step.
    """

    def step(state, memory, target, clock):
        ascent, iou = direction(state, target)
        move, memory = update(ascent, 2 - iou if iou_factor else 1, memory, clock)
        one_row = tuple(column[:1] for column in target)  # stays in the cache
        seen = (boxes.convert(box, encoding, "cxcywh") for box in (state, one_row))
        errors = [(s - t).abs() for s, t in zip(*seen, strict=True)]
        shares = (torch.ceil(iou - threshold) for threshold in (0.5, 0.75, 0.9))  # 1 above it, else 0
        measures = torch.stack([measure.sum(-1) for measure in (*errors, iou, *shares)])
        return tuple(s + m for s, m in zip(state, move, strict=True)), memory, measures

    return step
