"""Small images for tests of the features: noise, and files that are not what they seem."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image


def save(path: Path, pixels: np.ndarray, **kw: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **kw)
    return path


def noise(seed: int, shape: tuple[int, ...] = (20, 24, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png(pixels: np.ndarray, bits: int, colour: int) -> bytes:
    """A PNG of rows of bytes ``[H, n]``, as its header says they are to be read."""
    height, width = pixels.shape[:2]
    rows = {8: pixels.astype(np.uint8), 16: pixels.astype(">u2")}.get(bits)
    packed = pixel_bits(pixels, bits) if rows is None else rows
    raw = b"".join(b"\0" + row.tobytes() for row in packed)
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*part) for part in parts)


def png16(pixels: np.ndarray) -> bytes:
    """A PNG of 16 bits: grey, grey with alpha, RGB or RGBA by the channels."""
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    return png(pixels, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels])


def png_of_bits(pixels: np.ndarray, bits: int) -> bytes:
    """A grey PNG of 1, 2 or 4 bits."""
    return png(pixels, bits, 0)


def pixel_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """Pack ``[H, n]`` numbers of so many bits into bytes, a row at a time."""
    ones = (values[..., None].astype(np.int64) >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(ones.reshape(len(values), -1).astype(np.uint8), axis=1)


def tiff(pixels: np.ndarray, **how: object) -> bytes:
    """A TIFF as tifffile writes it."""
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, metadata=None, **how)
    return file.getvalue()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(path: Path, side: int) -> None:
    """A PNG whose header claims side x side pixels; a few hundred bytes."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(b"\0" * 99))
    )


def save_pairs(folder: Path) -> Path:
    """Save four pairs, of which b's images are the same and the others show a change."""
    rng = np.random.default_rng(0)
    template = rng.integers(0, 255, (40, 50), dtype=np.uint8)
    for split, names in (("train", "abc"), ("test", "d")):
        for name in names:
            mask = np.zeros((40, 50), np.uint8)
            current = template.copy()
            if name != "b":
                mask[3:6, 4:9] = 255
                current[3:6, 4:9] = rng.integers(0, 255, (3, 5))
            save(folder / split / "current" / f"{name}.png", current)
            save(folder / split / "history" / f"{name}.png", template)
            save(folder / split / "mask" / f"{name}.png", mask)
    return folder
