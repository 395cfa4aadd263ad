"""What a scan finds: usable images, broken ones, and what looks wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from features.images.cache import FileFacts
from features.images.depth import Depth
from features.images.masks import same_view
from headwater.text import few, shown

Split = Literal["train", "val", "test"]
#: The splits in order: what is learnt from, known defects to choose by, what is tested.
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One usable image.

    Parameters
    ----------
    path
        Absolute path of the file that stands for it (see `ScanResult.duplicates`).
    sha256
        Of the file's bytes.
    split, kind
        One of `SPLITS`; ``good`` or the kind of defect. Of ``val`` all are defective.
    mask
        Ground truth, checked to be readable and of the image's size, or None.
    width, height
        Pixels, after EXIF orientation.
    bytes
        File size.
    depth
        The values of an image of more than 8 bits.
    group
        What it is one of, and alike: a part, a batch; empty where nobody said.
    """

    path: Path
    sha256: str
    split: Split
    kind: str
    mask: Path | None
    width: int
    height: int
    bytes: int
    depth: Depth | None = None
    group: str = ""

    @classmethod
    def of(
        cls, facts: FileFacts, split: Split, kind: str, mask: Path | None, group: str = ""
    ) -> ImageRecord:
        """Return the record of a file that was read."""
        size = (facts.width, facts.height, facts.bytes)
        return cls(Path(facts.path), facts.sha256, split, kind, mask, *size, facts.depth, group)

    @property
    def is_normal(self) -> bool:
        """Whether it shows no defect."""
        return self.kind == "good"


@dataclass(frozen=True, slots=True)
class BrokenImage:
    """A file set aside, and why."""

    path: Path
    reason: str


#: Reasons why links are not followed.
OUT = "links out of the folder"
TO_FOLDERS = "links to folders"
DANGLING = "links to files that are not there"


class LeftOut:
    """What was not read, counted by reason; of each reason the first, for messages.

    Examples
    --------
    >>> left = LeftOut()
    >>> left.add("thumbnails (@eaDir)", "/data/@eaDir", 12)
    >>> left.add("files of type .heic", "/data/a.heic")
    >>> left.line()
    '12 thumbnails (@eaDir), 1 files of type .heic'
    """

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.first: dict[str, str] = {}

    def add(self, reason: str, path: str, count: int = 1) -> None:
        """Count `count` more of a reason, in the plural: it follows its number."""
        reason = shown(reason)
        self.counts[reason] = self.counts.get(reason, 0) + count
        self.first.setdefault(reason, path)

    def take(self, other: LeftOut) -> None:
        """Add what another one counted."""
        for reason, count in other.counts.items():
            self.add(reason, other.first[reason], count)

    def line(self) -> str:
        """Return all of it in a line, or nothing."""
        return ", ".join(f"{count} {reason}" for reason, count in self.counts.items())


#: Pictures that are not read as they are.
_PHOTOGRAPHS = ("heic", "heif", "avif", "jxl", "jp2", "gif", "cr2", "cr3", "nef", "arw", "dng")


def about(left_out: LeftOut) -> list[str]:
    """Return what to do about links that were not followed and types not read, a line a reason."""
    told = []
    for kind in _PHOTOGRAPHS:
        reason = f"files of type .{kind}"
        if first := left_out.first.get(reason):
            told.append(
                f"{left_out.counts[reason]} {reason} are pictures that are not read, the first: "
                f"{first}; save them as PNG or TIFF "
                f"({'heif-convert' if kind in ('heic', 'heif', 'avif') else 'magick'} "
                f"NAME.{kind} NAME.png)"
            )
    if first := left_out.first.get(OUT):
        told.append(
            f"{left_out.counts[OUT]} link(s) out of the folder are not followed, the first: "
            f"{first}; --links anywhere follows them, or put the files themselves there "
            "(dvc config cache.type copy, git annex unlock)"
        )
    if first := left_out.first.get(TO_FOLDERS):
        told.append(
            f"{left_out.counts[TO_FOLDERS]} link(s) to folders are not followed, the first: "
            f"{first}; --links anywhere follows them"
        )
    if first := left_out.first.get(DANGLING):
        told.append(
            f"{left_out.counts[DANGLING]} link(s) lead to files that are not there, the first: "
            f"{first}; fetch them (dvc pull, git annex get)"
        )
    return told


@dataclass
class Scan:
    """What every scan tells.

    Parameters
    ----------
    root
        The folder scanned (of several, the first).
    broken
        Images set aside.
    problems
        Sentences on what should be looked at; each names its file.
    left_out
        What was not read, by reason.
    hashed
        Number of files that were really read, masks included.
    readings
        Files by what is to be known of how they are read.
    copies
        ``(tested, trained)`` names of what shows nearly the same picture, the most alike first.
    """

    root: Path
    broken: list[BrokenImage] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)
    hashed: int = 0
    readings: dict[str, list[str]] = field(default_factory=dict)
    copies: list[tuple[str, str]] = field(default_factory=list)

    def read(self, facts: FileFacts) -> None:
        """Keep what is to be known of how an image is read."""
        if facts.note:
            self.readings.setdefault(facts.note, []).append(facts.path)

    def told(self) -> list[str]:
        """Return the problems, and a sentence for each reading and on copies, counted."""
        said = [
            f"{paths[0]} {note}"
            if len(paths) == 1
            else f"{len(paths)} files, first {paths[0]}: {note}"
            for note, paths in self.readings.items()
        ]
        if self.copies:
            said.append(
                f"{len(self.copies)} test sample(s) show nearly what another sample shows that was "
                "learnt from, or chosen by: "
                f"{few(self.copies)}; figures on them are too good, take them out of one of the two"
            )
        return [*self.problems, *said]

    def usable_mask(self, mask: FileFacts, image: FileFacts, *, of: str = "image") -> Path | None:
        """Return a mask's path, or None and a problem where it does not fit its image.

        `of` is what counts without the mask then: the image, or the pair it is the current one of.
        A mask of another size fits where the picture is the same but for its scale.
        """
        if mask.reason:
            self.problems.append(f"mask {mask.path}: {mask.reason}; its {of} counts without mask")
            return None
        sizes = (mask.width, mask.height), (image.width, image.height)
        if not same_view(*sizes):
            name = "image" if of == "image" else "current image"
            self.problems.append(
                f"mask {mask.path} is {mask.width}x{mask.height}, its {name}"
                f" {image.width}x{image.height}; the {of} counts without mask"
            )
            return None
        if sizes[0] != sizes[1]:
            note = "mask(s) of another size than the image are scaled to it"
            self.readings.setdefault(note, []).append(mask.path)
        if mask.soft:
            note = "mask(s) with soft edges are cut at half of their highest value"
            self.readings.setdefault(note, []).append(mask.path)
        return Path(mask.path)


@dataclass
class ScanResult(Scan):
    """What a scan of images found.

    Parameters
    ----------
    records
        Usable images: train before test, then by kind and path.
    duplicates
        ``(kept, dropped)`` paths with the same bytes, or with the same pixels where only one may
        count.
    notes
        Sentences on how the folder was understood.
    layout
        What it was taken for.
    """

    records: list[ImageRecord] = field(default_factory=list)
    duplicates: list[tuple[Path, Path]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    layout: str = ""

    def why_so_few(self) -> str:
        """Return what became of the rest: set aside, the same bytes, not read; or nothing."""
        told = []
        if self.duplicates:
            kept, dropped = self.duplicates[0]
            told.append(
                f"{len(self.duplicates)} have the same bytes as another and count once "
                f"({dropped} = {kept})"
            )
        if self.broken:
            first = self.broken[0]
            told.append(f"{len(self.broken)} set aside, the first: {first.path}: {first.reason}")
        if line := self.left_out.line():
            told.append(f"not read: {line}")
        told += about(self.left_out)
        return "; ".join(told)


@dataclass(slots=True)
class Candidate:
    """A file before it is read: where it would belong.

    Parameters
    ----------
    path
        Absolute path.
    split
        One of `SPLITS`; None where nobody said: defective ones are tested, and of the normal ones a
        share (see `features.images.scan`).
    kind
        ``good`` or the kind of defect; None where the mask alone says whether there is one.
    masks
        Absolute paths of its masks; of several, all of one folder, what any of them marks counts.
    group
        What must not be torn apart when normal images are shared out, here and over the folds of a
        calibration: a part, a batch.
    """

    path: str
    split: Split | None
    kind: str | None
    masks: tuple[str, ...] = ()
    group: str = ""
