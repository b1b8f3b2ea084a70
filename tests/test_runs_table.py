"""`giou-repro compare`: verdicts of a user's table, and the least gain that its seeds can show."""

import numpy as np
import pandas as pd
import pytest

from giou_repro.__main__ import main
from giou_repro.experiments import runs_table, statistics


def table(path, n=6, gain=0.05, **columns):
    noise = np.random.default_rng(0).normal(0, 0.002, (3, n))
    means = dict(zip(("mine", "giou", "l1"), (0.5 + gain, 0.5, 0.5), strict=True))
    parts = [
        pd.DataFrame(dict(loss=loss, seed=range(n), AP=mean + own, epochs=3, note="x") | columns)
        for (loss, mean), own in zip(means.items(), noise, strict=True)
    ]
    pd.concat(parts).to_csv(path, index=False)
    return path


def test_a_planted_gain_is_found_and_noise_is_not(tmp_path):
    path = table(tmp_path / "runs.csv")
    found = runs_table.compare(path, "l1", ["AP"])
    assert found[["loss", "verdict", "n"]].values.tolist() == [["mine", "better", 6], ["giou", "undecided", 6]]
    assert found.difference[0] == pytest.approx(0.05, abs=0.003) and 0.001 < found.least_gain[0] < 0.01


def test_the_least_gain_is_shown_four_times_in_five():
    """Of normal noise; by the two t tests exactly, by the sign flips beside them a little less often."""
    rng = np.random.default_rng(0)
    runs = rng.normal(size=(2, 8))
    runs -= runs.mean(1, keepdims=True)
    runs[1] -= runs[0] * (runs[0] @ runs[1]) / (runs[0] @ runs[0])
    runs /= runs.std(1, ddof=1, keepdims=True)  # both of variance 1, uncorrelated, as what is drawn below
    gain = statistics.least_gain(*runs)
    draws = statistics.difference(rng.normal(size=(600, 8)) + gain, rng.normal(size=(600, 8)))
    verdicts = statistics.verdicts(draws, np.maximum(draws["p"], draws["p_unpaired"]))
    assert (verdicts == "better").mean() == pytest.approx(0.77, abs=0.05)
    assert statistics.least_gain(*runs, comparisons=4) > gain > statistics.least_gain(*runs / 2) > 0


def test_below_five_seeds_there_is_neither_verdict_nor_least_gain(tmp_path):
    found = runs_table.compare(table(tmp_path / "runs.csv", n=4), measures=["AP"])
    assert set(found.verdict) == {"too few seeds"} and found.least_gain.isna().all()


def test_pairs_alone_decide_where_each_seed_had_its_own_images(tmp_path):
    """What the seeds share, their images, is larger than the gain: the unpaired test does not see it."""
    shared = np.arange(6) / 10
    pd.DataFrame(
        dict(loss=["a"] * 6 + ["b"] * 6, seed=[*range(6)] * 2, AP=[*shared, *(shared + [0.01, 0.012, 0.011] * 2)])
    ).to_csv(tmp_path / "runs.csv")
    verdicts = [
        runs_table.compare(tmp_path / "runs.csv", "a", ["AP"], unpaired).verdict[0] for unpaired in (True, False)
    ]
    assert verdicts == ["undecided", "better"]


def test_the_command_says_what_the_verdicts_rest_on(tmp_path, capsys):
    path = str(table(tmp_path / "runs.csv"))
    assert main(["compare", path, "--against", "giou", "--measures", "AP"]) == 0
    text = capsys.readouterr().out
    assert "least_gain" in text and "corrected for 2 comparisons" in text
    assert main(["compare", path, "--measures", "APs"]) == 2
    assert "unknown measure 'APs'; did you mean 'AP'?" in capsys.readouterr().err
    assert main(["compare", path, "--against", "gio"]) == 2
    assert "did you mean 'giou'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("columns", "named"), [(dict(seed=1), "two runs of mine with seed 1"), (dict(AP=np.nan), "AP is missing in a row")]
)
def test_a_table_that_cannot_be_paired_is_refused(columns, named, tmp_path):
    with pytest.raises(ValueError, match=named):
        runs_table.compare(table(tmp_path / "runs.csv", **columns), measures=["AP"])
    (tmp_path / "other.csv").write_text("name,AP\na,1\n")
    with pytest.raises(ValueError, match="no column 'loss'; it has name, AP"):
        runs_table.compare(tmp_path / "other.csv")
