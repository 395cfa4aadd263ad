"""Walking folders of images: in order, hidden files left out, never out of the root."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from features.images.pixels import SUFFIXES
from headwater.errors import DataError


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


def check_mvtec(root: Path) -> None:
    """Raise `DataError` where a folder has not the MVTec layout."""
    if not (root / "train" / "good").is_dir():
        raise DataError(
            f"{root}: no folder train/good",
            expected="MVTec layout: train/good/*, test/KIND/*, ground_truth/KIND/NAME_mask.png",
            remedy="for plain folders give --normal DIR [--defective DIR --masks DIR]",
        )


class Walker:
    """Lists the image files below a root and counts what it leaves out.

    Links to files inside the root are followed; links out of it are refused, and so are links to
    folders, which may run in circles. Both are reported in `problems`.

    Parameters
    ----------
    root
        Resolved folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.problems: list[str] = []
        self.ignored = 0

    def files(self, path: Path | str) -> Iterator[str]:
        """Yield the absolute paths of the image files below a folder, in order of name."""
        for entry in self._entries(path):
            if entry.is_dir():
                yield from self.files(entry.path)
            # splitext, not Path: there may be a hundred thousand.
            elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:  # noqa: PTH122
                yield entry.path
            else:
                self.ignored += 1

    def subfolders(self, path: Path) -> list[Path]:
        """Return the subfolders of a folder that should hold nothing else."""
        subs = []
        for entry in self._entries(path):
            if entry.is_dir():
                subs.append(Path(entry.path))
            elif Path(entry.name).suffix.lower() in SUFFIXES:
                self.problems.append(
                    f"{entry.path} is not read: it lies beside the folders of kinds"
                )
            else:
                self.ignored += 1
        return subs

    def _entries(self, path: Path | str) -> list[os.DirEntry[str]]:
        try:
            entries = sorted(os.scandir(path), key=lambda e: e.name)
        except OSError as error:
            self.problems.append(f"{path} cannot be read: {error.strerror}")
            return []
        return [e for e in entries if not e.name.startswith(".") and not self._refused(e)]

    def _refused(self, entry: os.DirEntry[str]) -> bool:
        if not entry.is_symlink():
            return False
        target = Path(entry.path).resolve()
        if target.is_relative_to(self.root) and not entry.is_dir():
            return False
        to = "a folder" if target.is_relative_to(self.root) else f"{target}, outside {self.root}"
        self.problems.append(f"{entry.path} is not followed: it is a link to {to}")
        return True
