"""Images with their masks beside them: the Kolektor sets, and DAGM 2007.

- KolektorSDD: ``kos01/Part0.jpg`` and ``kos01/Part0_label.bmp``, no split;
- KolektorSDD2: ``train/10000.png`` and ``train/10000_GT.png``, ``test`` alike;
- DAGM: ``Train/0576.PNG`` and, of defective images alone, ``Train/Label/0576_label.PNG``;
  ``Test`` alike.

An image whose mask is black is normal. What a training folder has of defects is left out: nothing
learns from it, and to test with it would be another test than the published one.
"""

from __future__ import annotations

from pathlib import Path

from features.images.folders import Walker
from features.images.layouts.plain import subfolders
from features.images.layouts.reading import Masks, Reading, match
from features.images.records import Candidate, Split

#: Subfolders that are looked into to know a set by its first images.
_A_FEW = 3


def _has_beside(place: Path) -> bool:
    return any(mask for _, mask in Walker(place.resolve()).images(place.resolve()))


def fits_kolektor(place: Path) -> bool:
    """Whether the first subfolders hold images with masks beside them."""
    subs = subfolders(place)
    return bool(subs) and all(_has_beside(sub) for sub in subs[:_A_FEW])


def read_kolektor(reading: Reading) -> list[Candidate]:
    """List images with the mask beside each; with ``train`` and ``test`` by these."""
    walker = reading.walker(reading.place, "images")
    names = {s.name.lower(): s for s in walker.subfolders(reading.place)}
    found: list[Candidate] = []
    if names.keys() >= {"train", "test"}:
        found += _masked(walker, names["train"], "train", reading)
        return found + _masked(walker, names["test"], "test", reading)
    return _masked(walker, reading.place, None, reading)


def _masked(walker: Walker, place: Path, split: Split | None, reading: Reading) -> list[Candidate]:
    found = []
    for path, mask in walker.images(place):
        if mask:
            found.append(Candidate(path, split, None, (mask,)))
        else:
            reading.result.left_out.add("images without the mask that says what they are", path)
    return found


def fits_dagm(place: Path) -> bool:
    """Whether there are ``Train`` and ``Test``, with ``Label`` in them."""
    return all((place / split).is_dir() for split in ("Train", "Test")) and any(
        (place / split / "Label").is_dir() for split in ("Train", "Test")
    )


def read_dagm(reading: Reading) -> list[Candidate]:
    """List the images of ``Train`` and ``Test``; what has a label is defective."""
    walker = reading.walker(reading.place, "images")
    found: list[Candidate] = []
    splits: tuple[tuple[str, Split], ...] = (("Train", "train"), ("Test", "test"))
    for name, split in splits:
        place, label = reading.place / name, reading.place / name / "Label"
        images = [
            Candidate(p, split, "good")
            for p in walker.files(place)
            if not p.startswith(f"{label}/")
        ]
        if label.is_dir():
            masks = Masks(label, walker.masks(label))
            match(images, place, masks, reading.result)
            masks.report_leftover(reading.result)
        for image in images:
            if image.masks:
                image.kind = "defective"
        found += images
    return found
