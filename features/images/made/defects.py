"""Made defects: drawn into a normal picture at its own resolution and depth, with their mask.

They stand in for real ones where something must be tried and there are none: that a model finds
anything at all, that a model trained anew finds what the one before it found. They are no measure
of how well real defects are found, and choose nothing (docs/benchmarks.md#made-defects).

- ``paste``: a piece of the picture, or of another, at another place (Li et al., "CutPaste", 2021);
- ``texture``: places of Perlin noise covered by another texture (Zavrtanik et al., "DRAEM", 2021);
- ``scratch``: a bent, unsteady line, pale or dark, with a shaded lip;
- ``missing``: a part that is not there: what is seen is flat, or the picture's own background;
- ``stain``: something was spilt: the surface shows through, darkest at the rim.

The kinds of `heads.gallery.synthetic` are made in feature maps, not in pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from features.images.made import shapes
from features.images.made.shapes import Cover
from features.images.made.tones import Tones
from features.images.pixels import read_image
from headwater.errors import ConfigError, DataError

KINDS = ("paste", "texture", "scratch", "missing", "stain")
#: Side of a kind's window, as shares of the picture's shorter side.
_SIDES = {
    "paste": (0.1, 0.35),
    "texture": (0.15, 0.45),
    "scratch": (0.2, 0.7),
    "missing": (0.1, 0.3),
    "stain": (0.1, 0.32),
}
#: Draws until one is seen well enough; then the best of them is taken.
_TRIES = 12
#: The usual contrast of a defect: it is seen by who looks closely.
SEEN = 1.0
#: Less coverage than this changes nothing.
_LEAST = 0.06


@dataclass(frozen=True)
class MadeDefect:
    """A picture with a made defect.

    Parameters
    ----------
    image
        Of the shape and depth of the normal one.
    mask
        ``[H, W]`` bool: exactly the pixels that are not those of the normal one.
    kind
        One of `KINDS`.
    source
        Number of the normal picture among those given.
    """

    image: NDArray[Any]
    mask: NDArray[np.bool_]
    kind: str
    source: int = 0


def make_defect(
    image: NDArray[Any],
    kind: str,
    rng: np.random.Generator,
    *,
    other: NDArray[Any] | None = None,
    roi: NDArray[np.bool_] | None = None,
    size: float = 1.0,
    contrast: float = SEEN,
) -> MadeDefect:
    """Draw a defect into a normal picture.

    Parameters
    ----------
    image
        ``[H, W]`` or ``[H, W, 3]`` uint8, uint16 or float32, as `read_image` gives it.
    kind
        One of `KINDS`.
    rng
        Source of all randomness.
    other
        A picture of the same depth from which ``paste`` takes its piece; without it from `image`.
    roi
        ``[H, W]`` bool: where something may be drawn.
    size
        How large the defect is, against the usual.
    contrast
        Mean change of what is covered, in deviations of the picture around it: draws are repeated
        until one has it, a dozen times; then it is the plainest of them.

    Raises
    ------
    ConfigError
        A kind that is none.
    DataError
        Where there is no room for it: a region of interest of next to nothing.

    Examples
    --------
    >>> normal = np.full((64, 64), 90, np.uint8)
    >>> made = make_defect(normal, "scratch", np.random.default_rng(0))
    >>> made.image.dtype, bool(((made.image != normal) == made.mask).all())
    (dtype('uint8'), True)
    """
    if kind not in KINDS:
        raise ConfigError(f"made defect {kind!r}", expected=f"one of {', '.join(KINDS)}")
    if roi is not None and not roi.any():
        raise DataError("an empty region of interest", expected="somewhere to look")
    deep = image if image.ndim == 3 else image[:, :, None]
    tones = Tones.of(deep, roi)
    best: tuple[float, Any] | None = None
    for _ in range(_TRIES):
        side, at = _window(deep, kind, rng, roi, size)
        here = tuple(slice(a, a + side) for a in at)
        old = np.nan_to_num(
            deep[here].astype(np.float64),
            nan=tones.limits[0], posinf=tones.limits[1], neginf=tones.limits[0],
        )  # fmt: skip
        if other is not None and kind == "paste":
            piece = _piece(other if other.ndim == 3 else other[:, :, None], side, rng)
        else:
            piece = _piece(deep, side, rng)
        new, cover = _painted(kind, old, piece, tones, rng, foreign=other is not None)
        cover = np.where(cover < _LEAST, 0, cover)
        if roi is not None:
            cover = cover * roi[here]
        if not (cover > 0.5).any():
            continue
        changed = np.abs(new - old).mean(axis=2)[cover > 0.5].mean()
        around = max(float(old.mean(axis=2).std()), tones.grain, tones.spread / 12)
        if best is None or changed / around > best[0]:
            best = changed / around, (here, old, new, cover)
        if best[0] >= contrast:
            break
    if best is None:
        raise DataError(
            f"no room for a made defect ({kind})",
            expected="a region of interest that holds one",
            remedy="give a larger region, or another picture",
        )
    here, old, new, cover = best[1]
    drawn, mask = deep.copy(), np.zeros(deep.shape[:2], bool)
    mask[here] = cover > 0
    drawn[here] = _written(deep[here], old + cover[..., None] * (new - old), mask[here], tones)
    return MadeDefect(drawn if image.ndim == 3 else drawn[:, :, 0], mask, kind)


def made_defects(
    pictures: Sequence[NDArray[Any] | Path],
    count: int,
    seed: int,
    *,
    kinds: Sequence[str] = KINDS,
    rois: Sequence[NDArray[np.bool_] | None] | NDArray[np.bool_] | None = None,
) -> Iterator[MadeDefect]:
    """Yield made defects in given normals, the kinds and the pictures in turn.

    Each depends on the seed, its number and the pictures alone: of a longer series the first are
    the same.

    Parameters
    ----------
    pictures
        As `make_defect` takes them, or files, which are read when it is their turn.
    count
        How many.
    seed
        Decides everything.
    kinds
        Of `KINDS`.
    rois
        The region of interest of each picture, or one for all.

    Raises
    ------
    ConfigError, DataError
        As `make_defect` does; for no pictures.
    ImageError
        For a file that cannot be read.
    """
    if not pictures:
        raise DataError("no normal pictures to draw defects into", expected="at least one")
    order = np.random.default_rng(seed).permutation(len(pictures))
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        at, kind = int(order[number % len(order)]), kinds[number % len(kinds)]
        roi = rois if rois is None or isinstance(rois, np.ndarray) else rois[at]
        other = None
        if kind == "paste" and len(pictures) > 1 and rng.random() < 0.5:
            other = _read(pictures[int(order[(number + 1) % len(order)])])
        picture = _read(pictures[at])
        if other is not None and (other.dtype != picture.dtype or other.ndim != picture.ndim):
            other = None
        made = make_defect(picture, kind, rng, other=other, roi=roi)
        yield MadeDefect(made.image, made.mask, kind, at)


def _read(picture: NDArray[Any] | Path) -> NDArray[Any]:
    return read_image(picture) if isinstance(picture, Path) else picture


def _window(
    image: NDArray[Any],
    kind: str,
    rng: np.random.Generator,
    roi: NDArray[np.bool_] | None,
    size: float,
) -> tuple[int, tuple[int, int]]:
    """Return the side of a square window, and its upper left corner."""
    height, width = image.shape[:2]
    shorter = min(height, width)
    side = round(float(rng.uniform(*_SIDES[kind])) * shorter * size)
    side = min(max(side, 8), shorter)
    y, x = rng.random(2) * (height, width)
    if roi is not None:
        inside = np.flatnonzero(roi)
        y, x = divmod(int(inside[int(rng.integers(inside.size))]), width)
    corner = [
        int(np.clip(round(float(c) - side / 2), 0, n - side)) for c, n in ((y, height), (x, width))
    ]
    return side, (corner[0], corner[1])


def _piece(image: NDArray[Any], side: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a square of a picture, turned, wherever it is; a smaller picture is mirrored."""
    short = [max(0, side - n) for n in image.shape[:2]]
    if any(short):
        image = np.pad(image, ((0, short[0]), (0, short[1]), (0, 0)), "symmetric")
    y, x = (int(rng.integers(0, n - side + 1)) for n in image.shape[:2])
    found = np.rot90(image[y : y + side, x : x + side], int(rng.integers(4))).astype(np.float64)
    return np.nan_to_num(found[:, :: rng.choice((1, -1))], posinf=0.0, neginf=0.0)


def _painted(
    kind: str,
    old: NDArray[np.float64],
    piece: NDArray[np.float64],
    tones: Tones,
    rng: np.random.Generator,
    *,
    foreign: bool,
) -> tuple[NDArray[np.float64], Cover]:
    """Return what a defect shows in a window, and how much of each pixel it covers."""
    side = len(old)
    noise = rng.normal(0, tones.grain, old.shape[:2])[..., None]
    if kind == "scratch":
        cover = shapes.line(side, max(2.0, rng.uniform(0.008, 0.024) * side), rng)
        # What was cut lies bare, pale or dark; light from above leaves its lower lip in the shade.
        room = tones.limits
        bare = (
            tones.high + rng.uniform(0.1, 0.5) * (room[1] - tones.high)
            if rng.random() < 0.6
            else tones.low - rng.uniform(0.1, 0.6) * (tones.low - room[0])
        )
        lip = np.clip(np.roll(cover, max(1, round(side / 120)), 0) - cover, 0, 1)
        new = (0.25 * old + 0.75 * bare + noise) * cover[..., None]
        new += (room[0] + (old - room[0]) * 0.55) * lip[..., None]
        both = np.clip(cover + lip, 0, 1)
        new /= np.maximum(cover + lip, 1e-9)[..., None]
        return new, both.astype(np.float32)
    if kind == "stain":
        cover = shapes.spot(side, rng, max(0.8, side * rng.uniform(0.01, 0.05)))
        rim = np.clip(cover - gaussian_filter(cover, side / 14), 0, 1)[..., None]
        gain = rng.uniform(0.45, 0.8) if rng.random() < 0.75 else rng.uniform(1.2, 1.5)
        floor = tones.limits[0]
        new = floor + (old - floor) * gain * tones.tint(rng, 0.12) * (1 - 0.4 * rim)
        return new, (cover * rng.uniform(0.75, 1)).astype(np.float32)
    if kind == "texture":
        cover = shapes.islands(side, rng)
        field = shapes.perlin((side, side), side / rng.uniform(5, 18), rng, 4)
        field = np.clip(0.5 + field * rng.uniform(0.5, 1), 0, 1)[..., None]
        dark, bright = tones.low, tones.high
        if rng.random() < 0.5:
            dark, bright = bright, dark
        drift = tones.spread * rng.uniform(-0.35, 0.35)
        new = (dark + field * (bright - dark)) * tones.tint(rng, 0.15) + drift + noise
        return new, (cover * rng.uniform(0.6, 1)).astype(np.float32)
    if kind == "missing":
        cover = shapes.corners(side, rng) if rng.random() < 0.4 else shapes.spot(side, rng)
        if rng.random() < 0.5:
            flat = np.broadcast_to(tones.border, old.shape)
        else:
            # What lies around, without what sets it apart.
            outside = (1 - cover)[..., None] + 1e-6
            blur = (side / 3, side / 3, 0)
            flat = gaussian_filter(old * outside, blur) / gaussian_filter(outside, blur)
        shade = np.clip(np.roll(cover, (-max(1, side // 20),) * 2, (0, 1)) - cover, -1, 0)
        depth = 1 + 0.45 * shade[..., None] * rng.uniform(0.3, 1)
        floor = tones.limits[0]
        return floor + (flat + 0.7 * noise - floor) * depth, cover
    cover = shapes.spot(side, rng, 0.7) if rng.random() < 0.6 else shapes.corners(side, rng)
    floor = tones.limits[0]
    new = floor + (piece - floor) * rng.uniform(0.85, 1.15)
    if not foreign:
        return new, cover
    # A piece of something else lies on the surface, and its shadow beside it.
    by = max(1, round(side / 24))
    lies = gaussian_filter(np.roll(cover, (by, by), (0, 1)), by / 1.5)
    shadow = np.clip(lies - cover, 0, 1)
    dim = floor + (old - floor) * 0.45
    both = np.clip(cover + shadow, 0, 1)
    new = (new * cover[..., None] + dim * shadow[..., None]) / np.maximum(cover + shadow, 1e-9)[
        ..., None
    ]
    return new, both.astype(np.float32)


def _written(
    before: NDArray[Any], values: NDArray[np.float64], mask: NDArray[np.bool_], tones: Tones
) -> NDArray[Any]:
    """Return values at a picture's depth, within its limits, each masked pixel another."""
    low, high = tones.limits
    values = np.clip(values, low, high)
    whole = np.issubdtype(before.dtype, np.integer)
    made = (np.rint(values) if whole else values).astype(before.dtype)
    same = mask & (made == before).all(axis=2)
    # By chance what is drawn is what was there: a step off, to where there is room.
    middle = (low + high) / 2
    aside = before[same].astype(np.float64)
    aside += np.where(aside.mean(axis=1, keepdims=True) < middle, tones.step, -tones.step)
    made[same] = aside.astype(before.dtype)
    return np.where(mask[..., None], made, before)
