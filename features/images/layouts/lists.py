"""Lists of images, csv or parquet: paths, labels, masks, splits, groups.

Columns (their case does not matter, others are left alone):

- ``path`` (or ``image``, ``file``, ``filename``): of the image;
- ``label`` (or ``kind``): ``good``, ``ok``, ``normal``, ``0`` or ``false`` for normal images;
  ``1``, ``true``, ``bad``, ``defective``, ``anomaly`` and the like for defective ones; any other
  word is the kind of defect. Rows with an empty label are left out. Without the column all are
  normal;
- ``mask``: path of the mask, or empty;
- ``split``: ``train``, ``val``, ``test``, or empty: then defective images are tested, and of the
  normal ones a fifth if there are defective ones. Defective ones of ``val`` are known defects, to
  choose by; normal ones of it are trained on;
- ``group``: what must not be torn apart by that, nor by a calibration's folds: a part, a batch.

Relative paths are below the list's folder, or ``--root``; no path leads out of it.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from features.images.layouts.reading import BAD, GOOD, Reading
from features.images.records import BrokenImage, Candidate, Split
from headwater.errors import DataError

_COLUMNS = {
    "path": ("path", "image", "file", "filename"),
    "label": ("label", "kind"),
    "mask": ("mask",),
    "split": ("split",),
    "group": ("group",),
}
_SPLITS: dict[str, Split | None] = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test", "": None,
}  # fmt: skip
_NO = GOOD | {"0", "0.0", "false", "no", "pass"}
_YES = BAD | {"1", "1.0", "true", "yes", "fail"}
#: Rows of a parquet file that are read at a time.
_ROWS = 1 << 16


def kind_of(label: str, where: str) -> str:
    """Return the kind that a label means: ``good``, ``defective``, or its own word.

    Raises
    ------
    DataError
        A word that cannot be a folder's name.
    """
    word = label.strip()
    if word.lower() in _NO:
        return "good"
    if word.lower() in _YES:
        return "defective"
    if not word.isprintable() or "/" in word or "\\" in word or word[0] == ".":
        raise DataError(f"{where}: label {word!r}", expected="a word without / or line breaks")
    return word


class Within:
    """Paths of a list, each resolved below a root, or why not.

    Parameters
    ----------
    root
        Resolved folder.
    anywhere
        Whether links may lead out of it; ``..`` may not.
    """

    def __init__(self, root: Path, anywhere: bool = False) -> None:
        self.root, self.anywhere = str(root), anywhere
        self._real: dict[str, str] = {}

    def find(self, path: str) -> tuple[str, str]:
        """Return the absolute path of a file and nothing, or nothing and what is wrong with it."""
        # Many: no Path objects, and each folder's links are resolved once.
        full = os.path.normpath(os.path.join(self.root, path))  # noqa: PTH118
        head, tail = os.path.split(full)
        if head not in self._real:
            self._real[head] = os.path.realpath(head)
        real = os.path.join(self._real[head], tail)  # noqa: PTH118
        if os.path.islink(real):  # noqa: PTH114
            real = os.path.realpath(real)
        for place in (full, full if self.anywhere else real):
            if not place.startswith(self.root.rstrip("/") + "/"):
                return "", f"it is outside {self.root}; --root DIR says where paths of a list lead"
        if not os.path.isfile(full):  # noqa: PTH113
            return "", "no such file"
        return full, ""


def fits_list(place: Path) -> bool:
    """Whether a file is a csv or parquet file by its name."""
    return place.is_file() and place.suffix.lower() in (".csv", ".tsv", ".parquet")


def read_list(reading: Reading) -> list[Candidate]:
    """List the rows of a list, and of the one of test images where there is one.

    Raises
    ------
    DataError
        A list that cannot be read, without a column of paths, with a split or label that is none,
        or of several products.
    """
    found = _read_one(reading, reading.place, None)
    if reading.test is not None:
        for image in found:
            image.split = image.split or "train"
        found += _read_one(reading, reading.test, "test")
    splits: dict[str, set[Split | None]] = {}
    for image in found:
        if image.group:
            splits.setdefault(image.group, set()).add(image.split)
    if torn := sorted(group for group, at in splits.items() if {"train", "test"} <= at):
        reading.result.problems.append(
            f"{len(torn)} groups are in train and in test, the first: {torn[0]}: what is tested "
            "resembles what was learnt from"
        )
    return shared(found)


def shared(found: list[Candidate]) -> list[Candidate]:
    """Train on all images of a list that names neither splits nor defects; return the list."""
    if all(image.kind == "good" for image in found):
        for image in found:
            image.split = image.split or "train"
    return found


def _read_one(reading: Reading, file: Path, split: Split | None) -> list[Candidate]:
    rows = _parquet(file) if file.suffix.lower() == ".parquet" else read_csv(file)
    columns = columns_of(next(rows), file)
    within = Within((reading.root or file.parent).resolve(), reading.links == "anywhere")
    found: list[Candidate] = []
    seen: set[str] = set()
    objects: set[str] = set()
    for number, row in enumerate(rows, 2):
        cells = {name: row[at].strip() if at < len(row) else "" for name, at in columns.items()}
        if "object" in cells:
            objects.add(cells["object"])
        where = f"{file.name}, row {number}"
        if not cells["path"]:
            reading.result.left_out.add("rows without a path", where)
        elif "label" in cells and not cells["label"]:
            reading.result.left_out.add("rows without a label", where)
        elif cells["path"] in seen:
            reading.result.left_out.add("rows of files that are listed before", where)
        else:
            seen.add(cells["path"])
            if (image := _image(cells, where, split, within, reading)) is not None:
                found.append(image)
    if len(objects) > 1:
        few = ", ".join(sorted(objects)[:3])
        raise DataError(
            f"{file}: images of {len(objects)} products ({few} …)",
            expected="one product a set",
            remedy="give the folder of one of them, or a list of its rows",
        )
    if "label" not in columns and found:
        reading.result.notes.append(f"{file} has no column label: all its images count as normal")
    return found


def _image(
    cells: Mapping[str, str], where: str, split: Split | None, within: Within, reading: Reading
) -> Candidate | None:
    told, word = reading.result, cells.get("split", "").lower()
    if word not in _SPLITS:
        raise DataError(
            f"{where}: split {cells['split']!r}", expected="train, val, test, or nothing"
        )
    path, why = within.find(cells["path"])
    if why:
        told.broken.append(BrokenImage(Path(cells["path"]), f"{where}: {why}"))
        return None
    masks: tuple[str, ...] = ()
    if cells.get("mask"):
        mask, why = within.find(cells["mask"])
        masks = (mask,) if mask else ()
        if why:
            told.problems.append(f"mask {cells['mask']} ({where}): {why}; none is used")
    kind = kind_of(cells["label"], where) if "label" in cells else "good"
    at = split or _SPLITS[word]
    if at == "val" and kind == "good":
        at = "train"
    return Candidate(path, at, kind, masks, cells.get("group", ""))


def columns_of(header: list[str], file: Path) -> dict[str, int]:
    """Return at which place each known column stands."""
    names = [name.strip().lstrip("\ufeff").lower() for name in header]
    found = {
        name: names.index(alias)
        for name, aliases in _COLUMNS.items()
        for alias in [next((a for a in aliases if a in names), "")]
        if alias
    }
    if "object" in names:
        found["object"] = names.index("object")
    if "path" not in found:
        raise DataError(
            f"{file}: no column of paths among {', '.join(names[:12]) or 'none'}",
            expected="a first line with path (or image, file, filename), and label, mask, split, "
            "group as far as they are known",
        )
    return found


def read_csv(file: Path) -> Iterator[list[str]]:
    """Yield the first line of a csv file and its rows; `DataError` for what is none."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            head = stream.readline()
            stream.seek(0)
            # Spreadsheets of half of Europe write semicolons.
            mark = max(",;\t", key=head.count)
            yield from csv.reader(stream, delimiter=mark) if head.strip() else [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{file}: {why}", expected="a csv file in UTF-8") from None


def _parquet(file: Path) -> Iterator[list[str]]:
    import pyarrow  # late: half a second that folders do not need
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
        wanted = {alias for aliases in _COLUMNS.values() for alias in aliases} | {"object"}
        names = [n for n in table.schema_arrow.names if n.lower() in wanted]
        yield names
        for batch in table.iter_batches(_ROWS, columns=names):
            columns = [column.to_pylist() for column in batch.columns]
            for row in zip(*columns, strict=True):
                yield ["" if cell is None else str(cell) for cell in row]
    except (OSError, pyarrow.ArrowException) as error:
        said = str(error).splitlines()[0]
        raise DataError(f"{file}: {said}", expected="a parquet file") from None
