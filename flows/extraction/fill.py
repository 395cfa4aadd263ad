"""Compute and commit what a store lacks of an extractor, in this process."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from features.extract import Job, extract
from features.images.places.regions import Regions, parts_inside
from flows.extraction.report import Extracted, SideReport
from headwater.tiles import rows_of

if TYPE_CHECKING:
    from features.backbones.backbone import Backbone
    from flows.extraction.plan import ExtractionPlan
    from flows.runtime.console import Reporter
    from flows.runtime.settings import ExtractionSettings
    from storage.store.extractors import Plan
    from storage.store.feature_store import FeatureStore
    from storage.store.table import ImageRow


@dataclass(frozen=True)
class Gap:
    """What a store lacks of one extractor, and where what is done about it is noted.

    Parameters
    ----------
    store, plan, missing
        The store, what is wanted in it, and what of that it lacks.
    rows, root
        The store's images by content; their paths are relative to `root`.
    side, done
        The report on the store, and its entry for this extractor.
    regions
        Where images are looked at.
    """

    store: FeatureStore
    plan: ExtractionPlan
    missing: Plan
    rows: Mapping[str, ImageRow]
    root: Path
    side: SideReport
    done: Extracted
    regions: Regions

    @classmethod
    def of(
        cls,
        store: FeatureStore,
        plan: ExtractionPlan,
        rows: Iterable[ImageRow],
        root: Path,
        side: SideReport,
        regions: Regions,
    ) -> Gap:
        """Look what is missing, and begin an entry of the report."""
        known = {row.sha256: row for row in rows}
        wanted = wanted_rows(plan, known, regions)
        missing = store.plan(plan.spec, plan.layers, wanted)
        views = plan.spec.views.count if plan.spec.views else 0
        names = [layer.name for layer in plan.layers]
        done = Extracted(plan.spec.id, plan.spec.backbone, names, views, len(wanted))
        done.missing = dict(missing.missing)
        side.extracted.append(done)
        return cls(store, plan, missing, known, root, side, done, regions)

    def path(self, sha256: str) -> Path:
        """Return the file of an image."""
        return self.root / self.rows[sha256].path

    def set_aside(self, failed: Iterable[tuple[str, str]]) -> None:
        """Note images that could not be used; one whose tiles all fail is told once."""
        known = set(self.side.set_aside)
        self.side.set_aside += [one for one in dict.fromkeys(failed) if one not in known]


def wanted_rows(
    plan: ExtractionPlan, rows: Mapping[str, ImageRow], regions: Regions = Regions()
) -> list[tuple[str, int]]:
    """Return the ``(sha256, row)`` pairs a plan wants: views only of normal training images.

    Of images seen in tiles a row for each that is not wholly outside of the region of interest.
    """
    spec, found = plan.spec, list(rows.values())
    if spec.views is not None:
        found = [r for r in found if r.split == "train" and r.kind == "good"]
    return [
        (r.sha256, number)
        for r in found
        for part in parts_inside(r.height, r.width, spec.tiles, regions.of(r.sha256))
        for number in rows_of(part, spec)
    ]


def fill(gap: Gap, backbone: Backbone, options: ExtractionSettings, reporter: Reporter) -> None:
    """Compute and commit what is missing, block by block."""
    spec, done = gap.plan.spec, gap.done
    what = "images" if spec.tiles is None else "tiles"
    began, calls = time.perf_counter(), backbone.calls
    for work in gap.missing.tasks:
        jobs = [Job(sha, gap.path(sha), view, gap.regions.of(sha)) for sha, view in work.keys]
        size = options.block_mb * 2**20
        for block in extract(
            jobs, backbone, spec, work.layers, batch=options.batch, block_bytes=size
        ):
            gap.set_aside((str(job.path), reason) for job, reason in block.failed)
            if block.jobs:
                keys = [(job.sha256, job.view) for job in block.jobs]
                gap.store.write(spec, keys, block.maps, images=[gap.rows[sha] for sha, _ in keys])
                done.commits += 1
                done.count(block.maps, len(keys))
            done.backbone_calls = backbone.calls - calls
            rate = done.computed / max(time.perf_counter() - began, 1e-9)
            reporter.update("features", done.computed, gap.missing.todo, f"{rate:.1f} {what}/s")
