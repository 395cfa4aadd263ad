"""Pairs of images on disk: a place now and before, and the mask of what changed.

Layout: ``current/``, ``history/`` and, where labels are known, ``mask/``, the same name in each,
either directly in the root or under ``train/`` and ``test/``. Both sides are image sets like any
other (`PairScan.images`); the pairs join them by key.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from features.images.cache import FileCache, Progress
from features.images.folders import Links, Walker, folder
from features.images.masks import read_mask
from features.images.records import BrokenImage, ImageRecord, Scan, Split, about
from headwater.errors import DataError
from headwater.spec import SIDES
from headwater.text import few

#: Kind of a current image whose mask shows a change.
CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class PairRecord:
    """Two usable images of one place.

    Parameters
    ----------
    key
        ``<split>/<path without suffix>``: what the two images and the mask have in common.
    split
        ``train`` or ``test``.
    current, history
        The images. The kind of `current` is ``good`` or ``changed`` (by its mask; ``good`` without
        one), that of `history` always ``good``. Several pairs may share an image.
    mask
        What changed, checked to be readable and of the current image's size, or None.
    mask_sha256
        Of the mask's bytes, empty without one.
    """

    key: str
    split: Split
    current: ImageRecord
    history: ImageRecord
    mask: Path | None
    mask_sha256: str = ""

    @property
    def is_normal(self) -> bool:
        """Whether nothing changed, as far as is known."""
        return self.current.is_normal


@dataclass
class PairScan(Scan):
    """What a scan of pairs found; pairs of broken images are left out.

    Parameters
    ----------
    pairs
        Usable pairs: train before test, then by key.
    """

    pairs: list[PairRecord] = field(default_factory=list)

    def images(self, side: str | None = None) -> list[ImageRecord]:
        """Return the distinct images of a side (``current``, ``history``), or of both.

        An image of several pairs is named once; changed in one of them it is not ``good``.
        """
        found: dict[str, ImageRecord] = {}
        for pair in self.pairs:
            for name in SIDES if side is None else (side,):
                record: ImageRecord = getattr(pair, name)
                old = found.get(record.sha256)
                if old is None or (old.is_normal and not record.is_normal):
                    found[record.sha256] = record
        return list(found.values())


def scan_pairs(
    root: Path,
    *,
    cache: Path | None = None,
    rehash: bool = False,
    progress: Progress | None = None,
    links: Links = "inside",
) -> PairScan:
    """Scan a folder of pairs; pairs directly in the root are for training.

    Masks are read to tell changed pairs from unchanged ones. `cache`, `rehash`,
    `progress` and `links` are those of `features.images.scan.ScanOptions`.

    Raises
    ------
    DataError
        The folder does not exist, has not the layout, or no usable pair.

    Examples
    --------
    >>> found = scan_pairs(Path("boards"))
    >>> [(p.key, p.is_normal) for p in found.pairs]
    [('train/a', False), ('train/b', True), ('train/c', False), ('test/d', False)]
    """
    root = folder(Path(root), "pairs")
    result, walker = PairScan(root), Walker(root, links)
    places: list[tuple[Split, Path]] = [("train", root), ("train", root / "train")]
    places.append(("test", root / "test"))
    found: list[tuple[Split, str, dict[str, str]]] = []
    for split, place in places:
        if all((place / side).is_dir() for side in SIDES):
            found += [(split, key, files) for key, files in _match(place, walker, result)]
    if not found:
        raise DataError(
            f"{root}: no pairs",
            expected="current/NAME.png and history/NAME.png, in it or in its train/ and test/; "
            "mask/NAME.png where labels are known",
        )
    with FileCache(cache, rehash=rehash, progress=progress) as files:
        facts = {name: list(files.facts([f.get(name, "") for _, _, f in found])) for name in SIDES}
        masked = [f["mask"] for _, _, f in found if "mask" in f]
        masks = dict(zip(masked, files.facts(masked, mask=True), strict=True))
        result.hashed = files.reads
    pairs = []
    shown: dict[str, tuple[str, bytes]] = {}
    for n, (split, key, names) in enumerate(found):
        sides = [facts[side][n] for side in SIDES]
        bad = [BrokenImage(Path(f.path), f.reason) for f in sides if f.reason]
        result.broken += bad
        for f in sides:
            result.read(f)
        if not bad:
            label = masks.get(names.get("mask", ""))
            mask = result.usable_mask(label, sides[0], of="pair") if label else None
            current = ImageRecord.of(sides[0], split, "good", mask)
            history = ImageRecord.of(sides[1], split, "good", None)
            sha = label.sha256 if label and mask else ""
            pairs.append(PairRecord(f"{split}/{key}", split, current, history, mask, sha))
            shown[pairs[-1].key] = (
                sides[0].pixels + sides[1].pixels,
                sides[0].look + sides[1].look,
            )
    pairs = _tested_alone(pairs, shown, cache, result)
    with ThreadPoolExecutor(2) as pool:
        changed = list(pool.map(lambda p: p.mask is not None and read_mask(p.mask).any(), pairs))
    result.pairs = sorted(
        (
            replace(p, current=replace(p.current, kind=CHANGED if c else "good"))
            for p, c in zip(pairs, changed, strict=True)
        ),
        key=lambda p: (p.split == "test", p.key),
    )
    result.problems += [*walker.problems, *about(walker.left_out)]
    result.left_out = walker.left_out
    if not result.pairs:
        first = f"; the first: {result.broken[0].path}: {result.broken[0].reason}"
        raise DataError(f"{root}: no usable pair of {len(found)}{first}")
    return result


def _tested_alone(
    pairs: list[PairRecord],
    shown: dict[str, tuple[str, bytes]],
    cache: Path | None,
    result: PairScan,
) -> list[PairRecord]:
    """Leave out training pairs that are tested, and report those that show nearly the same.

    `shown` says by a pair's key what its two images show.
    """
    tested = {shown[p.key][0]: p.key for p in pairs if p.split == "test"}
    both = [p for p in pairs if p.split == "train" and shown[p.key][0] in tested]
    if both:
        told = few([(p.key, tested[shown[p.key][0]]) for p in both])
        result.problems.append(
            f"{len(both)} training pair(s) are in the test set, too: {told}; they are "
            "tested and not trained on"
        )
    gone = {p.key for p in both}
    left = [p for p in pairs if p.key not in gone]
    now, learnt = ([p.key for p in left if p.split == split] for split in ("test", "train"))
    with FileCache(cache) as files:
        found = files.copies([shown[key][1] for key in now], [shown[key][1] for key in learnt])
    result.copies = [(now[i], learnt[j]) for i, j in found]
    return left


def _match(place: Path, walker: Walker, result: PairScan) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the key and the files of each pair; report what is left over."""
    table: dict[str, dict[str, str]] = {}
    for name in (*SIDES, "mask"):
        base = place / name
        listed = walker.masks if name == "mask" else walker.files
        for path in listed(base) if base.is_dir() else ():
            key = str(Path(path).relative_to(base).with_suffix(""))
            if name == "mask":
                key = key.removesuffix("_mask")
            entry = table.setdefault(key, {})
            if name in entry:
                result.problems.append(f"{path}: {entry[name]} has the same name and is used")
            else:
                entry[name] = path
    for key, files in sorted(table.items()):
        absent = [side for side in SIDES if side not in files]
        if absent:
            lone = next(iter(files.values()))
            result.problems.append(f"{lone} is not used: it has no {' and no '.join(absent)} image")
        else:
            yield key, files
