"""The box-regression simulation of the DIoU paper (Zheng et al., AAAI 2020, section 3), for any registered loss.

Boxes start around 7 targets and are moved towards them by gradient steps on a loss, each on its own, with no network in
between. The full experiment is 5,000 anchor points x 343 cases a point x 200 steps for each loss.
"""

import contextlib
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
from giou_repro.registry import select
from giou_repro.simulation import cases, diou_code
from giou_repro.simulation.cases import CASES_PER_POINT
from giou_repro.simulation.compiled import Compiled
from giou_repro.simulation.step import clock, stepper

POINTS_PER_BLOCK = {"cpu": 500, "cuda": 5000}  # outweigh the calls; on a CPU few enough to share out to cores
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
        diou and ciou
    dtype: "float32" or "float64";  device: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1", …
    trajectories: case numbers to follow, from 1; see case_number
    encoding: what is regressed, "cxcywh" (the paper) or "xyxy"; coordinate losses compare it, overlap losses get it
        decoded
    step_size: rate of the first step;  schedule: "paper" (divided by 10 after 80 % of the steps, by 100 after 90 %),
        "constant", or one factor a step
    iou_factor: multiply each gradient by (2 − IoU), as the paper does
    optimizer: "plain" gradient steps, or "adam" (betas .9 and .999), as the WIoU and PIoU papers use
    compile: True, False, or "auto": where the work is large enough to pay for it. Without a compiler it runs
        uncompiled, with a warning.

    The same arguments on the same hardware give the same result. Raises ValueError, naming the argument, for a value it
    cannot use.
    """
    options = dict(gradients=gradients, encoding=encoding, optimizer=optimizer, iou_factor=iou_factor)
    names, steps = select(losses), _whole("steps", steps, 1)
    drawn = points is None
    n_points, seed = _whole("n_points", n_points, 1), _whole("seed", seed, 0)
    points = cases.draw_points(n_points, seed) if drawn else cases.checked_points(points)
    followed = cases.checked_case_numbers(trajectories, len(points))
    _check(names, options | dict(dtype=dtype, compile=compile))
    device = devices.resolve(device)
    ticks = clock(steps, step_size, schedule).to(device, getattr(torch, dtype))
    compiling = compile is True or (compile == "auto" and len(points) * CASES_PER_POINT * steps >= COMPILE_FROM)
    size = POINTS_PER_BLOCK.get(device.type, 500)
    blocks = np.split(np.arange(len(points)), range(size, len(points), size))

    _fast.keep_freed_memory()
    curves, final, paths, seconds = [], [], [], {}
    progress_bar = tqdm(
        total=len(names) * len(blocks) * (steps + 1), disable=None if progress else True, unit="step", leave=False
    )
    with _map_over_blocks(device) as map_blocks, progress_bar:
        for name in names:
            started = time.perf_counter()
            progress_bar.set_description(name)
            engine = stepper(name, compiling=compiling, device=device.type, **options)

            def run(block, name=name, engine=engine):
                return _run_block(engine, name, points, block, blocks, ticks, followed, encoding, progress_bar)

            alone = 1 if compiling and not engine[0].works else 0  # the first block compiles
            tables = [*map_blocks(run, blocks[:alone]), *map_blocks(run, blocks[alone:])]
            curves.append(_curve_table(name, sum(sums for sums, _, _ in tables), len(points) * CASES_PER_POINT))
            final += [errors for _, errors, _ in tables]
            paths += [path for _, _, path in tables]
            seconds[name] = round(time.perf_counter() - started, 3)
    settings = dict(losses=names, n_points=len(points), steps=steps, dtype=dtype, device=str(device)) | options
    settings |= dict(seed=seed, points=None) if drawn else dict(seed=None, points=points.tolist())
    settings |= dict(step_size=step_size, schedule=schedule, seconds=seconds)
    result = Simulation(*(pd.concat(tables, ignore_index=True) for tables in (curves, final, paths)), settings)
    _warn_of_lost_cases(result.final)
    return result


def _whole(argument, value, least):
    """`value` as an int; ValueError naming the argument where it is not a whole number of at least `least`."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise ValueError(f"{argument} must be a whole number of at least {least}, got {value!r}")
    return int(value)


def _check(names, chosen):
    for argument, value in chosen.items():
        if not any(value is allowed or (isinstance(value, str) and value == allowed) for allowed in CHOICES[argument]):
            raise ValueError(f"{argument} must be one of {', '.join(map(str, CHOICES[argument]))}, got {value!r}")
    if chosen["gradients"] == "published":
        unknown = [name for name in names if name not in diou_code.PUBLISHED]
        if unknown:
            known = ", ".join(diou_code.PUBLISHED)
            raise ValueError(f'gradients="published" exist for {known} only, not for {", ".join(unknown)}; use "exact"')
        if chosen["encoding"] != "cxcywh":
            raise ValueError('gradients="published" are in centre and size; use encoding="cxcywh"')


@contextlib.contextmanager
def _map_over_blocks(device):
    """A `map` over blocks, in as many threads as torch may use, each of one core: blocks are independent, while several
    cores on one block would wait for each other after every step."""
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


def _run_block(engine, name, points, block, blocks, ticks, followed, encoding, progress_bar):
    """Run every step on the cases of one block of points: the sums of the measures at each step, (steps + 1, 8), and
    the tables of last errors and of the followed cases' paths."""
    step, overlap, slots = engine
    # a last block of another size would be compiled anew
    padding = len(blocks[0]) - len(block) if isinstance(step, Compiled) else 0
    padded = points[np.pad(block, (0, padding), "edge")]
    start, target = cases.boxes_and_targets(padded, encoding, ticks.dtype, ticks.device)
    memory = tuple(torch.zeros_like(start[0]) for _ in range(slots))
    followed = followed[np.isin((followed - 1) // CASES_PER_POINT, block)]
    places = followed - 1 - block[0] * CASES_PER_POINT
    sums, last, path = _descend(step, start, target, ticks, memory, len(block), places, progress_bar)
    goals = tuple(column.view(-1)[places] for column in target)
    return sums, _final_table(name, points, block, last), _path_table(name, followed, path, goals, overlap, encoding)


def _descend(step, start, target, ticks, memory, rows, followed, progress_bar):
    """Run every step on one block: the measures, summed over the first `rows` rows, at each step, (steps + 1, 8), those
    of each row after the last one, (8, rows), and the followed cases' path, (steps + 1, 4, n)."""
    state, sums, path = start, [], []
    for part in ticks.split(50):  # what is kept of the rows does not grow with the steps
        # at once: small pieces kept among large ones waste memory
        measures = start[0].new_empty(len(part), len(MEASURES), rows)
        for tick, measured in zip(part, measures, strict=True):  # the last tick only measures
            if len(followed):  # a tenth of the time of a short block, where there are none
                path.append(torch.stack([column.view(-1)[followed] for column in state]))
            state, memory, values = step(state, memory, target, tick)
            measured.copy_(values[:, :rows])
            progress_bar.update()
        measures = measures.double()
        sums.append(measures.sum(-1))
    return torch.cat(sums), measures[-1], torch.stack(path) if path else start[0].new_empty(len(ticks), 4, 0)


def _curve_table(name, sums, n_cases):
    sums = sums.cpu().numpy()
    table = pd.DataFrame(sums, columns=MEASURES)
    table[["mean_iou", "iou_50", "iou_75", "iou_90"]] /= n_cases
    head = pd.DataFrame(dict(loss=name, step=np.arange(len(sums)), error=sums[:, :4].sum(1)))
    return pd.concat([head, table], axis=1)


def _final_table(name, points, block, measures):
    """One row an anchor point of the block, from its last measures (8, n)."""
    measures = measures.cpu().numpy()
    x, y = points[block].T
    return pd.DataFrame(
        dict(loss=name, point=block + 1, x=x, y=y, error=measures[:4].sum(0), mean_iou=measures[4] / CASES_PER_POINT)
    )


def _path_table(name, numbers, path, goal, overlap, encoding):
    """One row a followed case and step, from the path (steps + 1, 4, n) of the cases and their targets, four columns
    (n,)."""
    state = path.unbind(1)
    columns = (*boxes.convert(state, encoding, "cxcywh"), overlap(state, goal))
    values = {
        key: column.double().cpu().numpy().T.reshape(-1)
        for key, column in zip(("x", "y", "w", "h", "iou"), columns, strict=True)
    }
    steps = np.tile(np.arange(len(path)), len(numbers))
    return pd.DataFrame(dict(loss=name, case=np.repeat(numbers, len(path)), step=steps) | values)


def _warn_of_lost_cases(final):
    lost = final.loc[~np.isfinite(final.error), "loss"].value_counts()
    for name, count in lost.items():
        warnings.warn(f"loss {name!r} left {count} of the anchor points with a case that is not finite", stacklevel=3)
