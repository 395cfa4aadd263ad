"""Files that several processes share: replaced in one step, or held under a lock; addresses.

The first two hold what they promise when a process is killed: a reader sees the old file or the new
one and nothing between, and a lock goes with the process that held it.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from headwater.errors import StoreError


def open_regular(path: str | Path) -> io.BufferedReader:
    """Open a file to read its bytes; a FIFO, socket or device is refused and never waited for.

    Raises
    ------
    OSError
        Where it cannot be opened, or is no regular file.

    Examples
    --------
    >>> open_regular("/dev/null")
    Traceback (most recent call last):
    OSError: [Errno 22] no regular file: '/dev/null'
    """
    # Without O_NONBLOCK the opening itself waits for a FIFO's other end.
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        kind = os.fstat(number).st_mode
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(kind):
            raise OSError(errno.EINVAL, "no regular file", str(path))
        return os.fdopen(number, "rb")
    except OSError:
        os.close(number)
        raise


def read_regular(path: str | Path, limit: int | None = None) -> bytes:
    """Return the bytes of a regular file (`open_regular`), of `limit` at most one more."""
    with open_regular(path) as file:
        return file.read() if limit is None else file.read(limit + 1)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a new name beside `path`; what is written there takes its place in one step.

    The place is taken when the block ends, once the bytes are on the disk; where the block raises,
    nothing is left of it. The folder is made if absent. Two processes that write one file do not
    meet: whoever ends last has written it.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "sets" / "bottles.json"
    >>> with replacing(path) as new:
    ...     _ = new.write_text("{}")
    >>> path.read_text(), [p.name for p in path.parent.iterdir()]
    ('{}', ['bottles.json'])
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Hidden, and with a name of its own: a killed writer's is in nobody's way.
    new = path.with_name(short_name(f".{path.name}", f".{uuid.uuid4().hex[:12]}.tmp"))
    try:
        yield new
        with new.open("rb+") as file:
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a file's text in one step (see `replacing`)."""
    with replacing(path) as new:
        new.write_text(text)


def expand_user(path: Path | str) -> Path:
    """Return a path with ``~`` as the user's folder; as it is where nobody knows which that is."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def short_name(stem: str, end: str, most: int = 255) -> str:
    """Return a file's name of at most `most` bytes: `end` whole, `stem` cut where it must be.

    Examples
    --------
    >>> short_name("photo", "-1a2b.png"), short_name("photo", "-1a2b.png", 12)
    ('photo-1a2b.png', 'pho-1a2b.png')
    """
    room = most - len(os.fsencode(end))
    while len(os.fsencode(stem)) > room:
        stem = stem[:-1]
    return stem + end


def sqlite_url(path: Path, scheme: str, quoted: str = "") -> str:
    """Return the address of an SQLite file as SQLAlchemy takes it.

    A path in which nothing means something in an address stays as it is; any other is quoted, in
    an address of SQLite's own, as SQLAlchemy takes paths as they are; it gets the scheme `quoted`,
    where one is given.

    Examples
    --------
    >>> [sqlite_url(Path("/srv") / name, "sqlite") for name in ("line 2", "what?")]
    ['sqlite:////srv/line 2', 'sqlite:///file:/srv/what%3F?uri=true']
    """
    text = str(path.absolute())
    if not set(text) & set("%?#"):
        return f"{scheme}:///{text}"
    return f"{quoted or scheme}:///file:{quote(text)}?uri=true"


@contextmanager
def locked(path: Path, timeout: float | None = None, *, work: str = "work") -> Iterator[None]:
    """Hold an exclusive lock on a file, which is made if absent and stays where it is.

    Excludes threads as well as processes, on any file system that has ``flock`` (NFS has it since
    version 4). The file is left behind on purpose: removing it would let two processes hold locks
    on two files of one name.

    Parameters
    ----------
    path
        The file, empty and used for nothing else.
    timeout
        Seconds to wait; as long as it takes without it.
    work
        What is done under the lock, for the message.

    Raises
    ------
    StoreError
        Another process still holds the lock after `timeout` seconds.

    Examples
    --------
    >>> import tempfile
    >>> with locked(Path(tempfile.mkdtemp()) / "set.lock"):
    ...     pass  # nobody else is here
    """
    # late: a command that locks nothing starts 40 ms earlier
    from filelock import FileLock, Timeout

    # Without its soft fallback, whose lock files would outlive a killed process.
    lock = FileLock(path, poll_interval=0.005, fallback_to_soft=False, preserve_lock_file=True)
    try:
        held = lock.acquire(-1 if timeout is None else timeout)
    except Timeout:
        raise StoreError(
            f"the {work} lock {path} has been held for {timeout:.0f} s",
            expected=f"another process to finish its {work}",
            remedy=f"see which process holds it: fuser {path}",
        ) from None
    with held:
        yield
