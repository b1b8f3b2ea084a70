"""How long it takes to begin: the import beside torch's own, and the command line's help. Wall time, the median of
several processes."""

import statistics
import subprocess
import sys
import time

from benchmarks.timing import within


def measure():
    """Rows of the table, see `timing`."""
    torch, ours = (
        _seconds([sys.executable, "-c", code])
        for code in ("import torch", "import torch, giou_repro; giou_repro.LOSSES")
    )
    helped = _seconds([sys.executable, "-m", "giou_repro", "--help"])
    return [
        within("import giou_repro and its losses, beyond torch", "s", max(0, ours - torch), 0.3),
        within("giou-repro --help", "s", helped, 0.5),
    ]


def _seconds(command, rounds=3):
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)
