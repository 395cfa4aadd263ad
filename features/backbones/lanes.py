"""Threads that each run torch with a single thread: several small batches beside each other.

Measured on 2 cores with ResNet-18 to layer3 at 256 px in bfloat16: one lane a core takes 7.2 ms an
image in batches of 4; one batch of 16 spread over both cores takes 8.9 ms quiet, and many times
that when something else runs, since every operator then waits for the slower core. A single thread
also sums in one order, whatever the number of cores: features do not depend on the machine's load.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")

_LOCK = threading.Lock()
_HERE = threading.local()


def lane_count() -> int:
    """Return the number of lanes: as many as torch would use threads."""
    return min(torch.get_num_threads(), 32)


def lanes(count: int) -> ThreadPoolExecutor:
    """Return a pool of `count` threads in which torch runs single-threaded."""
    return ThreadPoolExecutor(count, thread_name_prefix="lane", initializer=_enter)


def in_lane() -> bool:
    """Whether the calling thread is one of a pool made by `lanes`."""
    return getattr(_HERE, "lane", False)


def in_one(work: Callable[[], T]) -> T:
    """Run `work` in a lane and return its result: several operators' threads would wait for each
    other where the machine is busy, and sum in another order.
    """
    if in_lane():
        return work()
    with lanes(1) as pool:
        return pool.submit(work).result()


def _enter() -> None:
    with _LOCK:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        # The call above is for this thread, but also for every thread started from now on: a
        # thread that ends at once puts the latter back.
        back = threading.Thread(target=torch.set_num_threads, args=(threads,))
        back.start()
        back.join()
    _HERE.lane = True
