"""Walking folders of images: in order, what is no product left out, never out of the root."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from features.images.junk import junk_file, junk_folder, masks_beside
from features.images.pixels import SUFFIXES
from features.images.places.beside import regions_beside
from features.images.records import DANGLING, OUT, TO_FOLDERS, LeftOut
from headwater.errors import DataError

#: ``inside``: links that lead out of the folder are refused; ``anywhere``: they are followed.
Links = Literal["inside", "anywhere"]
#: Letters of a type that is named; what is longer is a name with a dot in it.
_SUFFIX = 10


def inside(root: Path, path: Path | str) -> Path:
    """Return `path` resolved below `root`; `DataError` where links or ``..`` lead out of it."""
    root = root.resolve()
    full = (root / path).resolve()
    if not full.is_relative_to(root):
        raise DataError(
            f"{path} leads to {full}",
            expected=f"a path inside {root}",
            remedy="copy the file there; links and .. out of the folder are not followed",
        )
    return full


def folder(path: Path, what: str) -> Path:
    """Return the resolved folder; `DataError` where there is none."""
    if not Path(path).is_dir():
        raise DataError(f"{path}: no such folder", expected=f"a folder of {what}")
    return Path(path).resolve()


class Walker:
    """Lists the image files below a root and counts what it leaves out.

    Links to files inside the root are followed; links out of it are refused, and so are links to
    folders, which may run in circles. Only regular files are listed: to open a pipe is to wait.

    Parameters
    ----------
    root
        Resolved folder.
    links
        ``anywhere``: links are followed wherever they lead, those to folders too.
    """

    def __init__(self, root: Path, links: Links = "inside") -> None:
        self.root, self.links = root, links
        self.problems: list[str] = []
        self.left_out = LeftOut()
        self._within: list[str] = []

    def files(self, path: Path | str) -> Iterator[str]:
        """Yield the absolute paths of the image files below a folder, in order of name.

        Masks beside their images (``Part0_label.bmp`` beside ``Part0.jpg``) are left out.
        """
        for image, mask in self.images(path):
            if mask:
                self.left_out.add("masks beside images", mask)
            yield image

    def images(self, path: Path | str) -> Iterator[tuple[str, str]]:
        """Yield each image below a folder, and the mask beside it or nothing, in order of name."""
        entries = list(self._entries(path))
        masks = masks_beside(e.name for e, is_dir in entries if not is_dir)
        mask_of = {image: mask for mask, image in masks.items()}
        regions = regions_beside(e.name for e, is_dir in entries if not is_dir)
        for entry, is_dir in entries:
            if is_dir:
                yield from self._below(entry, path)
            elif entry.name in regions:
                self.left_out.add("regions of interest beside images", entry.path)
            elif self._usable(entry) and entry.name not in masks:
                mask = mask_of.get(entry.name, "") if masks else ""
                yield entry.path, f"{path}{os.sep}{mask}" if mask else ""
            elif masks and masks.get(entry.name) and mask_of[masks[entry.name]] != entry.name:
                self.left_out.add("masks beside images", entry.path)

    def masks(self, path: Path | str) -> Iterator[str]:
        """Yield the absolute paths of all image files below a folder that holds masks alone."""
        for entry, is_dir in self._entries(path):
            if is_dir:
                yield from self.masks(entry.path)
            elif self._usable(entry):
                yield entry.path

    def subfolders(self, path: Path) -> list[Path]:
        """Return the subfolders of a folder that should hold nothing else."""
        subs = []
        for entry, is_dir in self._entries(path):
            if is_dir:
                subs.append(Path(entry.path))
            elif self._usable(entry):
                self.left_out.add(f"images beside the folders in {path.name}/", entry.path)
        return subs

    def _below(self, entry: os.DirEntry[str], path: Path | str) -> Iterator[tuple[str, str]]:
        """Walk a subfolder, once: links that are followed may run in circles."""
        if self.links == "anywhere":
            real = os.path.realpath(entry.path)
            if real in self._within or Path(path).resolve().is_relative_to(real):
                self.left_out.add("links in a circle", entry.path)
                return
            self._within.append(real)
            yield from self.images(entry.path)
            self._within.pop()
        else:
            yield from self.images(entry.path)

    def _usable(self, entry: os.DirEntry[str]) -> bool:
        """Whether an entry that is no folder is an image by its name, and a regular file."""
        # Not Path, nor splitext: there may be a hundred thousand.
        dot = entry.name.rfind(".")
        suffix = entry.name[dot:].lower() if dot > 0 else ""
        if suffix in SUFFIXES:
            if entry.is_file():
                return True
            self.left_out.add("pipes, sockets or devices", entry.path)
        else:
            told = len(suffix) <= _SUFFIX and suffix[1:].isalnum()
            named = (
                f"of type {suffix}" if told else "of other types" if suffix else "without a type"
            )
            self.left_out.add(f"files {named}", entry.path)
        return False

    def _entries(self, path: Path | str) -> Iterator[tuple[os.DirEntry[str], bool]]:
        """Yield what may be a product's image, or a folder of them (True), in order of name."""
        try:
            entries = sorted(os.scandir(path), key=lambda e: e.name)
        except OSError as error:
            self.problems.append(f"{path} cannot be read: {error.strerror}")
            return
        for entry in entries:
            is_dir = entry.is_dir()
            if entry.is_symlink() and (why := self._refused(entry)):
                self.left_out.add(why, f"{entry.path} -> {os.path.realpath(entry.path)}")
            elif is_dir and (why := junk_folder(entry.name)):
                # One look is enough to say how much it is.
                self.left_out.add(why, entry.path, _count(entry.path))
            elif is_dir and entry.name[0] == ".":
                self.left_out.add("hidden folders", entry.path)
            elif not is_dir and (why := junk_file(entry.name)):
                self.left_out.add(why, entry.path)
            else:
                yield entry, is_dir

    def _refused(self, entry: os.DirEntry[str]) -> str:
        """Return why a link is not followed, or nothing."""
        target = Path(entry.path).resolve()
        if not target.exists():
            return DANGLING
        if self.links == "anywhere":
            return ""
        if not target.is_relative_to(self.root):
            return OUT
        return TO_FOLDERS if entry.is_dir() else ""


def _count(path: str) -> int:
    try:
        return max(1, sum(1 for _ in os.scandir(path)))
    except OSError:
        return 1
