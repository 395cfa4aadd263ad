"""Folders without a split: normal images alone, or normal and defective ones."""

from __future__ import annotations

from pathlib import Path

from features.images.folders import Walker
from features.images.junk import junk_folder
from features.images.layouts.reading import BAD, GOOD, Masks, Reading, match
from features.images.records import Candidate, Split
from headwater.errors import DataError

#: Names that a folder of masks may have.
MASKS = ("masks", "mask", "ground_truth", "gt", "labels")
#: A folder of this name holds no normal images, or more than those.
_NOT_NORMAL = BAD | {"test", "tests", "val", "validation", "train", *MASKS}


def read_plain(
    reading: Reading, normal: Path, defective: Path | None = None, masks: Path | None = None
) -> list[Candidate]:
    """List folders of normal and of defective images, both with their subfolders.

    The subfolders of `defective` are the kinds, images directly in it of kind ``defective``. Its
    masks lie in `masks`, in the same subfolders or in none, or beside the images.

    Raises
    ------
    DataError
        Where one folder is inside the other.
    """
    good = reading.walker(normal, "normal images")
    apart(good.root, defective)
    split: Split | None = None if defective is not None else "train"
    # Of normal images some will be tested, where there is something to find.
    # A mask beside a normal image is looked at: it may say the contrary.
    found = [
        Candidate(p, split, "good", (mask,) if mask else ()) for p, mask in good.images(good.root)
    ]
    if defective is None:
        if masks is not None:
            reading.result.problems.append(f"{masks} is not read: masks need --defective")
        return found
    walker = reading.walker(defective, "defective images")
    start = len(str(walker.root)) + 1
    bad = []
    for p, mask in walker.images(walker.root):
        kind, below, _ = p[start:].partition("/")
        kind = "defective" if not below or kind in GOOD else kind
        bad.append(Candidate(p, "test", kind, (mask,) if mask else ()))
    if masks is not None:
        _from_folder(reading, bad, walker, masks)
    return found + bad


def _from_folder(reading: Reading, bad: list[Candidate], walker: Walker, masks: Path) -> None:
    """Take the masks of a folder instead of those beside the images."""
    marks = reading.walker(masks, "masks")
    for image in bad:
        if image.masks:
            reading.result.left_out.add("masks beside images", image.masks[0])
    table = Masks(marks.root, marks.masks(marks.root))
    match(bad, walker.root, table, reading.result)
    table.report_leftover(reading.result)


def apart(root: Path, other: Path | None) -> None:
    """Raise `DataError` where one of two folders is inside the other."""
    full = Path(other).resolve() if other is not None else None
    if full is not None and (full.is_relative_to(root) or root.is_relative_to(full)):
        raise DataError(
            f"{root} and {full}: one is inside the other",
            expected="separate folders of normal and of defective (or test) images",
        )


def fits_two(place: Path) -> bool:
    """Whether a folder holds a folder of normal and one of defective images, and masks at most."""
    return _two(place) is not None


def read_two(reading: Reading) -> list[Candidate]:
    """List a folder of normal images and one of defective ones, and masks if there are any.

    Raises
    ------
    DataError
        Where they are not there.
    """
    two = _two(reading.place)
    if two is None:
        raise DataError(
            f"{reading.place}: no such folders",
            expected=f"one of {', '.join(sorted(GOOD))}, one of {', '.join(sorted(BAD))}, and at "
            f"most one of {', '.join(MASKS)}",
            remedy="or name them: --normal DIR --defective DIR --masks DIR",
        )
    return read_plain(reading, *two)


def _two(place: Path) -> tuple[Path, Path, Path | None] | None:
    subs = subfolders(place)
    found = [
        [s for s in subs if s.name.lower() in names] for names in (GOOD, BAD, frozenset(MASKS))
    ]
    good, bad, masks = found
    if len(good) != 1 or len(bad) != 1 or len(masks) > 1 or len(subs) != 2 + len(masks):
        return None
    return good[0], bad[0], masks[0] if masks else None


def fits_normal(place: Path) -> bool:
    """Whether a folder holds images and no folders, and is not called defective, test or mask."""
    if not place.is_dir() or place.name.lower() in _NOT_NORMAL or subfolders(place):
        return False
    walker = Walker(place.resolve())
    return next(walker.files(place), None) is not None


def read_normal(reading: Reading) -> list[Candidate]:
    """List a folder of normal images, with its subfolders; says that they are taken for normal."""
    found = read_plain(reading, reading.place)
    reading.result.notes.append(
        f"{reading.place}: all {len(found)} images are taken for normal and trained on"
    )
    return found


def subfolders(place: Path) -> list[Path]:
    """Return the subfolders that may hold images; of a file none."""
    found = sorted(place.iterdir()) if place.is_dir() else ()
    return [p for p in found if p.name[0] != "." and not junk_folder(p.name) and p.is_dir()]
