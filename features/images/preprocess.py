"""From pixels to what the backbone sees: the same image and specification give the same tensor."""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from features.images.depth import levels
from features.images.masks import scaled
from headwater.errors import ConfigError
from headwater.geometry import Placement, place
from headwater.spec import ExtractorSpec, ViewSpec
from headwater.tiles import joined_size

_INTERPOLATIONS = ("bilinear", "bicubic")


def preprocess(image: np.ndarray, spec: ExtractorSpec) -> Tensor:
    """Resize, cut or pad (see `headwater.geometry.place`) and normalise.

    The resize is antialiased and works on 8-bit values, of images of more bits on what
    `features.images.depth.levels` makes of them with the specification's range. torch's is used
    because it gives Pillow's pixels exactly in a fifth of Pillow's time (0.5 against 2.3 ms for
    512 to 256 pixels).

    Parameters
    ----------
    image
        As `features.images.pixels.read_image` gives it: ``[H, W, 3]`` uint8, or ``[H, W]`` or
        ``[H, W, 3]`` of more bits.
    spec
        Range of values, size, crop, mean, standard deviation and interpolation.

    Returns
    -------
    torch.Tensor
        ``[3, h, w]`` float32, ``(h, w) = spec.input_size``.

    Examples
    --------
    >>> spec = ExtractorSpec("resnet18", "untrained:0", resize=(64, 64), crop=(56, 56))
    >>> preprocess(np.zeros((480, 640, 3), np.uint8), spec).shape
    torch.Size([3, 56, 56])
    """
    mean, std = _scale(spec.mean, spec.std)
    pixels = torch.from_numpy(_seen(image, spec)).permute(2, 0, 1)
    return torch.sub(pixels, mean).div_(std).contiguous()


@lru_cache(maxsize=16)
def _scale(mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    return torch.tensor(mean)[:, None, None] * 255, torch.tensor(std)[:, None, None] * 255


def picture(image: np.ndarray, spec: ExtractorSpec) -> np.ndarray:
    """Return the ``[h, w, 3]`` image that `preprocess` normalises, as uint8 to be shown.

    Padding has the colour that normalises to 0, as nearly as 8 bits can.
    """
    return _eight_bits(_seen(image, spec))


def _seen(image: np.ndarray, spec: ExtractorSpec) -> np.ndarray:
    """Return the image between black and white, resized, cut or padded: uint8, or float32."""
    if spec.interpolation not in _INTERPOLATIONS:
        raise ConfigError(
            f"interpolation {spec.interpolation!r}", expected=" or ".join(_INTERPOLATIONS)
        )
    where = place(image.shape[0], image.shape[1], spec)
    return _window(_scaled(image, where, spec), where, blank_colour(spec))


def _scaled(image: np.ndarray, where: Placement, spec: ExtractorSpec) -> np.ndarray:
    """Return the whole image between black and white, resized: uint8, or float32."""
    image = levels(image, spec.value_range)
    if image.shape[:2] == where.scaled:
        return image
    x = torch.from_numpy(image).permute(2, 0, 1)[None]
    x = F.interpolate(x, size=where.scaled, mode=spec.interpolation, antialias=True)
    image = x[0].permute(1, 2, 0).numpy()
    # bicubic goes beyond, which 8 bits cannot
    return image if image.dtype == np.uint8 else image.clip(0, 255)


def _eight_bits(seen: np.ndarray) -> np.ndarray:
    return seen if seen.dtype == np.uint8 else np.rint(seen).astype(np.uint8)


def own_picture(image: np.ndarray, spec: ExtractorSpec) -> np.ndarray:
    """Return the picture on which a map lies: the whole image, but of one squashed its crop.

    Of an image seen in tiles at the size of the joined map, else see `own_map`.
    """
    if spec.tiles is not None:
        size = joined_size(image.shape[0], image.shape[1])
        return _eight_bits(_scaled(image, Placement(size, 0, 0, size), spec))
    if spec.fitting == "squash":
        return picture(image, spec)
    return _eight_bits(_scaled(image, place(image.shape[0], image.shape[1], spec), spec))


def own_map(
    heat: np.ndarray, looked: np.ndarray | None, height: int, width: int, spec: ExtractorSpec
) -> tuple[np.ndarray, np.ndarray | None]:
    """Bring a map of the input back to its image's own geometry.

    An image that kept its aspect has a map of that aspect, without padding; where the image was
    cut off the map has its lowest value. One that was squashed has the input's map.

    Parameters
    ----------
    heat
        ``[h, w]`` at the input's size.
    looked
        ``[h, w]`` bool, or None for all.
    height, width
        Of the image, pixels.
    spec
        How the image was placed.

    Returns
    -------
    tuple
        The map, and which of its pixels were looked at, None for all.
    """
    if spec.fitting == "squash":
        return heat, looked
    where = place(height, width, spec)
    seen = np.zeros(where.scaled, bool)
    seen[where.shown] = True if looked is None else looked[where.filled]
    whole = np.full(where.scaled, heat.min(), heat.dtype)
    whole[where.shown] = heat[where.filled]
    return whole, None if seen.all() else seen


def map_to_image(heat: np.ndarray, height: int, width: int, spec: ExtractorSpec) -> np.ndarray:
    """Bring a map of the input to the pixels of its image, bilinearly.

    Parameters
    ----------
    heat
        ``[h, w]`` at the input's size; what is masked was not looked at and has no say.
    height, width
        Of the image, or of the image at another scale, pixels.
    spec
        How the image was placed.

    Returns
    -------
    numpy.ndarray
        ``[height, width]`` float32, a masked array where not all of the image was looked at.

    Examples
    --------
    >>> spec = ExtractorSpec("resnet18", "untrained:0", resize=(4, 4), crop=(2, 2))
    >>> int(map_to_image(np.ones((2, 2), np.float32), 8, 8, spec).count())
    16
    """
    where = place(height, width, spec)
    whole = np.zeros((2, *where.scaled), np.float32)
    seen = ~np.ma.getmaskarray(heat)[where.filled]
    whole[0][where.shown] = np.where(seen, np.ma.getdata(heat)[where.filled], 0)
    whole[1][where.shown] = seen
    looked = whole[1]
    if where.scaled != (height, width):
        x = torch.from_numpy(whole)[None]
        whole = F.interpolate(x, (height, width), mode="bilinear", antialias=True)[0].numpy()
        looked = F.interpolate(x[:, 1:], (height, width), mode="nearest-exact")[0, 0].numpy()
    values, share = whole
    if seen.all() and seen.shape == where.scaled:
        return values
    return np.ma.masked_array(values / np.maximum(share, 1e-6), looked == 0)


def blank_colour(spec: ExtractorSpec) -> np.ndarray:
    """Return the colour of what is not looked at, ``[3]`` uint8."""
    return np.rint(np.array(spec.mean) * 255).clip(0, 255).astype(np.uint8)


def blanked(image: np.ndarray, region: np.ndarray | None, spec: ExtractorSpec) -> np.ndarray:
    """Return an image ``[H, W, 3]`` whose pixels outside of a region ``[H, W]`` are blank.

    Before any resizing, so that nothing outside can reach what is inside.
    """
    if region is None or region.all():
        return image
    if spec.value_range is None:
        image = levels(image, None)
    colour: np.ndarray = blank_colour(spec)
    if image.dtype != np.uint8 and spec.value_range is not None:
        low, high = spec.value_range
        colour = low + (high - low) * np.array(spec.mean)
    if image.ndim == 2:
        return np.where(region, image, colour.mean()).astype(image.dtype)
    return np.where(region[..., None], image, colour).astype(image.dtype)


def _window(pixels: np.ndarray, where: Placement, blank: Any) -> np.ndarray:
    """Return the window of a resized image or mask; `blank` where it reaches beyond."""
    shown = pixels[where.shown]
    if not where.padded:
        return shown
    window = np.empty((*where.size, *pixels.shape[2:]), pixels.dtype)
    window[...] = blank
    window[where.filled] = shown
    return window


def mask_to_input(mask: np.ndarray, spec: ExtractorSpec, *, keep_small: bool = False) -> np.ndarray:
    """Bring a ``[H, W]`` bool mask to the input's ``[h, w]``, placed alike; padding is False.

    By the nearest pixel, or with `keep_small` so that no mark is too small to be seen
    (`features.images.masks.scaled`).
    """
    where = place(mask.shape[0], mask.shape[1], spec)
    if keep_small:
        return _window(scaled(mask, where.scaled), where, False)
    x = torch.from_numpy(np.ascontiguousarray(mask, dtype=np.uint8))[None, None]
    if x.shape[-2:] != where.scaled:
        x = F.interpolate(x, size=where.scaled, mode="nearest-exact")
    return _window(x[0, 0].bool().numpy(), where, False)


def make_view(image: np.ndarray, sha256: str, k: int, views: ViewSpec) -> np.ndarray:
    """Return view `k` of an image: rotated about its centre, flipped if `views.flip`.

    What the rotation would show of the outside is the image reflected at its borders. Angle and
    flips depend on the image's hash, `views.seed` and `k` alone.

    Parameters
    ----------
    image
        ``[H, W, 3]`` uint8, or ``[H, W]`` or ``[H, W, 3]`` of more bits.
    sha256
        The image's identity.
    k
        View number, 1-based; 0 is the image itself.
    views
        What views there are.

    Returns
    -------
    numpy.ndarray
        Of the same shape; uint8, or float32 of more bits.

    Examples
    --------
    >>> image = np.arange(32 * 40 * 3, dtype=np.uint8).reshape(32, 40, 3)
    >>> view = make_view(image, "ab" * 32, 1, ViewSpec(count=2, rotation=20))
    >>> view.shape, bool((view == image).all())
    ((32, 40, 3), False)
    """
    if k == 0:
        return image
    if not 0 < k <= views.count:
        raise ConfigError(f"view {k}", expected=f"0 for the plain image or 1...{views.count}")
    seed = hashlib.sha256(f"{sha256}:{views.seed}:{k}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(seed[:16], "little"))
    # Both are always drawn, so that switching flips on leaves the angles as they are.
    angle = float(rng.uniform(-views.rotation, views.rotation))
    up_down, left_right = rng.integers(0, 2, size=2).astype(bool)
    if angle:
        image = _rotate(image, angle)
    if views.flip:
        image = image[::-1] if up_down else image
        image = image[:, ::-1] if left_right else image
    return np.ascontiguousarray(image)


def _rotate(image: np.ndarray, angle: float) -> np.ndarray:
    height, width = image.shape[:2]
    c, s = abs(math.cos(math.radians(angle))), abs(math.sin(math.radians(angle)))
    # How far the rotated frame reaches beyond the image, and one pixel for the interpolation.
    dy = max(0, math.ceil((height * c + width * s - height) / 2)) + 1
    dx = max(0, math.ceil((width * c + height * s - width) / 2)) + 1
    around = ((dy, dy), (dx, dx), (0, 0))[: image.ndim]
    padded = np.pad(image, around, mode="reflect")
    if image.dtype == np.uint8:
        turned = np.asarray(Image.fromarray(padded).rotate(angle, Image.Resampling.BILINEAR))
        return turned[dy : dy + height, dx : dx + width]
    # Pillow turns more than 8 bits one channel at a time.
    planes = np.atleast_3d(padded.astype(np.float32))
    turned = np.stack(
        [
            np.asarray(Image.fromarray(planes[..., c]).rotate(angle, Image.Resampling.BILINEAR))
            for c in range(planes.shape[2])
        ],
        axis=2,
    )
    return turned[dy : dy + height, dx : dx + width].reshape(image.shape)
