"""What an extraction found and did, by side: one of a set of images, two of a set of pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from flows.extraction.pair_list import Version


@dataclass
class Extracted:
    """What was done for one `ExtractorSpec`.

    `wanted` and `computed` count rows (images, or images and views) whatever their layers;
    `missing` and `maps` say for each layer how many lacked it before and how many were computed.
    """

    spec: str
    backbone: str
    layers: list[str]
    views: int
    wanted: int
    computed: int = 0
    backbone_calls: int = 0
    seconds: float = 0.0
    commits: int = 0
    missing: dict[str, int] = field(default_factory=dict)
    maps: dict[str, int] = field(default_factory=dict)

    def count(self, layers: Iterable[str], rows: int) -> None:
        """Note that a block of rows was computed, with these layers."""
        self.computed += rows
        for name in layers:
            self.maps[name] = self.maps.get(name, 0) + rows


@dataclass
class SideReport:
    """What was found and done in one store.

    Parameters
    ----------
    image_set
        Name of the store: that of the set, or of one side of a set of pairs.
    images, normal_train
        Images it has; of these, normal ones for training.
    changes
        ``{added, removed, renamed, replaced, relabelled, unchanged: count}``.
    snapshot
        Store version at the end.
    extracted
        One entry an extractor.
    known_defects
        Of the images, those that may choose.
    set_aside
        ``[path, reason]`` of images of which no features could be computed.
    """

    image_set: str
    images: int
    normal_train: int
    changes: dict[str, int] = field(default_factory=dict)
    snapshot: str = ""
    extracted: list[Extracted] = field(default_factory=list)
    set_aside: list[tuple[str, str]] = field(default_factory=list)
    known_defects: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return {
            **asdict(self),
            "computed": sum(e.computed for e in self.extracted),
            "backbone_calls": sum(e.backbone_calls for e in self.extracted),
        }


@dataclass
class PairCounts:
    """How many pairs a scan found; of these for training; of all, those that show a change."""

    pairs: int
    train: int
    changed: int


@dataclass
class ExtractionReport:
    """What an extraction found and did; its `set_aside` decides the exit status.

    Parameters
    ----------
    image_set
        Name of the set.
    hashed
        Files that were read to know their content; the others had not changed.
    scan_seconds
        Time until it was known what there is.
    layout
        What the folder or list of images was taken for (`features.images.layouts.catalogue`).
    left_out
        How many files were not read, by reason.
    scanned_aside
        ``[path, reason]`` of images that the scan could not use.
    notes
        Things to know that stop nothing: duplicates, masks without an image.
    copies
        ``[tested, trained]`` of what shows nearly the same picture; see `features.images.looks`.
    pairs
        Of a set of pairs: how many.
    sides
        One entry a store; of a set of pairs none where no head reads features.
    version
        What a training may stand on now: the snapshots of the sides, and what joins them.
    seen
        Fields of all extractors that the images decided; see `JobPlan.seeing`.
    """

    image_set: str
    hashed: int = 0
    scan_seconds: float = 0.0
    layout: str = ""
    left_out: dict[str, int] = field(default_factory=dict)
    scanned_aside: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    copies: list[tuple[str, str]] = field(default_factory=list)
    pairs: PairCounts | None = None
    sides: list[SideReport] = field(default_factory=list)
    version: Version = field(default_factory=Version)
    seen: dict[str, Any] = field(default_factory=dict)

    @property
    def set_aside(self) -> list[tuple[str, str]]:
        """``[path, reason]`` of images that could not be used, found by the scan or later."""
        return [*self.scanned_aside, *(entry for side in self.sides for entry in side.set_aside)]

    @property
    def changes(self) -> dict[str, int]:
        """What changed, as `SideReport.changes`, counted over the sides."""
        total: Counter[str] = Counter()
        for side in self.sides:
            total.update(side.changes)
        return dict(total)

    @property
    def extracted(self) -> list[Extracted]:
        """What was done for each extractor, side by side."""
        return [one for side in self.sides for one in side.extracted]

    @property
    def computed(self) -> int:
        """Feature rows computed in all."""
        return sum(e.computed for e in self.extracted)

    @property
    def backbone_calls(self) -> int:
        """Forward passes in all."""
        return sum(e.backbone_calls for e in self.extracted)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping: of a set of images that of its one side, completed."""
        told = ("image_set", "hashed", "scan_seconds", "layout", "left_out", "set_aside")
        told_too = ("notes", "copies", "computed", "backbone_calls")
        own = {name: getattr(self, name) for name in (*told, *told_too)}
        sides = [side.to_json() for side in self.sides]
        if self.pairs is None:
            return sides[0] | own
        return {
            **own,
            **vars(self.pairs),
            "scanned_aside": self.scanned_aside,
            "version": self.version.to_json(),
            "sides": sides,
        }
