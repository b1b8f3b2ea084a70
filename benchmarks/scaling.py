"""How time and memory grow with cases, steps, losses and pairs, over three decades each.

    python -m benchmarks.scaling

Writes benchmarks/results/scaling.csv, and scaling.png beside it.
"""

import io
import time
from pathlib import Path

import pandas as pd
import torch

from benchmarks.robustness import well_scaled
from benchmarks.timing import peak_resident, resident
from giou_repro import boxes
from giou_repro.experiments import style
from giou_repro.registry import LOSSES, loss
from giou_repro.runs import store
from giou_repro.simulation import CASES_PER_POINT, simulate

CASES = CASES_PER_POINT


def main():
    torch.set_num_threads(1)
    table = pd.DataFrame([*_simulations(), *_pairs()], columns=["against", "size", "seconds", "megabytes"])
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    store.write_atomic(folder / "scaling.csv", table.to_csv(index=False))
    buffer = io.BytesIO()
    _plot(table).savefig(buffer, format="png", metadata={"Software": None})
    store.write_atomic(folder / "scaling.png", buffer.getvalue())
    print(table.to_string(index=False))


@style.styled
def _plot(table):
    """Time (top) and memory (bottom) against what grows; grey: in proportion."""
    groups = list(table.groupby("against", sort=False))
    figure, axes = style.panels(2, len(groups), 2.7, 2.5, sharex="col", sharey="row")
    for (against, part), (above, below) in zip(groups, axes.T, strict=True):
        sizes, seconds = part["size"], part.seconds
        look = dict(color="#0072B2", marker="o", markersize=3)
        above.plot(sizes, seconds.clip(lower=1e-3), **look)
        above.plot(sizes, seconds.iloc[-1] * sizes / sizes.iloc[-1], color="0.6", linestyle=":")
        below.plot(sizes, part.megabytes.clip(lower=1), **look)
        below.set(xscale="log", yscale="log", xlabel=against)
        above.set_yscale("log")
    axes[0, 0].set_ylabel("CPU time (s)")
    axes[1, 0].set_ylabel("memory beyond the start (MB)")
    return figure


def _simulations():
    """Rows (against, size, seconds, megabytes) of the engine, compiled before the clock starts."""
    simulate(
        ["giou"], n_points=500, steps=1, compile=True, progress=False
    )  # the compiler's own memory is there from here on
    run = {
        "cases": lambda points: simulate(["giou"], n_points=points, steps=20, compile=True, progress=False),
        "steps": lambda steps: simulate(["giou"], n_points=500, steps=steps, compile=True, progress=False),
        "losses": lambda count: simulate(_copies(count), n_points=5, steps=20, compile=False, progress=False),
    }
    before = resident()
    sizes = {
        "cases": (5, 50, 500, 1500, 5000),
        "steps": (1, 3, 10, 30, 100, 300, 1000),
        "losses": (1, 3, 10, 30, 100, 300),
    }
    for against, function in run.items():
        for size in sizes[against]:
            function(size)
            yield (
                against,
                size * (CASES if against == "cases" else 1),
                *_cost(lambda function=function, size=size: function(size), before),
            )


def _copies(count):
    """That many names of the same loss."""
    for k in range(count):
        if f"giou_{k}" not in LOSSES:
            loss(f"giou_{k}")(LOSSES["giou"].function)
    return [f"giou_{k}" for k in range(count)]


def _pairs():
    pred, target = well_scaled(10_000, torch.Generator().manual_seed(0))
    before = resident()
    for n in (300, 1000, 3000, 10_000):
        yield "pairs", n * n, *_cost(lambda n=n: boxes.giou(pred[:n, None], target[None, :n]), before)


def _cost(function, before):
    """(seconds of CPU time, megabytes that the process held beyond `before`) of a call."""
    started = time.process_time()
    held = peak_resident(function, before)
    return time.process_time() - started, None if held is None else held / 1e6


if __name__ == "__main__":
    main()
