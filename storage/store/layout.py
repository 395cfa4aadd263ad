"""How a store is laid out: names, dtypes, chunk sizes, codecs. docs/store-format.md says the same.

Nothing here touches a disk. A change of anything here that a reader would notice is a new
`FORMAT` number.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from headwater.errors import ConfigError
from headwater.spec import SIDES

FORMAT = 1
BRANCH = "main"
IMAGES = "images"
FEATURES = "features"

Compression = Literal["none", "lz4", "zstd"]

#: Rows per chunk of the image table and of the index arrays: a commit rewrites one such chunk.
COLUMN_ROWS = 8192
#: Chunks of feature maps aim at this many bytes before compression.
CHUNK_BYTES = 4 * 1024 * 1024
#: Small maps would otherwise gather so many images in a chunk that shuffling becomes coarse.
MAX_CHUNK_ROWS = 256
#: Statistics blocks per chunk.
BLOCK_ROWS = 64

#: Columns of the image table: ``name -> (zarr dtype, shape of one row, dimension names)``.
COLUMNS: dict[str, tuple[str, tuple[int, ...], tuple[str, ...]]] = {
    "sha256": ("uint8", (32,), ("image", "byte")),
    "path": ("string", (), ("image",)),
    "split": ("string", (), ("image",)),
    "kind": ("string", (), ("image",)),
    "mask": ("string", (), ("image",)),
    "width": ("int32", (), ("image",)),
    "height": ("int32", (), ("image",)),
    "added_at": ("int64", (), ("image",)),
    "removed_at": ("int64", (), ("image",)),
}

#: What `statistics` holds along its second dimension, per channel over the rows of a block.
STATISTICS = ("mean", "variance", "minimum", "maximum")

#: Stored dtype of a specification -> numpy dtype on disk. bfloat16 has no Zarr dtype: bit patterns.
DISK_DTYPE: dict[str, np.dtype[Any]] = {
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
    "float32": np.dtype("<f4"),
}

_SET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class StoreOptions:
    """Choices that apply to layers created from now on; stored layers keep theirs.

    Parameters
    ----------
    compression
        ``none``, ``lz4`` or ``zstd`` (both through Blosc with byte shuffling). Float maps shrink by
        a tenth or two and are read several times slower, so none is the default.
    chunk_bytes
        Size aimed at for a chunk, before compression.
    """

    compression: Compression = "none"
    chunk_bytes: int = CHUNK_BYTES

    def __post_init__(self) -> None:
        if self.compression not in ("none", "lz4", "zstd"):
            raise ConfigError(
                f"store compression {self.compression!r}", expected="none, lz4 or zstd"
            )
        if self.chunk_bytes < 1:
            raise ConfigError(f"chunk_bytes {self.chunk_bytes}", expected="a positive number")


def side_name(image_set: str, side: str) -> str:
    """Return the image set of one side of a set of pairs; no other set can have this name."""
    return f"{image_set}.{side}"


def side_of(name: str) -> tuple[str, str]:
    """Return ``(set of pairs, side)`` of a side's name, ``(name, "")`` of any other."""
    base, dot, side = name.rpartition(".")
    return (base, side) if dot and side in SIDES else (name, "")


def check_set_name(name: str, *, sides: bool = False) -> str:
    """Return `name`; `ConfigError` where it cannot name an image set.

    It names a folder, a bucket's prefix and an MLflow experiment; the dot is kept for models, which
    are called ``SET.HEAD``, and, with `sides`, for the two sides of a set of pairs.
    """
    if not _SET_NAME.fullmatch(side_of(name)[0] if sides else name):
        raise ConfigError(
            f"image set name {name!r}",
            expected="letters, digits, - and _ (at most 64, beginning with a letter or digit)",
        )
    return name


def chunk_rows(row_bytes: int, chunk_bytes: int = CHUNK_BYTES) -> int:
    """Return rows per chunk: the power of two whose bytes are nearest to `chunk_bytes`.

    Powers of two make the chunks of one layer nest in those of another, so that a run of rows
    that is whole chunks in the layer with the smallest maps is whole chunks in all of them.
    """
    rows = 2 ** round(math.log2(max(1.0, chunk_bytes / max(1, row_bytes))))
    return int(min(max(rows, 1), MAX_CHUNK_ROWS))


def compressors(compression: Compression, itemsize: int) -> Any:
    """Return the Zarr codecs of a map array; None stores the bytes as they are."""
    if compression == "none":
        return None
    from zarr.codecs import BloscCodec

    return BloscCodec(
        cname=compression,
        clevel=5 if compression == "lz4" else 3,
        shuffle="shuffle",
        typesize=itemsize,
    )


def column_codec() -> Any:
    """Return the codec of columns and indexes: zstd with its own checksum."""
    from zarr.codecs import ZstdCodec

    return ZstdCodec(level=3, checksum=True)
