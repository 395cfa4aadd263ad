"""Prefect's temporary server, made to end with the process that started it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from prefect.server.api.server import SubprocessASGIServer

#: Ends when its standard input does: that is when the process that holds the other end is gone.
_WATCH = "import os, sys; sys.stdin.read(); os.kill(int(sys.argv[1]), 9)"


class WatchedServer(SubprocessASGIServer):
    """Prefect's temporary server with a process beside it that ends it when we are gone.

    Prefect stops its server in an exit handler, which a process that is killed (by SIGKILL, for
    want of memory) never reaches: each left a server behind. Linux can end a child with its
    parent, but means the thread that started it, and elsewhere there is no such thing.
    """

    _watch: subprocess.Popen[bytes] | None = None

    def _run_uvicorn_command(self) -> subprocess.Popen[Any]:
        server = super()._run_uvicorn_command()
        self._unwatch()
        self._watch = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _WATCH, str(server.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is not for it
        )
        return server

    def stop(self) -> None:
        """Stop the server, and nobody else that may get its number."""
        self._unwatch()
        super().stop()

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._watch.kill()
            self._watch.communicate()
            self._watch = None


def watch_server() -> None:
    """Have Prefect use a `WatchedServer` where it starts one (it may use a server of yours)."""
    if None not in SubprocessASGIServer._instances:
        WatchedServer()
