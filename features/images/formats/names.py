"""What a file's format is called, by its bytes: no name from outside is asked."""

from __future__ import annotations

_BEGINNINGS = (
    (b"\x89PNG", ".png"),
    (b"\xff\xd8", ".jpg"),
    (b"BM", ".bmp"),
    (b"II", ".tif"),
    (b"MM", ".tif"),
    (b"RIFF", ".webp"),
    (b"P", ".pnm"),
)


def suffix_of(content: bytes) -> str:
    r"""Return the suffix of the format of an image that could be decoded.

    Raises
    ------
    ValueError
        For bytes that begin as no format that is read.

    Examples
    --------
    >>> suffix_of(b"\x89PNG\r\n"), suffix_of(b"P6 1 1 255 abc")
    ('.png', '.pnm')
    """
    for begin, suffix in _BEGINNINGS:
        if content.startswith(begin):
            return suffix
    raise ValueError("no image")
