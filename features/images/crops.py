"""Unchanged crops cut out of labelled pairs: normal pairs, for training without labels."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from features.images.masks import read_mask
from features.images.pairs import PairRecord
from features.images.pixels import read_image, write_image
from headwater.errors import ConfigError, DataError
from headwater.spec import SIDES


def crop_name(pair: PairRecord, top: int, left: int) -> str:
    """Return the file name of a crop, from which `source_of` tells what it was cut out of."""
    return f"{pair.key.replace('/', '_')}@{top}_{left}.png"


def source_of(key: str) -> str:
    """Return the part of a crop's key that names the pair it was cut out of, empty if it is none.

    >>> source_of("train/train_board7@120_64"), source_of("train/board_7_3")
    ('train/train_board7', '')
    """
    found = re.fullmatch(r"(.+?)(?:@\d+_\d+)+", key)  # crops may have been cut again
    return found[1] if found else ""


def cut_normal_pairs(
    pairs: Sequence[PairRecord],
    out: Path,
    edge: int,
    *,
    per_pair: int = 4,
    margin: int = 0,
    seed: int = 0,
) -> list[Path]:
    """Cut crops in which nothing changed out of labelled pairs, for training without labels.

    Crops of a pair do not overlap; where they lie follows from the pair's key and `seed` alone.

    Parameters
    ----------
    pairs
        Pairs with masks and images of equal size; those without a mask, or smaller than the
        crop, give none.
    out
        ``current/`` and ``history/`` below it receive PNG files (TIFF where PNG lacks
        the depth) named ``<key>@<top>_<left>``: a folder that `scan_pairs` reads.
    edge
        Side of the square crops, pixels.
    per_pair
        Crops of a pair at most.
    margin
        Pixels around a crop that must be unchanged as well.

    Returns
    -------
    list of Path
        The current images written.

    Raises
    ------
    ConfigError
        A size, number or margin that cannot be.
    DataError
        Where no pair has room for a crop.

    Examples
    --------
    >>> from features.images.pairs import scan_pairs
    >>> crops = cut_normal_pairs(scan_pairs(Path("boards")).pairs, Path("crops"), 16, per_pair=1)
    >>> crops[0].parent.name, source_of(f"train/{crops[0].stem}")
    ('current', 'train/train_a')
    """
    if edge < 8 or per_pair < 1 or margin < 0:
        raise ConfigError(
            f"crops of {edge} px, {per_pair} per pair, margin {margin}",
            expected="at least 8 px, at least 1 per pair, a margin of 0 or more",
        )
    written = []
    for pair in pairs:
        sizes = {(image.width, image.height) for image in (pair.current, pair.history)}
        if pair.mask is None or len(sizes) > 1:
            continue
        draw = int(hashlib.sha256(f"{seed}:{pair.key}".encode()).hexdigest()[:16], 16)
        mask = read_mask(pair.mask, (pair.current.height, pair.current.width))
        corners = _free_squares(mask, edge, per_pair, margin, draw)
        for side in SIDES if corners else ():
            pixels = read_image(getattr(pair, side).path)
            for top, left in corners:
                path = out / side / crop_name(pair, top, left)
                path = write_image(pixels[top : top + edge, left : left + edge], path)
                if side == SIDES[0]:
                    written.append(path)
    if not written:
        raise DataError(
            f"none of {len(pairs)} pairs has an unchanged square of {edge} px",
            expected="pairs with masks and room for a crop",
            remedy="ask for smaller crops or a smaller margin",
        )
    return written


def _free_squares(
    mask: np.ndarray, edge: int, count: int, margin: int, draw: int
) -> list[tuple[int, int]]:
    """Return up to `count` disjoint squares without a marked pixel, drawn uniformly one by one."""
    height, width = mask.shape
    if height < edge or width < edge:
        return []
    taken = np.pad(mask, margin).astype(np.int32)
    rng, found = np.random.default_rng(draw), []
    for _ in range(count):
        area = np.pad(taken.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        span = edge + 2 * margin
        inside = (
            area[span:, span:] - area[:-span, span:] - area[span:, :-span] + area[:-span, :-span]
        )
        free = np.flatnonzero(inside == 0)
        if not free.size:
            break
        top, left = np.unravel_index(rng.choice(free), inside.shape)
        found.append((int(top), int(left)))
        # In the padded frame the square itself begins `margin` further on.
        rows = slice(int(top) + margin, int(top) + margin + edge)
        taken[rows, int(left) + margin : int(left) + margin + edge] = 1
    return found


def cut_tiles(pairs: Sequence[PairRecord], out: Path, edge: int) -> tuple[list[Path], int]:
    """Cut pairs and their masks into a grid of square tiles, to test at the scale of the crops.

    Parameters
    ----------
    pairs
        Pairs of images of equal size.
    out
        ``current/``, ``history/`` and, of pairs that have one, ``mask/`` below it receive PNG
        or TIFF files named ``<key>@<top>_<left>``.
    edge
        Side of the tiles, pixels. What is left at the right and lower border is not cut.

    Returns
    -------
    tuple
        The current images written, and the number of pairs with a border that was left out.
    """
    written, partial = [], 0
    for pair in pairs:
        arrays = {side: read_image(getattr(pair, side).path) for side in SIDES}
        height, width = arrays["current"].shape[:2]
        if arrays["history"].shape[:2] != (height, width) or min(height, width) < edge:
            partial += 1
            continue
        partial += bool(height % edge or width % edge)
        if pair.mask is not None:
            arrays["mask"] = read_mask(pair.mask, (height, width)).astype(np.uint8) * 255
        for top in range(0, height - edge + 1, edge):
            for left in range(0, width - edge + 1, edge):
                name = crop_name(pair, top, left)
                paths = {
                    side: write_image(
                        pixels[top : top + edge, left : left + edge], out / side / name
                    )
                    for side, pixels in arrays.items()
                }
                written.append(paths["current"])
    return written, partial
