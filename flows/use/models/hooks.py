"""Who is told what happens to a model in service: a command, a web address, or both.

A hook that fails, hangs or is not there changes nothing of what it was to tell: it is said, with
the reason, and kept for `headwater status`.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from flows.runtime.home import Home
from flows.runtime.sections import HookSettings
from headwater.addresses import hidden, user_and_password, whole
from headwater.errors import DataError, HeadwaterError
from headwater.records import add_records, read_records
from headwater.text import shown

#: What may happen.
EVENTS = ("promoted", "kept", "held", "failed", "rollback")
#: The variable that names the event to a command. One that began with HEADWATER_ would be taken for
#: a setting by a `headwater` that the command calls.
EVENT = "HOOK_EVENT"
#: So many are remembered of a set.
_KEPT = 50
#: Characters of what a command complained.
_SAID = 300


@dataclass(frozen=True)
class Fired:
    """One message that was to go out.

    Parameters
    ----------
    event
        One of `EVENTS`.
    to
        The command's name, or the address without what may be secret of it.
    when
        ISO 8601, UTC.
    problem
        Why it did not go out; empty where it did.
    """

    event: str
    to: str
    when: str
    problem: str = ""


def fire(
    home: Home,
    image_set: str,
    hooks: HookSettings,
    event: str,
    about: Mapping[str, Any],
    tell: Callable[[str], None],
) -> list[Fired]:
    """Tell those who want to know that something happened; return what became of each message.

    Parameters
    ----------
    home, image_set
        Whose.
    hooks
        Who is told.
    event
        One of `EVENTS`.
    about
        JSON-ready; it goes out with ``event``, ``image_set`` and ``when``.
    tell
        Called with a line for each message that did not go out. Nothing is raised.
    """
    when = datetime.now(UTC).isoformat(timespec="seconds")
    message = {"event": event, "image_set": image_set, "when": when, **about}
    text = hidden(json.dumps(message, default=str))
    made = []
    if hooks.command is not None:
        problem = _run(hooks.command, event, text, hooks.seconds)
        made.append(Fired(event, shown(Path(hooks.command[0]).name), when, problem))
    if hooks.url is not None:
        problem = _within(hooks.seconds, lambda: _post(str(hooks.url), text, hooks.seconds))
        made.append(Fired(event, _named(hooks.url), when, problem))
    for one in made:
        if one.problem:
            tell(f"{image_set}: hook {one.to} was not told of {event}: {one.problem}")
    try:
        _remember(home, image_set, made)
    except (OSError, HeadwaterError) as error:
        tell(f"{image_set}: what became of its hooks cannot be kept: {str(error).splitlines()[0]}")
    return made


def fired(home: Home, image_set: str) -> list[Fired]:
    """Return what became of a set's messages, newest first.

    Raises
    ------
    DataError
        Where the file that has it is damaged: the next message puts it by.
    """
    file = _file(home, image_set)
    try:
        return [Fired(**one) for one in read_records(file, _what(image_set))]
    except TypeError as error:
        raise DataError(f"{file}: no record of a hook") from error


def _what(image_set: str) -> str:
    return f"the hooks of {image_set}"


def _file(home: Home, image_set: str) -> Path:
    return home.root / "hooks" / f"{image_set}.json"


def _remember(home: Home, image_set: str, made: list[Fired]) -> None:
    if not made:
        return
    new = [asdict(one) for one in made[::-1]]
    add_records(_file(home, image_set), new, _what(image_set), _KEPT)


def _named(url: str) -> str:
    """Return an address as it may be shown: what is behind the host is often the secret.

    Examples
    --------
    >>> _named("https://hooks.example.com:8443/services/T0/B0/s3cret?x=1")
    'https://hooks.example.com:8443/...'
    """
    parts = urlsplit(url)
    behind = "/..." if parts.path.strip("/") or parts.query else ""
    return shown(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{behind}")


def _run(command: tuple[str, ...], event: str, text: str, seconds: float) -> str:
    """Start a command with the message on its standard input; return what went wrong."""
    environment = {**os.environ, EVENT: event}
    with tempfile.TemporaryFile() as complaints:
        try:
            # A session of its own: what it started ends with it where it takes too long. Its
            # complaints go to a file, as a pipe may be held open by what it leaves behind.
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=complaints,
                env=environment, start_new_session=True,
            )  # fmt: skip
        except (OSError, ValueError) as error:
            return f"it cannot be started: {getattr(error, 'strerror', None) or error}"
        try:
            process.communicate(text.encode(), timeout=seconds)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return f"it took longer than {seconds:g} s and was ended"
        except OSError:
            process.wait()  # it read nothing, and may have done its work all the same
        if not process.returncode:
            return ""
        complaints.seek(0)
        said = complaints.read(64_000).decode(errors="replace").strip().splitlines()
        why = f": {shown(hidden(said[-1]))[:_SAID]}" if said else ""
        return f"it ended with status {process.returncode}{why}"


def _within(seconds: float, work: Callable[[], str]) -> str:
    """Return what work returns, or that it took too long: it may go on, and nobody waits for it.

    A timeout of the connection holds for each answer of the network, not for all of it.
    """
    done: list[str] = []
    thread = threading.Thread(target=lambda: done.append(work()), daemon=True)
    thread.start()
    thread.join(seconds)
    return done[0] if done else f"no answer within {seconds:g} s"


def _post(url: str, text: str, seconds: float) -> str:
    """Post a message; return what went wrong. Proxies of the environment hold; no redirects."""
    import urllib.request  # late: a set without hooks needs none
    from http.client import HTTPException
    from urllib.error import HTTPError, URLError

    class Stay(urllib.request.HTTPRedirectHandler):
        """What is told to one address goes to no other."""

        def redirect_request(self, *_: Any) -> None:
            return None

    headers = {"Content-Type": "application/json", "User-Agent": "headwater"}
    if (login := user_and_password(url)) is not None:
        own = base64.b64encode(":".join(login).encode()).decode()
        headers["Authorization"] = f"Basic {own}"
    parts = urlsplit(whole(url))
    address = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment=""))
    try:
        request = urllib.request.Request(address, text.encode(), headers)
        with urllib.request.build_opener(Stay).open(request, timeout=seconds) as answer:
            answer.read(64)
    except HTTPError as error:
        moved = ", a redirect, which is not followed" if 300 <= error.code < 400 else ""
        return f"it answered {error.code} {shown(error.reason)[:_SAID]}{moved}"
    except URLError as error:
        return _why(error.reason)
    except (OSError, ValueError, HTTPException) as error:
        return _why(error)
    return ""


def _why(error: object) -> str:
    """Return a reason in a line, without the address: it may be the secret."""
    text = getattr(error, "strerror", None) or type(error).__name__
    return "no answer in time" if isinstance(error, TimeoutError) else shown(hidden(str(text)))
