"""Being asked to stop: SIGTERM ends a command as Ctrl-C does."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

#: Exit status of a command that SIGTERM ended, as shells give it.
TERMINATED = 128 + signal.SIGTERM

_state = {"ours": False, "asked": False}


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Have SIGTERM raise `KeyboardInterrupt` while a command runs, in its main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    _state.update(ours=True, asked=False)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        _state["ours"] = False
        signal.signal(signal.SIGTERM, before)


def keep_sigterm() -> None:
    """Within `sigterm_interrupts`, take the signal back from Prefect, from inside a flow.

    Prefect reports the end to its server, and tries for a minute. Where a whole group of processes
    is told to end (by a service manager, say), its temporary server is gone by then: it is asked
    once. A flow that runs under Prefect's own worker keeps Prefect's handler, which knows of
    cancelling.
    """
    if _state["ours"] and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt_flow)


def end_now() -> NoReturn:
    """Leave with `TERMINATED`, and not by Python's own end.

    There Prefect would send what it still has to tell to a server that may be gone. That server,
    where it is not, ends with us (`flows.runtime.server`).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(TERMINATED)


def was_terminated() -> bool:
    """Return whether SIGTERM came in the last `sigterm_interrupts`."""
    return _state["asked"]


def _interrupt(_number: int, _frame: Any) -> None:
    _state["asked"] = True
    raise KeyboardInterrupt


def _interrupt_flow(number: int, frame: Any) -> None:
    from prefect.settings import get_current_settings

    # For all its threads: it is the end of this process.
    get_current_settings().client.max_retries = 0
    _interrupt(number, frame)
