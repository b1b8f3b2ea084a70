"""Notebooks 01 to 03: numbers known beforehand, figures that are the same bytes twice, and words that follow the
numbers."""

import io
import itertools

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot

from giou_repro.experiments import convergence, landscape, metric, metric_properties, style
from giou_repro.registry import LOSSES, label
from giou_repro.simulation import CASES_PER_POINT, simulate


def test_figure_1_prints_the_papers_values():
    table = metric.figure_1(["l1"])
    for key in ("iou", "giou", "distance"):
        assert (table[key].round(2) == table[f"printed_{key}"]).all()
    assert table.l2_of_corners[:3].tolist() == pytest.approx([51**0.5] * 3)
    assert "all reproduced" in metric.describe_figure_1(table)
    assert "**not** all reproduced" in metric.describe_figure_1(table.assign(printed_iou=0.5))


def test_spread_shrinks_to_nothing_with_the_distance():
    table = metric.spread(["giou"], [0.01, 8], 500, seed=0)
    iou = table[table.measure == "iou"].assign(range=lambda t: t.high - t.low).set_index(["norm", "distance"]).range
    assert (iou[:, 0.01] < 0.01).all()
    assert (iou[:, 8] > 0.3).all()


def test_all_of_the_papers_properties_hold():
    table = metric_properties.properties(2_000, seed=1)
    assert table.holds.all(), table[~table.holds]
    measured = table.groupby("claim").measured.agg(list)
    assert measured["contained"][0] == 0, "GIoU has no gradient by the centre of a box inside its target"
    assert measured["equal IoU"][1] == pytest.approx(
        0.1026, abs=1e-3
    )  # along x the hull is the union; else it is (2 − √½)²
    assert 0 <= measured["G3"][1] < measured["G3"][0] / 10, "descent comes nearer the bound than chance"


def test_per_side_l1_ranks_rightly_and_so_it_does_for_squares():
    table = metric.rank_correlation([0.001, 1], 1_000, 3, seed=0).set_index(["targets", "norm", "size"]).wrong_pairs
    assert 0.04 < table["one", "l1", 0.001] < 0.08
    assert table["square", "l1", 0.001] < 0.002 and table["many", "l1_per_side", 0.001] < 0.002
    assert 0.04 < table["square", "l2", 0.001] < 0.07
    assert (table.xs(1, level="size") > 0.1).all()


def test_the_words_on_ranking_follow_the_numbers():
    table = pd.DataFrame(dict(targets=["one", "one", "square", "many"], norm=["l1", "l1_per_side", "l1", "l1"]))
    table = table.assign(size=0.1, spearman=0.9, low=0.8, high=0.95, wrong_pairs=[0.05, 0.004, 0.003, 0.2])
    words = metric.describe_rank_correlation(table)
    assert "ℓ1 ranks 5.0% of the pairs wrongly" in words and "each side it ranks 0.40% wrongly" in words
    assert "for a square, in pixels, 0.30%; over targets of many sizes 20%" in words


def test_loss_properties_tell_metrics_from_others():
    table = metric_properties.loss_properties(["l1", "l2", "iou", "giou"], 2_000, seed=0).set_index("loss")
    assert table.blind.to_dict() == {"l1": 0, "l2": 0, "iou": 1, "giou": 0}
    assert (table.triangle[["l1", "iou", "giou"]] < 1e-9).all()
    assert table.triangle.l2 > 1  # squares break the triangle
    assert table.scaling[["iou", "giou"]].max() < 1e-12


def test_pairs_of_equal_squares_stay_above_minus_a_half():
    equal, corners = metric.pairs("equal", 20_000, 0), metric.pairs("corners", 20_000, 0)
    assert -0.5 <= equal.giou[equal.overlap].min() < -0.45
    assert corners.giou[corners.overlap].min() < -0.9
    assert (corners.shorthand - corners.giou)[~corners.overlap].abs().max() < 1e-12
    with pytest.raises(ValueError, match="'equal' or 'corners'"):
        metric.pairs("squares", 10, 0)


def test_flat_parts():
    table = landscape.flat_parts(landscape.profiles(["iou", "giou", "diou"], 400)).set_index(["scenario", "loss"])
    assert table.disjoint["slide"].to_dict() == {"iou": 1, "giou": 0, "diou": 0}
    assert table.contained["contained"].to_dict() == {"iou": 1, "giou": 1, "diou": 0}
    words = landscape.describe_flat_parts(table.reset_index())
    assert "disjoint boxes: IoU (claim" in words
    assert "inside the target: IoU, GIoU." in words


def test_slope_is_the_difference_quotient():
    table = landscape.profiles(["giou"], 2_000)
    for _, part in table.groupby("scenario"):
        quotient = np.gradient(part.value, part.t)
        assert np.median(np.abs(quotient - part.slope)) < 1e-3


def test_field_points_at_the_target_from_afar():
    slopes = landscape.far_slopes([2.0, 3.0])  # the authors' factor pushes far boxes away
    assert (slopes.constant > 0).all() and slopes.authors.round(2).tolist() == [-0.09, -0.5]
    table = landscape.field(["giou"], 5)
    left = table[(table.x == -2) & (table.y == 0)].iloc[0]
    assert left.dx > 0
    assert left.dy == 0


def test_giou_is_steeper_at_low_overlap_and_alike_at_high():
    words = landscape.describe_steepness(landscape.steepness(["iou", "giou"], 20_000, seed=0))
    assert "2.1 times as steep as IoU at IoU below 0.1, and 1.02 times above 0.9" in words


def test_ranking_puts_the_least_error_and_the_highest_iou_first():
    table = pd.DataFrame(dict(loss=["iou", "giou"], error=[2.0, 1.0], mean_iou=[0.4, 0.3]))
    assert convergence.ranking(table, "error") == "GIoU (1.000), IoU (2.000)"
    assert convergence.ranking(table, "mean_iou") == "IoU (0.400), GIoU (0.300)"


@pytest.fixture(scope="module")
def result():
    return simulate(["iou", "giou"], n_points=30, steps=20, gradients="published", progress=False)


def test_errors_are_per_case(result):
    assert convergence.curves(result).error.iloc[0] == pytest.approx(
        result.curves.error.iloc[0] / (30 * CASES_PER_POINT)
    )
    table = convergence.standings(result).set_index("loss")
    assert table.half_step.isna().iou  # the IoU loss never halves the error
    assert table.error.giou == pytest.approx(
        result.final[result.final.loss == "giou"].error.mean() / CASES_PER_POINT, rel=1e-5
    )


def test_against_paper_is_close_from_the_first_step(result):
    table = convergence.against_paper(result).set_index(["loss", "step"])
    assert table.paper["iou", 1] == pytest.approx(6.63e6 / 1_715_000)
    assert (table.difference.abs() < 0.6).all()  # 30 points only


def test_alignment_splits_the_disc():
    final = pd.DataFrame(
        dict(loss="iou", x=[12.5, 12, 10, 10.0], y=[10, 12, 12.5, 10.0], error=[343.0, 686, 343, 34300])
    )
    table = convergence.alignment(final)  # beside, diagonal, above, and on the target, which does not count
    assert table.aligned.tolist() == [1]
    assert table.diagonal.tolist() == [2]
    assert "for: none" in convergence.describe_alignment(table.assign(run="exact"))
    assert "IoU with exact gradients (4.000 against 2.000)" in convergence.describe_alignment(
        table.assign(run="exact", aligned=4.0)
    )


def test_single_boxes_start_where_they_say():
    table = convergence.single_boxes(["giou"], "exact", steps=3, progress=False)
    start = table[table.step == 0].set_index("start")
    assert start.loc["diagonal", ["x", "y", "w", "h"]].tolist() == [12, 12, 1, 1]
    assert start.loc["horizontal", ["x", "y", "w", "h"]].tolist() == [12.5, 10, 1, 1]


def test_every_loss_has_its_best_step_size():
    table = convergence.every_loss(["l2", "giou"], 2, 0.1, [0.001, 0.1], 2, steps=50, seed=0, progress=False).set_index(
        "loss"
    )
    assert table.best_size["giou"] == 0.1
    assert table.best_error["giou"] == pytest.approx(table.error["giou"])
    words = convergence.describe_every_loss(table.reset_index(), 0.1)
    assert "Of the 1 overlap losses" in words and "ℓ2" not in words


def figures(simulation):
    """The arguments of each plot_ function of notebooks 01 to 03, by function."""
    losses, options = ["l1", "iou", "giou"], dict(steps=4, progress=False)
    spread = metric.spread(losses, [1, 7], 100, seed=0)
    pairs = metric.pairs("corners", 100, seed=0)
    every = convergence.every_loss(["iou", "giou"], 2, 0.1, [0.1, 0.2], 2, **options)
    curves = convergence.curves(simulation)
    return {
        metric.plot_figure_1: [metric.figure_1([])],
        metric.plot_spread: [metric.circle(), spread],
        metric.plot_spread_of_losses: [spread],
        metric.plot_rank_correlation: [metric.rank_correlation([0.01, 1], 20, 3, seed=0)],
        metric.plot_pairs: [pairs, pairs],
        metric.plot_rotation: [metric.rotation(9)],
        landscape.plot_profiles: [landscape.profiles(losses, 50)],
        landscape.plot_field: [landscape.field(losses, 5)],
        landscape.plot_steepness: [landscape.steepness(losses, 1_000, seed=0)],
        convergence.plot_convergence: [dict(a=curves, b=curves), "error", convergence.paper_curves(["iou", "giou"])],
        convergence.plot_surfaces: [dict(a=simulation.final, b=simulation.final)],
        convergence.plot_step_sizes: [convergence.step_sizes(["iou", "giou"], [0.1, 0.2], 2, **options)],
        convergence.plot_every_loss: [every, 0.1],
        convergence.plot_single_boxes: [
            convergence.single_boxes(["giou"], "exact", **options).query("start == 'diagonal'")
        ],
    }


def png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def test_figures_are_the_same_bytes_twice_whatever_the_matplotlibrc_says(result, monkeypatch):
    plots = figures(result)
    modules = (metric, metric_properties, landscape, convergence)
    assert set(plots) == {getattr(m, name) for m in modules for name in vars(m) if name.startswith("plot_")}
    users = {"font.size": 20, "font.family": "serif", "savefig.dpi": 50, "lines.linewidth": 5, "axes.grid": False}
    users |= {"text.usetex": True, "figure.figsize": (1, 1), "savefig.bbox": "tight", "axes.formatter.use_locale": True}
    monkeypatch.delattr(pyplot, "figure")  # it would load the backend that a matplotlibrc names, there or not
    for plot, arguments in plots.items():
        figure = plot(*arguments)
        once = png(figure)
        with matplotlib.rc_context(users):
            assert once == png(plot(*arguments)), plot.__name__
        assert figure.get_figwidth() <= style.WIDTH
        for text in figure.findobj(matplotlib.text.Text):
            assert text.get_fontsize() >= 7 or not text.get_text(), (plot.__name__, text.get_text())
    assert figure._repr_png_().startswith(b"\x89PNG"), "a notebook shows it without pyplot"


def test_one_axes_can_be_given(result):
    figure, axes = style.panels(1, 2)
    spread = metric.spread(["l1", "giou"], [1, 7], 100, seed=0)
    assert metric.plot_spread_of_losses(spread, ax=axes[0, 0]) is figure
    assert [line.get_label() for line in axes[0, 0].lines] == ["ℓ1", "GIoU"]
    assert not axes[0, 1].lines


SEEN = {  # linear RGB as protanopes and deuteranopes see it (Machado et al., 2009, severity 1), and in grey
    "normal": np.eye(3),
    "protan": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deutan": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "grey": [[0.2126, 0.7152, 0.0722]] * 3,
}


def lab(color, seen):
    linear = np.clip(SEEN[seen] @ np.array(matplotlib.colors.to_rgb(color)) ** 2.2, 1e-6, 1)
    xyz = np.array([[0.434, 0.376, 0.190], [0.213, 0.715, 0.072], [0.018, 0.109, 0.873]]) @ linear
    x, y, z = np.cbrt(xyz)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("seen", SEEN)
def test_the_losses_of_most_figures_are_told_apart_however_they_are_seen(seen):
    main = list(style.LOOKS)[:8]
    for pair in itertools.combinations(main, 2):
        one, other = (lab(style.color(loss), seen) for loss in pair)
        named = set(pair) in ({"l1", "smooth_l1"}, {"diou", "smooth_l1"}, {"iou", "l1"})
        assert np.linalg.norm(one - other) > (15 if named else 0 if seen == "grey" else 12), pair


def test_every_loss_has_a_colour_a_marker_and_a_line_of_its_own():
    packaged = {name for name, loss in LOSSES.items() if loss.function.__module__ == "giou_repro.losses"}
    assert packaged <= set(style.LOOKS), "each loss of the package has its look in the table"
    looks = list(style.LOOKS.values())
    assert len({color for color, _, _ in looks}) == len({look[1:] for look in looks}) == len(looks)
    assert not {color for color, _, _ in looks} & {*style.COLORS, style.PREDICTED, style.TRUE, style.DISJOINT}
    assert not {marker for _, _, marker in looks} & set(style.MARKERS)  # so no user's loss looks like one of these


def test_a_users_loss_keeps_its_look_whatever_else_is_registered(monkeypatch):
    before = style.color_line_marker("mine")
    monkeypatch.setitem(LOSSES, "another", LOSSES["giou"])
    monkeypatch.setitem(LOSSES, "mine", LOSSES["giou"])
    assert style.color_line_marker("mine") == before == ("#A50026", "--", "<")
    assert label("mine") == "GIoU"
    assert len({style.color_line_marker(f"loss_{number}") for number in range(20)}) >= 18
