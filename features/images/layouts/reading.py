"""What a reader of a layout is, what it is given, and how masks find their images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from features.images.folders import Links, Walker, folder
from features.images.junk import mask_stem
from features.images.pixels import SUFFIXES
from features.images.records import Candidate, ScanResult, about

#: Names of folders and labels that say: nothing is wrong here.
GOOD = frozenset({"good", "ok", "normal"})
#: Names of folders that say the contrary.
BAD = frozenset(
    {
        "bad", "ko", "ng", "nok", "not_good", "defect", "defects", "defective", "anomaly",
        "anomalies", "anomalous", "abnormal", "faulty", "reject", "rejects", "rejected",
    }
)  # fmt: skip
#: Fetches addresses: each to a local file, or to why it is none.
Fetch = Callable[[Sequence[str]], Mapping[str, Path | str]]


@dataclass
class Reading:
    """What a reader is given, and where it says what it found.

    Parameters
    ----------
    place
        The resolved folder, or the file of a list.
    result
        Takes problems, notes, what was left out, images set aside.
    links
        See `features.images.folders.Walker`.
    root
        Of a list: where its paths are looked for, if not beside it.
    test
        Of a list: another one, of test images.
    kept
        Folder for what is fetched and for masks that are made of others; None where there is none.
    fetch
        Fetches images by address; None where nothing can be fetched.
    walkers
        What listed its folders.
    """

    place: Path
    result: ScanResult
    links: Links = "inside"
    root: Path | None = None
    test: Path | None = None
    kept: Path | None = None
    fetch: Fetch | None = None
    walkers: list[Walker] = field(default_factory=list)

    def walker(self, root: Path, what: str) -> Walker:
        """Return what lists the images of a folder, which is named in what is told of it."""
        self.walkers.append(Walker(folder(root, what), self.links))
        return self.walkers[-1]

    def close(self) -> None:
        """Hand what the walkers left out to the result."""
        for walker in self.walkers:
            self.result.problems += walker.problems
            self.result.left_out.take(walker.left_out)
        self.result.problems += about(self.result.left_out)


@dataclass(frozen=True)
class Layout:
    """One way to lay out a set of images.

    Parameters
    ----------
    name
        What `--layout` calls it.
    looks
        How it looks, in a line.
    fits
        Whether a folder, or the file of a list, is laid out so.
    read
        Lists what there is, unread.
    """

    name: str
    looks: str
    fits: Callable[[Path], bool]
    read: Callable[[Reading], list[Candidate]]


def is_good(name: str) -> bool:
    """Whether a folder or label of this name says that nothing is wrong.

    >>> is_good("OK"), is_good("crack")
    (True, False)
    """
    return name.strip().lower() in GOOD


class Masks:
    """Masks by the place they have below their folder, each used once.

    Parameters
    ----------
    root
        The folder of masks.
    files
        Absolute paths below it.
    """

    def __init__(self, root: Path | str, files: Iterable[str]) -> None:
        self._root, start = root, len(str(root)) + 1
        self._at: dict[str, list[str]] = {}
        self._in: dict[str, list[str]] = {}
        for path in files:
            place = path[start : path.rfind(".")]
            self._at.setdefault(place, []).append(path)
            folder_of = place.rpartition("/")[0]
            self._in.setdefault(folder_of, []).append(path)
            if stem := mask_stem(place):
                self._at.setdefault(stem, []).append(path)
        self.used: set[str] = set()

    def of(self, place: str, result: ScanResult) -> tuple[str, ...]:
        """Return the masks of the image at `place` (its path below its folder, without suffix).

        A mask is named as its image, or with ``_mask`` and the like behind, or lies with others in
        a folder named as the image. A file ``000/001.png`` is never the mask of ``001``.
        """
        found = self._at.get(place, [])
        if len(found) > 1:
            # NAME_mask.png is meant for NAME; NAME.png may be a copy of the image.
            found = sorted(found, key=lambda p: (not mask_stem(Path(p).stem), p))
            result.problems += [
                f"mask {p}: {found[0]} is for the same image and is used" for p in found[1:]
            ]
            self.used.update(found[1:])
        masks = tuple(found[:1]) or tuple(self._in.get(place, ()))
        self.used.update(masks)
        if not found and masks and len(_images_in(Path(masks[0]).parent)) > len(masks):
            result.problems.append(
                f"{Path(masks[0]).parent}: not all masks in it may be read; none of them is used"
            )
            return ()
        return masks

    def __contains__(self, place: str) -> bool:
        return place in self._at or place in self._in

    def leftover(self) -> list[str]:
        """Return the masks that no image asked for."""
        every = {p for paths in self._at.values() for p in paths}
        return sorted(every - self.used)

    def report_leftover(self, result: ScanResult) -> None:
        """Report those that belong to no image: in one line, however many they are.

        A folder whose images were taken away would else fill the screen with its masks.
        """
        left = self.leftover()
        if len(left) == 1:
            result.problems.append(f"mask {left[0]} belongs to no image: there is no such image")
        elif left:
            more = f" and {len(left) - 3} more" if len(left) > 3 else ""
            names = ", ".join(path[len(str(self._root)) + 1 :] for path in left[:3])
            result.problems.append(
                f"{len(left)} masks in {self._root} belong to no image: there are no such images "
                f"({names}{more})"
            )

    def rest(self) -> Masks:
        """Return the masks that no image asked for, for other images of the same names."""
        return Masks(self._root, self.leftover())


def _images_in(place: Path) -> list[str]:
    """Return the names in a folder that are those of images, links included."""
    names = (p.name for p in place.iterdir())
    return [n for n in names if n[0] != "." and Path(n).suffix.lower() in SUFFIXES]


def match(images: Sequence[Candidate], root: Path | str, masks: Masks, result: ScanResult) -> None:
    """Give images below `root` their masks: by place, or by name where masks lie in no subfolder.

    By name alone only where one image has that name: of two, neither gets it.
    """
    start = len(str(root)) + 1
    places = [c.path[start : c.path.rfind(".")] for c in images]
    names = Counter(place.rpartition("/")[2] for place in places)
    for image, place in zip(images, places, strict=True):
        found, name = masks.of(place, result), place.rpartition("/")[2]
        if not found and name != place:
            if names[name] == 1:
                found = masks.of(name, result)
            elif name in masks:
                result.problems.append(f"image {image.path}: its mask is ambiguous; none is used")
        image.masks = found
