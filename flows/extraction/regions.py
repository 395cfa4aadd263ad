"""The regions of interest of a set: kept in the home by the hash of their files."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from features.images.masks import read_mask
from features.images.pixels import SMALLEST_SIDE, sha256_of
from features.images.places.regions import Regions, region_on
from headwater.errors import DataError, ImageError
from headwater.spec import ExtractorSpec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flows.runtime.home import Home
    from storage.store.table import ImageRow


def region_id(given: Path | None) -> str:
    """Return the id of a region as it was given, or as a set remembers it; empty for none.

    Parameters
    ----------
    given
        A file, ``none``, or an id.

    Raises
    ------
    DataError
        Where there is no such file.
    """
    if given is None or (given.name == "none" and not given.exists()):
        return ""
    if re.fullmatch(r"[0-9a-f]{64}", str(given)):
        return str(given)
    if not given.is_file():
        raise DataError(
            f"--roi {given}: no such file",
            expected="a mask, white where to look, or none",
            remedy="check the path",
        )
    return sha256_of(given)


def check_region(given: Path | None, rows: Iterable[ImageRow]) -> str:
    """Return the id of a region as it was given; a file is looked at with all shapes of images.

    Raises
    ------
    DataError
        Where it cannot be read, is black, or fits an image of the set no more than badly.
    """
    name = region_id(given)
    if name and given is not None and str(given) != name:
        try:
            mask = read_mask(given)
            if min(mask.shape) < SMALLEST_SIDE:
                raise ImageError(f"--roi {given}: {mask.shape[0]}x{mask.shape[1]} pixels")
            for row in {(r.height, r.width): r for r in rows}.values():
                region_on(mask, row.height, row.width, f"--roi {given} for {row.path}")
        except ImageError as error:
            raise DataError(
                error.culprit,
                expected="one mask of all images' aspect, white where to look",
                remedy="make sets of the images of each shape",
            ) from error
    return name


def keep_region(given: Path | None, home: Home) -> None:
    """Keep a region that was given as a file in the home, under its id."""
    name = region_id(given)
    if not name or given is None or str(given) == name or (kept := _file(home, name)).exists():
        return
    kept.parent.mkdir(parents=True, exist_ok=True)
    part = kept.with_name(f".{name}.part")
    shutil.copyfile(given, part)
    part.replace(kept)


def regions_of(spec: ExtractorSpec, home: Home) -> Regions:
    """Return the regions of interest that an extractor goes by.

    Raises
    ------
    DataError
        Where the file is not there any more, or is another.
    """
    return _kept(spec.region, home)


def regions_given(given: Path | None, home: Home) -> Regions:
    """Return the regions of interest as they were given, before they are kept; as `regions_of`."""
    name = region_id(given)
    return Regions(given) if name and str(given) != name else _kept(name, home)


def _kept(name: str, home: Home) -> Regions:
    if not name:
        return Regions()
    path = _file(home, name)
    if not path.is_file() or sha256_of(path) != name:
        raise DataError(
            f"{path}: the region of interest is missing or was changed",
            expected="the file as an extraction kept it",
            remedy="give the same file again with --roi",
        )
    return Regions(path)


def _file(home: Home, name: str) -> Path:
    return home.root / "regions" / name
