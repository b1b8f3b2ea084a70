"""Notebook 04: what a loss does to a small network whose boxes start apart from their targets.

An arm is a loss, an encoding and a first box. Areas are in pictures, lengths in the picture's side.
"""

import itertools

import numpy as np
import pandas as pd
import torch

from giou_repro import registry
from giou_repro.experiments import statistics, style
from giou_repro.experiments.one_box_training import ENCODINGS, FIRST_BOXES, SIZE, corners, of_code, pictures, train

OUTPUTS = (  # without which a run of the notebook is not complete
    *("runs.csv", "search.csv", "curves.csv", "differences.csv", "factors.csv", "effects.csv", "pull.csv"),
    *(f"figures/{name}.png" for name in ("pictures", "dose", "film", "curves", "pull")),
)
ARM = ["loss", "encoding", "first_box"]
ENDS = ["mean_iou", "iou_50", "iou_75", "disjoint", "area"]
PRIMARY = 97  # the first box at which GIoU is compared with IoU, docs/protocol.md
COLLAPSED = 0.9  # the median area from which a box has outgrown the picture; no target is above .21
EXTENSIONS = 4  # times that the grid of rates is extended, at most
FACTORS = ["encoding", "normalise", "beta2", "learning_rate", "steps"]  # of whether it does


def arms(losses: list[str], encodings: list[str], first_boxes=tuple(FIRST_BOXES), **more) -> pd.DataFrame:
    """Every combination: encoding, loss, first_box, and a column for each list in `more`."""
    columns = dict(encoding=encodings, loss=losses, first_box=first_boxes) | more
    return pd.MultiIndex.from_product(columns.values(), names=columns).to_frame(index=False)


def runs(history: pd.DataFrame) -> pd.DataFrame:
    """A row for each run in what `train` returns: how it ended, its disjoint_at_start, its largest_area on the way, and
    whether it collapsed."""
    ends = {name: (name, "last") for name in ENDS}
    runs = history.groupby([*ARM, "learning_rate", "beta2", "seed"], sort=False)
    table = runs.agg(**ends, disjoint_at_start=("disjoint", "first"), largest_area=("area", "max")).reset_index()
    return table.assign(collapsed=table.area > COLLAPSED)


def search(arms: pd.DataFrame, rates: list[float], seeds: list[int], steps: int, **options) -> pd.DataFrame:
    """The runs of every arm at every rate, measured on search pictures.

    Where the best rate of an arm is the highest or lowest that it had, the next one on the grid is tried, `EXTENSIONS`
    times at most. `options` are train's.
    """
    table, tried = pd.DataFrame(), arms.merge(pd.DataFrame(dict(learning_rate=rates)), how="cross")
    factor = rates[1] / rates[0] if len(rates) > 1 else 3
    for _ in range(1 + EXTENSIONS):
        table = pd.concat(
            [table, runs(train(tried, seeds, steps, "search", evaluations=1, **options))], ignore_index=True
        )
        tried = best_rates(table).query("edge != 0")
        tried = tried.assign(learning_rate=tried.learning_rate * factor**tried.edge)[[*ARM, "learning_rate"]]
        if tried.empty:
            break
    return table


def best_rates(table: pd.DataFrame) -> pd.DataFrame:
    """The rate with the highest mean IoU of each arm of a `search`: ARM, learning_rate, mean_iou, edge.

    edge is 1 where that is the highest rate it had, −1 the lowest, 0 where it lies between or another one did as well.
    """
    means = table.groupby([*ARM, "learning_rate"], sort=False).mean_iou.mean().reset_index()
    groups = means.groupby(ARM, sort=False)
    best = means.loc[groups.mean_iou.idxmax()].set_index(ARM)
    alone = groups.mean_iou.agg(lambda values: (values == values.max()).sum() == 1)
    lowest, highest = (groups.learning_rate.agg(end) == best.learning_rate for end in ("min", "max"))
    return best.assign(edge=alone * (highest.astype(int) - lowest)).reset_index()


def describe_search(best: pd.DataFrame, searched: pd.DataFrame) -> str:
    edge = best[best.edge != 0]
    which = "; ".join(f"{registry.label(row.loss)}, {row.encoding}, {row.first_box} %" for row in edge.itertuples())
    return (
        f"Best rates, of {searched.learning_rate.nunique()} from {searched.learning_rate.min():.2g} to "
        f"{searched.learning_rate.max():.2g}. At an edge of what they had are {len(edge)} of {len(best)}"
        f"{f' ({which})' if which else ''}."
    )


def curves(history: pd.DataFrame) -> pd.DataFrame:
    """Means over the seeds at each measured step: ARM, learning_rate, step, ENDS, the median box x, y, w, h, and low,
    high (95 % of mean IoU)."""
    groups = history.groupby([*ARM, "learning_rate", "step"], sort=False)
    intervals = np.array(groups.mean_iou.agg(lambda values: statistics.mean_interval(values)).tolist())
    table = groups[[*ENDS, "x", "y", "w", "h"]].mean().reset_index()
    return table.assign(low=intervals[:, 0], high=intervals[:, 1])


def differences(runs: pd.DataFrame) -> pd.DataFrame:
    """Every loss less ℓ1 (without it the first loss) and GIoU less IoU in mean IoU, seed by seed: encoding, first_box,
    primary, and the columns of `statistics.judged`.

    GIoU less IoU at the first box PRIMARY is the primary outcome, a family over the encodings; the other pairs of one
    encoding and first box are a family.
    """
    losses, tables = list(runs.loss.unique()), []
    reference = "l1" if "l1" in losses else losses[0]
    pairs = {(loss, reference): None for loss in losses if loss != reference}
    pairs |= {("giou", "iou"): None} if {"giou", "iou"} <= set(losses) else {}
    for setting, part in runs.groupby(["encoding", "first_box"], sort=False):
        table = statistics.compare(part.assign(setting="{}, {} %".format(*setting)), "mean_iou", pairs)
        tables.append(table.assign(encoding=setting[0], first_box=setting[1]))
    table = pd.concat(tables)
    table["primary"] = (table.loss == "giou") & (table.against == "iou") & (table.first_box == PRIMARY)
    families = table.groupby(table.setting.mask(table.primary, "primary"), sort=False)
    judged = [statistics.judged(family, unpaired=False) for _, family in families]  # seeds have their own pictures
    return pd.concat(judged, ignore_index=True)


def describe_answer(differences: pd.DataFrame) -> str:
    """The primary outcome of docs/protocol.md."""
    primary = differences[differences.primary]
    if primary.empty:
        return f"**Answer.** None of this run: it takes the losses giou and iou, and the first box {PRIMARY}."
    said = "; ".join(f"{word} with {', '.join(part.encoding)}" for word, part in primary.groupby("verdict", sort=False))
    each = ", ".join(
        f"{row.encoding} {row.difference:+.3f} ({row.low:+.3f} to {row.high:+.3f})" for row in primary.itertuples()
    )
    return (
        f"**Answer.** GIoU against IoU where about {PRIMARY} % of the first boxes are disjoint from their target, each "
        f"at its own rate: {said}. GIoU − IoU in mean IoU: {each}; 95 % intervals, {primary.n.min()} paired seeds."
    )


@style.styled
def plot_pictures(n: int = 5, seed: int = 0):
    """Pictures with their target; on the right the first boxes over 60 targets."""
    pixels, targets = pictures(60, seed, "train")
    figure, (axes,) = style.panels(1, n + 1, 1.45, 1.6)
    for axis, image, target in zip(axes[:-1], pixels.view(-1, SIZE, SIZE).numpy(), corners(targets), strict=False):
        axis.imshow(image, cmap="gray", extent=(0, 1, 1, 0))
        style.draw_box(axis, target.tolist(), style.TRUE)
    for target in corners(targets).tolist():
        style.draw_box(axes[-1], target, style.TRUE, linewidth=0.3)
    for share, box in FIRST_BOXES.items():
        x1, y1, x2, y2 = corners(torch.tensor(box)).tolist()
        style.draw_box(axes[-1], (x1, y1, x2, y2), style.PREDICTED, linewidth=1.2)
        axes[-1].text(x2 + 0.01, y2, f"{share}", fontsize=7, fontweight="bold")
    for axis in axes:
        axis.set(xlim=(-0.02, 1.02), ylim=(1.02, -0.02))
        style.hide_scales(axis)
    return figure


@style.styled
def plot_dose(curves: pd.DataFrame, differences: pd.DataFrame):
    """Above: mean IoU at the end against the share disjoint at the start. Below: the difference to ℓ1, seed by seed."""
    end, start = (curves[curves.step == step] for step in (curves.step.max(), 0))
    encodings, shares = list(curves.encoding.unique()), 100 * start.groupby("first_box").disjoint.mean()
    against = differences.against.iloc[0]
    versus = differences[differences.against == against].rename(columns={"difference": "mean_iou"})
    figure, axes = style.panels(2, len(encodings), 3.3, 2.6, sharex=True, sharey="row")
    for (row, table), (column, encoding) in itertools.product(enumerate((end, versus)), enumerate(encodings)):
        for number, (loss, part) in enumerate(table[table.encoding == encoding].groupby("loss", sort=False)):
            x = part.first_box.map(shares.index.get_loc) + 0.07 * (number - 3)
            style.draw_loss(axes[row, column], loss, x, part.mean_iou, linewidth=1)
            axes[row, column].vlines(x, part.low, part.high, color=style.color(loss), linewidth=1)
        axes[0, column].set_title(encoding)
        axes[1, column].axhline(0, color="0.5", linewidth=0.8)
        axes[1, column].set(xlabel="disjoint at the start (%)", ylim=(-0.12, 0.08))
        axes[1, column].set_xticks(range(len(shares)), shares.map("{:.0f}".format))
    axes[0, 0].set(ylabel="mean IoU", ylim=(0, 0.8))
    axes[1, 0].set_ylabel(f"mean IoU − that of {registry.label(against)}")
    style.legend_below(figure, axes)
    return figure


def describe_dose(curves: pd.DataFrame, differences: pd.DataFrame) -> str:
    against, words = differences.against.iloc[0], []
    versus = differences[differences.against == against]
    for (first_box, word), part in versus[versus.verdict.isin(["better", "worse"])].groupby(["first_box", "verdict"]):
        listed = [f"{registry.label(row.loss)} ({row.encoding}, {row.difference:+.3f})" for row in part.itertuples()]
        words.append(f"at {first_box} % disjoint {word}: {', '.join(listed)}")
    last = curves[(curves.step == curves.step.max()) & (curves.first_box == curves.first_box.max())]
    dead = [f"{registry.label(row.loss)} ({row.encoding})" for row in last[last.mean_iou < 0.05].itertuples()]
    undecided = (~versus.verdict.isin(["better", "worse"])).sum()
    return (
        f"**What we see.** In mean IoU against {registry.label(against)}, "
        f"{'; '.join(words) or 'none is better or worse'}. No verdict on {undecided} of {len(versus)}. With "
        f"{last.first_box.max()} % disjoint these end below a mean IoU of .05: {', '.join(dead) or 'none'}."
    )


@style.styled
def plot_film(curves: pd.DataFrame, encoding: str, frames: int = 7):
    """The median predicted box at several steps, a row a loss, from the first box PRIMARY."""
    table = curves[(curves.encoding == encoding) & (curves.first_box == PRIMARY)]
    steps = table.step.unique()
    steps = steps[np.unique(np.linspace(0, len(steps) - 1, frames).round().astype(int))]
    figure, axes = style.panels(table.loss.nunique(), len(steps), 1.0, 0.9)
    for row, (loss, part) in zip(axes, table.groupby("loss", sort=False), strict=True):
        for axis, step in zip(row, steps, strict=True):
            box = torch.tensor(part.loc[part.step == step, ["x", "y", "w", "h"]].to_numpy()[0])
            style.draw_box(axis, (0, 0, 1, 1), "0.6", linewidth=0.8)
            style.draw_box(axis, corners(box).tolist(), style.color(loss))
            axis.set(xlim=(-0.25, 1.25), ylim=(1.25, -0.25), title=f"step {step}" if axis in axes[0] else "")
            style.hide_scales(axis)
        row[0].set_ylabel(registry.label(loss))
    return figure


@style.styled
def plot_curves(curves: pd.DataFrame):
    """Against the step, a column an encoding: the median area, and mean IoU, from the first box PRIMARY, and mean IoU
    from the first box that touches all targets."""
    encodings, shown = list(curves.encoding.unique()), (("area", PRIMARY), ("mean_iou", PRIMARY), ("mean_iou", 0))
    figure, axes = style.panels(3, len(encodings), 3.3, 2.8, sharex=True, sharey="row")
    for (row, (measure, first_box)), (column, encoding) in itertools.product(enumerate(shown), enumerate(encodings)):
        part = curves[(curves.encoding == encoding) & (curves.first_box == first_box)]
        band = ("low", "high") if measure == "mean_iou" else ()
        style.draw_losses(axes[row, column], part, "step", measure, band)
        axes[row, column].set(xscale="symlog", xlim=(0, None), title=f"{encoding}, {first_box} % disjoint")
        axes[0, column].axhline(1, color="0.5", linewidth=0.8, linestyle=":")
        axes[2, column].set_xlabel("step")
    axes[0, 0].set(yscale="log", ylim=(5e-3, None), ylabel="area (pictures)")
    for axis in axes[1:, 0]:
        axis.set(ylabel="mean IoU", ylim=(0, 0.8))
    style.legend_below(figure, axes)
    return figure


def describe_curves(runs: pd.DataFrame, curves: pd.DataFrame) -> str:
    at, words = runs[runs.first_box == PRIMARY], []
    for encoding, part in at.groupby("encoding", sort=False):
        way = curves[(curves.first_box == PRIMARY) & (curves.encoding == encoding)]
        half = way[way.mean_iou >= way.mean_iou.max() / 2].groupby("loss").step.min()
        areas = part.groupby("loss").largest_area.mean()
        widest, late = areas.idxmax(), half.reindex(areas.index).fillna(np.inf).idxmax()
        largest = f"{registry.label(widest)}'s ({areas[widest]:.2f} pictures, mean of the seeds)"
        words.append(f"{encoding} {largest} and {registry.label(late)} (step {half.get(late, 'never')})")
    return (
        f"**What we see.** With about {PRIMARY} % disjoint, each loss at its own rate, the largest box on the way "
        f"and the last loss to reach half of the best mean IoU: {'; '.join(words)}. At the end {at.collapsed.sum()} "
        f"of {len(at)} runs have outgrown the picture."
    )


def factors(losses: list[str], lengths: list[int], rates: list[float], seeds: list[int], **options) -> pd.DataFrame:
    """The runs of all combinations of FACTORS from the first box PRIMARY, measured on search pictures; `lengths` are
    numbers of steps, `options` train's."""
    table = arms(losses, ENCODINGS, [PRIMARY], learning_rate=rates, beta2=[0.9, 0.999])
    return pd.concat(
        runs(train(table, seeds, steps, "search", **options | dict(normalise=normalise))).assign(
            normalise=normalise, steps=steps
        )
        for normalise, steps in itertools.product((False, True), lengths)
    )


def effects(factors: pd.DataFrame) -> pd.DataFrame:
    """The share of runs whose median area was above COLLAPSED on the way (`grew`) and at the end (`stayed`), at each
    level of each factor: loss, level, n, grew, stayed, factor."""
    table = factors.assign(grew=factors.largest_area > COLLAPSED, stayed=factors.collapsed)
    shares = dict(n=("grew", "size"), grew=("grew", "mean"), stayed=("stayed", "mean"))
    parts = {name: table.rename(columns={name: "level"}).groupby(["loss", "level"], sort=False) for name in FACTORS}
    return pd.concat(
        part.agg(**shares).reset_index().assign(factor=name).astype({"level": str}) for name, part in parts.items()
    )


def describe_factors(effects: pd.DataFrame) -> str:
    words = []
    for loss, part in effects.groupby("loss", sort=False):
        stayed = part.groupby("factor").stayed
        factor = (stayed.max() - stayed.min()).idxmax()
        levels = part[part.factor == factor]
        each = ", ".join(f"{row.stayed:.0%} at {row.level}" for row in levels.itertuples())
        total = np.average(levels[["grew", "stayed"]], axis=0, weights=levels.n)
        ends = "{:.0%} on the way and {:.0%} at the end".format(*total)
        why = f"; {factor} changes that most ({each})" if total[1] else ""
        words.append(f"{registry.label(loss)} {ends}, of {levels.n.sum()}{why}")
    return f"**What we see.** Runs whose box had outgrown the picture: {'. '.join(words)}."


def pull(losses: list[str], first_boxes=(40, PRIMARY), n: int = 1000, seed: int = 0) -> pd.DataFrame:
    """One square for `n` pictures, its centre that of a first box: first_box, loss, side, growth.

    `growth` is −d mean loss / d ln side: above 0 a gradient step enlarges the square.
    """
    _, targets = pictures(n, seed, "search")
    log_side = torch.linspace(np.log(0.03), np.log(10), 80, requires_grad=True)
    tables = []
    for first_box, name in itertools.product(first_boxes, losses):
        centre = torch.tensor(FIRST_BOXES[first_box][:2]).expand(80, 2)
        box = torch.cat((centre, log_side.exp()[:, None].expand(80, 2)), 1)
        (slope,) = torch.autograd.grad(of_code(name, "linear", box[:, None], targets).mean(-1).sum(), log_side)
        columns = dict(side=log_side.detach().exp().numpy(), growth=-slope.numpy())
        tables.append(pd.DataFrame(dict(first_box=first_box, loss=name) | columns))
    return pd.concat(tables, ignore_index=True)


@style.styled
def plot_pull(pull: pd.DataFrame):
    """`growth` against the side of the square, a panel a place; dotted: the side of that first box."""
    figure, (axes,) = style.panels(1, pull.first_box.nunique(), 4.4, 3.7, sharey=True)
    for axis, (first_box, part) in zip(axes, pull.groupby("first_box", sort=False), strict=True):
        style.draw_losses(axis, part, "side", "growth")
        axis.axhline(0, color="0.5", linewidth=0.8)
        axis.axvline(FIRST_BOXES[first_box][2], color="0.5", linewidth=0.8, linestyle=":")
        axis.set(
            xscale="log", xlabel="side of the square (pictures)", title=f"centred at the first box of {first_box} %"
        )
        axis.set_yscale("symlog", linthresh=0.01)
    axes[0].set_ylabel("−∂ loss / ∂ ln side (above 0: grows)")
    style.legend_below(figure, axes)
    return figure


def describe_pull(pull: pd.DataFrame) -> str:
    at = pull[pull.first_box == PRIMARY]
    grows = at[at.growth > 0].groupby("loss", sort=False).side.agg(["min", "max"])
    sides = [f"{registry.label(row.Index)} {row.min:.2f} to {row.max:.2f}" for row in grows.itertuples()]
    huge = at[at.side == at.side.max()]
    flat = ", ".join(f"{registry.label(row.loss)} {row.growth:+.1g}" for row in huge.itertuples())
    return (
        f"**What we see.** Centred at the first box that about {PRIMARY} % of the targets do not touch, a square grows "
        f"if its side, in pictures, is {'; '.join(sides)} (tried: {at.side.min():.2f} to {at.side.max():.0f}), else it "
        f"shrinks. At the largest side the pull is {flat}."
    )
