"""Copies of a snapshot: a plain Zarr group, or a store of its own."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import icechunk
import zarr
from zarr.storage import LocalStore

from headwater.errors import ConfigError
from storage.store.engine import fetch_chunks, guard, submit
from storage.store.feature_store import FeatureStore


def export(
    store: FeatureStore,
    target: str | Path,
    snapshot: str | None = None,
    *,
    plain: bool = True,
) -> int:
    """Copy one snapshot elsewhere; return the bytes copied.

    Parameters
    ----------
    target
        With `plain` a folder that becomes an ordinary Zarr v3 group; otherwise a location (folder
        or ``s3://bucket/prefix``) that gets a Headwater store of the set with this one snapshot.
    snapshot
        Id or tag; the newest without it.
    plain
        Which of the two.

    Raises
    ------
    ConfigError
        The target exists.

    Examples
    --------
    >>> size = export(store, "plain")
    >>> zarr.open_group("plain")["images/path"][:2].tolist()
    ['train/good/0.png', 'train/good/1.png']
    """
    source = store.root(snapshot).store
    if not plain:
        other = FeatureStore.open(target, store.image_set)
        if len(other.table()) or other.extractors():
            raise ConfigError(f"{other.name} is not empty", expected="a location without this set")
        copied = 0

        def work(session: icechunk.Session) -> str:
            nonlocal copied
            copied = submit(_copy(source, session.store)).result()
            return f"copy of snapshot {store.resolve(snapshot)} of {store.name}"

        other.transact(work)
        return copied
    folder = Path(target)
    if folder.exists():
        raise ConfigError(f"export target {folder} exists", expected="a folder yet to be made")
    with guard(f"exporting to {folder}"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Under another name until complete: a half-made export must not look like a whole one.
        part = folder.with_name(folder.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        try:
            size = submit(_copy(source, LocalStore(part))).result()
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        part.rename(folder)
        return int(size)


async def _copy(source: Any, target: Any) -> int:
    """Copy all keys, a few at a time."""
    gate, total = asyncio.Semaphore(8), 0
    make = zarr.core.buffer.default_buffer_prototype().buffer.from_array_like

    async def one(key: str) -> int:
        async with gate:
            (data,) = await fetch_chunks(source, [key])
            if data is None:
                return 0
            await target.set(key, make(data))
            return len(data)

    keys = [key async for key in source.list()]
    for start in range(0, len(keys), 1024):
        total += sum(await asyncio.gather(*(one(k) for k in keys[start : start + 1024])))
    return total
