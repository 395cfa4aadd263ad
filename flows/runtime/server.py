"""Prefect's temporary server: it ends with the process that started it, and answers no other."""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from threading import Lock

from flows.runtime.home import PATIENCE, own_prefect_database
from headwater.addresses import hidden, no_answer
from headwater.errors import StoreError
from headwater.files import expand_user

#: Ends when its standard input does: that is when the process that holds the other end is gone.
_WATCH = "import os, sys; sys.stdin.read(); os.kill(int(sys.argv[1]), 9)"
#: What a client of Prefect is told of a server, for as long as a flow runs.
_ADDRESS, _PASSWORD = "PREFECT_API_URL", "PREFECT_API_AUTH_STRING"


class TemporaryServer:
    """Prefect's API in a process of its own, on a port of this machine, behind a password.

    Prefect starts one where it is told of none. This one differs in four ways. It can be started
    ahead, while this process does something else: `start` returns at once, `wait` when it answers.
    This process need not import Prefect's server to start it (four seconds). A process beside it
    ends it when we are gone: Prefect stops its server in an exit handler, which a process that is
    killed (by SIGKILL, for want of memory) never reaches. And a new database is a copy of one that
    was made before, where there is one: to make it anew takes Prefect eleven seconds.

    All users of the machine reach its port: a password made for this process, which goes to the
    server by its environment, keeps them out.

    Parameters
    ----------
    schedules
        Whether it also does what a lasting server does beside the API: makes the runs of schedules.
    """

    def __init__(self, *, schedules: bool = False) -> None:
        self.schedules = schedules
        self.password = f"headwater:{secrets.token_urlsafe(32)}"
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self._watch: subprocess.Popen[bytes] | None = None
        self._made_anew: Path | None = None
        self._answered = False

    @property
    def url(self) -> str:
        """Address of its API."""
        return f"http://127.0.0.1:{self.port}/api"

    def start(self) -> None:
        """Start it, and return at once."""
        database = own_prefect_database()
        if database is not None and not database.exists():
            if _template().is_file():
                _copy_database(_template(), database)
            else:
                self._made_anew = database
        self._launch()
        atexit.register(self.stop)

    def wait(self) -> None:
        """Return when it answers.

        Raises
        ------
        StoreError
            Where it does not within the seconds that `PATIENCE` names.
        """
        patience = float(os.environ.get(PATIENCE) or 300)
        until = time.monotonic() + patience
        while not self._answered:
            assert self.process is not None, "start comes first"
            status = self.process.poll()
            if status is not None or time.monotonic() > until:
                self.stop()
                raise StoreError(
                    f"Prefect's temporary server did not answer within {patience:g} s"
                    if status is None
                    else f"Prefect's temporary server ended with status {status}",
                    expected="a machine with a moment to start it; this one is very busy, or out "
                    "of memory",
                    remedy=f"run again when it is quieter, or set {PATIENCE} to more seconds",
                )
            self._answered = no_answer(self.url) is None
            time.sleep(0 if self._answered else 0.1)
        if self._made_anew is not None:
            _copy_database(self._made_anew, _template())  # for the next home
            self._made_anew = None

    def stop(self) -> None:
        """Stop it, and nobody else that may get its number."""
        atexit.unregister(self.stop)
        if self._watch is not None:
            self._watch.kill()
            self._watch.communicate()
        if self.process is not None:
            # One that does not answer yet would first finish its start.
            self.process.terminate() if self._answered else self.process.kill()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process = self._watch = None
        self._answered = False

    def _launch(self) -> None:
        app = ("--factory", "prefect.server.api.server:create_app")
        quiet = ("--log-level", "error", "--lifespan", "on")
        # The port is taken here and handed over: nobody can take it in between.
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
            fd = listener.fileno()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "uvicorn", *app, *quiet, "--fd", str(fd)],
                env={
                    **os.environ,
                    "PREFECT_SERVER_API_AUTH_STRING": self.password,
                    # As Prefect marks its own temporary server: no pages, nothing beside the API.
                    "PREFECT_UI_ENABLED": "0",
                    "PREFECT__SERVER_EPHEMERAL": "" if self.schedules else "1",
                    "PREFECT__SERVER_FINAL": "1",
                },
                pass_fds=[fd],
                stdin=subprocess.DEVNULL,
                # What ends a group is for us: whoever ends in order needs it until then.
                start_new_session=True,
            )
        self._watch = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _WATCH, str(self.process.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is not for it
        )


_server: TemporaryServer | None = None
_lock = Lock()
_inside = 0  # how many flows of this process run on the temporary server


def start_server(*, schedules: bool = False) -> TemporaryServer:
    """Start this process's temporary server if it has none, and return at once.

    It stays until the process ends; `prefect_server` waits for it and uses it.
    """
    global _server
    with _lock:
        if _server is None or _server.process is None:
            _server = TemporaryServer(schedules=schedules)
            _server.start()
        return _server


@contextmanager
def prefect_server(*, schedules: bool = False) -> Iterator[str]:
    """Have flows that start in the block run on a Prefect server; yield its address.

    It is yours where Prefect knows of one, else the temporary one; see there for `schedules`.

    Raises
    ------
    StoreError
        Where it does not answer.
    """
    if (url := check_server()) or _prefect_has_its_own():
        yield url
        return
    server = start_server(schedules=schedules)
    server.wait()
    with _told(server):
        yield server.url


@contextmanager
def _told(server: TemporaryServer) -> Iterator[None]:
    """Tell Prefect of a server while the block runs, in whichever threads."""
    global _inside
    from prefect.context import refresh_global_settings_context

    with _lock:
        _inside += 1
        os.environ.update({_ADDRESS: server.url, _PASSWORD: server.password})
        refresh_global_settings_context()
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                for name in (_ADDRESS, _PASSWORD):
                    os.environ.pop(name, None)
                refresh_global_settings_context()


def _prefect_has_its_own() -> bool:
    """Whether flows of this process run on a temporary server of Prefect's own making already."""
    module = sys.modules.get("prefect.server.api.server")
    return module is not None and None in module.SubprocessASGIServer._instances


def check_server() -> str:
    """Fail in seconds where the Prefect server that is configured does not answer.

    Prefect itself would try for minutes, and end in a traceback. Nothing is asked where none is
    configured: then one is started for the run. Returns the address; empty without.

    Raises
    ------
    StoreError
        With the address, and how to do without.
    """
    from prefect.settings import get_current_settings  # late: seconds

    url = get_current_settings().api.url
    if not url or (_server is not None and url == _server.url):
        return ""
    if (error := no_answer(url)) is not None:
        raise StoreError(
            f"no Prefect server answers at {hidden(url)}: {getattr(error, 'reason', error)}",
            expected="a running server at PREFECT_API_URL (or the active profile's address)",
            remedy="start it, or unset PREFECT_API_URL: without it a server is started for the run",
        )
    return url


def _template() -> Path:
    """Return where an empty database of this Prefect is kept for new homes of this user."""
    cache = expand_user(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return cache / "headwater" / f"prefect-{version('prefect')}.db"


def _copy_database(source: Path, target: Path, tries: int = 10) -> None:
    """Copy a SQLite database whole or not at all; whoever cannot goes on without."""
    with contextlib.suppress(OSError):
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".copy-") as folder:
            made = Path(folder) / "made.db"
            for _ in range(tries):
                try:
                    if _copied(source, made):
                        made.chmod(0o600)
                        made.replace(target)
                    return
                except sqlite3.OperationalError:  # its server is writing
                    time.sleep(0.2)
                except sqlite3.Error:  # it is damaged
                    return


def _copied(source: Path, made: Path) -> bool:
    """Copy a database that is sound; return whether it is."""
    read = sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True)
    with contextlib.closing(read), contextlib.closing(sqlite3.connect(made)) as write:
        if read.execute("PRAGMA quick_check").fetchone() != ("ok",):
            return False
        read.backup(write)
        write.execute("PRAGMA journal_mode = DELETE")  # one file, for whoever copies it
    return True
