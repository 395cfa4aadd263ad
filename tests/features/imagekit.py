"""Small images for tests of the features: noise, and files that are not what they seem."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def save(path: Path, pixels: np.ndarray, **kw: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **kw)
    return path


def noise(seed: int, shape: tuple[int, ...] = (20, 24, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def bomb(path: Path, side: int) -> None:
    """A PNG whose header claims side x side pixels; a few hundred bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99))
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
