"""The box-regression simulation of the DIoU paper (Zheng et al., AAAI 2020, section 3), for any registered loss.

Boxes start around 7 targets and are moved towards them by gradient steps on a loss, each on its own, with no network in
between. The full experiment is 5,000 anchor points x 343 cases a point x 200 steps for each loss.
"""

import contextlib
import functools
import math
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from giou_repro import _fast, boxes
from giou_repro.registry import LOSSES, select
from giou_repro.simulation import diou_code
from giou_repro.simulation.compiled import Compiled

CENTRE = (10.0, 10.0)
RADIUS = 3.0
SHAPES = (
    (0.5, 2.0),
    (3**0.5 / 3, 3**0.5),
    (2**0.5 / 2, 2**0.5),
    (1.0, 1.0),
    (2**0.5, 2**0.5 / 2),
    (3**0.5, 3**0.5 / 3),
    (2.0, 0.5),
)
AREAS = (0.5, 0.67, 0.75, 1.0, 1.33, 1.5, 2.0)
CASES_PER_POINT = len(SHAPES) * len(AREAS) * len(SHAPES)
POINTS_PER_BLOCK = {"cpu": 500, "cuda": 5000}  # outweigh the calls; on a CPU few enough to share out to cores
CURVE_COLUMNS = ("error_x", "error_y", "error_w", "error_h", "mean_iou", "iou_50", "iou_75", "iou_90")
ADAM_BETAS, ADAM_EPS = (0.9, 0.999), 1e-8
COMPILE_FROM = 1e8  # case-steps a loss: about the point where compiling has paid for itself on two cores


@dataclass(frozen=True)
class Simulation:
    """What a run found, as tables.

    curves: loss, step (0 = start), error (|x−x*| + |y−y*| + |w−w*| + |h−h*| summed over all cases), error_x, error_y,
        error_w, error_h, mean_iou, iou_50, iou_75, iou_90 (shares of cases above that IoU)
    final: loss, point (from 1), x, y (of the anchor point), error (summed over the point's 343 cases), mean_iou, after
    the last step trajectories: loss, case (from 1), step, x, y, w, h, iou of the cases asked for
    settings: everything that decides the result, and seconds for each loss
    """

    curves: pd.DataFrame
    final: pd.DataFrame
    trajectories: pd.DataFrame
    settings: dict


def simulate(
    losses: Sequence[str] | str = ("iou", "giou", "diou", "ciou"),
    n_points: int = 5000,
    steps: int = 200,
    gradients: str = "exact",
    seed: int = 0,
    *,
    points=None,
    dtype: str = "float32",
    device: str = "auto",
    trajectories: Sequence[int] = (),
    encoding: str = "cxcywh",
    step_size: float = 0.1,
    schedule: str | Sequence[float] = "paper",
    iou_factor: bool = True,
    optimizer: str = "plain",
    compile: bool | str = "auto",
    progress: bool = True,
) -> Simulation:
    """Move boxes to their targets under each loss and return the tables of a Simulation.

    losses: names in LOSSES or ``module:function``
    n_points, seed: anchor points drawn uniformly in the disc; or `points`, an (n, 2) array of given ones
    gradients: "exact" differentiates the loss; "published" takes the formulae of the DIoU paper's code, for iou, giou,
    diou and ciou dtype: "float32" or "float64";  device: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1", …
    trajectories: case numbers to follow, from 1; see case_number
    encoding: what is regressed, "cxcywh" (the paper) or "xyxy"; coordinate losses compare it, overlap losses get it
    decoded step_size: rate of the first step;  schedule: "paper" (divided by 10 after 80 % of the steps, by 100 after
        90 %), "constant", or one factor a step
    iou_factor: multiply each gradient by (2 − IoU), as the paper does
    optimizer: "plain" gradient steps, or "adam" (betas .9 and .999), as the WIoU and PIoU papers use
    compile: True, False, or "auto": where the work is large enough to pay for it. Without a compiler it runs
    uncompiled, with a warning.

    The same arguments on the same hardware give the same result. Raises ValueError, naming the argument, for a value it
    cannot use.
    """
    names = select(losses)
    drawn = points is None
    points = _draw_points(_whole("n_points", n_points, 1), _whole("seed", seed, 0)) if drawn else _given_points(points)
    steps = _whole("steps", steps, 1)
    chosen = _checked_cases(trajectories, len(points))
    _check(
        names,
        dict(
            gradients=gradients,
            encoding=encoding,
            optimizer=optimizer,
            dtype=dtype,
            iou_factor=iou_factor,
            compile=compile,
        ),
    )
    device = _resolve_device(device)
    clock = _clock(steps, step_size, schedule).to(device, getattr(torch, dtype))
    compiling = compile is True or (compile == "auto" and len(points) * CASES_PER_POINT * steps >= COMPILE_FROM)
    size = POINTS_PER_BLOCK.get(device.type, 500)
    blocks = np.split(np.arange(len(points)), range(size, len(points), size))

    _fast.keep_freed_memory()
    curves, final, paths, seconds = [], [], [], {}
    total = len(names) * len(blocks) * (steps + 1)
    with (
        _threads(device) as each,
        tqdm(total=total, disable=None if progress else True, unit="step", leave=False) as bar,
    ):
        for name in names:
            started = time.perf_counter()
            bar.set_description(name)
            engine = _stepper(name, gradients, encoding, iou_factor, optimizer, compiling, device.type)

            def run(block, name=name, engine=engine):
                here = chosen[np.isin((chosen - 1) // CASES_PER_POINT, block)]
                return _run_block(engine, name, points, block, blocks, clock, here, encoding, bar)

            alone = 1 if compiling and not engine[0].works else 0  # the first block compiles
            tables = [*each(run, blocks[:alone]), *each(run, blocks[alone:])]
            curves.append(_curve_table(name, sum(measured for measured, _, _ in tables), len(points) * CASES_PER_POINT))
            final += [ends for _, ends, _ in tables]
            paths += [path for _, _, path in tables]
            seconds[name] = round(time.perf_counter() - started, 3)
    settings = dict(
        losses=names, n_points=len(points), steps=steps, gradients=gradients, dtype=dtype, device=str(device)
    )
    settings |= dict(seed=seed, points=None) if drawn else dict(seed=None, points=points.tolist())
    settings |= dict(
        encoding=encoding,
        step_size=step_size,
        schedule=schedule,
        iou_factor=iou_factor,
        optimizer=optimizer,
        seconds=seconds,
    )
    result = Simulation(*(pd.concat(tables, ignore_index=True) for tables in (curves, final, paths)), settings)
    _warn_of_lost_cases(result.final)
    return result


def case_number(point: int, target: int, area: int, shape: int) -> int:
    """The number, from 1, of the case at anchor `point` with the given target (1 to 7), area (1 to 7) and anchor shape
    (1 to 7)."""
    return (((point - 1) * 7 + target - 1) * 7 + area - 1) * 7 + shape


def _draw_points(n_points, seed):
    """(n, 2) anchor points uniform in the disc."""
    u1, u2 = np.random.default_rng(seed).random((2, n_points))
    radius, angle = RADIUS * np.sqrt(u1), 2 * np.pi * u2
    return np.stack((CENTRE[0] + radius * np.cos(angle), CENTRE[1] + radius * np.sin(angle)), 1)


def _given_points(points):
    try:
        points = np.asarray(points, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"points must be an (n, 2) array of x and y, got {points!r}") from None
    if points.ndim != 2 or points.shape[1] != 2 or len(points) == 0 or not np.isfinite(points).all():
        raise ValueError(
            f"points must be a finite (n, 2) array of x and y with n of at least 1, got shape {points.shape}"
        )
    return points


def _checked_cases(trajectories, n_points):
    cases, last = np.asarray(trajectories), n_points * CASES_PER_POINT
    if cases.size == 0:
        cases = cases.astype(np.int64)
    if cases.dtype.kind not in "iu" or cases.ndim != 1 or ((cases < 1) | (cases > last)).any():
        raise ValueError(f"trajectories must be a list of case numbers from 1 to {last}, got {trajectories!r}")
    return np.unique(cases)


def _whole(argument, value, least):
    """`value` as an int; ValueError naming the argument where it is not a whole number of at least `least`."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise ValueError(f"{argument} must be a whole number of at least {least}, got {value!r}")
    return int(value)


CHOICES = dict(
    gradients=("exact", "published"),
    encoding=("cxcywh", "xyxy"),
    optimizer=("plain", "adam"),
    dtype=("float32", "float64"),
)
CHOICES |= dict(iou_factor=(True, False), compile=(True, False, "auto"))


def _check(names, chosen):
    for argument, value in chosen.items():
        if not any(value is allowed or (isinstance(value, str) and value == allowed) for allowed in CHOICES[argument]):
            raise ValueError(f"{argument} must be one of {', '.join(map(str, CHOICES[argument]))}, got {value!r}")
    if chosen["gradients"] == "published":
        unknown = [name for name in names if name not in diou_code.PUBLISHED]
        if unknown:
            raise ValueError(
                f'gradients="published" exist for {", ".join(diou_code.PUBLISHED)} only, not for {", ".join(unknown)}; use "exact"'
            )
        if chosen["encoding"] != "cxcywh":
            raise ValueError('gradients="published" are in centre and size; use encoding="cxcywh"')


def _resolve_device(device):
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device {device!r} cannot be used here ({str(error).splitlines()[0]}); use 'auto' or 'cpu'"
        ) from None


def _clock(steps, step_size, schedule):
    """(steps + 1, 3): rate and Adam's two bias corrections for each step; a last row of rate 0 only measures."""
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
    return torch.from_numpy(np.stack((np.append(rates, 0), *(np.append(c, 1) for c in corrections)), 1))


def _cases(points, encoding, dtype, device):
    """Start boxes and targets of the cases at `points` (n, 2), each as four columns (n, 343) in `encoding`.

    Order of a row: target, area, anchor shape. The arithmetic is NumPy's, whose square root is correctly rounded: some
    cases amplify the last bit of their start into a visible difference.
    """
    shapes = np.array(SHAPES)
    target_w, target_h = shapes[:, 0, None, None], shapes[:, 1, None, None]
    scale = np.sqrt(np.array(AREAS)[None, :, None] * target_w * target_h)
    grid = (len(points), len(SHAPES), len(AREAS), len(SHAPES))
    start = (points[:, 0, None, None, None], points[:, 1, None, None, None], shapes[:, 0] * scale, shapes[:, 1] * scale)
    target = (*map(np.array, CENTRE), target_w, target_h)
    for columns in (start, target):
        rows = (torch.from_numpy(np.broadcast_to(column, grid).flatten()).view(len(points), -1) for column in columns)
        yield tuple(column.to(device, dtype) for column in boxes.convert(tuple(rows), "cxcywh", encoding))


def _stepper(name, gradients, encoding, iou_factor, optimizer, compiling, device):
    """The step of a loss, the IoU it measures, and how many columns the optimizer remembers. Compiled steps are kept
    for later calls."""
    key = (LOSSES[name].function, LOSSES[name].space, name, gradients, encoding, iou_factor, optimizer, device)
    step, overlap, slots, compiled = _made(*key)
    if compiling:
        compiled.warned = False
    return compiled if compiling else step, overlap, slots


@functools.lru_cache(maxsize=64)
def _made(function, space, name, gradients, encoding, iou_factor, optimizer, device):
    direction, overlap, stacked = _published(name) if gradients == "published" else _exact(LOSSES[name], encoding)
    update, slots = OPTIMIZERS[optimizer]
    step = _step(direction, encoding, iou_factor, update)
    return step, overlap, slots, Compiled(step, name, device, stacked)


@contextlib.contextmanager
def _threads(device):
    """A `map` over blocks, in as many threads as torch may use, each of one core: blocks have nothing to tell each
    other, while several cores on one block would wait for each other after every step."""
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        yield map
        return
    try:
        torch.set_num_threads(1)
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(threads)


def _run_block(engine, name, points, block, blocks, clock, watched, encoding, bar):
    """Run every step on the cases of one block of points: the sums of the measures at each step, (steps + 1, 8), and
    the tables of last errors and of the watched cases' paths."""
    step, overlap, slots = engine
    padding = (
        len(blocks[0]) - len(block) if isinstance(step, Compiled) else 0
    )  # or a last block of another size would be compiled anew
    start, target = _cases(points[np.pad(block, (0, padding), "edge")], encoding, clock.dtype, clock.device)
    memory, at = tuple(torch.zeros_like(start[0]) for _ in range(slots)), watched - 1 - block[0] * CASES_PER_POINT
    sums, last, path = _descend(step, start, target, clock, memory, len(block), at, bar)
    paths = _path_table(name, watched, path, tuple(column.view(-1)[at] for column in target), overlap, encoding)
    return sums, _final_table(name, points, block, last), paths


def _published(name):
    """As `_exact`, of the published code, for columns in centre and size: its direction, and its IoU, which is 0 for
    flipped boxes too."""
    return (
        lambda state, target: (diou_code.PUBLISHED[name](state, target), diou_code.iou(state, target)),
        diou_code.iou,
        False,
    )


def _exact(loss, encoding):
    """For columns in `encoding`: (the direction −∂loss/∂state by automatic differentiation, IoU), IoU alone, and
    whether the loss needs its boxes stacked."""
    decode = encoding if loss.space == "coordinates" else "xyxy"
    stacked = not _takes_columns(loss)
    function = _on_stacked(loss.function) if stacked else loss.function

    def overlap(state, target):
        decoded = boxes.convert(state, encoding, "xyxy"), boxes.convert(target, encoding, "xyxy")
        return boxes.overlap(*decoded).iou

    def direction(state, target):
        goal = boxes.convert(target, encoding, decode)

        def objective(moving):
            return function(boxes.convert(moving, encoding, decode), goal).sum()

        gradient, iou = _gradient(objective, lambda moving: overlap(moving, target), state)
        return tuple(-g for g in gradient), iou

    return direction, overlap, stacked


def _gradient(objective, beside, state):
    """(the derivative of `objective` by each column of `state`, `beside` of it): in the form the compiler can follow,
    in which both are of the same terms, so that it computes them once; or in the one every loss supports."""
    if torch.compiler.is_compiling():
        return torch.func.grad(lambda moving: (objective(moving), beside(moving)), has_aux=True)(state)
    with torch.enable_grad():
        moving = tuple(column.detach().requires_grad_() for column in state)
        return torch.autograd.grad(objective(moving), moving, materialize_grads=True), beside(state)


def _takes_columns(loss):
    """Whether the loss gives the same on four columns as on (..., 4) boxes, as any written with ``boxes.columns`` does:
    the fast path."""
    pred, target = (
        torch.tensor([[0.0, 0, 2, 1], [1, 0, 3, 3], [0, 0, 1, 1]]),
        torch.tensor([[0.5, 0, 2, 2], [1, 0, 3, 3], [4, 4, 5, 7]]),
    )
    with torch.enable_grad():
        expected = loss(pred.clone().requires_grad_(), target).detach()
    try:
        value = loss.function(pred.unbind(-1), target.unbind(-1))
    except Exception:  # a user's function may fail in any way on columns
        return False
    return (
        isinstance(value, torch.Tensor)
        and value.shape == expected.shape
        and torch.allclose(value, expected, equal_nan=True)
    )


def _on_stacked(function):
    """A function of (N, 4) boxes as one of columns. Stacked on the first dimension, the columns stay contiguous."""
    return lambda *sides: function(
        *(torch.stack([column.reshape(-1) for column in side]).movedim(0, -1) for side in sides)
    )


def _plain(direction, factor, memory, clock):
    rate = clock[0] * factor
    return tuple(rate * d for d in direction), memory


def _adam(direction, factor, memory, clock):
    rate, first_correction, second_correction = clock.unbind()
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
        errors = _errors(state, target, encoding)
        shares = ((iou > bar).to(iou.dtype) for bar in (0.5, 0.75, 0.9))
        measures = torch.stack([measure.sum(-1) for measure in (*errors, iou, *shares)])
        return tuple(s + m for s, m in zip(state, move, strict=True)), memory, measures

    return step


def _errors(state, target, encoding):
    """|x − x*|, |y − y*|, |w − w*|, |h − h*| of each case."""
    state, target = boxes.convert(state, encoding, "cxcywh"), boxes.convert(target, encoding, "cxcywh")
    return [(s - t).abs() for s, t in zip(state, target, strict=True)]


def _descend(step, start, target, clock, memory, rows, watched, bar):
    """Run every step on one block: the measures, summed over the first `rows` rows, at each step, (steps + 1, 8), those
    of each row after the last one, (8, rows), and the watched cases' path, (steps + 1, 4, n)."""
    state, sums, path = start, [], []
    for ticks in clock.split(50):  # what is kept of the rows does not grow with the steps
        measures = start[0].new_empty(
            len(ticks), len(CURVE_COLUMNS), rows
        )  # at once: small pieces kept among large ones waste room
        for tick, measured in zip(ticks, measures, strict=True):  # the clock's last tick only measures
            if len(watched):  # a tenth of the time of a short block, where there are none
                path.append(torch.stack([column.view(-1)[watched] for column in state]))
            state, memory, found = step(state, memory, target, tick)
            measured.copy_(found[:, :rows])
            bar.update()
        measures = measures.double()
        sums.append(measures.sum(-1))
    return torch.cat(sums), measures[-1], torch.stack(path) if path else start[0].new_empty(len(clock), 4, 0)


def _curve_table(name, sums, n_cases):
    sums = sums.cpu().numpy()
    table = pd.DataFrame(sums, columns=CURVE_COLUMNS)
    table[["mean_iou", "iou_50", "iou_75", "iou_90"]] /= n_cases
    table.insert(0, "error", sums[:, :4].sum(1))
    table.insert(0, "step", np.arange(len(sums)))
    table.insert(0, "loss", name)
    return table


def _final_table(name, points, block, measures):
    """One row an anchor point of the block, from its last measures (8, n)."""
    measures = measures.cpu().numpy()
    x, y = points[block].T
    return pd.DataFrame(
        dict(loss=name, point=block + 1, x=x, y=y, error=measures[:4].sum(0), mean_iou=measures[4] / CASES_PER_POINT)
    )


def _path_table(name, cases, path, goal, overlap, encoding):
    """One row a watched case and step, from the path (steps + 1, 4, n) of the cases and their targets, four columns
    (n,)."""
    state = path.unbind(1)
    columns = (*boxes.convert(state, encoding, "cxcywh"), overlap(state, goal))
    values = {
        key: column.double().cpu().numpy().T.reshape(-1)
        for key, column in zip(("x", "y", "w", "h", "iou"), columns, strict=True)
    }
    steps = np.tile(np.arange(len(path)), len(cases))
    return pd.DataFrame(dict(loss=name, case=np.repeat(cases, len(path)), step=steps) | values)


def _warn_of_lost_cases(final):
    lost = final.loc[~np.isfinite(final.error), "loss"].value_counts()
    for name, count in lost.items():
        warnings.warn(f"loss {name!r} left {count} of the anchor points with a case that is not finite", stacklevel=3)
