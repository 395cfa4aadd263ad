"""Known defects, kept apart to choose by: ``val/KIND``, ``validation/KIND``, or a folder of them.

They are never trained on and never tested. Normal images among them are not read, but for those of
``validation/good``, which published sets mean for training: how normal images score is known from
the out-of-fold scores of those that are trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from features.images.folders import Walker
from features.images.layouts.plain import MASKS, apart, subfolders
from features.images.layouts.reading import Masks, Reading, is_good, match
from features.images.records import Candidate
from headwater.errors import DataError


def known_defects(
    reading: Reading,
    walker: Walker,
    place: Path,
    *,
    trained: Sequence[str] = (),
    shared: Mapping[str, Masks] | None = None,
) -> list[Candidate]:
    """List a folder of known defects: its subfolders are the kinds.

    Masks lie beside the images, or in the same subfolders of a folder ``ground_truth`` (or
    ``masks`` and the like) in it.

    Parameters
    ----------
    reading, walker
        Where to say what was found; what lists the files.
    place
        The folder; nothing where it is not there.
    trained
        Names of folders in it whose images are normal, and trained on.
    shared
        Masks of the whole set, by kind: for kinds that have none here.
    """
    subs = {s.name: s for s in walker.subfolders(place)} if place.is_dir() else {}
    truth = next((subs.pop(name) for name in MASKS if name in subs), None)
    own = {s.name: s for s in walker.subfolders(truth)} if truth is not None else {}
    marks = {name: Masks(sub, walker.masks(sub)) for name, sub in own.items()}
    found: list[Candidate] = []
    for name, sub in subs.items():
        if name in trained:
            found += [Candidate(p, "train", "good") for p in walker.files(sub)]
        elif is_good(name):
            _explain(reading, walker, sub)
        else:
            images = [_candidate(*one, name) for one in walker.images(sub)]
            if (masks := marks.get(name) or (shared or {}).get(name)) is not None:
                match([i for i in images if not i.masks], sub, masks, reading.result)
            found += images
    unused(reading, marks)
    return found


def given_defects(reading: Reading, place: Path) -> list[Candidate]:
    """List a folder that was given as one of known defects; without subfolders all are its kind.

    Raises
    ------
    DataError
        Where it lies inside of what was read, or the other way round; where it holds none.
    """
    walker = reading.walker(place, "known defects")
    for read in {w.root for w in reading.walkers[:-1]} | {reading.result.root}:
        apart(read, walker.root)
    if subfolders(walker.root):
        found = known_defects(reading, walker, walker.root)
    else:
        found = [_candidate(*one, "defective") for one in walker.images(walker.root)]
    if not found:
        raise DataError(
            f"{place}: no known defect in it",
            expected="images in a folder of their kind, DIR/KIND",
            remedy="leave --validation out to do without",
        )
    return found


def unused(reading: Reading, marks: Mapping[str, Masks]) -> None:
    """Report the masks that belong to no image."""
    for masks in marks.values():
        masks.report_leftover(reading.result)


def _candidate(path: str, mask: str, kind: str) -> Candidate:
    return Candidate(path, "val", kind, (mask,) if mask else ())


def _explain(reading: Reading, walker: Walker, sub: Path) -> None:
    """Count normal images among known defects, and say where they belong."""
    if count := sum(1 for _ in walker.files(sub)):
        told = reading.result
        told.left_out.add(f"normal images in {sub.parent.name}/{sub.name}/", str(sub), count)
        told.notes.append(
            f"{sub}: {count} normal images are not read; those to train on belong in the training "
            "folder: known defects are measured against the out-of-fold scores of these"
        )
