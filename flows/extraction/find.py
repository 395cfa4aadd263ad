"""What there is: the images of a set on disk, by the stores they belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from features.images.depth import Depth
from features.images.folders import Links
from features.images.layouts.catalogue import AUTO
from features.images.pairs import PairScan, scan_pairs
from features.images.records import ImageRecord, ScanResult
from features.images.scan import ScanOptions, scan_folders, scan_images
from flows.extraction.fetch import FromS3
from flows.extraction.pair_list import PairList
from flows.runtime.console import Reporter
from flows.runtime.home import Home
from headwater.spec import SIDES
from headwater.text import few
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
    depths, normal_depths
        Of the usable images, and of the normal ones for training: their values where they have
        more than 8 bits.
    left_out
        How many files were not read, by reason.
    layout
        What the folder or list was taken for.
    few
        What became of the rest, where there is less than one would think.
    groups
        ``{image: group}`` of images that are in one.
    """

    root: Path
    sides: Mapping[str, Sequence[ImageRow]]
    pairs: PairList | None = None
    set_aside: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    hashed: int = 0
    depths: list[Depth | None] = field(default_factory=list)
    normal_depths: list[Depth | None] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    layout: str = ""
    few: str = ""
    groups: dict[str, str] = field(default_factory=dict)
    copies: list[tuple[str, str]] = field(default_factory=list)


def find(
    image_set: str,
    given: Mapping[str, Any],
    home: Home,
    reporter: Reporter,
    rehash: bool = False,
) -> Found:
    """Scan a set's folders; unchanged files are not read.

    Parameters
    ----------
    given
        ``images``; or ``normal``, ``defective`` and ``masks``; or ``pairs``. And how to read them:
        the rest of `flows.runtime.resolve.FOLDERS` and `READING`.
    home
        Remembers which file holds which bytes, and keeps what is made or fetched of a list's.
    rehash
        Read every file, even those that look unchanged.
    """
    what = "pairs" if given["pairs"] is not None else "images"

    def progress(done: int, total: int) -> None:
        reporter.update(what, done, total, "reading what is new")

    links: Links = given["links"] or "inside"
    scan: PairScan | ScanResult
    if given["pairs"] is not None:
        scan = scan_pairs(
            given["pairs"], cache=home.file_cache, rehash=rehash, progress=progress, links=links
        )
        pairs, notes, layout, few = PairList.of(scan), [], "pairs", ""
        records = {side_name(image_set, side): scan.images(side) for side in SIDES}
    else:
        options = ScanOptions(
            home.file_cache, rehash, progress, links, given["test_normal"], given["validation"]
        )
        scan = _scan_images(given, options, home, reporter)
        pairs, notes = None, [*scan.notes, *_duplicates(scan)]
        layout, few = scan.layout, scan.why_so_few()
        records = {image_set: scan.records}
        away = home.removed(image_set)
        if taken := [r for r in scan.records if r.sha256 in away]:
            records = {image_set: [r for r in scan.records if r.sha256 not in away]}
            notes.append(f"{len(taken)} image(s) that were removed (headwater remove) are left out")
    every = [record for found in records.values() for record in found]
    train = [record for record in every if record.split == "train"]
    normal = [r.depth for r in train if r.is_normal] or [r.depth for r in train]
    return Found(
        scan.root,
        {name: image_rows(found, scan.root) for name, found in records.items()},
        pairs,
        [(str(b.path), b.reason) for b in scan.broken],
        [*scan.told(), *notes],
        scan.hashed,
        [record.depth for record in every],
        normal,
        scan.left_out.counts,
        layout,
        few,
        {record.sha256: record.group for record in every if record.group},
        scan.copies,
    )


def _scan_images(
    given: Mapping[str, Any], options: ScanOptions, home: Home, reporter: Reporter
) -> ScanResult:
    if given["images"] is None:
        return scan_folders(given["normal"], given["defective"], given["masks"], options)
    return scan_images(
        given["images"],
        given["layout"] or AUTO,
        options,
        root=given["list_root"],
        test=given["test_list"],
        kept=home.root / "lists",
        fetch=FromS3(home.root / "lists" / "s3", reporter),
    )


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
    told = few([(dropped, kept) for kept, dropped in found.duplicates])
    return [f"{len(found.duplicates)} duplicate image(s), counted once: {told}"]
