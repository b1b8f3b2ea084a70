"""What the simulation compiles: once a loss, for any number of points and threads, kept in the user's cache folder."""

import os
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from torch._inductor.runtime import cache_dir_utils

from giou_repro.simulation import descent, simulate
from giou_repro.simulation.compiled import Compiled

quiet = partial(simulate, progress=False)


def test_a_compiled_step_serves_any_rate_schedule_and_number_of_points_or_threads(monkeypatch):
    monkeypatch.setitem(descent.POINTS_PER_BLOCK, "cpu", 2)  # 5 points: a last block that is half empty
    options = dict(steps=6, dtype="float64", trajectories=[1, 1000])
    first = quiet(["giou"], n_points=5, **options, compile=True)
    plain = quiet(["giou"], n_points=5, **options, compile=False)
    np.testing.assert_allclose(first.curves.iloc[:, 2:], plain.curves.iloc[:, 2:], rtol=1e-9)
    np.testing.assert_allclose(first.trajectories[["x", "w"]], plain.trajectories[["x", "w"]], rtol=1e-9)
    with torch.compiler.set_stance("fail_on_recompile"), warnings.catch_warnings():
        warnings.filterwarnings("error", "loss .* runs uncompiled")
        quiet(["giou"], n_points=5, **options, step_size=0.2, schedule="constant", compile=True)
        quiet(["giou"], n_points=3, **options, compile=True)
        quiet(["giou"], n_points=5, **options, encoding="xyxy", compile=True)  # the same step at other rates
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(threads + 1)
            quiet(["giou"], n_points=5, **options, compile=True)
        finally:
            torch.set_num_threads(threads)


def test_other_threads_run_beside_compiled_code():
    step = Compiled(lambda x: x.sin().sin().sin(), "step", "cpu", stacked=False)
    x = torch.ones(10_000_000)
    step.prepare(x)

    def steps():
        started = time.thread_time()
        for _ in range(5):
            step(x)
        return time.thread_time() - started

    started = time.thread_time()
    with ThreadPoolExecutor(1) as pool:
        computing = pool.submit(steps)
        while not computing.done():
            pass
    assert time.thread_time() - started > computing.result() / 2


@pytest.mark.parametrize(
    ("given", "home", "kept"),
    [
        ("given", "home", "given"),
        (None, "home", "home/giou_repro/compiled"),
        (None, "a home", None),
        (None, "it's", None),
        (None, "file", None),
    ],
)
def test_compiled_code_is_kept_where_the_user_keeps_caches(given, home, kept, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / home))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / (given or "")))  # so that it is restored
    if given is None:
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    quiet(["giou"], n_points=1, steps=1, compile=False)
    assert ("TORCHINDUCTOR_CACHE_DIR" in os.environ, list(tmp_path.iterdir())) == (bool(given), [tmp_path / "file"])
    Compiled(lambda state: state, "step", "cpu", stacked=False)._compiled()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == (
        str(tmp_path / kept) if kept else cache_dir_utils.default_cache_dir()
    )
