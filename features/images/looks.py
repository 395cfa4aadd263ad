"""What an image shows, whatever its bytes: the same picture saved again, and nearly the same.

A picture in the training and in the test set makes figures too good. That files have the same bytes
is seen by their hash; one that was saved in another format has the same pixels, and one that was
compressed or scaled nearly the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

#: Rows and columns of what an image looks like.
SIDE = 16
#: Two images show the same picture from this correlation on, of what sets them apart from their
#: set. Copies saved as JPEG of quality 40 to 85, at half the size, or with noise of 4 grey levels
#: reach .996 to 1.000; different images of three real sets at most .995.
SAME = 0.997
#: Images without which nothing is said: among few, what sets one apart is little.
AT_LEAST = 10
#: Products at a time: bounds the memory of `near_copies`.
_CHUNK = 1 << 22


def pixels_digest(pixels: NDArray[np.generic]) -> str:
    """Return what images of the same pixels share: 32 hexadecimal digits.

    Examples
    --------
    >>> black = np.zeros((2, 3), np.uint8)
    >>> pixels_digest(black) == pixels_digest(black.T)
    False
    """
    found = hashlib.sha256(f"{pixels.shape} {pixels.dtype}".encode())
    found.update(np.ascontiguousarray(pixels).data)
    return found.hexdigest()[:32]


def look_of(pixels: NDArray[np.generic]) -> bytes:
    """Return what an image looks like from afar: the means of a grid of `SIDE` x `SIDE` places.

    Parameters
    ----------
    pixels
        ``[H, W]`` or ``[H, W, 3]``, any depth, at least 1 pixel a side.

    Returns
    -------
    bytes
        ``[SIDE, SIDE]`` float16 of grey values, 0 in the middle of 8 bits; of more bits the upper 8
        before the point.

    Examples
    --------
    >>> np.frombuffer(look_of(np.full((40, 30), 7, np.uint8)), np.float16)[:2].tolist()
    [-121.0, -121.0]
    """
    height, width = pixels.shape[:2]
    rows = _shares(height) @ np.asarray(pixels, np.float32).reshape(height, -1)
    places = _shares(width) @ rows.reshape(SIDE, width, -1)
    grey = np.nan_to_num(places.mean(axis=2)) / (1 if pixels.dtype == np.uint8 else 256) - 128
    return grey.clip(-60_000, 60_000).astype(np.float16).tobytes()


@lru_cache(maxsize=64)
def _shares(length: int) -> NDArray[np.float32]:
    """Return what each of `length` pixels has of the mean of each place, ``[SIDE, length]``.

    Pixels on a border are divided, so that a picture at another scale has the same means.
    """
    edges = np.arange(SIDE + 1) * length / SIDE
    at = np.arange(length)
    low, high = np.maximum(edges[:-1, None], at), np.minimum(edges[1:, None], at + 1)
    return (np.maximum(high - low, 0) * SIDE / length).astype(np.float32)


def near_copies(
    tested: Sequence[bytes], trained: Sequence[bytes], alike: float = SAME
) -> list[tuple[int, int, float]]:
    """Return which tested images show a picture that was trained on.

    What all images of a set have in common says nothing: the mean of every place is taken off, and
    its deviation divided out, before two images are correlated. Of fewer than `AT_LEAST`
    images nothing is said.

    Parameters
    ----------
    tested, trained
        As of `look_of`.
    alike
        Least correlation.

    Returns
    -------
    list
        ``(number of the tested, number of the trained one most alike, their correlation)``, the
        most alike first.
    """
    if not tested or not trained or len(tested) + len(trained) < AT_LEAST:
        return []
    looks = np.stack([np.frombuffer(x, np.float16) for x in (*tested, *trained)]).astype(np.float32)
    looks -= looks.mean(0)
    spread = looks.std(0)
    # Beyond the third digit a grey level is compression and noise.
    looks = looks[:, spread > 1e-3 * max(1.0, float(spread.max()))]
    looks /= np.maximum(looks.std(0), 1e-30)
    looks /= np.maximum(np.linalg.norm(looks, axis=1, keepdims=True), 1e-30)
    ours, others = looks[: len(tested)], looks[len(tested) :]
    found = []
    step = max(1, _CHUNK // len(others))
    for low in range(0, len(ours), step):
        products = ours[low : low + step] @ others.T
        best = products.argmax(axis=1)
        value = products[np.arange(len(best)), best]
        found += [
            (low + int(i), int(best[i]), float(value[i])) for i in np.nonzero(value >= alike)[0]
        ]
    return sorted(found, key=lambda one: (-round(one[2], 6), one[0]))
