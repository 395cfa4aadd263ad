"""VisA: ``Data/Images/Normal`` and ``Anomaly``, ``Data/Masks/Anomaly``; split by its csv."""

from __future__ import annotations

from pathlib import Path

from features.images.layouts.lists import columns_of, read_csv
from features.images.layouts.plain import read_plain
from features.images.layouts.reading import Reading
from features.images.records import Candidate, Split

#: Below the folder that holds all products.
_SPLIT = Path("split_csv") / "1cls.csv"


def fits_visa(place: Path) -> bool:
    """Whether a folder is one product of VisA as it is published."""
    return (place / "Data" / "Images" / "Normal").is_dir()


def read_visa(reading: Reading) -> list[Candidate]:
    """List one product: split as ``../split_csv/1cls.csv`` says, or as plain folders are."""
    root = reading.place
    images, marks = root / "Data" / "Images", root / "Data" / "Masks" / "Anomaly"
    bad = images / "Anomaly"
    found = read_plain(
        reading,
        images / "Normal",
        bad if bad.is_dir() else None,
        marks if bad.is_dir() and marks.is_dir() else None,
    )
    for image in found:
        image.kind = "anomaly" if image.kind == "defective" else image.kind
    file = root.parent / _SPLIT
    if not file.is_file():
        return found
    split = _splits(file, root.name)
    start = len(str(root)) + 1
    listed = []
    for image in found:
        at = split.get(f"{root.name}/{image.path[start:]}")
        if at is None:
            reading.result.left_out.add(f"images that {file.name} does not list", image.path)
        else:
            image.split = at
            listed.append(image)
    reading.result.notes.append(f"split as {file} has it")
    return listed


def _splits(file: Path, product: str) -> dict[str, Split]:
    """Return the split of each image of a product, by its path below the folder of products."""
    rows = read_csv(file)
    at = columns_of(next(rows), file)
    mine = (r for r in rows if len(r) > at["path"] and r[at["path"]].startswith(f"{product}/"))
    return {r[at["path"]]: "test" if r[at["split"]] == "test" else "train" for r in mine}
