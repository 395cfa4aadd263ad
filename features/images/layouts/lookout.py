"""Manifests of Amazon Lookout for Vision: JSON lines of SageMaker Ground Truth, an image a line.

A line names an image (``source-ref``) and labels it: an attribute whose ``-metadata`` is of type
``groundtruth/image-classification`` with ``class-name`` ``normal`` or ``anomaly``; of segmentation
another one of type ``groundtruth/semantic-segmentation``, a mask whose colours its
``internal-color-map`` names. Of that map only the colours count: its numbers need not be those of
the mask's palette. What is transparent, or has the colour of ``BACKGROUND``, is background.

``s3://bucket/key`` is looked for below ``--root`` where one is given (as ``bucket/key``, ``key``,
or ``key`` without its first folders, the same number of them for all images and for all masks), and
fetched from S3 where none is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from features.images.layouts.lists import Within, kind_of, shared
from features.images.layouts.reading import Reading
from features.images.pixels import read_colours
from features.images.records import BrokenImage, Candidate, Split
from headwater.errors import DataError, ImageError
from headwater.files import replacing

_SUFFIXES = (".manifest", ".jsonl", ".ndjson", ".json")
_CLASS, _MASK = "groundtruth/image-classification", "groundtruth/semantic-segmentation"
#: Hexadecimal digits and the kind they stand for, of background none.
Colours = tuple[tuple[str, str], ...]
#: Folders of a key that a local copy may lack.
_DEPTH = 12


@dataclass(frozen=True)
class _Line:
    """What a line says."""

    where: str
    image: str
    kind: str
    mask: str
    colours: Colours


def fits_lookout(place: Path) -> bool:
    """Whether a file's first line is one of such a manifest."""
    if not place.is_file() or place.suffix.lower() not in _SUFFIXES:
        return False
    try:
        with place.open(encoding="utf-8-sig") as file:
            return '"source-ref"' in file.readline(1 << 20)
    except (OSError, UnicodeDecodeError):
        return False


def read_lookout(reading: Reading) -> list[Candidate]:
    """List the images of a manifest, and of the one of test images where there is one.

    Defective images are tested, those of the training manifest too: nothing learns from them.

    Raises
    ------
    DataError
        A manifest without a usable line; images on S3 that cannot be fetched, without a root.
    """
    lines: list[tuple[_Line, Split | None]] = []
    lines += [(line, None) for line in _lines(reading.place, reading)]
    if reading.test is not None:
        lines += [(line, "test") for line in _lines(reading.test, reading)]
        lines = [(a, s or ("train" if a.kind == "good" else "test")) for a, s in lines]
        if moved := sum(a.kind != "good" and not _of(reading.test, a) for a, _ in lines):
            reading.result.notes.append(
                f"{moved} defective images of {reading.place.name} are tested: nothing learns "
                "from them"
            )
    places = _Places(reading)
    images = places.find([a.image for a, _ in lines])
    masks = places.find([a.mask for a, _ in lines if a.mask])
    made = _Masks(reading.kept / "masks" if reading.kept else None)
    found: list[Candidate] = []
    seen: set[str] = set()
    for line, split in lines:
        path, why = images[line.image]
        if why:
            told = BrokenImage(Path(line.image), f"{line.where}: {why}")
            reading.result.broken.append(told)
        elif path in seen:
            reading.result.left_out.add("lines of images that are listed before", line.where)
        else:
            seen.add(path)
            found.append(_candidate(line, split, path, masks, made, reading))
    return shared(found)


def _of(file: Path, line: _Line) -> bool:
    return line.where.startswith(f"{file}, line ")


def _candidate(
    line: _Line,
    split: Split | None,
    path: str,
    masks: Mapping[str, tuple[str, str]],
    made: _Masks,
    reading: Reading,
) -> Candidate:
    image = Candidate(path, split, line.kind)
    if not line.mask:
        return image
    mask, why = masks[line.mask]
    try:
        if why:
            raise ImageError(f"{line.mask}: {why}")
        plain, kinds = made.plain(Path(mask), line.colours)
    except ImageError as error:
        reading.result.problems.append(
            f"mask {error.culprit} ({line.where}); its image counts without mask"
        )
        return image
    if kinds:
        image.masks = (str(plain),)
        image.kind = "+".join(kinds) if line.kind != "good" else "good"
    elif line.kind != "good":
        reading.result.problems.append(
            f"mask {line.mask} ({line.where}): nothing is marked; its image counts without mask"
        )
    return image


def _lines(file: Path, reading: Reading) -> Iterator[_Line]:
    """Yield what each line says; what is no line of a manifest is set aside by its number."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8"
        raise DataError(f"{file}: {why}", expected="a manifest of JSON lines in UTF-8") from None
    usable = False
    for number, row in enumerate(text.splitlines(), 1):
        where = f"{file}, line {number}"
        if not row.strip():
            continue
        try:
            line = _line(json.loads(row), where)
        except (ValueError, RecursionError) as error:
            why = error.culprit if isinstance(error, DataError) else "not JSON"
            reading.result.broken.append(BrokenImage(Path(where), why.removeprefix(f"{where}: ")))
            continue
        if line is None:
            reading.result.left_out.add("lines without a label", where)
            continue
        usable = True
        yield line
    if not usable:
        first = "".join(f"; the first: {b.path}: {b.reason}" for b in reading.result.broken[:1])
        raise DataError(
            f"{file}: no line with a label{first}",
            expected='JSON lines with "source-ref" and a label of image classification',
        )


def _line(data: Any, where: str) -> _Line | None:
    """Return what a line says; None where it has no label."""
    if not isinstance(data, dict) or not isinstance(data.get("source-ref"), str):
        raise DataError(f"{where}: no source-ref")
    label, mask = "", ""
    colours: Colours = ()
    for key, about in data.items():
        if not key.endswith("-metadata") or not isinstance(about, dict):
            continue
        if about.get("type") == _CLASS:
            label = str(about.get("class-name", ""))
        elif about.get("type") == _MASK:
            mask = data.get(key.removesuffix("-metadata"), "")
            colours = _colours(about.get("internal-color-map"), where)
    if not isinstance(mask, str):
        raise DataError(f"{where}: a mask that is no address")
    if not label:
        return None
    return _Line(where, data["source-ref"], kind_of(label, where), mask, colours)


def _colours(table: Any, where: str) -> Colours:
    """Return a map's colours and their names, in its order; background has no name."""
    found = []
    for entry in table.values() if isinstance(table, dict) else ():
        named = isinstance(entry, dict) and entry.get("class-name"), entry.get("hex-color")
        name, colour = named
        if not isinstance(name, str) or not isinstance(colour, str):
            raise DataError(f"{where}: an entry of internal-color-map without name or colour")
        digits = colour.lstrip("#").lower()
        if len(digits) != 6 or set(digits) - set("0123456789abcdef"):
            raise DataError(f"{where}: colour {colour!r} of internal-color-map")
        background = name.strip().lower() == "background"
        found.append((digits, "" if background else kind_of(name, where)))
    return tuple(found)


class _Masks:
    """Masks as others are, black where nothing is, made of those with colours.

    They are kept by the content of the mask and its map, with the kinds' numbers in the name, so
    that nothing is decoded twice.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        made = folder.glob("*-*.png") if folder is not None else ()
        self._made = {path.name.partition("-")[0]: path for path in made}

    def plain(self, path: Path, colours: Colours) -> tuple[Path, list[str]]:
        """Return the mask that is made of one, and the kinds that are in it.

        Raises
        ------
        ImageError
            A mask that cannot be read, or has colours that its map does not name.
        """
        if self.folder is None:
            raise DataError(f"mask {path}: no folder for masks that are made of others")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ImageError(f"{path}: {error.strerror}") from None
        key = hashlib.sha256(json.dumps(colours).encode() + content).hexdigest()[:32]
        names = list(dict.fromkeys(name for _, name in colours if name))
        if key not in self._made:
            marked, kinds = _marked(path, colours)
            numbers = ".".join(str(names.index(n)) for n in names if n in kinds)
            self._made[key] = self.folder / f"{key}-{numbers}.png"
            with replacing(self._made[key]) as new:
                Image.fromarray(marked.astype(np.uint8) * 255).save(new, "PNG")
        made = self._made[key]
        return made, [names[int(n)] for n in made.stem.partition("-")[2].split(".") if n]


def _marked(path: Path, colours: Colours) -> tuple[np.ndarray, set[str]]:
    """Return what a mask marks, ``[H, W]`` bool, and as which kinds."""
    pixels = read_colours(path)
    value = (
        pixels[..., 0].astype(np.int64) << 16
        | pixels[..., 1].astype(np.int64) << 8
        | pixels[..., 2]
    )
    rest = pixels[..., 3] > 0
    marked = np.zeros(rest.shape, bool)
    seen: set[str] = set()
    for digits, name in colours:
        here = rest & (value == int(digits, 16))
        rest &= ~here
        if name and here.any():
            marked |= here
            seen.add(name)
    if rest.any():
        strange = sorted({f"#{v:06x}" for v in np.unique(value[rest])[:4].tolist()})
        raise ImageError(
            f"{path}: {rest.mean():.1%} of it is {', '.join(strange)}, which its "
            "internal-color-map does not name"
        )
    return marked, seen


class _Places:
    """Where the files of a manifest are: below a root, or fetched."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.root = (reading.root or reading.place.parent).resolve()
        self.within = Within(self.root, reading.links == "anywhere")

    def find(self, addresses: Sequence[str]) -> dict[str, tuple[str, str]]:
        """Return the file of each address and nothing, or nothing and why there is none."""
        addresses = list(dict.fromkeys(addresses))
        far = [a for a in addresses if a.startswith("s3://")]
        found = {}
        for address in addresses:
            scheme, mark, _ = address.partition("://")
            if mark and scheme != "s3":
                found[address] = ("", f"{scheme}:// is not read; expected s3:// or a path")
            elif not mark:
                found[address] = self.within.find(address)
        if self.reading.root is not None:
            return found | self._below(far)
        if far:
            found |= self._fetched(far)
        return found

    def _fetched(self, addresses: Sequence[str]) -> dict[str, tuple[str, str]]:
        if self.reading.fetch is None:
            raise DataError(
                f"{self.reading.place}: {len(addresses)} images on S3, the first {addresses[0]}",
                expected="--root DIR, where their copies are",
            )
        if self.reading.kept is not None:
            # Paths are told from there, so that they travel with the home.
            self.reading.result.root = self.reading.kept
        got = self.reading.fetch(addresses)
        return {a: ("", p) if isinstance(p, str) else (str(p), "") for a, p in got.items()}

    def _below(self, addresses: Sequence[str]) -> dict[str, tuple[str, str]]:
        """Find the copies of a bucket below the root: all lack as many folders of their keys."""
        found: dict[str, tuple[str, str]] = {}
        by_bucket: dict[str, list[str]] = {}
        for address in addresses:
            by_bucket.setdefault(address.split("/")[2], []).append(address)
        for some in by_bucket.values():
            best: dict[str, tuple[str, str]] = {}
            for depth in range(_DEPTH):
                tried = {a: self.within.find(_lacking(a, depth)) for a in some}
                hits = [path for path, _ in tried.values() if path]
                # Two images that would be one file: their folders tell them apart.
                if len(set(hits)) == len(hits) > sum(bool(p) for p, _ in best.values()):
                    best = tried
                if len(hits) == len(some):
                    break
            why = f"not found below {self.root}"
            found |= {
                a: (best.get(a, ("", ""))[0], "" if best.get(a, ("",))[0] else why) for a in some
            }
        return found


def _lacking(address: str, depth: int) -> str:
    """Return ``bucket/key`` without its first folders; of one with fewer, nothing that exists.

    >>> _lacking("s3://shop/export/train/a.png", 2)
    'train/a.png'
    """
    parts = address.removeprefix("s3://").split("/")
    return "/".join(parts[depth:]) if depth < len(parts) else "."
