"""Reading chunks of a local store straight from their files.

The engine hands a chunk over in pieces of 8 KB and copies it twice more: 0.2 s of processor time a
GB, twice what a memmap needs altogether. On a local disk a chunk is a file of plain bytes, and
which one follows from the snapshot's manifests, whose format is published (Icechunk specification,
version 1: a header of 39 bytes, then a FlatBuffer, as a rule compressed with zstd). Whatever is not
as this module knows it (another version, a remote store, a compressed or inlined chunk) is left to
the engine, which remains the one way to write.
"""

from __future__ import annotations

import base64
import functools
import itertools
import os
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numcodecs.zstd import Zstd
from torch import Tensor

from headwater.errors import StoreError

_MAGIC = "ICE\N{ICE CUBE}CHUNK".encode()
_SNAPSHOT, _MANIFEST = 1, 2
#: From the digits of base 32 to Crockford's.
_DIGITS = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", "0123456789ABCDEFGHJKMNPQRSTVWXYZ")
#: Bytes that are read before they are converted: they stay in the processor's cache.
_PIECE = 1 << 20
#: Buffers that one call to the kernel may fill (IOV_MAX on Linux).
_BUFFERS = 1024

#: Each thread's memory for what is about to be converted.
_scratch = threading.local()

#: Where a chunk is: file name, offset, length.
Place = tuple[str, int, int]
#: Arguments of `read_rows`.
Reading = tuple[Place, Tensor, np.ndarray, np.ndarray, torch.dtype]
#: Threads that read: more would only take the processors from each other.
READERS = min(4, os.cpu_count() or 1)


@functools.lru_cache(maxsize=1)
def _pool(pid: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(READERS, "headwater-reader")


def readers() -> ThreadPoolExecutor:
    """Return this process's threads for reading."""
    return _pool(os.getpid())


class _Table:
    """A FlatBuffer table: fields by number, absent ones give nothing."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at
        self._fields = at - struct.unpack_from("<i", data, at)[0]
        self._count = (struct.unpack_from("<H", data, self._fields)[0] - 4) // 2

    def _field(self, number: int) -> int:
        if number >= self._count:
            return 0
        offset = struct.unpack_from("<H", self.data, self._fields + 4 + 2 * number)[0]
        return self.at + offset if offset else 0

    def _target(self, at: int) -> int:
        return at + int(struct.unpack_from("<I", self.data, at)[0])

    def inline(self, number: int, size: int) -> bytes:
        """Return a structure's bytes."""
        at = self._field(number)
        return self.data[at : at + size] if at else b""

    def integer(self, number: int) -> int:
        """Return an unsigned 64-bit field."""
        return int.from_bytes(self.inline(number, 8), "little")

    def vector(self, number: int, width: int = 1) -> bytes:
        """Return a vector's bytes; its elements are `width` bytes wide."""
        field = self._field(number)
        if not field:
            return b""
        at = self._target(field)
        count = struct.unpack_from("<I", self.data, at)[0]
        return self.data[at + 4 : at + 4 + width * count]

    def table(self, number: int) -> _Table:
        """Return the table that a field points to."""
        return _Table(self.data, self._target(self._field(number)))

    def tables(self, number: int) -> Iterator[_Table]:
        """Yield the tables of a vector."""
        field = self._field(number)
        at = self._target(field) if field else 0
        for i in range(len(self.vector(number, 4)) // 4):
            yield _Table(self.data, self._target(at + 4 + 4 * i))


def _name(identity: bytes) -> str:
    """Return an object's file name: Crockford's base 32 of its id."""
    return base64.b32encode(identity).decode().rstrip("=").translate(_DIGITS)


def _load(path: Path, kind: int) -> _Table:
    raw = path.read_bytes()
    if raw[:12] != _MAGIC or raw[36] != 1 or raw[37] != kind or raw[38] > 1:
        raise ValueError(f"{path}: not a file of version 1")
    data = bytes(Zstd().decode(raw[39:])) if raw[38] else raw[39:]
    table = _Table(data, struct.unpack_from("<I", data, 0)[0])
    if _name(table.inline(0, 12)) != path.name:
        raise ValueError(f"{path}: holds another object")
    return table


def _references(folder: Path, snapshot: str, array: str) -> Iterator[_Table]:
    for node in _load(folder / "snapshots" / snapshot, _SNAPSHOT).tables(2):
        if node.vector(1).decode() != f"/{array}":
            continue
        for pointer in node.table(4).tables(2):
            name = _name(pointer.inline(0, 12))
            for part in _load(folder / "manifests" / name, _MANIFEST).tables(1):
                if part.inline(0, 8) == node.inline(0, 8):
                    yield from part.tables(1)


@functools.lru_cache(maxsize=64)
def locate(folder: str, snapshot: str, array: str, size: int) -> dict[int, Place]:
    """Return where the chunks of an array are at a snapshot, by chunk number along the rows.

    Only chunks of `size` bytes in files of their own are listed; where the files are not as
    expected there is nothing in it. The engine knows the rest.
    """
    found: dict[int, Place] = {}
    try:
        for reference in _references(Path(folder), snapshot, array):
            identity, index = reference.inline(4, 12), reference.vector(0, 4)
            length = reference.integer(3)
            if len(identity) == 12 and length == size:
                path = f"{folder}/chunks/{_name(identity)}"
                number = int.from_bytes(index[:4], "little")
                found[number] = (path, reference.integer(2), length)
    except (OSError, ValueError, IndexError, RuntimeError, struct.error):
        return {}
    return found


def read_rows(
    place: Place, out: Tensor, to: np.ndarray, rows: np.ndarray, stored: torch.dtype
) -> bool:
    """``out[to[i]] = chunk[rows[i]]`` from a chunk's file, `rows` ascending.

    `out` is in the dtype `stored` or in float32. Returns False where the file cannot be opened.
    Raises `StoreError` where it is too short.
    """
    try:
        file = os.open(place[0], os.O_RDONLY)
    except OSError:
        return False
    try:
        size = out[0].numel() * stored.itemsize
        step = max(1, min(_BUFFERS, _PIECE // size))
        room = None
        if out.dtype != stored:
            if getattr(_scratch, "size", 0) < step * size:
                _scratch.size = step * size
                _scratch.room = torch.empty(step * size, dtype=torch.uint8)
            flat = _scratch.room[: step * size].view(stored)
            room = flat.view(step, *out.shape[1:])
        plain = _bytes(out if room is None else room)
        cuts = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
        for a, b in itertools.pairwise(cuts):
            for start in range(a, b, step):
                stop = min(start + step, b)
                targets = range(stop - start) if room is not None else to[start:stop].tolist()
                buffers = [plain[t] for t in targets]
                at = place[1] + int(rows[start]) * size
                if os.preadv(file, buffers, at) != size * (stop - start):
                    raise StoreError(
                        f"{place[0]}: a damaged chunk: it ends early",
                        remedy="`headwater store verify --repair` computes it again",
                    )
                if room is not None:
                    _convert(out, to[start:stop], room[: stop - start])
    finally:
        os.close(file)
    return True


def _bytes(tensor: Tensor) -> np.ndarray:
    """Return a tensor's memory as uint8 ``[rows, bytes]``."""
    return tensor.reshape(len(tensor), -1).view(torch.uint8).numpy()


def in_a_row(numbers: np.ndarray) -> bool:
    """Whether each number is the one before plus one."""
    return bool(numbers[-1] - numbers[0] + 1 == len(numbers) and np.all(np.diff(numbers) == 1))


def _convert(out: Tensor, to: np.ndarray, values: Tensor) -> None:
    if in_a_row(to):
        out[int(to[0]) : int(to[-1]) + 1].copy_(values)
        return
    for place, value in zip(to.tolist(), values, strict=True):
        out[place].copy_(value)
