"""JPEGs of which a part is missing: libjpeg only warns, and paints the rest grey.

A copy that was cut, a full disk, a camera that lost its link: the file may have the right length
and end, and yet hold half a picture. libjpeg-turbo tells by its warnings, which Pillow drops;
`simplejpeg` gives them. An image is decoded at an eighth of its size for this, so that it costs
little more than undoing the entropy code.
"""

from __future__ import annotations

import re

import simplejpeg

#: Warnings that mean lost data; others are about headers that odd encoders write.
_LOST = re.compile(r"Corrupt JPEG data|Premature end|Inconsistent progression")
_PADDED = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9")
#: Bytes between the picture and its end marker that cameras leave; more are a part of a picture.
_PADDING = 4
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)
_SOF, _PROGRESSIVE = (
    (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC)),
    (0xC2, 0xC6, 0xCA),
)
_SOS, _EOI, _BARE = 0xDA, 0xD9, (0x01, 0xD8, *range(0xD0, 0xD8))


def what_is_missing(data: bytes) -> str:
    """Return why a JPEG is not whole, or nothing; what libjpeg cannot decode at all is Pillow's.

    Not whole are: entropy-coded data that end early, break off or do not fit their markers; a
    progressive image whose scans do not bring the lightness, and the mean colours, to the last bit.
    """
    for _ in range(2):
        found = _warning(data)
        padding = _PADDED.search(found)
        end = data.rfind(b"\xff\xd9")
        if not padding or int(padding[1]) > _PADDING or end < 0:
            break
        # Told last, it may hide what was told before: asked again without these bytes.
        data = data[: end - int(padding[1])] + b"\xff\xd9"
    if _LOST.search(found):
        return f"a part of it is missing ({found[0].lower()}{found[1:]})"
    return "it has only the first of its progressive scans" if _few_scans(data) else ""


def _warning(data: bytes) -> str:
    """Return the last warning or error of libjpeg-turbo."""
    for space in ("GRAY", "CMYK"):
        try:
            simplejpeg.decode_jpeg(data, space, True, True, 1, 1, 8)
        except ValueError as error:
            text = str(error)
            if space == "GRAY" and not _LOST.search(text):
                continue  # CMYK cannot become grey
            return text
        return ""
    return text


def _few_scans(data: bytes) -> bool:
    """Return whether a progressive JPEG lacks scans.

    Of the first component, the lightness, each coefficient has to reach bit 0, of the others the
    mean: an encoder may leave out chroma's that are all 0.
    """
    bits: dict[tuple[int, int], int] = {}
    at = 2
    while (found := _MARKER.search(data, at)) is not None:
        code, at = found[1][0], found.end()
        if code == _EOI:
            break
        if code in _BARE:
            continue
        length = int.from_bytes(data[at : at + 2], "big")
        body = data[at + 2 : at + length]
        if code in _SOF:
            if code not in _PROGRESSIVE:
                return False
            parts = list(body[6 : 6 + 3 * body[5] : 3])
            bits = {(parts[0], k): 16 for k in range(64)} | {(part, 0): 16 for part in parts}
        elif code == _SOS and body:
            count = body[0]
            first, last, low = body[1 + 2 * count], body[2 + 2 * count], body[3 + 2 * count] & 15
            for part in body[1 : 1 + 2 * count : 2]:
                bits |= {(part, k): low for k in range(first, last + 1) if (part, k) in bits}
        at += length
    return any(bits.values())
