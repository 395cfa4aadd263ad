"""Images on disk: which there are, what each is, which cannot be used and why.

An image's identity is the SHA-256 of its bytes: two paths with the same bytes are one image. What
a scan cannot use it sets aside with the reason; what looks wrong it reports by name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from features.images.cache import FileCache, FileFacts, Progress
from features.images.folders import Walker, check_mvtec, folder
from features.images.pixels import SUFFIXES
from features.images.records import BrokenImage, Candidate, ImageRecord, ScanResult
from headwater.errors import DataError

#: One in this many normal images of a plain folder is kept for the test set.
_TEST_SHARE = 5


def list_images(path: Path) -> list[Path]:
    """Return one image file, or all below a folder in order of path.

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
    found = [Path(p) for p in Walker(root).files(root)]
    if not found:
        raise DataError(
            f"{path}: no images", expected="files of type " + ", ".join(sorted(SUFFIXES))
        )
    return found


def scan_mvtec(
    root: Path, *, cache: Path | None = None, rehash: bool = False, progress: Progress | None = None
) -> ScanResult:
    """Scan a folder in MVTec layout.

    ``train/good/*``, ``test/KIND/*`` (``good`` for normal ones) and
    ``ground_truth/KIND/NAME_mask.*`` or ``ground_truth/KIND/NAME.*``. ``test`` and
    ``ground_truth`` may be missing. Hidden files and links out of the folder are not followed.

    Parameters
    ----------
    root
        The folder.
    cache
        SQLite file that remembers what was read; files with unchanged size, mtime and inode
        are not read again.
    rehash
        Read every file all the same.
    progress
        Called with (files done, files in all), for the images and then for the masks.

    Raises
    ------
    DataError
        The folder does not exist or has no normal training image.

    Examples
    --------
    >>> found = scan_mvtec(Path("leather"))
    >>> [(r.split, r.kind, r.path.name, r.mask) for r in found.records[:2]]
    [('train', 'good', '000.png', None), ('train', 'good', '001.png', None)]
    >>> found.broken, found.problems
    ([], [])
    """
    root = folder(Path(root), "images")
    check_mvtec(root)
    result, walker = ScanResult(root), Walker(root)
    found: list[Candidate] = []
    for sub in walker.subfolders(root / "train"):
        if sub.name == "good":
            found += [Candidate(p, "train", "good") for p in walker.files(sub)]
        else:
            result.problems.append(f"{sub} is not read: only train/good is trained on")
    masks: dict[tuple[str, str], str] = {}
    if (root / "test").is_dir():
        for sub in walker.subfolders(root / "test"):
            found += [Candidate(p, "test", sub.name) for p in walker.files(sub)]
    if (root / "ground_truth").is_dir():
        for sub in walker.subfolders(root / "ground_truth"):
            _add_masks(masks, sub.name, walker.files(sub), result)
    used = set()
    for c in found:
        if c.split == "test" and c.kind != "good":
            key = (c.kind, Path(c.path).stem)
            c.mask = masks.get(key)
            used.add(key)
    _report_unused(masks, used, result)
    result.problems += walker.problems
    result.ignored = walker.ignored
    return _finish(found, result, FileCache(cache, rehash=rehash, progress=progress))


def scan_folders(
    normal: Path,
    defective: Path | None = None,
    masks: Path | None = None,
    *,
    cache: Path | None = None,
    rehash: bool = False,
    progress: Progress | None = None,
) -> ScanResult:
    """Scan plain folders; the other parameters are those of `scan_mvtec`.

    Without `defective` every normal image is for training. With it a fifth of the normal ones,
    chosen by content hash and so the same however many arrive later, is for testing.

    Parameters
    ----------
    normal
        Folder of normal images, read with its subfolders.
    defective
        Folder of defective images; its subfolders are the kinds of defect, images directly in it
        are of kind ``defective``.
    masks
        Folder of masks named as their image or with ``_mask`` after the name, in the same
        subfolders or in none.

    Examples
    --------
    >>> found = scan_folders(Path("leather/train/good"), Path("leather/test/dent"))
    >>> sorted({(r.split, r.kind) for r in found.records})
    [('test', 'defective'), ('test', 'good'), ('train', 'good')]
    """
    root = folder(Path(normal), "normal images")
    result, walkers = ScanResult(root), [Walker(root)]
    found = [Candidate(p, "train", "good") for p in walkers[0].files(root)]
    if defective is not None:
        bad_root = folder(Path(defective), "defective images")
        if bad_root == root or bad_root.is_relative_to(root) or root.is_relative_to(bad_root):
            raise DataError(
                f"{root} and {bad_root}: one is inside the other",
                expected="separate folders of normal and of defective images",
            )
        bad = []
        walkers.append(Walker(bad_root))
        for p in walkers[-1].files(bad_root):
            parts = Path(p).relative_to(bad_root).parts
            kind = parts[0] if len(parts) > 1 else "defective"
            bad.append(Candidate(p, "test", "defective" if kind == "good" else kind))
        if masks is not None:
            walkers.append(Walker(folder(Path(masks), "masks")))
            _match_masks(bad, bad_root, walkers[-1], result)
        found += bad
    elif masks is not None:
        result.problems.append(f"{masks} is not read: masks need --defective")
    for walker in walkers:
        result.problems += walker.problems
        result.ignored += walker.ignored
    files = FileCache(cache, rehash=rehash, progress=progress)
    return _finish(found, result, files, share_test=defective is not None)


def _match_masks(bad: list[Candidate], root: Path, masks: Walker, result: ScanResult) -> None:
    """Match by subfolder and stem; else by stem alone where that is unambiguous on both sides."""
    table: dict[tuple[str, str], str] = {}
    for p in masks.files(masks.root):
        _add_masks(table, str(Path(p).parent.relative_to(masks.root)), [p], result)
    by_stem: dict[str, list[tuple[str, str]]] = {}
    for key in table:
        by_stem.setdefault(key[1], []).append(key)
    stems = [Path(c.path).stem for c in bad]
    used = set()
    for c, stem in zip(bad, stems, strict=True):
        key = (str(Path(c.path).parent.relative_to(root)), stem)
        if key not in table:
            keys = by_stem.get(stem, [])
            if len(keys) != 1 or stems.count(stem) > 1:
                if keys:
                    result.problems.append(f"image {c.path}: its mask is ambiguous; none is used")
                continue
            key = keys[0]
        c.mask = table[key]
        used.add(key)
    _report_unused(table, used, result)


def _add_masks(
    table: dict[tuple[str, str], str], kind: str, paths: Iterable[str], result: ScanResult
) -> None:
    for p in paths:
        key = (kind, Path(p).stem.removesuffix("_mask"))
        if key in table:
            result.problems.append(f"mask {p}: {table[key]} is for the same image and is used")
        else:
            table[key] = p


def _report_unused(
    masks: dict[tuple[str, str], str], used: set[tuple[str, str]], result: ScanResult
) -> None:
    for key, path in sorted(masks.items()):
        if key not in used:
            why = "normal images have none" if key[0] == "good" else "there is no such image"
            result.problems.append(f"mask {path} belongs to no image: {why}")


def _finish(
    found: list[Candidate], result: ScanResult, files: FileCache, share_test: bool = False
) -> ScanResult:
    """Read what is new, drop duplicates, set broken images aside, check the masks."""
    # In order of precedence among files with the same bytes: test before train, so that nothing
    # tested is trained on; a defect before good, so that no defect passes for normal.
    found.sort(key=lambda c: (c.split == "train", c.kind == "good", c.kind, c.path))
    kept: dict[str, tuple[Candidate, FileFacts]] = {}
    with files:
        facts = files.facts([c.path for c in found])
        for c, f in zip(found, facts, strict=True):
            if f.reason:
                result.broken.append(BrokenImage(Path(c.path), f.reason))
            elif f.sha256 not in kept:
                kept[f.sha256] = (c, f)
                result.read(f)
            else:
                _report_duplicate(kept[f.sha256][0], c, result)
        masked = [(c, f) for c, f in kept.values() if c.mask]
        mask_facts = files.facts([c.mask or "" for c, _ in masked], mask=True)
        for (c, f), m in zip(masked, mask_facts, strict=True):
            if result.usable_mask(m, f, kind=c.kind) is None:
                c.mask = None
        result.hashed = files.reads
    if share_test:
        _share_out(kept)
    result.records = sorted(
        (
            ImageRecord.of(f, c.split, c.kind, Path(c.mask) if c.mask else None)
            for c, f in kept.values()
        ),
        key=lambda r: (r.split == "test", r.kind != "good", r.kind, str(r.path)),
    )
    if not any(r.split == "train" for r in result.records):
        reason = ""
        if result.broken:
            reason = f"; {len(result.broken)} set aside, the first {result.broken[0].path}: "
            reason += result.broken[0].reason
        raise DataError(
            f"{result.root}: no usable normal image to train on{reason}",
            expected="files of type " + ", ".join(sorted(SUFFIXES)),
        )
    return result


def _report_duplicate(kept: Candidate, dropped: Candidate, result: ScanResult) -> None:
    result.duplicates.append((Path(kept.path), Path(dropped.path)))
    if (kept.kind == "good") != (dropped.kind == "good"):
        result.problems.append(
            f"{kept.path} ({kept.kind}) and {dropped.path} (good) have the same bytes:"
            " an image is normal or defective; it counts as defective"
        )
    elif kept.split != dropped.split:
        result.problems.append(
            f"{kept.path} (test) and {dropped.path} (train) have the same bytes:"
            " it is tested and not trained on"
        )


def _share_out(kept: dict[str, tuple[Candidate, FileFacts]]) -> None:
    """Move a fifth of the normal images to the test set; of two or more at least one."""
    normal = {s: c for s, (c, _) in kept.items() if c.kind == "good"}
    # Hashed again, so that the choice says nothing about other choices made by content hash.
    order = {s: int(hashlib.sha256(f"test {s}".encode()).hexdigest()[:12], 16) for s in normal}
    chosen = [s for s in normal if order[s] % _TEST_SHARE == 0]
    ranked = sorted(normal, key=lambda s: order[s])
    if len(ranked) > 1 and not chosen:
        chosen = ranked[:1]
    elif len(chosen) == len(ranked):
        chosen = ranked[:-1]
    for s in chosen:
        normal[s].split = "test"
