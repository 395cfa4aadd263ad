"""Prefect's temporary server: it ends with the process that started it, and answers no other."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from typing import Any

from prefect.context import refresh_global_settings_context
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import get_current_settings

from headwater.addresses import hidden, no_answer
from headwater.errors import StoreError

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
    """Have Prefect use a `WatchedServer` where it starts one (it may use a server of yours).

    Its API is on a port that all users of the machine reach: a password made for this process,
    which goes to the server by its environment, keeps them out. Where you have set one, or use a
    server, nothing is changed.
    """
    if None in SubprocessASGIServer._instances:
        return
    settings = get_current_settings()
    ours = settings.api.url is None and settings.api.key is None
    if ours and settings.api.auth_string is None and settings.server.api.auth_string is None:
        password = f"headwater:{secrets.token_urlsafe(32)}"
        os.environ["PREFECT_API_AUTH_STRING"] = password
        os.environ["PREFECT_SERVER_API_AUTH_STRING"] = password
        refresh_global_settings_context()
    WatchedServer()


def check_server() -> str:
    """Fail in seconds where the Prefect server that is configured does not answer.

    Prefect itself would try for minutes, and end in a traceback. Nothing is asked where none is
    configured: then Prefect starts one of its own. Returns the address; empty without.

    Raises
    ------
    StoreError
        With the address, and how to do without.
    """
    url = get_current_settings().api.url
    if not url:
        return ""
    if (error := no_answer(url)) is not None:
        raise StoreError(
            f"no Prefect server answers at {hidden(url)}: {getattr(error, 'reason', error)}",
            expected="a running server at PREFECT_API_URL (or the active profile's address)",
            remedy="start it, or unset PREFECT_API_URL: without it a server is started for the run",
        )
    return url
