"""What there is: the images of a set on disk, by the stores they belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from features.images.pairs import PairScan, scan_pairs
from features.images.records import ImageRecord, ScanResult
from features.images.scan import scan_folders, scan_mvtec
from flows.extraction.pair_list import PairList
from flows.runtime.console import Reporter
from flows.runtime.home import Home
from headwater.spec import SIDES
from storage.store.layout import side_name
from storage.store.table import ImageRow


@dataclass(frozen=True)
class Found:
    """What a scan found.

    Parameters
    ----------
    root
        Folder that paths are relative to.
    sides
        Rows by store: one of a set of images, ``SET.current`` and ``SET.history`` of one of pairs.
    pairs
        What joins the sides.
    set_aside
        ``[path, reason]`` of images that cannot be used.
    notes
        Sentences on what should be looked at.
    hashed
        Files that were read.
    """

    root: Path
    sides: Mapping[str, Sequence[ImageRow]]
    pairs: PairList | None = None
    set_aside: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    hashed: int = 0


def find(
    image_set: str,
    folders: Mapping[str, Path | None],
    home: Home,
    reporter: Reporter,
    rehash: bool = False,
) -> Found:
    """Scan a set's folders; unchanged files are not read.

    Parameters
    ----------
    folders
        ``images``; or ``normal``, ``defective`` and ``masks``; or ``pairs``.
    home
        Remembers which file holds which bytes.
    rehash
        Read every file, even those that look unchanged.
    """
    what = "pairs" if folders["pairs"] is not None else "images"

    def progress(done: int, total: int) -> None:
        reporter.update(what, done, total, "reading what is new")

    common: dict[str, Any] = {"cache": home.file_cache, "rehash": rehash, "progress": progress}
    scan: PairScan | ScanResult
    pairs, notes = None, []
    if folders["pairs"] is not None:
        scan = scan_pairs(folders["pairs"], **common)
        pairs = PairList.of(scan)
        records = {side_name(image_set, side): scan.images(side) for side in SIDES}
    else:
        scan = _scan_images(folders, common)
        records = {image_set: scan.records}
        notes = _duplicates(scan)
    sides = {name: image_rows(found, scan.root) for name, found in records.items()}
    aside = [(str(b.path), b.reason) for b in scan.broken]
    return Found(scan.root, sides, pairs, aside, [*scan.problems, *notes], scan.hashed)


def _scan_images(folders: Mapping[str, Path | None], common: Mapping[str, Any]) -> ScanResult:
    if folders["images"] is not None:
        return scan_mvtec(folders["images"], **common)
    assert folders["normal"] is not None
    return scan_folders(folders["normal"], folders["defective"], folders["masks"], **common)


def image_rows(records: Sequence[ImageRecord], root: Path) -> list[ImageRow]:
    """Turn scanned records into the store's rows, with paths relative to the set's root."""
    return [
        ImageRow(
            sha256=r.sha256,
            path=_relative(r.path, root),
            split=r.split,
            kind=r.kind,
            mask=_relative(r.mask, root) if r.mask else "",
            width=r.width,
            height=r.height,
        )
        for r in records
    ]


def _relative(path: Path, root: Path) -> str:
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def _duplicates(found: ScanResult) -> list[str]:
    if not found.duplicates:
        return []
    first = ", ".join(f"{dropped} = {kept}" for kept, dropped in found.duplicates[:3])
    more = f" and {len(found.duplicates) - 3} more" if len(found.duplicates) > 3 else ""
    return [f"{len(found.duplicates)} duplicate image(s), counted once: {first}{more}"]
