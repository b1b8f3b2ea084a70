"""The box-regression simulation of the DIoU paper (Zheng et al., AAAI 2020, section 3), for any registered loss.

Boxes start around 7 targets and are moved towards them by gradient steps on a loss, each on its own, with no network in
between. The full experiment is 5,000 anchor points x 343 cases a point x 200 steps for each loss.
"""

import contextlib
import random
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from giou_repro import _fast, boxes, devices
from giou_repro.registry import LOSSES, select
from giou_repro.simulation import cases, diou_code
from giou_repro.simulation.cases import CASES_PER_POINT
from giou_repro.simulation.step import clock, engine, moved_as

POINTS_PER_BLOCK = {"cpu": 250, "cuda": 5000}  # outweigh the calls; on a CPU few enough to share out to cores
MEASURES = ("error_x", "error_y", "error_w", "error_h", "mean_iou", "iou_50", "iou_75", "iou_90")
COMPILE_FROM = 1e8  # case-steps a loss: about the point where compiling has paid for itself on two cores
CHOICES = {
    "gradients": ("exact", "published"),
    "encoding": ("cxcywh", "xyxy"),
    "optimizer": ("plain", "adam"),
    "dtype": ("float32", "float64"),
    "iou_factor": (True, False),
    "compile": (True, False, "auto"),
}


@dataclass(frozen=True)
class Simulation:
    """What a run found, as tables.

    curves: loss, step (0 = start), error (|x−x*| + |y−y*| + |w−w*| + |h−h*| summed over all cases), error_x, error_y,
        error_w, error_h, mean_iou, iou_50, iou_75, iou_90 (shares of cases above that IoU)
    final: loss, point (from 1), x, y (of the anchor point), error (summed over the point's 343 cases), mean_iou, after
        the last step
    trajectories: loss, case (from 1), step, x, y, w, h, iou of the cases that were to be followed
    settings: everything that decides the result, and seconds for each loss
    """

    curves: pd.DataFrame
    final: pd.DataFrame
    trajectories: pd.DataFrame
    settings: dict


@torch.inference_mode(False)  # whatever the caller's mode: directions are gradients
def simulate(
    losses: Sequence[str] | str = ("iou", "giou", "diou", "ciou"),
    n_points: int = 5000,
    steps: int = 200,
    gradients: str = "exact",
    seed: int = 0,
    *,
    repairs: Sequence[str] = (),
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
    n_points: anchor points drawn uniformly in the disc; or `points`, an (n, 2) array of given ones
    seed: of the points, and of what a loss draws from the generators of Python, NumPy or torch
    gradients: "exact" differentiates the loss; "published" takes the formulae of the DIoU paper's code, for iou, giou,
        diou and ciou, with the departures in `repairs` corrected: see diou_code.REPAIRS
    dtype: "float32" or "float64";  device: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1", …
    trajectories: case numbers to follow, from 1; see case_number
    encoding: what is regressed, "cxcywh" (the paper) or "xyxy"; coordinate losses compare it, overlap losses get it
        decoded
    step_size: rate of the first step;  schedule: "paper" (divided by 10 after 80 % of the steps, by 100 after 90 %),
        "constant", or one factor a step
    iou_factor: multiply each gradient by (2 − IoU), as the paper does
    optimizer: "plain" gradient steps, or "adam" (betas .9 and .999), as the WIoU and PIoU papers use
    compile: True, False, or "auto": where the work is large enough to pay for it. Where it cannot be compiled it runs
        uncompiled, with a warning.

    The same arguments on the same hardware give the same result. Raises ValueError, naming the argument, for a value it
    cannot use.
    """
    names, steps = select(losses), _whole("steps", steps, 1)
    n_points, seed = _whole("n_points", n_points, 1), _whole("seed", seed, 0)
    given, points = points, cases.draw_points(n_points, seed) if points is None else cases.checked_points(points)
    followed = cases.checked_case_numbers(trajectories, len(points))
    options = dict(gradients=gradients, encoding=encoding, optimizer=optimizer, iou_factor=iou_factor)
    _check(options | dict(dtype=dtype, compile=compile))
    options["repairs"] = _checked_repairs(names, gradients, encoding, repairs)
    device = devices.resolve(device)
    ticks = clock(steps, step_size, schedule).to(device, getattr(torch, dtype))
    compiling = compile is True or (compile == "auto" and len(points) * CASES_PER_POINT * steps >= COMPILE_FROM)
    size = POINTS_PER_BLOCK.get(device.type, 500)
    blocks = np.split(np.arange(len(points)), range(size, len(points), size))

    _fast.keep_freed_memory()
    curves, final, paths, seconds = [], [], [], {}
    bar = tqdm(total=len(names) * len(blocks) * (steps + 1), disable=None if progress else True, leave=False)
    for name in names:
        started = time.perf_counter()
        bar.set_description(name)
        moved, times = moved_as(LOSSES[name], encoding, optimizer)
        own_ticks = ticks * ticks.new_tensor(times)
        with _seeded(seed, device):
            made = engine(name, device=device.type, **options | dict(encoding=moved))

        def start(block, slots=made.slots, moved=moved):
            least = size if compiling else len(block)  # a block of another size would be compiled anew
            padded = points[np.pad(block, (0, least - len(block)), "edge")]
            state, target = cases.boxes_and_targets(padded, moved, ticks.dtype, device)
            return state, tuple(torch.zeros_like(state[0]) for _ in range(slots)), target

        def run(block, made=made, start=start, ticks=own_ticks):
            numbers = followed[np.isin((followed - 1) // CASES_PER_POINT, block)]
            return _descend(
                made, compiling, start(block), ticks, len(block), numbers - 1 - block[0] * CASES_PER_POINT, bar
            )

        with _map_over_blocks(device, in_order=made.changes) as map_blocks:
            if compiling:  # here, as a step is compiled for the number of threads that a block has
                with _seeded(seed, device):
                    made.compiled.prepare(*start(blocks[0]), own_ticks[-1])
            with _seeded(seed, device):
                sums, last, ways = zip(*map_blocks(run, blocks), strict=True)
        curves.append(_curve_table(name, sum(sums), len(points) * CASES_PER_POINT))
        final.append(_final_table(name, points, torch.cat(last, 1)))
        paths.append(_path_table(name, followed, torch.cat(ways, 2), moved))
        seconds[name] = round(time.perf_counter() - started, 3)
    bar.close()
    settings = dict(losses=names, n_points=len(points), steps=steps, dtype=dtype, device=str(device)) | options
    settings |= dict(seed=seed, points=None if given is None else points.tolist(), step_size=step_size)
    settings |= dict(schedule=schedule, seconds=seconds)
    result = Simulation(*(pd.concat(tables, ignore_index=True) for tables in (curves, final, paths)), settings)
    for name, count in result.final.loc[~np.isfinite(result.final.error), "loss"].value_counts().items():
        warnings.warn(f"loss {name!r} left {count} of the anchor points with a case that is not finite", stacklevel=2)
    return result


def _whole(argument, value, least):
    """`value` as an int; ValueError naming the argument where it is not a whole number of at least `least`."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise ValueError(f"{argument} must be a whole number of at least {least}, got {value!r}")
    return int(value)


def _check(chosen):
    for argument, value in chosen.items():
        if not any(value is allowed or (isinstance(value, str) and value == allowed) for allowed in CHOICES[argument]):
            raise ValueError(f"{argument} must be one of {', '.join(map(str, CHOICES[argument]))}, got {value!r}")


def _checked_repairs(names, gradients, encoding, repairs):
    """`repairs` as a sorted tuple; ValueError where `gradients` with them do not exist for every loss."""
    repairs = (repairs,) if isinstance(repairs, str) else tuple(sorted(repairs))
    if gradients == "exact":
        if repairs:
            raise ValueError('repairs correct the published gradients; use gradients="published"')
        return repairs
    if encoding != "cxcywh":
        raise ValueError('gradients="published" are in centre and size; use encoding="cxcywh"')
    unknown = [name for name in names if name not in diou_code.PUBLISHED]
    if unknown:
        known = ", ".join(diou_code.PUBLISHED)
        raise ValueError(f'gradients="published" exist for {known} only, not for {", ".join(unknown)}; use "exact"')
    for name in names:
        if not set(repairs) <= set(diou_code.REPAIRS[name]):
            raise ValueError(f"repairs of {name} are {', '.join(diou_code.REPAIRS[name])}, got {', '.join(repairs)}")
    return repairs


@contextlib.contextmanager
def _seeded(seed, device):
    """Inside, the generators of Python, NumPy and torch follow `seed`; after it they are as before."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextlib.contextmanager
def _map_over_blocks(device, in_order):
    """A `map` over blocks, in as many threads as torch may use, each of one core: blocks are independent, while several
    cores on one block would wait for each other after every step. One after the other where `in_order`."""
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1 or in_order:
        yield map
        return
    try:
        torch.set_num_threads(1)
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(threads)


@torch.enable_grad()  # as in a thread, whatever the caller's mode
def _descend(made, compiling, start, ticks, rows, followed, bar):
    """Run every step on one block, from its `start` (state, memory, target): the measures summed over the first `rows`
    rows at each step, (steps + 1, 8), those of each row after the last one, (8, rows), and (x, y, w, h, IoU) of the
    followed cases at each step, (steps + 1, 5, n)."""
    (state, memory, target), sums, path = start, [], []
    step = made.compiled if compiling else made.step
    goal = tuple(column.view(-1)[followed] for column in target)
    for part in ticks.split(20):  # what is kept of the rows does not grow with the steps
        kept = []
        for tick in part:  # the last one only measures
            if len(followed):  # a tenth of the time of a short block, where there are none
                now = tuple(column.view(-1)[followed] for column in state)
                path.append(torch.stack([*now, made.overlap(now, goal)]))
            state, memory, values = step(state, memory, target, tick)
            kept.append(values)
            bar.update()
        measures = torch.stack(kept)[..., :rows].double()
        sums.append(measures.sum(-1))
    return torch.cat(sums), measures[-1], torch.stack(path) if path else state[0].new_empty(len(ticks), 5, 0)


def _curve_table(name, sums, n_cases):
    table = pd.DataFrame(sums.cpu().numpy(), columns=MEASURES)
    table.insert(0, "error", table[["error_x", "error_y", "error_w", "error_h"]].sum(axis=1))
    table.insert(0, "step", np.arange(len(table)))
    table.insert(0, "loss", name)
    return table.assign(**{share: table[share] / n_cases for share in ("mean_iou", "iou_50", "iou_75", "iou_90")})


def _final_table(name, points, measures):
    """One row an anchor point, from its last measures (8, n)."""
    measures = measures.cpu().numpy()
    columns = dict(loss=name, point=np.arange(len(points)) + 1, x=points[:, 0], y=points[:, 1])
    return pd.DataFrame(columns | dict(error=measures[:4].sum(0), mean_iou=measures[4] / CASES_PER_POINT))


def _path_table(name, numbers, path, encoding):
    """One row a followed case and step, from the path (steps + 1, 5, n)."""
    *state, iou = path.double().unbind(1)
    columns = zip(("x", "y", "w", "h", "iou"), (*boxes.convert(tuple(state), encoding, "cxcywh"), iou), strict=True)
    values = {key: column.cpu().numpy().T.reshape(-1) for key, column in columns}
    index = dict(loss=name, case=np.repeat(numbers, len(path)), step=np.tile(np.arange(len(path)), len(numbers)))
    return pd.DataFrame(index | values)
