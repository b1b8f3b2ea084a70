"""The simulation: cases by hand, published gradients against Octave on the published code, exact ones on autograd."""

import math
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from giou_repro import boxes
from giou_repro.experiments import convergence, departures
from giou_repro.registry import LOSSES, loss
from giou_repro.simulation import case_number, cases, descent, simulate, step
from giou_repro.simulation.diou_code import PUBLISHED, REPAIRS, giou_ascent

OCTAVE = np.loadtxt(Path(__file__).with_name("published_octave.csv"), delimiter=",")
BESIDE = np.array([[12.5, 10.0]])  # an anchor point level with the targets
SQUARES = case_number(1, target=4, area=4, shape=4)  # a unit square on its way to a unit square


def quiet(*arguments, **options):
    return simulate(*arguments, progress=False, **options)


def octave_points():
    index = np.arange(1, 17)
    radius, angle = 3 * np.sqrt((index - 0.5) / 16), index * math.pi * (3 - math.sqrt(5))
    return np.stack((10 + radius * np.cos(angle), 10 + radius * np.sin(angle)), 1)


@pytest.fixture(scope="module")
def published():
    numbers = OCTAVE[(OCTAVE[:, 0] == 1) & (OCTAVE[:, 1] == 1), 2].astype(int)
    return quiet(list(PUBLISHED), gradients="published", points=octave_points(), dtype="float64", trajectories=numbers)


@pytest.mark.parametrize(("number", "name"), list(enumerate(PUBLISHED, 1)))
def test_published_gradients_agree_with_octave(published, number, name):
    theirs = OCTAVE[(OCTAVE[:, 0] == 0) & (OCTAVE[:, 1] == number)]
    curve = published.curves[published.curves.loss == name].set_index("step").loc[theirs[:, 2].astype(int)]
    np.testing.assert_allclose(curve[["error", "error_x", "error_y", "error_w", "error_h"]], theirs[:, 3:8], rtol=1e-9)
    theirs = OCTAVE[(OCTAVE[:, 0] == 1) & (OCTAVE[:, 1] == number)]
    paths = published.trajectories[published.trajectories.loss == name].set_index(["step", "case"])
    np.testing.assert_allclose(paths.loc[0, ["x", "y", "w", "h"]], theirs[:, 3:7], rtol=1e-11)
    np.testing.assert_allclose(paths.loc[200, ["x", "y", "w", "h"]], theirs[:, 9:13], atol=1e-10, rtol=0)


def test_cases_are_those_of_the_paper():
    start, target = (
        [column[0] for column in columns] for columns in cases.boxes_and_targets(BESIDE, "cxcywh", torch.float64, "cpu")
    )
    assert len(start[0]) == 343
    square = SQUARES - 1
    assert [column[square].item() for column in start] == [12.5, 10, 1, 1]
    assert [column[square].item() for column in target] == [10, 10, 1, 1]
    first, last = (case_number(1, *where) - 1 for where in ((1, 1, 1), (7, 7, 7)))
    assert (first, last) == (0, 342)
    assert start[2][0].item() == pytest.approx(0.5 * math.sqrt(0.5))  # shape 1/2 x 2, half the area
    np.testing.assert_allclose(
        (start[2] * start[3])[:49].reshape(7, 7), np.repeat([[0.5], [0.67], [0.75], [1], [1.33], [1.5], [2]], 7, 1)
    )


def test_points_fill_the_disc_and_follow_the_seed():
    points = cases.draw_points(20_000, seed=0)
    radius = np.linalg.norm(points - 10, axis=1)
    assert radius.max() <= 3
    assert (radius < 1.5).mean() == pytest.approx(1 / 4, abs=0.01)  # a quarter of the area
    assert not np.array_equal(points, cases.draw_points(20_000, seed=1))


def test_one_exact_step_by_hand():
    # ℓ2 in centre and size from (12.5, 10, 1, 1) to (10, 10, 1, 1): gradient 2 · 2.5 in x; 2 − IoU = 2; step 0.1
    path = quiet(["l2"], points=BESIDE, steps=1, schedule="constant", trajectories=[SQUARES]).trajectories
    assert path.x.tolist() == pytest.approx([12.5, 11.5])
    assert path.w.tolist() == [1, 1]
    halved = quiet(
        ["l2"], points=BESIDE, steps=1, schedule="constant", trajectories=[SQUARES], iou_factor=False
    ).trajectories
    assert halved.x.tolist() == pytest.approx([12.5, 12.0])


@pytest.mark.parametrize("encoding", ["cxcywh", "xyxy"])
@pytest.mark.parametrize("name", ["giou", "l1", "ciou"])
def test_exact_gradients_agree_with_a_plain_loop(name, encoding):
    run = quiet([name], points=BESIDE, steps=15, dtype="float64", trajectories=[7, SQUARES], encoding=encoding)
    start, target = (
        [column[0] for column in columns] for columns in cases.boxes_and_targets(BESIDE, encoding, torch.float64, "cpu")
    )
    for case, path in run.trajectories.groupby("case"):
        state, goal = (torch.stack([column[case - 1] for column in columns]) for columns in (start, target))
        for k in range(15):
            state.requires_grad_()
            decoded, decoded_goal = (boxes.convert(box, encoding, "xyxy") for box in (state, goal))
            arguments = (state, goal) if LOSSES[name].space == "coordinates" else (decoded, decoded_goal)
            (gradient,) = torch.autograd.grad(LOSSES[name](*arguments), state)
            rate = 0.1 if k < 12 else 0.01 if k < 13 else 0.001  # 80 % and 90 % of 15 steps are 12 and 13.5
            state = (state - rate * (2 - boxes.iou(decoded, decoded_goal)) * gradient).detach()
        np.testing.assert_allclose(
            path[["x", "y", "w", "h"]].iloc[-1], boxes.convert(state, encoding, "cxcywh"), rtol=1e-12
        )


def test_adam_agrees_with_torch():
    run = quiet(
        ["giou"],
        points=BESIDE,
        steps=10,
        dtype="float64",
        trajectories=[SQUARES],
        optimizer="adam",
        schedule="constant",
        iou_factor=False,
    )
    state, goal = (
        torch.tensor([12.5, 10, 1, 1]).double().requires_grad_(),
        torch.tensor([9.5, 9.5, 10.5, 10.5]).double(),
    )
    adam = torch.optim.Adam([state], lr=0.1)
    for _ in range(10):
        adam.zero_grad()
        LOSSES["giou"](boxes.convert(state, "cxcywh", "xyxy"), goal).backward()
        adam.step()
    np.testing.assert_allclose(run.trajectories[["x", "y", "w", "h"]].iloc[-1], state.detach(), rtol=1e-12)


def test_tables():
    run = quiet(["iou", "l1"], n_points=3, steps=4, trajectories=[5])
    assert list(run.curves.columns) == ["loss", "step", "error", *descent.MEASURES]
    assert list(run.final.columns) == ["loss", "point", "x", "y", "error", "mean_iou"]
    assert (len(run.curves), len(run.final), len(run.trajectories)) == (2 * 5, 2 * 3, 2 * 5)
    curve = run.curves[run.curves.loss == "iou"]
    np.testing.assert_allclose(curve.error, curve[["error_x", "error_y", "error_w", "error_h"]].sum(axis=1))
    assert run.final.error[run.final.loss == "iou"].sum() == pytest.approx(curve.error.iloc[-1], rel=1e-5)
    assert run.final.mean_iou[run.final.loss == "iou"].mean() == pytest.approx(curve.mean_iou.iloc[-1], rel=1e-5)


def test_same_seed_same_result():
    first, second = (quiet(["giou"], n_points=4, steps=5, seed=3) for _ in range(2))
    assert first.curves.equals(second.curves)
    assert first.final.equals(second.final)


def test_blocks_do_not_change_the_result(monkeypatch):
    whole = quiet(["giou"], n_points=5, steps=5, dtype="float64", trajectories=[1, 1500])
    monkeypatch.setitem(descent.POINTS_PER_BLOCK, "cpu", 2)
    parts = quiet(["giou"], n_points=5, steps=5, dtype="float64", trajectories=[1, 1500])
    assert whole.final.equals(parts.final)
    assert whole.trajectories.equals(parts.trajectories)
    np.testing.assert_allclose(whole.curves.iloc[:, 2:], parts.curves.iloc[:, 2:], rtol=1e-12)


def test_threads_do_not_change_the_result(monkeypatch):
    monkeypatch.setitem(descent.POINTS_PER_BLOCK, "cpu", 1)
    runs, before = [], torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            runs.append(quiet(["giou"], n_points=5, steps=5, trajectories=[1, 1500]))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for table in ("curves", "final", "trajectories"):
        assert getattr(runs[0], table).equals(getattr(runs[1], table))


def on_boxes(pred, target):
    """A user's loss that never heard of columns."""
    return (pred - target).abs().sum(dim=-1) + 1 - boxes.iou(pred, target)


def on_rows(pred, target):
    """The same for (N, 4) boxes only."""
    return sum((pred[:, k] - target[:, k]).abs() for k in range(4)) + 1 - boxes.iou(pred, target)


def with_an_if(pred, target):
    """A user's loss with a data-dependent branch, which no compiler can follow."""
    value = 1 - boxes.giou(pred, target)
    return value * 2 if value.mean() > 0.5 else value


def test_a_users_loss_runs_in_the_engine(user_module):
    loss("mine")(on_boxes)
    assert not step.takes_columns(LOSSES["mine"])
    assert step.takes_columns(LOSSES["giou"])
    loss("by_rows")(on_rows)
    run = quiet(["mine", "by_rows"], points=BESIDE, dtype="float64")
    mine, by_rows = (run.curves[run.curves.loss == name].mean_iou.to_numpy() for name in ("mine", "by_rows"))
    assert mine[-1] > 0.95
    np.testing.assert_allclose(by_rows, mine, rtol=1e-9)


class Cubed(torch.autograd.Function):
    """An operation with a derivative of its own, in the classic form that functional transforms do not know."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        return 3 * ctx.saved_tensors[0] ** 2 * gradient


def test_a_loss_with_its_own_backward_or_without_some_columns_runs(user_module):
    loss("cubed")(lambda pred, target: Cubed.apply((pred - target).abs().sum(-1)))
    loss("sideways")(lambda pred, target: (boxes.columns(pred)[0] - boxes.columns(target)[0]) ** 2)
    with torch.no_grad():  # whatever the caller's mode
        run = quiet(["cubed", "sideways"], points=BESIDE, steps=3, step_size=1e-3)
    assert run.curves.error.groupby(run.curves.loss).last().lt(run.curves.error.iloc[0]).all()


def test_compiled_and_plain_steps_agree(user_module, monkeypatch):
    monkeypatch.setitem(descent.POINTS_PER_BLOCK, "cpu", 2)  # as in the next test, which need not compile again
    loss("mine")(on_boxes)
    options = dict(points=BESIDE, steps=20, dtype="float64")
    plain = quiet(["giou", "mine"], **options, compile=False)
    with torch.no_grad(), warnings.catch_warnings():  # whatever the caller's mode
        warnings.filterwarnings("error", "loss .* runs uncompiled")
        compiled = quiet(["giou", "mine"], **options, compile=True)
    np.testing.assert_allclose(plain.final[["error", "mean_iou"]], compiled.final[["error", "mean_iou"]], rtol=1e-9)


class Counting:
    """A user's loss with a state in Python."""

    calls = 0

    def __call__(self, pred, target):
        self.calls += 1
        return (pred - target).abs().sum(-1) * min(self.calls, 1)


@pytest.mark.parametrize("function", [with_an_if, Counting()], ids=["an if", "a counter"])
def test_what_cannot_be_compiled_runs_plainly_after_one_warning(function, user_module):
    loss("branchy")(function)
    with pytest.warns(UserWarning, match="'branchy' runs uncompiled") as caught:
        compiled = quiet(["branchy"], n_points=2, steps=5, compile=True)
    assert len([warning for warning in caught if "uncompiled" in str(warning.message)]) == 1
    assert compiled.final.equals(quiet(["branchy"], n_points=2, steps=5, compile=False).final)


@pytest.mark.parametrize(
    "draw", [lambda: torch.rand(()), np.random.rand, random.random], ids=["torch", "numpy", "python"]
)
def test_a_loss_that_draws_follows_the_seed(draw, user_module, monkeypatch):
    monkeypatch.setitem(descent.POINTS_PER_BLOCK, "cpu", 1)  # in as many threads as there are
    loss("noisy")(lambda pred, target: (1 - boxes.giou(pred, target)) * (0.5 + draw()))
    before = step.states(None)
    first, again, other = (
        quiet(["giou", "noisy"], points=BESIDE.repeat(3, 0), steps=5, seed=k).final for k in (0, 0, 1)
    )
    assert step.states(None) == before
    assert first.equals(again)
    noisy = [table.error[table.loss == "noisy"].tolist() for table in (first, other)]
    assert not set(noisy[0]) & set(noisy[1])


def test_lost_cases_are_told(user_module):
    loss("lossy")(lambda pred, target: (pred - target).sum(-1) * math.inf)
    with pytest.warns(UserWarning, match="'lossy' left 2 of the anchor points"):
        quiet(["lossy"], n_points=2, steps=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(losses=["gio"]), "did you mean 'giou'"),
        (dict(losses=["l1"], gradients="published"), "exist for iou, giou, diou, ciou only, not for l1"),
        (dict(gradients="published", repairs=["sign"]), "repairs of giou are value, derivative, doubling, got sign"),
        (dict(repairs=["value"]), "repairs correct the published gradients"),
        (dict(gradients="right"), "gradients must be one of exact, published"),
        (dict(gradients="published", encoding="xyxy"), "centre and size"),
        (dict(n_points=0), "n_points must be"),
        (dict(points=[[1, 2, 3]]), r"points must be a finite \(n, 2\) array"),
        (dict(steps=0), "steps must be"),
        (dict(dtype="float16"), "dtype must be one of"),
        (dict(device="tpu"), "device 'tpu' cannot be used"),
        (dict(step_size=0), "step_size must be"),
        (dict(schedule="cosine"), "schedule must be"),
        (dict(schedule=[1.0, 0.5]), "one finite factor for each of the 200 steps"),
        (dict(n_points=1, trajectories=[344]), "case numbers from 1 to 343"),
        (dict(optimizer="sgd"), "optimizer must be one of plain, adam"),
        (dict(compile="never"), "compile must be one of True, False, auto"),
        (dict(iou_factor="no"), "iou_factor must be one of True, False"),
        (dict(seed=-1), "seed must be a whole number of at least 0"),
        (dict(seed=1.5), "seed must be"),
        (dict(steps=True), "steps must be"),
        (dict(step_size="0.1"), "step_size must be"),
        (dict(points="abc"), "points must be"),
        (dict(n_points=1, trajectories=[1.7]), "case numbers"),
        (dict(losses=None), "losses must be a list"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        quiet(**({"losses": ["giou"]} | options))


@pytest.mark.parametrize("name", ["iou", "giou", "diou"])
def test_every_repair_together_is_the_derivative(random_boxes, name):
    box, target = (boxes.convert(boxes.columns(random_boxes(1000, seed)), "xyxy", "cxcywh") for seed in (0, 1))
    exact, _ = step._exact(LOSSES[name], "cxcywh")[0](box, target)
    for ours, theirs in zip(PUBLISHED[name](box, target, REPAIRS[name]), exact, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize(
    ("start", "published", "value", "exact"),
    [
        ((12, 10), 0, 1 / 9, -2 / 9),
        ((12, 12), -4 / 27, -5 / 27, -2 / 27),
    ],  # level with the target, and diagonal from it
)
def test_pull_in_x_on_a_unit_square_by_published_giou_and_its_repairs(start, published, value, exact):
    box, target = (
        tuple(torch.tensor(side, dtype=torch.float64) for side in (*centre, 1, 1)) for centre in (start, (10, 10))
    )
    pulls = [giou_ascent(box, target, repairs)[0].item() for repairs in ((), {"value"}, {"value", "derivative"})]
    assert pulls == pytest.approx([published, value, exact], abs=1e-12)


def test_the_published_order_needs_the_faults_of_both():
    table = departures.ends(8, progress=False)  # 24 simulations: seconds
    ends = table.set_index(["loss", "corrected"])
    error, half_step = ends.error, ends.half_step.fillna(np.inf)
    everything = {name: " + ".join(REPAIRS[name]) for name in ("giou", "diou")}
    assert len(ends) == 2**3 + 2**4
    assert error["giou", "value"] > 2 * error["giou", "none"]
    assert error["giou", "derivative"] < error["giou", "none"] / 20
    assert half_step["diou", "none"] < half_step["giou", everything["giou"]] / 1.5
    assert half_step["diou", "none"] < half_step["diou", "sign + axes"] / 2
    assert half_step["giou", everything["giou"]] < half_step["diou", everything["diou"]]
    assert ends.mean_iou["diou", "sign"] < 0.8 < ends.mean_iou["diou", "none"]
    words = departures.describe_ends(table)
    assert "GIoU corrected against DIoU published: DIoU is first at half the error" in words
    assert "GIoU corrected against DIoU corrected: GIoU is first at half the error" in words


def test_published_giou_pulls_diagonal_boxes_more_and_level_ones_less():
    table = departures.pull(50).set_index(["apart", "corrected"])
    assert 1 < table.low["both axes", "none"] < 2 < table.high["both axes", "none"] < 3
    assert table.high["one axis", "none"] < 1
    assert (table.away["one axis", "none"], table.away["one axis", "value"] > 0.1) == (0, True)


def test_the_best_step_size_is_told_where_the_grid_ends_and_searched_beyond():
    options = dict(n_points=6, progress=False)
    table = convergence.step_sizes(["giou"], [0.05, 0.13, 0.4], **options)
    parts = table, table[table.step_size < 0.4], table[table.step_size > 0.05]
    assert [convergence.at_best(part).edge.item() for part in parts] == [0, 1, -1]
    assert convergence.at_best(convergence.step_sizes(["giou"], [0.05, 0.08], extend=4, **options)).edge.item() == 0


def test_no_warning_on_a_plain_run():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quiet(["ciou"], n_points=1, steps=2)
