"""Regions of interest of single images: a file beside each, or in a folder that mirrors theirs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

#: What is given in place of a file where every image may have its own.
BESIDE = "beside"
_END = "_roi"


def region_of(image: Path, root: Path, folder: Path | None = None) -> Path | None:
    """Return the file with the region of interest of an image, or None.

    Parameters
    ----------
    image
        Its file.
    root
        What the image's place in `folder` is reckoned from.
    folder
        Where regions lie as images lie below `root`, as ``NAME.png`` or ``NAME_roi.png``. None
        looks for ``NAME_roi.png`` beside the image.
    """
    place = image.parent
    names = [f"{image.stem}{_END}.png"]
    if folder is not None:
        place = folder / (place.relative_to(root) if place.is_relative_to(root) else "")
        names.append(f"{image.stem}.png")
    return next((place / name for name in names if (place / name).is_file()), None)


def regions_beside(names: Iterable[str]) -> set[str]:
    """Return, of the files of one folder, those that are regions of other images there.

    >>> sorted(regions_beside(["a.jpg", "a_roi.png", "b_roi.png"]))
    ['a_roi.png']
    """
    known = list(names)
    ends = [n for n in known if n.endswith(f"{_END}.png")]
    if not ends:
        return set()
    stems = {n[: n.rfind(".")] for n in known}
    return {n for n in ends if n.removesuffix(f"{_END}.png") in stems}
