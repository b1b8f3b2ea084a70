"""Where the runs of a sweep go: processes of this machine, a Dask cluster that runs, or jobs of a batch system."""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

import dask.config
from distributed import Client, Nanny, Scheduler, SpecCluster, WorkerPlugin

from giou_repro.runs import doctor, machine, store
from giou_repro.runs.sweepfile import Cell, SweepFile
from giou_repro.runs.workers import POLL

GRACE = 10  # seconds a scheduler may be out of reach
CLUSTERS = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "lsf": "LSFCluster"}
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Place:
    """A Dask Client, how many runs go at a time, and whether runs that need a GPU get a worker with one."""

    client: Client
    slots: Callable[[], int]
    gpus: bool

    def wait(self) -> None:
        """Wait a moment, and until the scheduler is in reach again. Raises RunFailed."""
        end = time.monotonic() + 2 * GRACE
        time.sleep(POLL)
        while self.client.status != "running":
            if self.client.status == "closed" or time.monotonic() > end:
                remedy = "what is complete is kept, and the same command runs the rest"
                raise store.RunFailed(f"the Dask scheduler is gone; {remedy}")
            time.sleep(POLL)


@contextmanager
def connect(
    file: SweepFile,
    cells: list[Cell],
    scheduler: str | None = None,
    system: str | None = None,
) -> Iterator[Place]:
    """The Place for the cells; everything it started ends with it.

    `scheduler` is the address of a cluster that runs; `system` "slurm", "pbs" or "lsf", whose jobs dask-jobqueue starts
    as they are needed, the file's `workers` at most, by the options of its `cluster`; otherwise processes of this
    machine. Raises ValueError, RunFailed.
    """
    if scheduler and system:
        raise ValueError("--scheduler and --cluster are two places; name one")
    for name in ("distributed", "distributed.client"):  # this driver reports dead workers and schedulers itself
        logging.getLogger(name).setLevel(logging.CRITICAL)
    wanted = any(cell.gpus for cell in cells)
    count = file.workers or (8 if system else machine.cores())
    with ExitStack() as stack:
        if scheduler:
            client = _client(scheduler, stack)
            infos = client.scheduler_info(n_workers=-1)["workers"].values()
            gpus = any("gpus" in info["resources"] for info in infos)
            if wanted and not gpus:
                remedy = "start dask worker … --resources gpus=1"
                print(f"no worker offers a GPU ({remedy}): runs that need one run anywhere", file=sys.stderr)
            yield Place(client, lambda: min(file.workers or sys.maxsize, _threads(client)), wanted and gpus)
        elif system:
            cluster = stack.enter_context(_jobs(file, system, count, wanted))
            yield Place(_client(cluster, stack), lambda: count, wanted)
        elif problem := doctor.kernel_problem():
            raise store.RunFailed(problem)
        else:
            devices = _devices() if wanted else []
            cluster = stack.enter_context(_processes(min(count, len(cells)), devices))
            client = _client(cluster, stack)
            client.register_plugin(_IgnoreInterrupts())
            yield Place(client, lambda: count, bool(devices))


class _IgnoreInterrupts(WorkerPlugin):
    """Ctrl-C reaches every process of a terminal; the driver ends the workers in order."""

    def setup(self, worker):
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _client(place, stack):
    try:
        client = Client(place, timeout=GRACE, set_as_default=False)
    except (OSError, ValueError) as error:
        raise store.RunFailed(f"no Dask scheduler answers at {place} ({error})") from None
    stack.callback(client.close, timeout=5)  # which takes back what it submitted
    return client


def _threads(client):
    """How many runs the workers can take at a time; 1 while there are none, or the scheduler does not answer."""
    with suppress(OSError):
        return max(1, sum(client.nthreads().values()))
    return 1


def _processes(count, devices):
    """A cluster of `count` worker processes on this machine, with one thread each where there are several, and one GPU
    while there are."""
    threads = dict.fromkeys(THREADS, None if count == 1 else 1)
    address = dict(host="127.0.0.1", protocol="tcp://", dashboard=False)
    options = [address | dict(nthreads=1, memory_limit=0, silence_logs=logging.CRITICAL) for _ in range(count)]
    for worker, device in zip(options, devices, strict=False):
        worker |= dict(resources={"gpus": 1}, env={"CUDA_VISIBLE_DEVICES": device})
    scheduler = {"cls": Scheduler, "options": address | dict(port=0, dashboard_address="127.0.0.1:0")}
    with dask.config.set({f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in threads.items()}):
        workers = {number: {"cls": Nanny, "options": worker} for number, worker in enumerate(options)}
        return SpecCluster(workers=workers, scheduler=scheduler, silence_logs=logging.CRITICAL)


def _devices():
    """The names of this machine's GPUs, as CUDA_VISIBLE_DEVICES has them."""
    import torch  # in the function, because most sweeps need it only in their kernels

    count, names = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return names.split(",")[:count] if names else [str(number) for number in range(count)]


def _jobs(file, system, count, wanted):
    """A cluster of a batch system's jobs, one worker each, as many as are needed and at most `count`; with a GPU where
    one is `wanted`."""
    try:
        import dask_jobqueue
    except ImportError:
        raise ValueError("--cluster needs dask-jobqueue; run: pip install 'giou-repro[cluster]'") from None
    options = dict(cores=1, death_timeout=20) | file.cluster | dict(processes=1)
    threads = [f"export {name}={options['cores']}" for name in THREADS]  # a job is there for one run
    options["job_script_prologue"] = [*threads, *options.get("job_script_prologue", [])]
    gpus = ["--resources", "gpus=1"] if wanted else []
    options["worker_extra_args"] = [*options.get("worker_extra_args", []), "--nthreads", "1", *gpus]
    try:
        cluster = getattr(dask_jobqueue, CLUSTERS[system])(**options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"cluster: {error}") from None
    cluster.adapt(minimum=0, maximum=count)
    return cluster
