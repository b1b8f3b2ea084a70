"""The benchmark of awkward boxes, small: ours has nothing to report, and the counters count."""

import subprocess
import sys

from giou_repro.registry import LOSSES
from giou_repro.runs.store import project_folder


def test_nothing_of_ours_goes_wrong(tmp_path):
    script, output = project_folder() / "benchmarks" / "robustness.py", tmp_path / "table.txt"
    subprocess.run(
        [sys.executable, script, "--boxes", "2000", "--output", output], check=True, stdout=subprocess.DEVNULL
    )
    lines = [line.rsplit(maxsplit=7) for line in output.read_text().splitlines()[1 : len(LOSSES) + 4]]
    rows = {name.strip(): numbers for name, *numbers in lines}
    assert set(LOSSES) <= set(rows)
    for name in LOSSES:
        boxes, bad_values, bad_gradients, raised, worst_error, *_ = rows[name]
        assert (boxes, bad_values, bad_gradients, raised) == ("4000", "0", "0", "0")
        assert float(worst_error) < 1e-6
    assert int(rows["torchvision giou"][2]) > 0
