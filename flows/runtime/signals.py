"""Being asked to stop: SIGTERM ends a command as Ctrl-C does, and both end a flow at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

#: Whether SIGTERM is taken here, and the number of the signal that asked for an end, 0 for none.
_state = {"ours": 0, "asked": 0}


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Have SIGTERM raise `KeyboardInterrupt` while a command runs, in its main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    _state.update(ours=1, asked=0)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        _state["ours"] = 0
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


@contextmanager
def ctrl_c_ends_flow() -> Iterator[None]:
    """Have Ctrl-C end a flow of this process at once, with `KeyboardInterrupt` whatever it meets.

    A terminal sends it to the whole group of processes, Prefect's temporary server among them, as
    `keep_sigterm` has it of SIGTERM.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:  # a job in a shell's background is not for Ctrl-C
        signal.signal(signal.SIGINT, _interrupt_flow)
    _state["asked"] = 0
    try:
        yield
    except Exception:
        if was_asked():  # what was told to end with us is missed on the way out
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(signal.SIGINT, before)


def end_now() -> NoReturn:
    """Leave with the status that shells give a signal, and not by Python's own end.

    There Prefect would send what it still has to tell to a server that may be gone. That server,
    where it is not, ends with us (`flows.runtime.server`).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(128 + _state["asked"])


def was_asked() -> bool:
    """Return whether SIGTERM came in the last `sigterm_interrupts`, or Ctrl-C in a flow."""
    return bool(_state["asked"])


def asked_by(number: int) -> None:
    """Remember the signal that asked for an end, for the status that a command ends with."""
    _state["asked"] = number


def _interrupt(number: int, _frame: Any) -> None:
    asked_by(number)
    raise KeyboardInterrupt


def _interrupt_flow(number: int, frame: Any) -> None:
    from prefect.settings import get_current_settings

    # For all its threads: it is the end of this process.
    get_current_settings().client.max_retries = 0
    _interrupt(number, frame)
