"""Which pixels of an image are looked at: inside its region of interest, and no padding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from features.images.masks import read_mask
from features.images.places.tiles import cut, name_of, parts_seen
from features.images.preprocess import make_view, mask_to_input
from headwater.errors import ImageError
from headwater.geometry import place
from headwater.spec import ExtractorSpec, TileSpec
from headwater.tiles import box_of, part_of

#: A region is stretched to an image's size where their aspects differ by no more than this share.
NEAR = 0.02


@dataclass(frozen=True)
class Regions:
    """The regions of interest of a set's images, as files: white where to look.

    Parameters
    ----------
    whole
        Of every image that has none of its own; None where all of it is looked at.
    own
        By an image's SHA-256.
    """

    whole: Path | None = None
    own: Mapping[str, Path] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.whole is not None or bool(self.own)

    def of(self, sha256: str) -> Path | None:
        """Return the file with an image's region, or None."""
        return self.own.get(sha256, self.whole)


def region_on(region: np.ndarray, height: int, width: int, name: str = "region") -> np.ndarray:
    """Return a region, ``[h, w]`` bool, at the size of an image, ``[height, width]``.

    Raises
    ------
    ImageError
        A region of another aspect, which lies nobody can say where, and one without a pixel.
    """
    rows, columns = region.shape
    if abs(rows * width / (columns * height) - 1) > NEAR:
        raise ImageError(
            f"{name} has {rows}x{columns} pixels and the image {height}x{width}",
            expected="a region of interest of the image's size or aspect",
        )
    if (rows, columns) != (height, width):
        scaled = Image.fromarray(region).resize((width, height), Image.Resampling.NEAREST)
        region = np.asarray(scaled)
    if not region.any():
        raise ImageError(f"{name} is black: nothing is to be looked at", expected="some white")
    return region


@lru_cache(maxsize=16)
def read_region(path: Path, height: int, width: int) -> np.ndarray:
    """Read a region at the size of an image, as `region_on` and `read_mask` do."""
    return region_on(read_mask(path), height, width, str(path))


@lru_cache(maxsize=64)
def parts_inside(
    height: int, width: int, tiles: TileSpec | None, path: Path | None
) -> tuple[int, ...]:
    """Return the parts of an image that are looked at, by the file with its region, if any."""
    region = None if path is None or tiles is None else read_region(path, height, width)
    return tuple(parts_seen(height, width, tiles, region))


def looked(
    height: int, width: int, spec: ExtractorSpec, region: np.ndarray | None = None
) -> np.ndarray:
    """Return which pixels of the input are looked at, ``[h, w]`` bool.

    Parameters
    ----------
    height, width
        Of the image, pixels.
    spec
        How it is placed.
    region
        ``[height, width]`` bool, or None for all.

    Raises
    ------
    ImageError
        Where the region lies in what is cut off.
    """
    if region is None:
        where = np.zeros(spec.input_size, bool)
        where[place(height, width, spec).filled] = True
        return where
    where = mask_to_input(region, spec)
    if not where.any() and spec.tiles is not None:
        # A tile at the region's border may have less of it than a pixel of the input.
        filled = place(height, width, spec).filled
        x = torch.from_numpy(np.ascontiguousarray(region, np.float32))[None]
        where[filled] = F.adaptive_max_pool2d(x, where[filled].shape)[0].numpy() > 0
    if not where.any():
        raise ImageError("the region of interest lies in what the crop cuts off")
    return where


class Looked:
    """What is looked at of each image of a set, once it is preprocessed.

    Parameters
    ----------
    spec
        How images are placed.
    size
        From an image's SHA-256 to its ``(height, width)``, pixels.
    regions
        Regions of interest.
    """

    def __init__(
        self, spec: ExtractorSpec, size: Callable[[str], tuple[int, int]], regions: Regions
    ) -> None:
        self.spec, self.size, self.regions = spec, size, regions
        self._known: dict[tuple[int, int, Path | None, int], np.ndarray] = {}

    @property
    def partly(self) -> bool:
        """Whether anything may be left out; else there is nothing to ask."""
        return self.spec.fitting == "fit" or bool(self.regions)

    def parts(self, sha256: str) -> tuple[int, ...]:
        """Return the parts of an image that are looked at."""
        return parts_inside(*self.size(sha256), self.spec.tiles, self.regions.of(sha256))

    def __call__(self, sha256: str, row: int = 0) -> np.ndarray:
        """Return ``[h, w]`` bool at the input's size, of an image or another row of it."""
        (height, width), path = self.size(sha256), self.regions.of(sha256)
        part, view = part_of(row, self.spec)
        turns = view and path is not None and self.spec.views is not None
        box = box_of(height, width, self.spec.tiles, part)
        # All that is seen whole, of one shape, looks alike.
        key = (height, width, path, part) if path is not None else (box.height, box.width, None, 0)
        if turns or key not in self._known:
            region = None
            if path is not None:
                region = cut(read_region(path, height, width), part, self.spec)
                if turns:
                    region = turned(region, name_of(sha256, part), view, self.spec)
            made = looked(box.height, box.width, self.spec, region)
            if turns:
                return made
            self._known[key] = made
        return self._known[key]


def turned(region: np.ndarray, name: str, view: int, spec: ExtractorSpec) -> np.ndarray:
    """Return the region of a view of an image, or of a tile: turned as that is."""
    assert spec.views is not None
    white = np.repeat(region[..., None].astype(np.uint8) * 255, 3, axis=2)
    return make_view(white, name, view, spec.views)[..., 0] > 127
