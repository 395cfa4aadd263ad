"""Bring a set's feature store up to date: scan, sync, compute what is missing, nothing else."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from features.backbones.backbone import Backbone, load_backbone
from features.backbones.weights import find_weights
from features.extract import Job, extract
from features.images.records import ImageRecord, ScanResult
from features.images.scan import scan_folders, scan_mvtec
from flows.extraction.plan import (
    ExtractionPlan,
    HeadPlan,
    check_heads,
    check_kind,
    needs_backbone,
    plan_extraction,
    plan_heads,
)
from flows.runtime.resolve import remember, require_set, resolve
from flows.runtime.settings import Settings
from headwater.errors import DataError
from headwater.spec import Precision
from storage.store.feature_store import FeatureStore
from storage.store.layout import StoreOptions
from storage.store.table import ImageRow

if TYPE_CHECKING:
    from flows.extraction.pairs import PairsReport
    from flows.runtime.console import Reporter
    from flows.runtime.home import Home


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
class ExtractionReport:
    """What an extraction found and did; its `set_aside` decides the exit status.

    Parameters
    ----------
    image_set
        Name of the set.
    snapshot
        Store version at the end.
    images, normal_train
        Images of the set; of these, normal ones for training.
    changes
        ``{added, removed, renamed, replaced, relabelled, unchanged: count}``.
    hashed
        Files that were read to know their content; the others had not changed.
    extracted
        One entry an extractor.
    set_aside
        ``[path, reason]`` of images that could not be used.
    notes
        Things to know that stop nothing: duplicates, masks without an image.
    """

    image_set: str
    snapshot: str = ""
    images: int = 0
    normal_train: int = 0
    changes: dict[str, int] = field(default_factory=dict)
    hashed: int = 0
    scan_seconds: float = 0.0
    extracted: list[Extracted] = field(default_factory=list)
    set_aside: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def computed(self) -> int:
        """Feature rows computed in all."""
        return sum(e.computed for e in self.extracted)

    @property
    def backbone_calls(self) -> int:
        """Forward passes in all."""
        return sum(e.backbone_calls for e in self.extracted)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return {
            **asdict(self),
            "computed": self.computed,
            "backbone_calls": self.backbone_calls,
        }


def scan(settings: Settings, home: Home, reporter: Reporter, rehash: bool = False) -> ScanResult:
    """Scan the set's folders; unchanged files are not read."""

    def progress(done: int, total: int) -> None:
        reporter.update("images", done, total, "reading what is new")

    common: dict[str, Any] = {"cache": home.file_cache, "rehash": rehash, "progress": progress}
    if settings.images is not None:
        return scan_mvtec(settings.images, **common)
    assert settings.normal is not None
    return scan_folders(settings.normal, settings.defective, settings.masks, **common)


def open_backbone(
    settings: Settings, home: Home, untrained_seed: int | None = None
) -> tuple[Backbone, Precision]:
    """Load the backbone; return it with the arithmetic it is to run in.

    ``auto`` is settled by a measurement once for a set and backbone, and remembered: the arithmetic
    is part of the extractor's identity and must not change with the machine's mood.
    """
    chosen = settings.backbone
    weights = None
    if untrained_seed is None:
        weights = find_weights(chosen.name, chosen.weights)
    backbone = load_backbone(
        chosen.name, weights, options=chosen.options, untrained_seed=untrained_seed
    )
    wanted = settings.extraction.precision
    if wanted != "auto":
        return backbone, wanted
    image_set = require_set(settings)
    card = home.card(image_set)
    settled: dict[str, Precision] = card.setdefault("precision", {})
    key = f"{backbone.name}:{backbone.weights_id}"
    if key not in settled:
        settled[key] = backbone.best_precision()
        home.write_card(image_set, card)
    return backbone, settled[key]


def plan_all(
    settings: Settings, home: Home, untrained_seed: int | None = None
) -> tuple[Backbone | None, list[HeadPlan]]:
    """Load the backbone, unless every head reads images, and settle what the heads read."""
    backbone: Backbone | None = None
    precision: Precision = "float32"
    if needs_backbone(settings):
        backbone, precision = open_backbone(settings, home, untrained_seed)
    return backbone, plan_heads(settings, backbone, precision)


def image_rows(result: ScanResult) -> list[ImageRow]:
    """Turn scanned records into the store's rows, with paths relative to the set's root."""
    return [
        ImageRow(
            sha256=r.sha256,
            path=_relative(r.path, result.root),
            split=r.split,
            kind=r.kind,
            mask=_relative(r.mask, result.root) if r.mask else "",
            width=r.width,
            height=r.height,
        )
        for r in result.records
    ]


def _relative(path: Path, root: Path) -> str:
    try:
        return path.relative_to(root).as_posix()
    except ValueError:
        return path.as_posix()


def extract_set(
    settings: Settings,
    home: Home,
    reporter: Reporter,
    *,
    rehash: bool = False,
    untrained_seed: int | None = None,
) -> ExtractionReport | PairsReport:
    """Scan, sync and extract; see `extract_with` for the part after the plan.

    Parameters
    ----------
    settings
        The run's settings.
    home
        Where state lives.
    reporter
        Shows progress.
    rehash
        Read every file, even those that look unchanged.
    untrained_seed
        Only the demo gives one: an untrained net instead of weights.
    """
    check_heads(settings)
    settings = resolve(settings, home)
    check_kind(settings)
    if settings.pairs is not None:
        from flows.extraction.pairs import extract_pairs

        return extract_pairs(settings, home, reporter, rehash=rehash)
    backbone, plans = plan_all(settings, home, untrained_seed)
    assert backbone is not None
    return extract_with(settings, home, reporter, backbone, plans, rehash=rehash)


def extract_with(
    settings: Settings,
    home: Home,
    reporter: Reporter,
    backbone: Backbone,
    plans: Sequence[HeadPlan],
    *,
    rehash: bool = False,
    at_least: int = 1,
) -> ExtractionReport:
    """Bring the store up to date for `plans`; needs `at_least` normal training images.

    The store knows what is missing, so a killed run goes on where its last commit was.

    Raises
    ------
    DataError
        Where the folders hold no usable normal image.
    WeightsError, LayerError
        Where the backbone cannot give a layer.
    """
    image_set = require_set(settings)
    began = time.perf_counter()
    found = scan(settings, home, reporter, rehash)
    report = ExtractionReport(image_set, hashed=found.hashed)
    report.set_aside = [(str(b.path), b.reason) for b in found.broken]
    report.notes = [*found.problems, *_duplicates(found)]
    rows = image_rows(found)
    report.images = len(rows)
    report.normal_train = sum(r.split == "train" and r.kind == "good" for r in rows)
    if report.normal_train < at_least:
        raise DataError(
            f"{found.root}: {report.normal_train} usable normal image(s) for training",
            expected=f"at least {at_least} in train/good, or in the folder given with --normal",
            remedy=_why_none(report),
        )
    extractions = plan_extraction(plans)
    for plan in extractions:
        # Before the store is made: a run that cannot work leaves nothing behind.
        backbone.check_weights(plan.layers)
    store = open_store(settings, home, image_set)
    report.changes = store.sync(rows).counts
    report.scan_seconds = time.perf_counter() - began
    remember(settings, home, image_set, found.root)
    fill_store(settings, store, reporter, backbone, extractions, found.records, rows, report)
    return report


def open_store(settings: Settings, home: Home, image_set: str) -> FeatureStore:
    """Open the store of a set, made where there is none."""
    options = StoreOptions(compression=settings.extraction.compression)
    return FeatureStore.open(home.store, image_set, options=options)


def fill_store(
    settings: Settings,
    store: FeatureStore,
    reporter: Reporter,
    backbone: Backbone,
    extractions: Sequence[ExtractionPlan],
    records: Sequence[ImageRecord],
    rows: Sequence[ImageRow],
    report: ExtractionReport,
) -> None:
    """Compute and commit what a store misses of each extractor; `report` tells what was done."""
    by_sha = {r.sha256: r for r in records}
    row_of = {r.sha256: r for r in rows}
    for plan in extractions:
        report.extracted.append(
            _extract_plan(settings, store, reporter, backbone, plan, by_sha, row_of, report)
        )
    report.snapshot = store.snapshot


def wanted_rows(plan: ExtractionPlan, records: Mapping[str, ImageRecord]) -> list[tuple[str, int]]:
    """Return the ``(sha256, view)`` pairs a plan wants: views only of normal training images."""
    if plan.spec.views is None:
        return [(sha, 0) for sha in records]
    views = range(1, plan.spec.views.count + 1)
    normal = [s for s, r in records.items() if r.split == "train" and r.kind == "good"]
    return [(sha, view) for sha in normal for view in views]


def _extract_plan(
    settings: Settings,
    store: FeatureStore,
    reporter: Reporter,
    backbone: Backbone,
    plan: ExtractionPlan,
    records: Mapping[str, ImageRecord],
    rows: Mapping[str, ImageRow],
    report: ExtractionReport,
) -> Extracted:
    """Compute and commit what one extractor misses, block by block."""
    wanted = wanted_rows(plan, records)
    missing = store.plan(plan.spec, plan.layers, wanted)
    views = plan.spec.views.count if plan.spec.views else 0
    done = Extracted(plan.spec.id, backbone.name, [x.name for x in plan.layers], views, len(wanted))
    done.missing = dict(missing.missing)
    began, calls = time.perf_counter(), backbone.calls
    if missing.todo and (settings.extraction.workers or settings.dask.scheduler):
        from flows.extraction.cluster import extract_on_cluster

        extract_on_cluster(
            settings, store, reporter, backbone, plan, missing, records, rows, report, done
        )
        done.seconds = time.perf_counter() - began
        return done
    for work in missing.tasks:
        jobs = [Job(sha, records[sha].path, view) for sha, view in work.keys]
        blocks = extract(
            jobs,
            backbone,
            plan.spec,
            work.layers,
            batch=settings.extraction.batch,
            block_bytes=settings.extraction.block_mb * 2**20,
        )
        for block in blocks:
            report.set_aside += [(str(job.path), reason) for job, reason in block.failed]
            if block.jobs:
                store.write(
                    plan.spec,
                    [(job.sha256, job.view) for job in block.jobs],
                    block.maps,
                    images=[rows[job.sha256] for job in block.jobs],
                )
                done.commits += 1
                done.count(block.maps, len(block.jobs))
            rate = done.computed / max(time.perf_counter() - began, 1e-9)
            reporter.update("features", done.computed, missing.todo, f"{rate:.1f} images/s")
    done.backbone_calls = backbone.calls - calls
    done.seconds = time.perf_counter() - began
    return done


def _duplicates(found: ScanResult) -> list[str]:
    if not found.duplicates:
        return []
    first = ", ".join(f"{dropped} = {kept}" for kept, dropped in found.duplicates[:3])
    more = f" and {len(found.duplicates) - 3} more" if len(found.duplicates) > 3 else ""
    return [f"{len(found.duplicates)} duplicate image(s), counted once: {first}{more}"]


def _why_none(report: ExtractionReport) -> str:
    if report.set_aside:
        path, reason = report.set_aside[0]
        return f"all were set aside; the first: {path}: {reason}"
    return "put normal images there; defective ones belong in test/KIND"
