"""Where work runs: Dask workers, each with its share of the cores, reporting as they go."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from flows.runtime.console import reporter
from headwater.errors import ConfigError

if TYPE_CHECKING:
    from distributed import Client, LocalCluster

TOPIC = "headwater"


def cores() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus(device: str) -> int:
    """Return how many GPUs trainings on ``auto``, ``cpu`` or ``cuda[:n]`` may use here."""
    import torch

    if device == "cpu" or not torch.cuda.is_available():
        return 0
    return 1 if ":" in device else torch.cuda.device_count()


def check_device(device: str, scheduler: str | None = None) -> None:
    """Raise `ConfigError` where trainings on this machine are asked for a GPU that it has not.

    Said before anything is computed. Workers of a cluster (`scheduler`) have their own.
    """
    if not device.startswith("cuda") or scheduler is not None:
        return
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(device.partition(":")[2] or 0) >= count:
        raise ConfigError(
            f"device {device}: torch finds {count or 'no'} GPU{'s' * (count != 1)} here",
            expected="auto or cpu" + (f", or up to cuda:{count - 1}" if count else ""),
            remedy="headwater doctor says what torch finds",
        )


def training_workers(jobs: int, device: str, wanted: int | None = None) -> int:
    """Return how many of `jobs` trainings run at a time: one a core, or as many as `wanted`.

    Where they run on GPUs (`device`, see `gpus`), at most one a GPU.
    """
    return min(wanted or cores(), gpus(device) or jobs, jobs)


def own_device(device: str) -> str:
    """Return the device of this Dask worker: of several GPUs, each local worker has its own."""
    from distributed import get_worker

    count = gpus(device)
    with contextlib.suppress(ValueError):
        number = get_worker().name  # of a local cluster's workers, counted from 0
        if count > 1 and isinstance(number, int):
            return f"cuda:{number % count}"
    return device


def needs_gpu(client: Client, device: str) -> dict[str, float]:
    """Return the Dask resources of a training: a GPU, where workers say that they have some.

    So a cluster started with ``dask worker --resources GPU=1`` trains one head a GPU at a time.
    """
    # All of them: left to themselves older Dasks tell of five.
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    offered = any("GPU" in (w.get("resources") or {}) for w in workers)
    return {"GPU": 1} if offered and device != "cpu" else {}


@contextmanager
def script_unseen() -> Iterator[None]:
    """Keep new processes from running the caller's script again while the block runs.

    A new worker imports the script that was started, to find what it may be asked for by name. What
    workers are asked for here lies in packages; and a script of ten lines has no guard against
    being run once more by each worker.
    """
    main = sys.modules["__main__"]
    names = ("__file__", "__spec__")
    kept = {name: vars(main)[name] for name in names if name in vars(main)}
    vars(main).update({"__spec__": None})
    vars(main).pop("__file__", None)
    try:
        yield
    finally:
        vars(main).update(kept)


@contextmanager
def dask_client(
    workers: int, scheduler: str | None = None, scratch: Path | None = None
) -> Iterator[Client]:
    """Yield a client of an existing scheduler, or of local worker processes made for this.

    Processes, not threads: torch's seed and thread count belong to a process, and a worker that
    dies must not take the others with it.

    Whoever may connect to a scheduler runs code as its owner. The local one speaks TLS with a key
    that is made for it and stays in the memory of this process and the workers'; a scheduler of
    yours is asked with the keys of Dask's own settings.

    Parameters
    ----------
    workers
        Local worker processes.
    scheduler
        Address of an existing scheduler, ``tcp://host:8786`` or ``tls://host:8786``.
    scratch
        Folder below which local workers keep what they may keep for a while; by default the
        system's, which all users share.

    Raises
    ------
    ConfigError
        Where no scheduler answers at that address.
    """
    import dask
    from distributed import Client, LocalCluster, Security

    # Prefect's logging shows every library's INFO; errors of tasks reach the caller anyway.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    quiet = {
        "distributed.worker.daemon": False,
        "distributed.admin.tick.limit": "60s",
        "distributed.scheduler.allowed-failures": 2,
        "distributed.comm.timeouts.connect": "60s",
        # Pages without a key. Dask has no switch for its web server, so it has nothing to show.
        "distributed.scheduler.http.routes": [],
        "distributed.worker.http.routes": [],
        # Dask's default gives memory back after every batch: a third of the time went into faults.
        "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": 2**30,
        "distributed.nanny.pre-spawn-environ.MALLOC_MMAP_THRESHOLD_": 2**25,
        "distributed.nanny.pre-spawn-environ.OMP_NUM_THREADS": max(1, cores() // workers),
        "distributed.nanny.pre-spawn-environ.MKL_NUM_THREADS": max(1, cores() // workers),
    }
    with dask.config.set(quiet):
        if scheduler is not None:
            try:
                client = Client(scheduler, timeout="10s", set_as_default=False)
            except (OSError, TimeoutError, ValueError) as error:
                raise ConfigError(
                    f"no Dask scheduler answers at {scheduler}",
                    expected="an address such as tcp://host:8786, or tls:// and keys that it knows",
                    remedy="start one with `dask scheduler`, or leave dask.scheduler out",
                ) from error
            with client, _workers_watched(client, scheduler):
                yield client
            return
        with (
            script_unseen(),
            _scratch(scratch) as folder,
            _closed_at_last(
                LocalCluster(
                    security=Security.temporary(),
                    local_directory=folder,
                    n_workers=workers,
                    threads_per_worker=1,
                    processes=True,
                    memory_limit=0,
                    dashboard_address="127.0.0.1:0",
                    scheduler_kwargs={"dashboard": False},
                    silence_logs=50,
                )
            ) as cluster,
            Client(cluster, set_as_default=False) as client,
        ):
            yield client


@contextmanager
def _closed_at_last(cluster: LocalCluster) -> Iterator[LocalCluster]:
    """Close a cluster after the block, whatever its workers do.

    On a very busy machine one may take longer to end than Dask waits for it. All work is done by
    then; a worker ends with the process that started it.
    """
    try:
        yield cluster
    finally:
        with contextlib.suppress(TimeoutError):
            cluster.close()


@contextmanager
def _workers_watched(client: Client, scheduler: str, patience: float = 15.0) -> Iterator[None]:
    """Say so while a scheduler of yours has had no workers for `patience` seconds, and when it has.

    Dask waits for workers for ever and without a word. That is right where a cluster grows with its
    work, and all that there will be where it has died.
    """
    done = threading.Event()

    def watch() -> None:
        since, said = time.monotonic(), False
        while not done.wait(min(2.0, patience)):
            try:
                there = bool(client.scheduler_info(n_workers=-1)["workers"])
            except Exception:  # a scheduler that is gone is told by those who wait for results
                continue
            if there:
                since = time.monotonic()
                if said:
                    reporter().line("note: a Dask worker is there, the work goes on")
                said = False
            elif not said and time.monotonic() - since >= patience:
                said = True
                reporter().line(
                    f"note: {scheduler} has no workers: the work waits for one "
                    f"(dask worker {scheduler}); what is done is kept"
                )

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(5)


@contextmanager
def _scratch(parent: Path | None) -> Iterator[str | None]:
    """Yield a folder of this run alone, which goes with it; None without a place for it."""
    if parent is None:
        yield None
        return
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=parent, prefix="dask-", ignore_cleanup_errors=True
    ) as folder:
        yield folder


class WorkerProgress:
    """Sends a head's progress from a Dask worker to the driver, and keeps its metrics.

    Implements `heads.contract.Progress`.
    """

    def __init__(self, name: str, on_metric: Callable[[str, float, int], None]) -> None:
        from distributed import get_worker

        self.name, self.on_metric = name, on_metric
        self._last, self._worker = 0.0, None
        with contextlib.suppress(ValueError):  # outside a worker nobody listens
            self._worker = get_worker()

    def metric(self, name: str, value: float, epoch: int) -> None:
        """Keep one figure of one epoch."""
        self.on_metric(name, value, epoch)

    def step(self, done: int, total: int, text: str = "") -> None:
        """Say how far the training is; at most ten times a second."""
        now = time.monotonic()
        if self._worker and (now - self._last >= 0.1 or done >= total):
            self._last = now
            message = {"name": self.name, "done": done, "total": total, "text": text}
            self._worker.log_event(TOPIC, message)


class PeakMemory:
    """Samples this process's resident memory while a block runs.

    `peak_mb` is the highest, `base_mb` what it was at the start, both in 10^6 bytes.
    """

    def __init__(self, every: float = 0.05) -> None:
        self._every = every
        self._stop = threading.Event()
        self._process = psutil.Process()
        self.base_mb = self.peak_mb = 0.0

    def __enter__(self) -> PeakMemory:
        self.base_mb = self.peak_mb = self._process.memory_info().rss / 1e6
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(self._every):
            self.peak_mb = max(self.peak_mb, self._process.memory_info().rss / 1e6)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.peak_mb = max(self.peak_mb, self._process.memory_info().rss / 1e6)
