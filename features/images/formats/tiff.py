"""TIFF pages that Pillow would cut to 8 bits or misread: any depth, planes, packed bits.

libtiff, through Pillow, undoes tiles and compression: it is told that a page is bytes, and the
bytes are made numbers here. Tags are read by tifffile, which knows what Pillow has no mode for.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass

import numpy as np
import tifffile
from PIL import Image

from headwater.errors import ImageError

#: What `Page.pixels` can read; JPEG and fax codes are of 8 bits and fewer.
_COMPRESSIONS = {
    1: "raw",
    5: "LZW",
    8: "deflate",
    32773: "packbits",
    32946: "deflate",
    50000: "zstd",
}
_COMPRESSIONS |= {34925: "LZMA"}
_UINT, _INT, _FLOAT = 1, 2, 3
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
#: How to turn rows and columns for each orientation: (swapped, upside down, mirrored).
_TURNS = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


@dataclass(frozen=True)
class Page:
    """One picture of a TIFF file.

    Parameters
    ----------
    data
        The file.
    number, of
        Which of how many pages.
    tags
        Of the page.
    order
        ``<`` or ``>``, the file's order of bytes.
    """

    data: bytes
    number: int
    of: int
    tags: tifffile.TiffPage
    order: str

    @classmethod
    def largest(cls, data: bytes) -> Page:
        """Return the page with the most pixels, the first of several: others are thumbnails.

        Raises whatever tifffile does where there is none.
        """
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            pages = [page.aspage() for page in file.pages]
            sizes = [p.imagewidth * p.imagelength for p in pages]
            number = sizes.index(max(sizes))
            return cls(data, number, len(pages), pages[number], file.byteorder)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, before any turning."""
        return self.tags.imagewidth, self.tags.imagelength

    @property
    def channels(self) -> int:
        """Samples a pixel, alpha included."""
        return self.tags.samplesperpixel

    @property
    def plain(self) -> bool:
        """Whether Pillow reads it as it is: up to 8 bits, whole numbers, not in planes."""
        t = self.tags
        small = t.bitspersample <= 8 and int(t.sampleformat or 1) in (_UINT, 4)
        planes = int(t.planarconfig or 1) == 2 and t.samplesperpixel > 1
        return small and not (planes and t.bitspersample == 8 and self._readable)

    @property
    def _readable(self) -> bool:
        return int(self.tags.compression) in _COMPRESSIONS

    def pixels(self, name: str) -> tuple[np.ndarray, int]:
        """Decode a page that is not `plain`.

        Counts of other than 8, 16 and 32 bits become 16-bit ones of the same share of white, so
        that 4095 of 12 bits is 65535; where zero is white they are turned round.

        Returns
        -------
        tuple
            ``[H, W]`` or ``[H, W, C]`` uint8, uint16, int32, uint32, or floats; and how alpha is
            meant: 0 none, 1 multiplied already, 2 not.

        Raises
        ------
        ImageError
            For other numbers of channels than 1 and 3 (with alpha 2 and 4), colour spaces but grey
            and RGB, and compressions that are not known.
        """
        t = self.tags
        photometric, extra = int(t.photometric), [int(e) for e in t.extrasamples]
        alpha = next((e for e in extra if e in (1, 2)), 0)
        colours = self.channels - len(extra)
        grey = photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO)
        if t.imagedepth > 1 or len(extra) > 1 or colours != (1 if grey else 3):
            raise ImageError(
                f"{name}: {self.channels} channels", expected="grey or RGB, with or without alpha"
            )
        if not grey and photometric != _RGB:
            raise ImageError(
                f"{name}: {t.bitspersample}-bit {tifffile.PHOTOMETRIC(photometric).name}",
                expected="grey or RGB",
            )
        if not self._readable:
            how = tifffile.COMPRESSION(t.compression).name
            raise ImageError(
                f"{name}: {t.bitspersample}-bit pixels compressed by {how}",
                expected=", ".join(dict.fromkeys(_COMPRESSIONS.values())),
            )
        planes = self.channels if int(t.planarconfig or 1) == 2 else 1
        parts = [self._plane(p, planes, self.channels // planes) for p in range(planes)]
        made = np.concatenate(parts, axis=2) if planes > 1 else parts[0]
        made = made[..., : colours + bool(alpha)]
        if photometric == _WHITE_IS_ZERO and made.dtype.kind == "u":
            made = np.iinfo(made.dtype).max - made
        orientation = t.tags.get(274)
        made = _turned(made, int(orientation.value) if orientation else 1)
        return (made[..., 0] if made.shape[2] == 1 else made), alpha

    def _plane(self, plane: int, planes: int, channels: int) -> np.ndarray:
        """Return ``[H, W, channels]`` of a plane, or of a page that has none."""
        t, (width, height) = self.tags, self.size
        tiled, bits = t.is_tiled, t.bitspersample
        across = -(-width // t.tilewidth) * t.tilewidth if tiled else width
        row = -(-across * channels * bits // 8)
        offsets, counts = list(t.dataoffsets), list(t.databytecounts)
        part = len(offsets) // planes
        pick = slice(plane * part, (plane + 1) * part)
        lane = -(-t.tilewidth * channels * bits // 8) if tiled else row
        shape = (
            [(322, 4, [lane]), (323, 4, [t.tilelength])] if tiled else [(278, 4, [t.rowsperstrip])]
        )
        where, many = (324, 325) if tiled else (273, 279)
        tags = [(256, 4, [row]), (257, 4, [height]), (258, 3, [8])]
        tags += [(259, 3, [int(t.compression)]), (262, 3, [1]), (277, 3, [1])]
        tags += [*shape, (where, 4, offsets[pick]), (many, 4, counts[pick])]
        if fill := t.tags.get(266):
            tags.append((266, 3, [int(fill.value)]))
        with Image.open(io.BytesIO(_with_directory(self.data, tags)), formats=("TIFF",)) as image:
            raw = np.asarray(image)
        numbers = self._numbers(raw.reshape(height, -1, lane), channels)
        return numbers.reshape(height, -1, channels)[:, :width]

    def _numbers(self, raw: np.ndarray, channels: int) -> np.ndarray:
        """Make bytes ``[H, lanes, bytes]`` numbers ``[H, lanes, pixels * channels]``."""
        t, predictor = self.tags, int(self.tags.predictor or 1)
        kind, bits = int(t.sampleformat or 1), t.bitspersample
        if bits not in (8, 16, 32, 64):
            return _unpacked(raw, bits, (t.tilewidth if t.is_tiled else t.imagewidth) * channels)
        letter = {_UINT: "u", _INT: "i", _FLOAT: "f", 4: "u"}.get(kind)
        if letter is None or (letter == "f" and bits == 8):
            raise ValueError(f"{bits}-bit numbers of TIFF's format {kind}")
        size = bits // 8
        if predictor == 3:
            steps = raw.reshape(*raw.shape[:2], -1, channels)
            sums = np.cumsum(steps, axis=2, dtype=np.uint8).reshape(*raw.shape[:2], size, -1)
            return np.ascontiguousarray(np.swapaxes(sums, 2, 3)).view(f">f{size}")[..., 0]
        # Differences are of whole numbers, of floats' bits too.
        whole = np.ascontiguousarray(raw).view(f"{self.order}u{size}").astype(f"u{size}")
        if predictor == 2:
            steps = whole.reshape(*whole.shape[:2], -1, channels)
            whole = np.cumsum(steps, axis=2, dtype=whole.dtype).reshape(whole.shape)
        return whole.view(f"{letter}{size}")


def _unpacked(raw: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Return the numbers of `bits` bits, `count` a lane, as 16-bit ones of the same share."""
    if bits > 16:
        raise ValueError(f"{bits}-bit numbers; up to 16 bits, or 32 or 64, are read")
    flat = np.unpackbits(raw, axis=-1)[..., : count * bits].reshape(*raw.shape[:2], count, bits)
    values = flat @ (1 << np.arange(bits - 1, -1, -1, dtype=np.uint32))
    white = (1 << bits) - 1
    return ((values * 65535 + white // 2) // white).astype(np.uint16)


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    swapped, down, mirrored = _TURNS.get(orientation, (False, False, False))
    pixels = np.swapaxes(pixels, 0, 1) if swapped else pixels
    pixels = pixels[::-1] if down else pixels
    return np.ascontiguousarray(pixels[:, ::-1] if mirrored else pixels)


def _with_directory(data: bytes, tags: list[tuple[int, int, list[int]]]) -> bytes:
    """Return the file with another, single directory of tags, appended."""
    at = len(data) + len(data) % 2
    fields, far = b"", at + 2 + 12 * len(tags) + 4
    spill = b""
    for tag, kind, values in sorted(tags):
        body = struct.pack("<" + ("H" if kind == 3 else "I") * len(values), *values)
        if len(body) > 4:
            fields += struct.pack("<HHII", tag, kind, len(values), far + len(spill))
            spill += body + b"\0" * (len(body) % 2)
        else:
            fields += struct.pack("<HHI", tag, kind, len(values)) + body.ljust(4, b"\0")
    # BigTIFF's longer header lies before its first strip as well: 8 bytes of it are enough.
    start = b"II*\0" + struct.pack("<I", at) + data[8:]
    return b"".join(
        (start, b"\0" * (at - len(data)), struct.pack("<H", len(tags)), fields, bytes(4), spill)
    )
