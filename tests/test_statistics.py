"""The verdicts: by hand where the head can follow, against SciPy, and how often they are wrong on data without a
difference."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from giou_repro.experiments import statistics

NOISE = {  # drawn alike for both losses: there is no difference
    "normal": lambda rng, size: rng.normal(0.4, 0.01, size),
    "heavy tails": lambda rng, size: rng.standard_t(2, size),
    "heavier tails": lambda rng, size: rng.standard_cauchy(size),
    "skewed": lambda rng, size: rng.lognormal(0, 1.5, size),
    "uniform": lambda rng, size: rng.random(size),
    "coin": lambda rng, size: rng.integers(0, 2, size).astype(float),
    "few values": lambda rng, size: rng.normal(0.4, 0.01, size).round(2),
    "some runs collapse": lambda rng, size: np.where(rng.random(size) < 0.2, 0, rng.normal(0.4, 0.01, size)),
    "all equal": lambda rng, size: np.full(size, 0.4),
}


def verdicts(a, b):
    """Of each row by itself, as if it were the only comparison."""
    found = statistics.difference(a, b)
    found["n"] = np.full(np.shape(a)[:-1], found["n"])
    return statistics.verdicts(found, found["p"]).tolist()


@pytest.mark.parametrize("n", [5, 10])
@pytest.mark.parametrize("noise", NOISE)
def test_false_verdicts_are_rare(noise, n):
    rng, repeats = np.random.default_rng(0), 500
    found = verdicts(*(NOISE[noise](rng, (repeats, n)) for _ in range(2)))
    surprising = stats.binom.ppf(0.999, repeats, 0.05)
    assert found.count("better") <= surprising
    assert found.count("worse") <= surprising


def test_false_verdicts_are_rare_where_a_difference_is_plus_or_minus_one():
    for n in (5, 6, 10):
        signs = np.random.default_rng(n).choice((-1.0, 1.0), (500, n))
        assert verdicts(signs, np.zeros((500, n))).count("better") <= 500 * 0.05


RATES = [  # the module's table, in per cent
    ("normal", 5, 2.2),
    ("normal", 10, 2.5),
    ("heavy tails", 5, 1.4),
    ("heavy tails", 10, 1.8),
    ("one", 5, 3.1),
    ("one", 10, 1.0),
]


@pytest.mark.parametrize(("noise", "n", "rate"), RATES)
def test_the_rates_of_false_betters_are_those_of_the_table(noise, n, rate):
    rng, repeats = np.random.default_rng(1), 2000
    d = rng.choice((-1.0, 1.0), (repeats, n)) if noise == "one" else None
    a, b = (NOISE[noise](rng, (2, repeats, n))) if d is None else (d, np.zeros_like(d))
    low, high = stats.binom.interval(0.999, repeats, rate / 100)
    assert low <= verdicts(a, b).count("better") <= high
    assert f"{rate} %" in statistics.__doc__


@pytest.mark.parametrize("n", [5, 10])
def test_a_clear_difference_is_seen(n):
    rng = np.random.default_rng(0)
    seeds = rng.normal(0.4, 0.05, (50, n))  # the seed moves both
    noise = rng.normal(0, 0.003, (2, 50, n))
    assert verdicts(seeds + 0.05 + noise[0], seeds + noise[1]).count("better") >= 48
    assert verdicts(seeds + noise[1], seeds + 0.05 + noise[0]).count("worse") >= 48


def test_the_interval_is_students():
    values = [0.1, 0.2, 0.4, 0.3, 0.9]
    expected = tuple(stats.ttest_1samp(values, 0).confidence_interval(0.95))
    found = statistics.difference(values, np.zeros(5))
    assert statistics.mean_interval(values) == pytest.approx(expected)
    assert (found["low"], found["high"]) == pytest.approx(expected)
    assert found["p"] == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert found["p_signs"] == pytest.approx(1 / 32)  # all five to one side


def test_sign_flips_are_counted():
    assert (
        statistics.difference([3, 2, -1], [0, 0, 0])["p_signs"] == 2 / 8
    )  # only +3 +2 −1 and +3 +2 +1 reach a sum of 4
    assert statistics.difference([-3, -2, 1], [0, 0, 0])["p_signs"] == 2 / 8


def test_below_three_runs_there_is_no_interval():
    found = statistics.difference([0.5, 0.6], [0.1, 0.2])
    assert found["n"] == 2
    assert np.isnan([found[key] for key in ("low", "high", "p", "p_signs")]).all()


def test_below_five_seeds_there_is_an_interval_and_no_verdict():
    assert [verdicts(np.ones(n), np.zeros(n)) for n in (0, 2, 4)] == ["too few seeds"] * 3
    assert statistics.difference([0.35, 0.36, 0.37], [0.30, 0.31, 0.32])["low"] > 0  # five steps of .01
    assert verdicts([1] * 5, [0] * 5) == "better"  # 1 in 32 by chance
    assert verdicts([0] * 5, [1] * 5) == "worse"


def test_equal_runs_do_not_differ():
    same = statistics.difference([0.4] * 5, [0.4] * 5)
    assert (same["low"], same["high"], same["p"], verdicts([0.4] * 5, [0.4] * 5)) == (0, 0, 1, "undecided")


def test_share_interval_is_wilsons():
    assert statistics.share_interval(0, 100)[1] == pytest.approx(1.96**2 / (100 + 1.96**2), rel=1e-3)
    assert np.isnan(statistics.share_interval(1, 2)).all()


def runs(**columns):
    return pd.DataFrame(columns).assign(setting="cells")


def test_compare_pairs_common_seeds():
    table = runs(
        loss=["l2"] * 4 + ["giou"] * 4, seed=[0, 1, 2, 3, 1, 2, 3, 4], AP=[0.1, 0.20, 0.21, 0.22, 0.25, 0.26, 0.28, 0.9]
    )
    (row,) = statistics.compare(table, "AP", [("giou", "l2")]).to_dict("records")
    assert (row["setting"], row["measure"], row["loss"], row["against"]) == ("cells", "AP", "giou", "l2")
    assert (row["seeds"], row["n"]) == ("1 2 3", 3)
    assert row["difference"] == pytest.approx((0.05 + 0.05 + 0.06) / 3)
    (swapped,) = statistics.compare(table, "AP", [("l2", "giou")]).to_dict("records")
    assert swapped["difference"] == pytest.approx(-row["difference"])


def test_holm_over_the_pairs_of_a_table():
    table = pd.DataFrame(
        dict(p=[0.01, 0.04, 0.03, np.nan], n=[5, 5, 5, 2], difference=[1, 1, -1, 1], p_signs=0.03, p_unpaired=0.01)
    )
    found = statistics.judged(table)
    assert found.p_holm[:3].tolist() == pytest.approx([0.03, 0.06, 0.06])  # 3 x .01, 2 x .03, no less than that
    assert found.verdict.tolist() == ["better", "undecided", "undecided", "too few seeds"]


@pytest.mark.parametrize(("p", "p_signs", "p_unpaired"), [(0.06, 0.03, 0.01), (0.01, 0.06, 0.01), (0.01, 0.03, 0.06)])
def test_all_tests_must_agree(p, p_signs, p_unpaired):
    table = pd.DataFrame(dict(p=[p], n=[5], difference=[1.0], p_signs=[p_signs], p_unpaired=[p_unpaired]))
    assert statistics.judged(table).verdict.tolist() == ["undecided"]
    without = statistics.judged(table, unpaired=False).verdict.tolist()
    assert without == (["better"] if p_unpaired == 0.06 else ["undecided"])


def test_the_unpaired_test_is_welchs():
    a, b = [0.1, 0.2, 0.4, 0.3, 0.9], [0.0, 0.1, 0.3, 0.2, 0.8]
    found = statistics.difference(a, b)
    assert found["p_unpaired"] == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue)
    assert found["p"] < 1e-6 < 0.5 < found["p_unpaired"]  # the seeds move both alike


def test_what_cannot_be_compared_is_named():
    twice = runs(loss=["l2", "l2", "giou"], seed=[0, 0, 0], AP=[0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match=r"l2 has two runs of seed 0 \(cells\): keep one; .* comparison.at_one_weight"):
        statistics.compare(twice, "AP", [("giou", "l2")])
    failed = runs(loss=["l2"] * 3 + ["giou"] * 3, seed=[0, 1, 2] * 2, AP=[0.1, np.nan, 0.3, 0.2, 0.2, 0.2])
    with pytest.raises(ValueError, match="leave out or repeat the failed run"):
        statistics.compare(failed, "AP", [("giou", "l2")])
