"""Images and maps as text, as a served model takes and gives them: files in base64."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from features.images.pixels import tiff_bytes
from headwater.errors import ImageError

#: Longest base64 text taken for an image: files of 96 MiB.
_LONGEST = 1 << 27


def decode_base64(value: Any, name: str) -> bytes:
    """Return the bytes of base64 text (a ``data:`` URL's too); bytes are taken as they are.

    Raises
    ------
    ImageError
        For anything else, and for more than 96 MiB.
    """
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    expected = "the base64 of an image file"
    if not isinstance(value, str):
        raise ImageError(f"{name}: {type(value).__name__}", expected=expected)
    if len(value) > _LONGEST:
        raise ImageError(f"{name}: {len(value) >> 20} MiB of text", expected="at most 128 MiB")
    text = value.partition(",")[2] if value.startswith("data:") else value
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"{name}: {error}", expected=expected) from error


def encode_map(heat: NDArray[np.float32], kind: str = "png") -> str:
    """Return a map as base64 text: a 16-bit PNG between its lowest and highest value, or npy."""
    if kind == "none":
        return ""
    file = io.BytesIO()
    if kind == "npy":
        np.save(file, np.ascontiguousarray(heat, np.float32), allow_pickle=False)
    else:
        low, high = float(heat.min()), float(heat.max())
        part = (heat.astype(np.float64) - low) / ((high - low) or 1.0)
        Image.fromarray(np.rint(part * 65535).astype(np.uint16)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")


def decode_map(row: Mapping[str, Any]) -> NDArray[np.float32]:
    """Return the ``[H, W]`` map of an output row, from either format.

    Raises
    ------
    ImageError
        Where the row has no map.

    Examples
    --------
    >>> heat = np.array([[0, 1], [2, 65535]], np.float32)
    >>> decode_map({"map": encode_map(heat), "map_low": 0, "map_high": 65535}).tolist()
    [[0.0, 1.0], [2.0, 65535.0]]
    """
    data = base64.b64decode(row["map"])
    if data.startswith(b"\x93NUMPY"):
        return np.load(io.BytesIO(data), allow_pickle=False)
    if not data:
        raise ImageError("a row without a map", expected='parameter map="png" or "npy"')
    part = np.asarray(Image.open(io.BytesIO(data), formats=("PNG",)), np.float64) / 65535
    low, high = float(row["map_low"]), float(row["map_high"])
    return (low + part * (high - low)).astype(np.float32)


def encode_image(image: NDArray[Any]) -> str:
    """Return an image as the text that the model takes: a file in base64.

    ``[H, W, 3]`` uint8, or a mask, as a PNG, more bits (see `features.images.pixels.read_image`) as
    a TIFF.
    """
    if image.dtype not in (np.uint8, bool):
        return base64.b64encode(tiff_bytes(image)).decode("ascii")
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")
