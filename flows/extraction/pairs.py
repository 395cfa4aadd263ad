"""Bring both sides of a set of pairs up to date: two image sets, and the list that joins them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from features.images.pairs import CHANGED, scan_pairs
from features.images.records import ScanResult
from flows.extraction.extract import ExtractionReport, fill_store, image_rows, open_store, plan_all
from flows.extraction.pair_list import (
    PairList,
    PairVersion,
    note_version,
    save_pairs,
    usable,
    versions,
    what_is_left_out,
)
from flows.extraction.plan import ExtractionPlan, HeadPlan, plan_extraction
from flows.runtime.resolve import remember, require_set
from heads.catalogue import get_head
from headwater.spec import SIDES
from storage.store.layout import side_name
from storage.store.table import Selection

if TYPE_CHECKING:
    from features.backbones.backbone import Backbone
    from flows.runtime.console import Reporter
    from flows.runtime.home import Home
    from flows.runtime.settings import Settings
    from storage.store.feature_store import FeatureStore
    from storage.store.table import ImageRow

#: What a side's card takes over from that of the pairs: `store verify --repair` needs it.
CARD = ("root", "backbone", "extraction", "precision")
#: Rows that are copied from one side to the other in a commit.
_COPY_ROWS = 64


@dataclass
class PairsReport:
    """What an extraction of pairs found and did; its `set_aside` decides the exit status.

    Parameters
    ----------
    image_set
        Name of the set of pairs.
    pairs, train, changed
        Pairs; of these for training; of all, those whose mask shows a change.
    version
        The list and the snapshots of the sides.
    sides
        A report a side; none where no head reads features.
    set_aside, notes, hashed, scan_seconds
        As of `ExtractionReport`, of the scan.
    """

    image_set: str
    pairs: int = 0
    train: int = 0
    changed: int = 0
    version: PairVersion = field(default_factory=lambda: PairVersion(""))
    sides: list[ExtractionReport] = field(default_factory=list)
    scanned_aside: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    hashed: int = 0
    scan_seconds: float = 0.0

    @property
    def set_aside(self) -> list[tuple[str, str]]:
        """``[path, reason]`` of images that could not be used, found by the scan or later."""
        return [*self.scanned_aside, *(entry for side in self.sides for entry in side.set_aside)]

    @property
    def backbone_calls(self) -> int:
        """Forward passes in all."""
        return sum(side.backbone_calls for side in self.sides)

    @property
    def computed(self) -> int:
        """Feature rows computed in all."""
        return sum(side.computed for side in self.sides)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return {
            **vars(self),
            "version": vars(self.version),
            "sides": [side.to_json() for side in self.sides],
            "set_aside": self.set_aside,
            "computed": self.computed,
            "backbone_calls": self.backbone_calls,
        }


def extract_pairs(
    settings: Settings,
    home: Home,
    reporter: Reporter,
    *,
    backbone: Backbone | None = None,
    plans: Sequence[HeadPlan] | None = None,
    rehash: bool = False,
) -> PairsReport:
    """Scan pairs and bring the stores of both sides up to date for `plans`.

    An image that is on both sides is computed once: the second side copies its features.

    Parameters
    ----------
    settings
        The run's settings, `pairs` among them.
    home
        Where state lives.
    reporter
        Shows progress.
    backbone, plans
        From `plan_all`, which is called where they are not given.
    rehash
        Read every file, even those that look unchanged.

    Raises
    ------
    DataError
        Where the folder holds no pairs, or too few that a head may learn from.
    """
    image_set, root = require_set(settings), settings.pairs
    assert root is not None
    if plans is None:
        backbone, plans = plan_all(settings, home)
    began = time.perf_counter()

    def progress(done: int, total: int) -> None:
        reporter.update("pairs", done, total, "reading what is new")

    found = scan_pairs(root, cache=home.file_cache, rehash=rehash, progress=progress)
    pairs = PairList.of(found)
    report = PairsReport(
        image_set,
        pairs=len(pairs.rows),
        train=sum(r.split == "train" for r in pairs.rows),
        changed=sum(r.kind == CHANGED for r in pairs.rows),
        hashed=found.hashed,
        scanned_aside=[(str(b.path), b.reason) for b in found.broken],
        notes=list(found.problems),
    )
    for plan in plans:
        # Before anything is computed: the images cannot teach a head, then nothing is done.
        usable(get_head(plan.head), image_set, pairs.rows)
        report.notes += what_is_left_out(get_head(plan.head), pairs.rows)
    extractions = plan_extraction(plans)
    for one in extractions:
        assert backbone is not None
        backbone.check_weights(one.layers)
    report.scan_seconds = time.perf_counter() - began
    remember(settings, home, image_set, found.root)
    names = [side_name(image_set, side) for side in SIDES] if extractions else []
    stores = [open_store(settings, home, name) for name in names]
    # As they are before this run changes them: what moves from one side to the other is there.
    before = [(store, store.snapshot) for store in stores]
    for side, name, store in zip(SIDES, names, stores, strict=False):
        assert backbone is not None
        card = home.card(image_set)
        kept: dict[str, Any] = {k: card[k] for k in CARD if k in card}
        home.write_card(name, {**home.card(name), **kept})
        scan = ScanResult(found.root, records=found.images(side))
        rows = image_rows(scan)
        done = ExtractionReport(name, images=len(rows))
        done.normal_train = sum(r.split == "train" and r.kind == "good" for r in rows)
        done.changes = store.sync(rows).counts
        others = [(s, at) for s, at in before if s is not store]
        others += [(s, s.snapshot) for s, _ in others]
        if copied := sum(copy_shared(*one, store, extractions, rows) for one in others):
            report.notes.append(f"{name}: {copied} image(s) copied from the other side")
        fill_store(settings, store, reporter, backbone, extractions, scan.records, rows, done)
        report.sides.append(done)
    # Heads that read images leave the stores as they are.
    last = (versions(home, image_set) or [PairVersion("")])[-1]
    snapshots = [side.snapshot for side in report.sides] or [last.current, last.history]
    report.version = PairVersion(save_pairs(home, image_set, pairs), *snapshots)
    note_version(home, image_set, report.version)
    return report


def copy_shared(
    source: FeatureStore,
    snapshot: str,
    target: FeatureStore,
    extractions: Sequence[ExtractionPlan],
    rows: Sequence[ImageRow],
) -> int:
    """Copy what `target` misses and `source` has at `snapshot`; return the number of images."""
    row_of = {r.sha256: r for r in rows}
    copied: set[str] = set()
    for plan in extractions:
        stored = source.extractor(plan.spec, snapshot)
        missing = target.plan(plan.spec, plan.layers, [(sha, 0) for sha in row_of])
        for work in missing.tasks:
            if stored is None or not all(stored.has(layer.name) for layer in work.layers):
                continue
            select = Selection(sha256=tuple(sha for sha, _ in work.keys))
            reader = source.reader(plan.spec, work.layers, select, snapshot, missing="skip")
            ids = reader.ids
            for start in range(0, len(ids), _COPY_ROWS):
                part = ids[start : start + _COPY_ROWS]
                maps = reader.read(start, start + len(part))
                images = [row_of[sha] for sha in part]
                target.write(plan.spec, [(sha, 0) for sha in part], maps, images=images)
                copied.update(part)
    return len(copied)
