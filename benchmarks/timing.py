"""How things are timed: interleaved in one process, the median of several rounds; one thread by CPU time, several by
wall time."""

import gc
import statistics
import time
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


def medians(functions, rounds=7, threads=1, least=0.01):
    """Median seconds a call of each of `functions` (name → function without arguments), called in turn, round after
    round.

    With one thread that is CPU time, else wall time. Calls are repeated until a measurement takes at least `least`
    seconds, and short ones are made once before they are timed, so that no one pays for what the one before left in the
    caches and the allocator.
    """
    clock, before = time.process_time if threads == 1 else time.perf_counter, torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        seconds, repeats = {name: [] for name in functions}, {}
        for name, function in functions.items():
            function()
            started = clock()
            function()
            repeats[name] = max(1, round(least / max(clock() - started, 1e-6)))
        for _ in range(rounds):
            for name, function in functions.items():
                if repeats[name] > 1:
                    function()
                started = clock()
                for _ in range(repeats[name]):
                    function()
                seconds[name].append((clock() - started) / repeats[name])
        return {name: statistics.median(values) for name, values in seconds.items()}
    finally:
        torch.set_num_threads(before)


def once(function):
    """Seconds of CPU time of one call on one thread, with no call before it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    started = time.process_time()
    function()
    seconds = time.process_time() - started
    torch.set_num_threads(before)
    return seconds


def device_seconds(function, rounds=20):
    """Median seconds of a call on the GPU, between two CUDA events."""
    times = []
    for k in range(rounds + 3):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        function()
        end.record()
        torch.cuda.synchronize()
        if k >= 3:
            times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def peak_allocation(function):
    """Most bytes that torch's CPU allocator held during a call beyond what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        function()
    held = most = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def resident():
    """Bytes of memory that this process holds; None where the system does not tell."""
    gc.collect()
    return _status("VmRSS")


def peak():
    """Most bytes of memory that this process has held; None where the system does not tell."""
    return _status("VmHWM")


def peak_resident(function, before):
    """Most bytes of memory that this process held during a call beyond `before`; None where the system does not
    tell."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    except OSError:
        return None
    function()
    return peak() - before


def _status(key):
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def faster(what, unit, ours, peer, theirs, least=None, most=None):
    """A row of the table: ours against a peer's time. Aims: at `least` times as fast as the peer, or `most` times its
    time."""
    ratio = theirs / ours if most is None else ours / theirs
    aim = f"≥ {least:g} ×" if least is not None else f"≤ {most:g} × its time" if most is not None else ""
    met = ratio >= least if least is not None else ratio <= most if most is not None else None
    return dict(what=what, unit=unit, ours=ours, peer=peer, theirs=theirs, ratio=ratio, aim=aim, met=met)


def within(what, unit, ours, most):
    """A row of the table: a number of ours that is to be at most `most`."""
    return dict(
        what=what, unit=unit, ours=ours, peer="", theirs=None, ratio=None, aim=f"≤ {most:g} {unit}", met=ours <= most
    )
