"""Pairs of images on disk: a place now and before, and the mask of what changed.

Layout: ``current/``, ``history/`` and, where labels are known, ``mask/``, the same name in each,
either directly in the root or under ``train/`` and ``test/``. Both sides are image sets like any
other (`PairScan.images`); the pairs join them by key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from features.images.cache import FileCache, FileFacts, Progress
from features.images.folders import Walker, folder
from features.images.pixels import read_image, read_mask
from features.images.records import BrokenImage, ImageRecord, Split
from headwater.errors import DataError

SIDES = ("current", "history")
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
class PairScan:
    """What a scan of pairs found.

    Parameters
    ----------
    root
        The folder scanned.
    pairs
        Usable pairs: train before test, then by key.
    broken
        Images set aside; their pairs are left out.
    problems
        Sentences on what should be looked at; each names its file.
    ignored, hashed
        As of `features.images.records.ScanResult`.
    """

    root: Path
    pairs: list[PairRecord] = field(default_factory=list)
    broken: list[BrokenImage] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    ignored: int = 0
    hashed: int = 0

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
    workers: int | None = None,
    progress: Progress | None = None,
) -> PairScan:
    """Scan a folder of pairs; pairs directly in the root are for training.

    Masks are read to tell changed pairs from unchanged ones. `cache`, `rehash`, `workers` and
    `progress` are those of `features.images.scan.scan_mvtec`.

    Raises
    ------
    DataError
        The folder does not exist, has not the layout, or no usable pair.
    """
    root = folder(Path(root), "pairs")
    result, walker = PairScan(root), Walker(root)
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
    with FileCache(cache) as files:
        options: dict[str, Any] = {"rehash": rehash, "workers": workers, "progress": progress}
        facts = {
            name: list(files.facts([f.get(name, "") for _, _, f in found], **options))
            for name in SIDES
        }
        masked = [f["mask"] for _, _, f in found if "mask" in f]
        masks = dict(zip(masked, files.facts(masked, mask=True, **options), strict=True))
        result.hashed = files.reads
    pairs = []
    for n, (split, key, names) in enumerate(found):
        sides = [facts[side][n] for side in SIDES]
        bad = [BrokenImage(Path(f.path), f.reason) for f in sides if f.reason]
        result.broken += bad
        if not bad:
            mask = _usable_mask(names.get("mask"), masks, sides[0], result)
            records = [_record(f, split, mask if k == 0 else None) for k, f in enumerate(sides)]
            label = masks[names["mask"]].sha256 if mask else ""
            pairs.append(PairRecord(f"{split}/{key}", split, records[0], records[1], mask, label))
    with ThreadPoolExecutor(workers or 2) as pool:
        changed = list(pool.map(_shows_change, [p.mask for p in pairs]))
    result.pairs = sorted(
        (
            replace(p, current=replace(p.current, kind=CHANGED if c else "good"))
            for p, c in zip(pairs, changed, strict=True)
        ),
        key=lambda p: (p.split == "test", p.key),
    )
    result.problems += walker.problems
    result.ignored = walker.ignored
    if not result.pairs:
        first = f"; the first: {result.broken[0].path}: {result.broken[0].reason}"
        raise DataError(f"{root}: no usable pair of {len(found)}{first}")
    return result


def _match(place: Path, walker: Walker, result: PairScan) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the key and the files of each pair; report what is left over."""
    table: dict[str, dict[str, str]] = {}
    for name in (*SIDES, "mask"):
        base = place / name
        for path in walker.files(base) if base.is_dir() else ():
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


def _usable_mask(
    path: str | None, masks: Mapping[str, FileFacts], image: FileFacts, result: PairScan
) -> Path | None:
    if path is None:
        return None
    facts = masks[path]
    if facts.reason:
        result.problems.append(f"mask {path}: {facts.reason}; its pair counts without mask")
        return None
    if (facts.width, facts.height) != (image.width, image.height):
        result.problems.append(
            f"mask {path} is {facts.width}x{facts.height}, its current image "
            f"{image.width}x{image.height}; the pair counts without mask"
        )
        return None
    return Path(path)


def _record(facts: FileFacts, split: Split, mask: Path | None) -> ImageRecord:
    return ImageRecord(
        Path(facts.path), facts.sha256, split, "good", mask, facts.width, facts.height, facts.bytes
    )


def _shows_change(mask: Path | None) -> bool:
    return mask is not None and bool(read_mask(mask).any())


class Masked(Protocol):
    """A pair, as far as its mask goes: a `PairRecord`, say."""

    @property
    def key(self) -> str:
        """Its name."""

    @property
    def mask(self) -> Path | None:
        """File of its mask."""


class PairMasks:
    """The masks of pairs at the network's input size, by the pair's number; can be pickled.

    For `heads.pairs.source.PairSource`.

    Parameters
    ----------
    pairs
        Pairs that all have masks.
    prepare
        From a mask ``[H, W]`` bool to the input's, for instance
        ``features.images.preprocess.mask_to_input`` with its `spec` filled in.

    Raises
    ------
    DataError
        Where pairs have no mask; names the first.
    """

    def __init__(
        self, pairs: Sequence[Masked], prepare: Callable[[np.ndarray], np.ndarray]
    ) -> None:
        without = [p.key for p in pairs if p.mask is None]
        if without:
            raise DataError(
                f"{len(without)} of {len(pairs)} pairs have no mask, the first {without[0]}",
                expected="a mask for each pair, black where nothing changed",
                remedy="add the masks or leave these pairs out",
            )
        self.paths = [p.mask for p in pairs]
        self.prepare = prepare

    def __call__(self, number: int) -> np.ndarray:
        """Return ``[h, w]`` bool."""
        path = self.paths[number]
        assert path is not None
        return self.prepare(read_mask(path))


class ImageSource:
    """Preprocessed images as a feature source with the one layer ``image``, ``[N, 3, h, w]``.

    For heads that learn their own encoder; images are decoded when they are read. It has the form
    of `heads.contract.FeatureSource`.

    Parameters
    ----------
    records
        Images; their hashes are the rows' ids.
    prepare
        From ``[H, W, 3]`` uint8 to ``[3, h, w]`` float32, for instance
        ``features.images.preprocess.preprocess`` with its `spec` filled in.
    size
        ``(h, w)``.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        prepare: Callable[[np.ndarray], Tensor],
        size: tuple[int, int],
    ) -> None:
        self.records, self.prepare, self.size = list(records), prepare, size

    @property
    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """``{"image": (3, h, w)}``."""
        return {"image": (3, *self.size)}

    @property
    def ids(self) -> list[str]:
        """SHA-256 of each image."""
        return [r.sha256 for r in self.records]

    @property
    def views(self) -> list[int]:
        """Zeros."""
        return [0] * len(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def _read(self, rows: Sequence[int]) -> dict[str, Tensor]:
        images = [self.prepare(read_image(self.records[r].path)).float() for r in rows]
        return {"image": torch.stack(images) if images else torch.zeros(0, 3, *self.size)}

    def read(self, start: int, stop: int) -> dict[str, Tensor]:
        """Return rows ``start:stop`` in order."""
        return self._read(range(len(self))[start:stop])

    def batches(
        self, size: int, *, seed: int | None = None, drop_last: bool = False
    ) -> Iterator[dict[str, Tensor]]:
        """Yield batches, in order or in the order that `seed` decides, with ``_rows``."""
        order = np.arange(len(self))
        if seed is not None:
            np.random.default_rng(seed).shuffle(order)
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            if drop_last and len(rows) < size:
                return
            yield {**self._read(rows.tolist()), "_rows": torch.from_numpy(rows)}

    def release(self) -> None:
        """Do nothing: images are held no longer than they are used."""
