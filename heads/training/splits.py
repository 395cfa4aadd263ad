"""Which images are held out: by content, so that the choice stays as others arrive."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

from headwater.errors import DataError


def split_held_out(
    ids: Sequence[str], fraction: float = 0.1, minimum: int = 2
) -> tuple[list[int], list[int]]:
    """Split rows into those to train on and those held out, by content hash.

    An image's side depends on its own id, so it stays where it is as other images arrive, as long
    as the fraction alone holds out `minimum` images. All rows (views) of an image fall together.

    Parameters
    ----------
    ids
        Image identity of each row, repeats allowed.
    fraction
        Share of images to hold out, on average.
    minimum
        Hold out at least this many images; never more than half of them where there are few.

    Returns
    -------
    train_rows, held_rows
        Row numbers in ascending order.

    Raises
    ------
    DataError
        Where there are fewer than two images.

    Examples
    --------
    >>> train_rows, held_rows = split_held_out(["c", "c", "a", "b", "d"])
    >>> held_rows
    [0, 1, 4]
    """
    # The prefix makes the draw independent of other uses of the image hash (a test split, say).
    place = {i: hashlib.sha256(f"held-out:{i}".encode()).digest() for i in set(ids)}
    order = sorted(place, key=place.__getitem__)
    if len(order) < 2:
        raise DataError(
            f"{len(order)} normal image(s) to train on",
            expected="at least 2: one to learn from and one to hold out",
            remedy="add normal images",
        )
    drawn = sum(int.from_bytes(place[i][:8], "big") < fraction * 2**64 for i in order)
    # A fraction of 10 % can by bad luck hold out most of three images: not more than half,
    # unless more was asked for.
    most = max(1, math.floor(len(order) * max(0.5, min(fraction, 0.9))))
    held = set(order[: min(max(drawn, minimum), most)])
    train_rows = [row for row, i in enumerate(ids) if i not in held]
    return train_rows, [row for row, i in enumerate(ids) if i in held]
