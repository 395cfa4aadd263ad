"""Pictures from outside among a set's images: under their digest, in the folders of its layout.

Where one is written is said by the set and by whoever takes it in, never by a name that came with
it. What is there already, byte for byte, is not written again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from features.images.cache import FileCache
from features.images.formats.names import suffix_of
from features.images.junk import junk_folder
from features.images.layouts.catalogue import AUTO, find_layout
from features.images.layouts.plain import MASKS
from features.images.layouts.reading import is_good
from features.images.pixels import SUFFIXES, look_at
from flows.runtime.home import Home
from headwater.errors import DataError, ImageError
from headwater.files import replacing

Split = Literal["train", "val", "test"]
#: Folders of normal training images and of test images, by layout.
_FOLDERS = {
    "mvtec": (("good",), "test"),
    "mvtec-ad-2": (("good",), "test_public"),
    "btad": (("ok", "normal", "good"), "test"),
}
#: A kind of defect is the name of a folder: a word in any script.
_KIND = re.compile(r"\w(?:[\w .+-]{0,62}[\w+-])?")


@dataclass(frozen=True)
class Place:
    """Where a picture is, or is to be, among a set's images.

    Parameters
    ----------
    root
        The folder of the set's images.
    path
        The file.
    there
        Whether it is there already.
    """

    root: Path
    path: Path
    there: bool

    @property
    def key(self) -> str:
        """Its path as the set's store has it."""
        return self.path.relative_to(self.root).as_posix()


def check_kind(kind: str) -> str:
    """Return a kind of defect; it names a folder, and nothing else.

    Raises
    ------
    DataError
        For what names none, hides, leads elsewhere, or is another word for good.

    Examples
    --------
    >>> check_kind("scratch"), check_kind("Lötstelle 2")
    ('scratch', 'Lötstelle 2')
    """
    good = is_good(kind)
    if _KIND.fullmatch(kind) and not good and kind.lower() not in MASKS and not junk_folder(kind):
        return kind
    raise DataError(
        f"kind of defect {kind[:100]!r}" + ": a word for normal" * good,
        expected="letters, digits, blanks, -, _, + and dots, 64 at most, as in scratch",
    )


def place_of(
    home: Home,
    image_set: str,
    content: bytes,
    split: Split,
    kind: str = "good",
    first: str = "",
) -> Place:
    """Return where a picture belongs among a set's images, or where it is already.

    Parameters
    ----------
    home, image_set
        Which set; its images lie in folders as ``train/good, val/KIND, test/KIND``.
    content
        The picture's bytes.
    split, kind
        As what: ``train`` takes ``good`` alone, ``val`` no ``good``.
    first
        What its name begins with, before its digest: names in order of arrival tell which images
        were taken one after the other.

    Raises
    ------
    ImageError
        Where it is no image that can be read.
    DataError
        Where the set has no such folders, `kind` names none, or the picture is there as the
        contrary of what it is said to be.
    """
    root, normal, tests = _folders(home, image_set)
    look_at(content, "the picture")
    try:
        suffix = suffix_of(content)
    except ValueError as error:
        raise ImageError("the picture: not an image", expected="an image file") from error
    if kind != "good":
        check_kind(kind)
    if split == ("val" if kind == "good" else "train"):
        raise DataError(
            f"{kind} for {split}", expected="good for train or test, a defect for val or test"
        )
    folder = {"train": root / "train" / normal, "val": root / "val" / kind}.get(split)
    digest = hashlib.sha256(content).hexdigest()
    name = f"{first}-{digest[:16]}{suffix}" if first else f"{digest}{suffix}"
    wanted = (folder or root / tests / kind) / name
    for found in _same(home, root, content):
        parts = found.relative_to(root).parts
        good = is_good(parts[1]) or parts[1] == normal
        if good != (kind == "good"):
            raise DataError(
                f"{found} has the same bytes, and counts as {'normal' if good else parts[1]}",
                expected=f"a picture that is not yet there as anything but {kind}",
                remedy="take that file out of the set's images first"
                + (f": headwater remove {image_set} IMAGE" if parts[0] == "train" else ""),
            )
        return Place(root, found, True)
    return Place(root, wanted, False)


def put(place: Place, content: bytes) -> None:
    """Write a picture where it belongs, in one step, if it is not there; extraction finds it.

    Raises
    ------
    DataError
        Where it cannot be written.
    """
    if place.there:
        return
    try:
        with replacing(place.path) as new:
            new.write_bytes(content)
    except OSError as error:
        raise DataError(
            f"{place.path} cannot be written: {error.strerror}",
            expected="a folder of images that this user may write to, and room on its disk",
        ) from error


def _folders(home: Home, image_set: str) -> tuple[Path, str, str]:
    """Return the set's root, and the names of its folders of normal and of test images."""
    card = home.card(image_set)
    remedy = (
        "lay the images out as train/good, val/KIND, test/KIND (docs/images.md), or put the "
        "picture where it belongs yourself"
    )
    if not card.get("images"):
        what = "a set of pairs" if card.get("pairs") else "given as plain folders"
        what = what if card else "not known in this home"
        raise DataError(
            f"nothing can be put into {image_set}: it is {what}",
            expected="a folder of images with train/good",
            remedy=remedy,
        )
    root = Path(card["images"])
    layout = find_layout(root, card.get("layout") or AUTO).name
    if layout not in _FOLDERS:
        raise DataError(
            f"nothing can be put into {image_set}: {root} is laid out as {layout}",
            expected=f"one of {', '.join(_FOLDERS)}",
            remedy=remedy,
        )
    names, tests = _FOLDERS[layout]
    normal = next((name for name in names if (root / "train" / name).is_dir()), names[0])
    return root.resolve(), normal, tests


def _same(home: Home, root: Path, content: bytes) -> list[Path]:
    """Return the files below the set's images that have these bytes."""
    size, alike = len(content), []
    for file in _images(root):
        if file.stat().st_size == size:
            alike.append(file)
    digest = hashlib.sha256(content).hexdigest()
    with FileCache(home.file_cache) as known:
        facts = list(known.facts([str(file) for file in alike]))
    return [file for file, fact in zip(alike, facts, strict=True) if fact.sha256 == digest]


def _images(root: Path) -> Iterator[Path]:
    for split in ("train", "val", "validation", "test", "test_public"):
        for folder in (root / split).iterdir() if (root / split).is_dir() else ():
            if not folder.is_dir() or folder.name in MASKS:
                continue
            for file in folder.rglob("*"):
                if file.suffix.lower() in SUFFIXES and file.name[0] != "." and file.is_file():
                    yield file
