"""Images on disk: which there are, what each is, which cannot be used and why.

An image's identity is the SHA-256 of its bytes: two paths with the same bytes are one image. What
a scan cannot use it sets aside with the reason; what looks wrong it reports by name; what it did
not read it counts by reason.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from features.images.cache import FileCache, FileFacts, Progress
from features.images.folders import Links, Walker, folder
from features.images.layouts.catalogue import AUTO, find_layout
from features.images.layouts.plain import apart, read_plain
from features.images.layouts.reading import Fetch, Reading
from features.images.layouts.validation import given_defects
from features.images.pixels import SUFFIXES
from features.images.records import SPLITS, BrokenImage, Candidate, ImageRecord, ScanResult
from headwater.errors import DataError

#: One in this many normal images that no split names is kept for the test set.
_TEST_SHARE = 5


@dataclass(frozen=True)
class ScanOptions:
    """How a scan reads, whatever it reads.

    Parameters
    ----------
    cache
        SQLite file that remembers what was read; files with unchanged size, mtime and inode
        are not read again.
    rehash
        Read every file all the same.
    progress
        Called with (files done, files in all), for the images and then for the masks.
    links
        Whether links may lead out of the folder; see `features.images.folders.Walker`.
    test_normal
        Folder of normal images that are tested, besides what the layout has of them.
    validation
        Folder of known defects to choose by, likewise; see `features.images.layouts.validation`.
    """

    cache: Path | None = None
    rehash: bool = False
    progress: Progress | None = None
    links: Links = "inside"
    test_normal: Path | None = None
    validation: Path | None = None


def list_images(path: Path) -> list[Path]:
    """Return one image file, or all below a folder in order of path, named as the path is.

    Raises `DataError` where there are none.

    >>> [p.name for p in list_images(Path("leather/test/dent"))]
    ['000.png', '001.png']
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.exists():
        raise DataError(f"{path}: no such file or folder", expected="an image, or a folder of them")
    root = folder(path, "images")
    walker = Walker(root)
    found = [path / Path(p).relative_to(root) for p in walker.files(root)]
    if not found:
        left = walker.left_out.line()
        raise DataError(
            f"{path}: no images" + (f"; not read: {left}" if left else ""),
            expected="files of type " + ", ".join(sorted(SUFFIXES)),
        )
    return found


def scan_images(
    place: Path,
    layout: str = AUTO,
    options: ScanOptions = ScanOptions(),
    *,
    root: Path | None = None,
    test: Path | None = None,
    kept: Path | None = None,
    fetch: Fetch | None = None,
) -> ScanResult:
    """Scan a folder, or the images of a list, in one of the layouts of the catalogue.

    Of normal images that no split names a fifth, chosen by content hash and so the same however
    many arrive later, is for testing.

    Parameters
    ----------
    place
        The folder, or the file of a list.
    layout
        Its name in `features.images.layouts.catalogue`; ``auto`` takes the first that fits.
    root, test, kept, fetch
        Of a list; see `features.images.layouts.reading.Reading`.

    Raises
    ------
    DataError
        Nothing is there, no layout fits, or there is no normal training image.

    Examples
    --------
    >>> found = scan_images(Path("leather"))
    >>> [(r.split, r.kind, r.path.name, r.mask) for r in found.records[:2]]
    [('train', 'good', '000.png', None), ('train', 'good', '001.png', None)]
    >>> found.layout, found.broken, found.problems
    ('mvtec', [], [])
    """
    place = Path(place).resolve()
    known = find_layout(place, layout)
    is_list = place.is_file()
    base = (root or place.parent).resolve() if is_list else place
    if not is_list and (root is not None or test is not None):
        option = "--root" if root is not None else "--test-list"
        raise DataError(f"{option} goes with a list of images; {place} is a folder")
    result = ScanResult(base, layout=known.name)
    reading = Reading(place, result, options.links, root, test, kept, fetch)
    return _finish(known.read(reading), reading, options)


def scan_mvtec(root: Path, options: ScanOptions = ScanOptions()) -> ScanResult:
    """Scan a folder in MVTec layout; see `scan_images`."""
    return scan_images(folder(Path(root), "images"), "mvtec", options)


def scan_folders(
    normal: Path,
    defective: Path | None = None,
    masks: Path | None = None,
    options: ScanOptions = ScanOptions(),
) -> ScanResult:
    """Scan plain folders.

    Without `defective` every normal image is for training. With it a fifth of the normal ones is
    for testing, unless `ScanOptions.test_normal` names some.

    Parameters
    ----------
    normal
        Folder of normal images, read with its subfolders.
    defective
        Folder of defective images; its subfolders are the kinds of defect, images directly in it
        are of kind ``defective``.
    masks
        Folder of masks named as their image or with ``_mask`` after the name, in the same
        subfolders or in none; without it, masks beside the defective images are taken.

    Examples
    --------
    >>> found = scan_folders(Path("leather/train/good"), Path("leather/test/dent"))
    >>> sorted({(r.split, r.kind) for r in found.records})
    [('test', 'defective'), ('test', 'good'), ('train', 'good')]
    """
    root = folder(Path(normal), "normal images")
    reading = Reading(root, ScanResult(root, layout="plain"), options.links)
    return _finish(read_plain(reading, root, defective, masks), reading, options)


def _finish(found: list[Candidate], reading: Reading, options: ScanOptions) -> ScanResult:
    """Read what is new, see what masks say, drop duplicates, set broken images aside."""
    result = reading.result
    if options.test_normal is not None:
        walker = reading.walker(options.test_normal, "normal test images")
        for walked in {w.root for w in reading.walkers[:-1]} | {result.root}:
            apart(walked, walker.root)
        found += [Candidate(p, "test", "good") for p in walker.files(walker.root)]
    if options.validation is not None:
        found += given_defects(reading, options.validation)
    reading.close()
    found.sort(key=_precedence)
    kept: dict[str, tuple[Candidate, FileFacts]] = {}
    units: dict[str, str] = {}
    with FileCache(options.cache, rehash=options.rehash, progress=options.progress) as files:
        read = list(zip(found, files.facts([c.path for c in found]), strict=True))
        names = [m for c, f in read if c.masks and not f.reason for m in c.masks]
        masks = dict(zip(names, files.facts(names, mask=True), strict=True))
        result.hashed = files.reads
    unsaid = any(c.kind is None for c in found)
    usable = []
    for c, f in read:
        if f.reason:
            result.broken.append(BrokenImage(Path(c.path), f.reason))
        elif (c.kind == "good" and not c.masks and c.split) or _settle(c, f, masks, result):
            usable.append((c, f))
    if unsaid:
        usable.sort(key=lambda one: _precedence(one[0]))
    shown: dict[str, tuple[Candidate, str]] = {}
    for c, f in usable:
        first, unit = shown.setdefault(f.pixels, (c, f.sha256))
        if "train" in (first.split, c.split) and None in (first.split, c.split):
            first.split = c.split = "train"
        if f.sha256 in kept:
            _report_duplicate(kept[f.sha256][0], c, "have the same bytes", result)
        elif (first.split, first.kind == "good") != (c.split, c.kind == "good"):
            _report_duplicate(first, c, "show the same pixels", result)
        else:
            kept[f.sha256] = (c, f)
            units[f.sha256] = unit
            result.read(f)
    if options.test_normal is None:
        _share_out([(units[s], c) for s, (c, _) in kept.items() if c.split is None])
    _find_copies(list(kept.values()), options.cache, result)
    result.records = sorted(
        (_record(c, f) for c, f in kept.values()),
        key=lambda r: (SPLITS.index(r.split), r.kind != "good", r.kind, str(r.path)),
    )
    if not any(r.split == "train" for r in result.records):
        why = result.why_so_few()
        raise DataError(
            f"{reading.place}: no usable normal image to train on" + (f"; {why}" if why else ""),
            expected="files of type " + ", ".join(sorted(SUFFIXES)),
        )
    return result


def _precedence(c: Candidate) -> tuple[int, bool, str, str]:
    """Order files so that of those with the same bytes the first counts.

    Test before validation before train, so that nothing tested is learnt from or chosen by; a
    defect before good, so that no defect passes for normal.
    """
    split = c.split
    if split is None and c.kind not in (None, "good"):
        split = "test"
    rank = ("test", "val").index(split) if split in ("test", "val") else 2
    return (rank, c.kind == "good", c.kind or "", c.path)


def _settle(
    c: Candidate, image: FileFacts, masks: dict[str, FileFacts], result: ScanResult
) -> bool:
    """See what an image's masks say of it; whether it is used."""
    fit = [m for m in c.masks if result.usable_mask(masks[m], image) is not None]
    if len(fit) < len(c.masks):
        if len(c.masks) > 1:
            place = Path(c.masks[0]).parent
            result.problems.append(f"{place}: none of its masks is used, as one cannot be")
        fit = []
    blank = all(masks[m].blank for m in fit)
    if c.kind is None:
        if not fit:
            why = "the mask that says what it is cannot be used"
            result.broken.append(BrokenImage(Path(c.path), why))
            return False
        c.kind = "good" if blank else "defective"
    elif c.kind == "good" and fit and not blank:
        why = f"given as normal, but its mask {fit[0]} marks a defect"
        result.broken.append(BrokenImage(Path(c.path), why))
        return False
    elif c.kind != "good" and fit and blank:
        result.problems.append(
            f"mask {fit[0]} is all black: nothing is marked; its image counts without mask"
        )
        fit = []
    if c.kind == "good":
        if fit:
            result.left_out.add("black masks of normal images", fit[0], len(fit))
        fit = []
    elif c.split == "train":
        result.left_out.add("defective images for training (nothing learns from them)", c.path)
        return False
    elif c.split is None:
        c.split = "test"
    c.masks = tuple(fit)
    return True


def _record(c: Candidate, f: FileFacts) -> ImageRecord:
    assert c.kind is not None
    mask = None
    if c.masks:
        # Of several, the folder that holds them and nothing else.
        mask = Path(c.masks[0]) if len(c.masks) == 1 else Path(c.masks[0]).parent
    return ImageRecord.of(f, c.split or "train", c.kind, mask, c.group)


def _report_duplicate(kept: Candidate, dropped: Candidate, how: str, result: ScanResult) -> None:
    result.duplicates.append((Path(kept.path), Path(dropped.path)))
    if (kept.kind == "good") != (dropped.kind == "good"):
        result.problems.append(
            f"{kept.path} ({kept.kind}) and {dropped.path} (good) {how}:"
            " an image is normal or defective; it counts as defective"
        )
    elif kept.split != dropped.split:
        use = {"train": "trained on", "val": "chosen by", "test": "tested"}
        first, second = kept.split or "test", dropped.split or "train"
        result.problems.append(
            f"{kept.path} ({first}) and {dropped.path} ({second}) {how}: it is {use[first]} and "
            f"not {use[second]}"
        )


def _find_copies(
    kept: Sequence[tuple[Candidate, FileFacts]], cache: Path | None, result: ScanResult
) -> None:
    """Report test images that show nearly what was learnt from, or chosen by."""
    tested, trained = (
        [(c.path, f.look) for c, f in kept if c.split in splits and f.look]
        for splits in (("test",), ("train", "val"))
    )
    with FileCache(cache) as files:
        found = files.copies([look for _, look in tested], [look for _, look in trained])
    result.copies = [(tested[i][0], trained[j][0]) for i, j in found]


def _share_out(undecided: Sequence[tuple[str, Candidate]]) -> None:
    """Move a fifth of normal images to the test set; of two or more at least one.

    What is of one group, or shows the same pixels, stays together.
    """
    units: dict[str, list[Candidate]] = {}
    for sha, c in undecided:
        units.setdefault(f"group {c.group}" if c.group else sha, []).append(c)
    # Hashed again, so that the choice says nothing about other choices made by content hash.
    order = {u: int(hashlib.sha256(f"test {u}".encode()).hexdigest()[:12], 16) for u in units}
    chosen = [u for u in units if order[u] % _TEST_SHARE == 0]
    ranked = sorted(units, key=lambda u: order[u])
    if len(ranked) > 1 and not chosen:
        chosen = ranked[:1]
    elif len(chosen) == len(ranked):
        chosen = ranked[:-1]
    for unit in chosen:
        for c in units[unit]:
            c.split = "test"
