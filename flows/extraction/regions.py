"""The regions of interest of a set: kept in the home by the hash of their files.

Where each image may have its own, a file ``beside-ID`` there says which image has which. Images
that arrive are added to it. A region that is another than it was makes another one, and so another
extractor: features made with the old one are never taken for it.

Here, too, is what tiles images are seen in, as the settings say.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from features.images.masks import read_mask
from features.images.pixels import SMALLEST_SIDE, sha256_of
from features.images.places.beside import BESIDE, region_of
from features.images.places.regions import Regions, region_on
from flows.runtime.settings import ExtractionSettings
from flows.runtime.values import MIN_PIXELS, height_width
from headwater.errors import ConfigError, DataError, ImageError
from headwater.files import write_text
from headwater.spec import ExtractorSpec, TileSpec, digest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flows.extraction.find import Found
    from flows.runtime.home import Home
    from storage.store.table import ImageRow


def region_id(given: Path | None) -> str:
    """Return the id of a region as it was given, or as a set remembers it; empty for none.

    Parameters
    ----------
    given
        A file, ``none``, an id, or what says that images have their own: ``beside``, a folder; of
        which the id is known after a scan (`own_regions`).

    Raises
    ------
    DataError
        Where there is no such file.
    """
    if given is None or (given.name == "none" and not given.exists()):
        return ""
    if re.fullmatch(rf"[0-9a-f]{{64}}|{BESIDE}-[0-9a-f]+", str(given)):
        return str(given)
    if given.is_dir() or (given.name == BESIDE and not given.exists()):
        return BESIDE
    if not given.is_file():
        raise DataError(
            f"--roi {given}: no such file",
            expected="a mask, white where to look, beside, a folder of masks, or none",
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
    if name not in ("", BESIDE) and given is not None and str(given) != name:
        try:
            mask = read_mask(given)
            if min(mask.shape) < SMALLEST_SIDE:
                raise ImageError(f"--roi {given}: {mask.shape[0]}x{mask.shape[1]} pixels")
            if not mask.any():
                raise ImageError(f"--roi {given} is black: nothing is to be looked at")
        except ImageError as error:
            raise DataError(
                error.culprit,
                expected="a mask of the images' aspect, white where to look",
                remedy="draw it over one of the images, in an image of its size",
            ) from error
        try:
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
    if not name or given is None or str(given) == name or name == BESIDE:
        return
    (home.root / "regions").mkdir(parents=True, exist_ok=True)
    _copied(given, _file(home, name))


def _copied(given: Path, kept: Path) -> None:
    """Copy a file that is not kept yet."""
    if not kept.exists():
        part = kept.with_name(f".{kept.name}.part")
        shutil.copyfile(given, part)
        part.replace(kept)


@dataclass(frozen=True)
class OwnRegions:
    """Which image of a set has which region of its own.

    Parameters
    ----------
    id
        What the extractor knows them by.
    folder
        That they were looked for in; empty for beside the images.
    regions
        From an image's SHA-256 to its region's; empty for an image that is looked at whole.
    files
        Where regions were found, by their SHA-256.
    """

    id: str
    folder: str
    regions: Mapping[str, str]
    files: Mapping[str, Path]

    def keep(self, home: Home) -> None:
        """Keep the regions in the home, and which image has which."""
        (home.root / "regions").mkdir(parents=True, exist_ok=True)
        for name, path in self.files.items():
            _copied(path, _file(home, name))
        kept = {"folder": self.folder, "regions": dict(self.regions)}
        write_text(_file(home, self.id), json.dumps(kept, sort_keys=True))


def copy_own(home: Home, other: Home, image_set: str) -> None:
    """Give another home what this one knows of whose region is which, without the regions."""
    if (name := last_own(home, image_set)) and (kept := _file(home, name)).is_file():
        _file(other, name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(kept, _file(other, name))


def last_own(home: Home, image_set: str) -> str:
    """Return the id of the regions that a set's images had at its last extraction, or nothing."""
    last = str(home.card(image_set).get("extraction", {}).get("roi") or "")
    return last if last.startswith(f"{BESIDE}-") else ""


def own_regions(given: Path | None, found: Found, home: Home, image_set: str) -> OwnRegions | None:
    """Return the regions of a set's images, where each may have its own; else None.

    Parameters
    ----------
    given
        As of `region_id`.
    found
        The images.
    home, image_set
        Know the regions of the set's last extraction.

    Raises
    ------
    ConfigError
        Of a set of pairs.
    DataError
        Where no image has a region, or one cannot be read or does not fit its image.
    """
    name = region_id(given)
    if given is None or not name.startswith(BESIDE):
        return None
    if found.pairs is not None:
        raise ConfigError(f"--roi {given} of pairs", expected="one mask for all of them, or none")
    last = last_own(home, image_set)
    # What is given again is read again where the home lost it.
    lost = name == BESIDE and not _file(home, last).is_file()
    known = _read(home, last) if last and not lost else {}
    folder = _read(home, name)["folder"] if name != BESIDE else ""
    if name == BESIDE and given.is_dir():
        folder = str(given.absolute())
    before: dict[str, str] = known.get("regions", {})
    regions: dict[str, str] = {}
    files: dict[str, Path] = {}
    wrong: list[ImageError] = []
    for row in (row for rows in found.sides.values() for row in rows):
        image = found.root / row.path
        if folder and image.is_relative_to(folder):
            raise DataError(
                f"--roi {folder}: {image} is taken for an image",
                expected="a folder of regions that no image of the set lies in",
                remedy="put it outside of the images' folder",
            )
        path = region_of(image, found.root, Path(folder) if folder else None)
        own = regions[row.sha256] = sha256_of(path) if path else ""
        if path is None:
            continue
        files[own] = path
        if before.get(row.sha256) != own:
            try:
                region_on(read_mask(path), row.height, row.width, str(path))
            except ImageError as error:
                wrong.append(error)
    if wrong:
        more = f" (and {len(wrong) - 1} more regions)" if len(wrong) > 1 else ""
        raise DataError(wrong[0].culprit + more, expected=wrong[0].expected, remedy="mend it")
    if not files:
        raise DataError(
            f"--roi {folder or BESIDE}: no image of the set has a region of interest",
            expected=f"NAME.png below {folder}, as the images lie" if folder
            else "NAME_roi.png beside an image NAME",
            remedy="--roi none looks at all of every image",
        )  # fmt: skip
    if before and all(before.get(sha, own) == own for sha, own in regions.items()):
        return OwnRegions(last, folder, {**before, **regions}, files)
    return OwnRegions(f"{BESIDE}-{digest(regions)}", folder, regions, files)


def _read(home: Home, name: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(_file(home, name).read_text())
    except (OSError, ValueError) as error:
        raise DataError(
            f"{_file(home, name)}: the regions of interest are missing or were changed",
            expected="the file as an extraction kept it",
            remedy="give --roi again",
        ) from error
    return found


def regions_of(spec: ExtractorSpec, home: Home) -> Regions:
    """Return the regions of interest that an extractor goes by.

    Raises
    ------
    DataError
        Where the file is not there any more, or is another.
    """
    return _kept(spec.region, home)


def regions_given(given: Path | None, home: Home) -> Regions:
    """Return the regions of interest as they were given, before they are kept; as `regions_of`.

    Of images of their own that were never scanned there is none yet.
    """
    name = region_id(given)
    if name == BESIDE:
        return Regions()
    return Regions(given) if name and str(given) != name else _kept(name, home)


def _kept(name: str, home: Home) -> Regions:
    if not name:
        return Regions()
    if name.startswith(BESIDE):
        known = _read(home, name)["regions"]
        own = {image: _file(home, file) for image, file in known.items() if file}
        for path in {*own.values()}:
            if not path.is_file():
                raise DataError(
                    f"{path}: the region of interest is missing",
                    expected="the file as an extraction kept it",
                    remedy="extract again with the same regions, by --roi",
                )
        return Regions(None, own)
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


def tiles_of(wanted: ExtractionSettings) -> TileSpec | None:
    """Return the tiles that images are to be seen in; None for whole images.

    Raises
    ------
    ConfigError
        For tiles that do not move on, a crop of them, or an overlap of none.
    """
    edge, overlap = wanted.tile, wanted.overlap
    if not edge:
        if edge is None and overlap is not None:
            raise ConfigError(
                f"--overlap {overlap} without tiles", expected="--tile N with it",
                remedy="--tile 512 --overlap 64, say",
            )  # fmt: skip
        return None
    overlap = edge // 8 if overlap is None else overlap
    if overlap >= edge or edge < MIN_PIXELS:
        raise ConfigError(
            f"--tile {edge} --overlap {overlap}",
            expected=f"tiles of {MIN_PIXELS} pixels or more, and less overlap than that",
        )
    if wanted.crop is not None or wanted.resize == "crop":
        raise ConfigError(
            f"--tile {edge} with a crop",
            expected="tiles that are seen whole: what is cut off of them, no other tile shows",
            remedy="--resize fit instead of --resize crop, or --tile 0 for --crop",
        )
    return TileSpec(edge, overlap, wanted.scale == "both")


def size_of(wanted: ExtractionSettings) -> tuple[int, int] | None:
    """Return the size to which images, or their tiles, are brought: as given; of tiles their own.

    None leaves it to the heads.
    """
    if wanted.size is None and wanted.tile:
        return wanted.tile, wanted.tile
    return None if wanted.size is None else height_width(wanted.size)
