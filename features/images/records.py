"""What a scan finds: usable images, broken ones, and what looks wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from features.images.cache import FileFacts
from features.images.depth import Depth
from features.images.masks import same_view

Split = Literal["train", "test"]


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
        ``train`` or ``test``; ``good`` or the kind of defect.
    mask
        Ground truth, checked to be readable and of the image's size, or None.
    width, height
        Pixels, after EXIF orientation.
    bytes
        File size.
    depth
        The values of an image of more than 8 bits.
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

    @classmethod
    def of(cls, facts: FileFacts, split: Split, kind: str, mask: Path | None) -> ImageRecord:
        """Return the record of a file that was read."""
        size = (facts.width, facts.height, facts.bytes)
        return cls(Path(facts.path), facts.sha256, split, kind, mask, *size, facts.depth)

    @property
    def is_normal(self) -> bool:
        """Whether it shows no defect."""
        return self.kind == "good"


@dataclass(frozen=True, slots=True)
class BrokenImage:
    """A file set aside, and why."""

    path: Path
    reason: str


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
    ignored
        Number of files that are no images by their name.
    hashed
        Number of files that were really read, masks included.
    readings
        Files by what is to be known of how they are read.
    """

    root: Path
    broken: list[BrokenImage] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    ignored: int = 0
    hashed: int = 0
    readings: dict[str, list[str]] = field(default_factory=dict)

    def read(self, facts: FileFacts) -> None:
        """Keep what is to be known of how an image is read."""
        if facts.note:
            self.readings.setdefault(facts.note, []).append(facts.path)

    def told(self) -> list[str]:
        """Return the problems, and a sentence for each reading that is to be known, counted."""
        said = [
            f"{paths[0]} {note}"
            if len(paths) == 1
            else f"{len(paths)} files, first {paths[0]}: {note}"
            for note, paths in self.readings.items()
        ]
        return [*self.problems, *said]

    def usable_mask(
        self, mask: FileFacts, image: FileFacts, *, of: str = "image", kind: str = ""
    ) -> Path | None:
        """Return a mask's path, or None and a problem where it does not fit its image.

        `of` is what counts without the mask then: the image, or the pair it is the current one of.
        A mask of another size fits where the picture is the same but for its scale. One that marks
        nothing fits no defect: `kind` is that of the image, where it is known to have one.
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
        if kind and not mask.marked:
            self.problems.append(
                f"mask {mask.path} marks nothing, and its {of} is {kind}; it counts without mask"
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
        ``(kept, dropped)`` paths with the same bytes.
    """

    records: list[ImageRecord] = field(default_factory=list)
    duplicates: list[tuple[Path, Path]] = field(default_factory=list)


@dataclass(slots=True)
class Candidate:
    """A file before it is read: where it would belong, and its mask if it has one."""

    path: str
    split: Split
    kind: str
    mask: str | None = None
