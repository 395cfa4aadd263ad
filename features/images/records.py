"""What a scan finds: usable images, broken ones, and what looks wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

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
    """

    path: Path
    sha256: str
    split: Split
    kind: str
    mask: Path | None
    width: int
    height: int
    bytes: int

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
class ScanResult:
    """What a scan found.

    Parameters
    ----------
    root
        The folder scanned (of several, the first).
    records
        Usable images: train before test, then by kind and path.
    broken
        Images set aside.
    duplicates
        ``(kept, dropped)`` paths with the same bytes.
    problems
        Sentences on what should be looked at; each names its file.
    ignored
        Number of files that are no images by their name.
    hashed
        Number of files that were really read, masks included.
    """

    root: Path
    records: list[ImageRecord] = field(default_factory=list)
    broken: list[BrokenImage] = field(default_factory=list)
    duplicates: list[tuple[Path, Path]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    ignored: int = 0
    hashed: int = 0


@dataclass(slots=True)
class Candidate:
    """A file before it is read: where it would belong, and its mask if it has one."""

    path: str
    split: Split
    kind: str
    mask: str | None = None
