"""The transactional engine beneath the store: opening, locking, errors, raw chunk traffic.

Icechunk on a local folder does not protect two committers from each other, so local commits take
a file lock; on S3 its conditional writes do the same work and a loser tries again.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import os
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import icechunk
import numpy as np
from zarr.core.buffer import default_buffer_prototype

from headwater.errors import DiskFullError, SnapshotError, StoreError
from headwater.files import locked
from headwater.text import one_of
from storage.store.layout import check_set_name

# Its warning that a local folder is unsafe for several committers is answered by `commit_lock`.
icechunk.set_logs_filter("error")

if sys.byteorder != "little":  # pragma: no cover
    raise StoreError("this machine is big-endian", expected="a little-endian machine")

#: Chunk references per manifest. Without splitting, every commit would rewrite all of them.
MANIFEST_CHUNKS = 8192
#: Chunks in flight at once: many on S3, where each waits for the network. On a local disk more than
#: a few only push each other out of the processor's cache.
PARALLEL = 16
LOCAL_PARALLEL = 3
#: Seconds to wait for the commit of another process.
LOCK_SECONDS = 1800.0

# The engine passes each chunk through memory of its own, 4 MB a time. Above its threshold the C
# library gives such a block back to the kernel at once and the next one pays a page fault per 4 KB
# (measured: 0.4-0.7 s of processor time a GB written instead of 0.3). glibc raises the threshold to
# the largest block that was ever freed, at most 32 MB: one is freed here, before any chunk moves.
np.empty(31 * 1024 * 1024, np.uint8)


def is_remote(location: str | Path) -> bool:
    """Return whether `location` is an S3 address."""
    return str(location).startswith("s3://")


def _address(location: str) -> tuple[str, str, str | None]:
    """Return bucket and prefix of an S3 address, and the endpoint that the environment names."""
    bucket, _, prefix = location.removeprefix("s3://").strip("/").partition("/")
    env = os.environ
    return bucket, prefix, env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL") or None


def storage_for(location: str, image_set: str) -> icechunk.Storage:
    """Return Icechunk's storage for one image set below `location`."""
    check_set_name(image_set, sides=True)
    if not is_remote(location):
        return icechunk.local_filesystem_storage(str(Path(location) / image_set))
    bucket, prefix, endpoint = _address(location)
    if not bucket:
        raise StoreError(f"store location {location!r}", expected="s3://bucket/prefix")
    env = os.environ
    return icechunk.s3_storage(
        bucket=bucket,
        prefix=f"{prefix}/{image_set}" if prefix else image_set,
        region=env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or "us-east-1",
        endpoint_url=endpoint,
        allow_http=bool(endpoint and endpoint.startswith("http://")),
        # A server of one's own seldom has a host name per bucket.
        force_path_style=endpoint is not None,
        from_env=True,
    )


def _config() -> icechunk.RepositoryConfig:
    config = icechunk.RepositoryConfig.default()
    axis: Any = icechunk.ManifestSplitDimCondition.Axis(0)
    everywhere = icechunk.ManifestSplitCondition.AnyArray()
    config.manifest = icechunk.ManifestConfig(
        splitting=icechunk.ManifestSplittingConfig.from_dict({everywhere: {axis: MANIFEST_CHUNKS}})
    )
    return config


def set_exists(location: str, image_set: str) -> bool:
    """Return whether the image set has a repository, without creating anything."""
    if not is_remote(location) and not (Path(location) / image_set / "refs").is_dir():
        return False
    with guard(f"store {location}/{image_set}"):
        storage = storage_for(location, image_set)
        return _heard(lambda: icechunk.Repository.exists(storage))


def _heard(work: Callable[[], bool]) -> bool:
    """Return what `work` does, in a thread beside this one, which stays open to signals.

    The engine waits for a bucket that does not answer for minutes, and hears no Ctrl-C meanwhile.
    """
    done: Future[bool] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return done.result()


def list_sets(location: str | Path) -> list[str]:
    """Return the image sets below a location, in order of name.

    On S3 this needs boto3 (a listing is not something the engine offers).
    """
    if not is_remote(location):
        base = Path(location)
        return sorted(p.parent.name for p in base.glob("*/refs") if p.is_dir())
    try:
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        raise StoreError(
            f"listing the image sets of {location}",
            expected="boto3 for listing a bucket",
            remedy="name the set, or pip install boto3",
        ) from None
    bucket, prefix, endpoint = _address(str(location))
    base_key = f"{prefix}/" if prefix else ""
    try:
        pages = boto3.client("s3", endpoint_url=endpoint).get_paginator("list_objects_v2")
        names = {
            item["Prefix"][len(base_key) :].strip("/")
            for page in pages.paginate(Bucket=bucket, Prefix=base_key, Delimiter="/")
            for item in page.get("CommonPrefixes", [])
        }
    except (BotoCoreError, ClientError) as error:
        raise StoreError(f"listing the image sets of {location}: {error}") from error
    return sorted(n for n in names if n)


def _known_sets(location: str, wrong: str) -> str:
    """Say which sets there are, for a message; nothing where they cannot be listed."""
    found = ""
    with contextlib.suppress(StoreError, OSError):
        found = one_of(list_sets(location), wrong)
    return found or "an image set that was extracted before"


def open_repository(location: str, image_set: str, *, create: bool) -> icechunk.Repository:
    """Open an image set's repository, creating it where `create`.

    Raises
    ------
    SnapshotError
        There is none and `create` is false.
    """
    check_set_name(image_set, sides=True)
    where = f"image set {image_set!r} in {location}"
    if set_exists(location, image_set):
        with guard(where):
            return icechunk.Repository.open(storage_for(location, image_set))
    if not create:
        raise SnapshotError(
            f"{where} does not exist",
            expected=_known_sets(location, image_set),
            remedy="run `headwater extract` first, or look at the location and the name",
        )
    with guard(where):
        if not is_remote(location):
            Path(location).mkdir(parents=True, exist_ok=True)
        with commit_lock(location, image_set):
            return icechunk.Repository.open_or_create(storage_for(location, image_set), _config())


@functools.lru_cache(maxsize=32)
def _cached(location: str, image_set: str, pid: int) -> icechunk.Repository:
    return open_repository(location, image_set, create=False)


def shared_repository(location: str, image_set: str) -> icechunk.Repository:
    """Return this process's repository for reading snapshots; it is opened once."""
    return _cached(location, image_set, os.getpid())


@contextlib.contextmanager
def guard(what: str) -> Iterator[None]:
    """Turn the engine's and the disk's errors into the project's, naming `what`."""
    try:
        yield
    except (icechunk.IcechunkError, OSError) as error:
        if isinstance(error, StoreError):
            raise
        text = str(error)
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left on device" in text or "Disk quota exceeded" in text:
            raise DiskFullError(
                f"{what}: no space left on the disk",
                expected="room for the features; the last snapshot is intact and nothing is lost",
                remedy="free space (`headwater store gc SET --delete` also does) and run again",
            ) from error
        first = cause(error)
        if "snapshot not found" in text or "ref not found" in text:
            raise SnapshotError(
                f"{what}: {first}", remedy="`headwater store log SET` lists the snapshots and tags"
            ) from error
        raise StoreError(f"{what}: {first}") from error


def cause(error: BaseException) -> str:
    """Return what is at the bottom of an error, in one line: the engine prints its whole chain."""
    lines = [s.strip() for s in str(error).splitlines() if s.strip()]
    chain = [s[3:].strip() for s in lines if s.startswith(("|->", "`->"))]
    if chain:
        # The last link says what, the longest of the chain where.
        place = max(chain, key=len)
        return place if chain[-1] in place else f"{place}: {chain[-1]}"
    return lines[0].removeprefix("x ").strip() if lines else type(error).__name__


def read_whole(array: Any, part: slice = slice(None)) -> np.ndarray:
    """Return a column or index, or some of it; `StoreError` names it where chunks are damaged."""
    try:
        return np.asarray(array[part])
    except (icechunk.IcechunkError, OSError, RuntimeError, ValueError) as error:
        raise StoreError(
            f"{array.path} cannot be read: {cause(error)}",
            expected="the chunks that were written",
            remedy="`headwater store verify SET` names all that is damaged and --repair mends it",
        ) from error


def commit_lock(location: str, image_set: str) -> contextlib.AbstractContextManager[None]:
    """Hold the image set's commit lock; on S3 there is none to hold."""
    if is_remote(location):
        return contextlib.nullcontext()
    return locked(Path(location) / f".{image_set}.lock", LOCK_SECONDS, work="commit")


# --- raw chunk traffic ---------------------------------------------------------------------------
# Zarr's own codec pipeline copies each chunk more often than the disk does. Feature chunks are
# whole images in plain bytes, so they are fetched and put as they are.

_loop: tuple[int, asyncio.AbstractEventLoop] | None = None
_loop_lock = threading.Lock()


def _event_loop() -> asyncio.AbstractEventLoop:
    """Return this process's loop for chunk traffic, running in a thread of its own."""
    global _loop
    with _loop_lock:
        if _loop is None or _loop[0] != os.getpid():
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="headwater-store", daemon=True).start()
            _loop = (os.getpid(), loop)
        return _loop[1]


def submit(work: Coroutine[Any, Any, Any]) -> Future[Any]:
    """Run a coroutine on the store's loop."""
    return asyncio.run_coroutine_threadsafe(work, _event_loop())


async def fetch_chunks(store: Any, keys: Sequence[str], *, errors: bool = False) -> list[Any]:
    """Return the raw bytes of each key as a uint8 array, or None where there is no such chunk.

    With `errors` a chunk that cannot be read is given as its exception instead of raising it.
    """
    prototype = default_buffer_prototype()
    gate = asyncio.Semaphore(PARALLEL)

    async def one(key: str) -> Any:
        async with gate:
            buffer = await store.get(key, prototype)
        return None if buffer is None else buffer.as_array_like()

    return list(await asyncio.gather(*(one(k) for k in keys), return_exceptions=errors))


async def put_chunk(store: Any, key: str, data: Any) -> None:
    """Store raw bytes under a key."""
    await store.set(key, default_buffer_prototype().buffer.from_bytes(data))
