"""Bring a set's feature stores up to date: scan, sync, compute what is missing, nothing else."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from features.images.depth import about_depths, find_range, written
from features.images.pairs import CHANGED
from features.images.places.aspect import about_shapes
from features.images.places.tiles import about_tiles, seen_shapes
from flows.extraction.backbone import arithmetic_key, forget
from flows.extraction.cluster import fill_on_cluster
from flows.extraction.fill import Gap, fill
from flows.extraction.find import Found, find
from flows.extraction.forecast import check_room, extraction_ahead
from flows.extraction.pair_list import Version, note_version, save_pairs, versions
from flows.extraction.plan import (
    ExtractionPlan,
    HeadPlan,
    JobPlan,
    plan_extraction,
    plan_job,
    ready,
)
from flows.extraction.regions import (
    check_region,
    keep_region,
    own_regions,
    regions_given,
    regions_of,
    size_of,
    tiles_of,
)
from flows.extraction.report import ExtractionReport, PairCounts, SideReport
from flows.extraction.samples import usable, what_is_left_out
from flows.runtime.resolve import FOLDERS, READING, remember, require_set
from flows.runtime.settings import changed
from flows.runtime.values import height_width, low_high
from heads.catalogue import get_head
from headwater.errors import DataError
from storage.store.feature_store import FeatureStore
from storage.store.layout import StoreOptions
from storage.store.table import ImageRow, Selection

if TYPE_CHECKING:
    from flows.extraction.backbone import BackboneRef
    from flows.extraction.regions import OwnRegions
    from flows.runtime.console import Reporter
    from flows.runtime.home import Home
    from flows.runtime.settings import Settings

#: What a side's card takes over from that of its pairs: `store verify --repair` needs it.
CARD = ("root", "backbone", "extraction", "precision")
#: Rows that are copied from one side to the other in a commit.
_COPY_ROWS = 64


def extract_set(
    settings: Settings,
    home: Home,
    reporter: Reporter,
    *,
    rehash: bool = False,
    untrained_seed: int | None = None,
) -> ExtractionReport:
    """Bring a set up to date, from settings as they were given.

    What it does, and the errors, are those of `bring_up_to_date`.

    Parameters
    ----------
    rehash
        Read every file, even those that look unchanged.
    untrained_seed
        Only tests give one: an untrained net instead of weights.
    """
    settings = ready(settings, home)
    plan = plan_job(settings, home, untrained_seed)
    return bring_up_to_date(settings, home, reporter, plan, rehash=rehash)


def bring_up_to_date(
    settings: Settings,
    home: Home,
    reporter: Reporter,
    plan: JobPlan,
    *,
    rehash: bool = False,
    already_read: int = 0,
    at_least: int = 1,
) -> ExtractionReport:
    """Bring the stores of a set up to date for `plan`; needs `at_least` normal training images.

    A store knows what is missing, so a killed run goes on where its last commit was. An image that
    is on both sides of a set of pairs is computed once: the second side copies its features.

    Parameters
    ----------
    rehash
        Read every file, even those that look unchanged.
    already_read
        Files that were read for this run before, by its forecast: the cache knows them since.

    Raises
    ------
    DataError
        Where the folders hold no usable normal image, no pairs, or too few to learn from.
    WeightsError, LayerError
        Where the backbone cannot give a layer.
    """
    image_set, began = require_set(settings), time.perf_counter()
    given = {name: getattr(settings, name) for name in (*FOLDERS, *READING)}
    found = find(image_set, given, home, reporter, rehash)
    report = ExtractionReport(
        image_set,
        already_read + found.hashed,
        layout=found.layout,
        left_out=found.left_out,
        scanned_aside=found.set_aside,
        notes=found.notes,
        copies=found.copies,
    )
    _look(report, found, plan.heads, at_least)
    given_region = settings.extraction.roi
    settings, plan, own = as_seen(settings, plan, found, report, home)
    extractions = plan_extraction(plan.heads)
    for one in extractions:
        assert plan.backbone is not None
        # Before a store is made: a run that cannot work leaves nothing behind.
        plan.backbone.kept().check_weights(one.layers)
    if extractions:
        regions = regions_given(given_region, home)
        ahead = extraction_ahead(home, plan, found, settings.extraction, regions)
        check_room(home, ahead, settings.extraction)
    report.scan_seconds = time.perf_counter() - began
    # Heads that read images need the table of a set of images; pairs are joined by their list.
    sides = found.sides if extractions or found.pairs is None else {}
    options = StoreOptions(compression=settings.extraction.compression)
    stores = [FeatureStore.open(home.store, name, options=options) for name in sides]
    keep_region(given_region, home)
    if own is not None:
        own.keep(home)
    specs = [one.spec for one in extractions]
    used = {arithmetic_key(s.backbone, s.weights): s.precision for s in specs}
    remember(settings, home, image_set, found.root, used)
    home.add_groups(image_set, found.groups)
    # As they are before this run changes them: what moves from one side to the other is there.
    before = [(store, store.snapshot) for store in stores]
    for store, (name, rows) in zip(stores, sides.items(), strict=True):
        normal = sum(r.split == "train" and r.kind == "good" for r in rows)
        known = sum(r.split == "val" for r in rows)
        side = SideReport(name, len(rows), normal, known_defects=known)
        report.sides.append(side)
        if name != image_set:
            card = home.card(image_set)
            home.write_card(name, home.card(name) | {k: card[k] for k in CARD if k in card})
        side.changes = store.sync(rows).counts
        others = [(s, at) for s, at in before if s is not store]
        others += [(s, s.snapshot) for s, _ in others]
        if copied := sum(copy_shared(*one, store, extractions, rows) for one in others):
            report.notes.append(f"{name}: {copied} image(s) copied from the other side")
        for one in extractions:
            gap = Gap.of(store, one, rows, found.root, side, regions_of(one.spec, home))
            _fill(gap, plan.backbone, settings, home, reporter)
        side.snapshot = store.snapshot
    forget()
    report.version = _version(home, image_set, found, tuple(side.snapshot for side in report.sides))
    return report


def as_seen(
    settings: Settings, plan: JobPlan, found: Found, report: ExtractionReport, home: Home
) -> tuple[Settings, JobPlan, OwnRegions | None]:
    """Settle what only the images can say: their shapes, and which values are black and white.

    The settings are as the set will remember them; nothing is written. With them come the regions
    of images that have their own, to be kept.
    """
    wanted, every = settings.extraction, [r for rows in found.sides.values() for r in rows]
    how = wanted.resize or "squash"
    tiles, shapes = tiles_of(wanted), [(r.height, r.width) for r in every]
    if wanted.resize is None:
        target = size_of(wanted) or height_width(wanted.default_size)
        said = about_shapes(seen_shapes(shapes, tiles), target)
        report.notes += [said] if said else []
    region = check_region(wanted.roi, every)
    if (own := own_regions(wanted.roi, found, home, require_set(settings))) is not None:
        region = report.seen["region"] = own.id
        if whole := sum(not own.regions[row.sha256] for row in every):
            report.notes.append(f"{whole} of {len(every)} images have no region: all is looked at")
    value_range, text = _range(wanted.range, found, report)
    report.seen |= {"fitting": how, "value_range": value_range}
    kept = {"resize": how, "roi": Path(region) if region else None, "range": text}
    if tiles is None:
        kept |= {"tile": None, "overlap": None, "scale": "tiles"}
    else:
        views = [h.view_spec.views.count for h in plan.heads if h.view_spec and h.view_spec.views]
        spec = plan.heads[0].spec
        report.notes.append(about_tiles(shapes, spec, tiles, max(views, default=1)))
    settings = changed(settings, {f"extraction.{key}": value for key, value in kept.items()})
    return settings, plan.seeing(**report.seen), own


def _range(
    wanted: str, found: Found, report: ExtractionReport
) -> tuple[tuple[float, float] | None, str]:
    """Return the values that are black and white, and how the set remembers them."""
    told = not all(d is None for d in found.depths)
    value_range = low_high(wanted)
    if wanted == "auto" and (value_range := find_range(found.normal_depths)) is not None:
        deep = sum(d is not None for d in found.normal_depths)
        report.notes.append(
            f"values from {value_range[0]:.12g} (black) to {value_range[1]:.12g} (white) are seen, "
            f"as found on {deep} training image(s) of more than 8 bits; --range LO:HI sets others"
        )
    elif value_range is not None and not told:
        report.notes.append(f"--range {wanted} is not used: no image has more than 8 bits")
        value_range, wanted = None, "auto"
    if value_range is not None:
        wanted = written(value_range)
    if told:
        report.notes += about_depths(found.depths, value_range)
    return value_range, wanted


def _look(report: ExtractionReport, found: Found, heads: Sequence[HeadPlan], at_least: int) -> None:
    """Say what there is; `DataError` where it cannot teach a head: then nothing is done."""
    if found.pairs is None:
        (rows,) = found.sides.values()
        normal = sum(r.split == "train" and r.kind == "good" for r in rows)
        if normal < at_least:
            why = f"; {found.few}" if found.few else ""
            raise DataError(
                f"{found.root}: {normal} usable normal image(s) for training{why}",
                expected=f"at least {at_least} in train/good, or in the folder given with --normal",
                remedy="put more normal images there; defective ones belong in test/KIND",
            )
        return
    samples = found.pairs.samples
    train = sum(s.split == "train" for s in samples)
    report.pairs = PairCounts(len(samples), train, sum(s.kind == CHANGED for s in samples))
    for plan in heads:
        usable(get_head(plan.head), report.image_set, samples)
        report.notes += what_is_left_out(get_head(plan.head), samples)


def _fill(
    gap: Gap,
    backbone: BackboneRef | None,
    settings: Settings,
    home: Home,
    reporter: Reporter,
) -> None:
    """Compute what is missing, here or on a cluster."""
    options, scheduler = settings.extraction, settings.dask.scheduler
    began = time.perf_counter()
    if gap.missing.todo:
        assert backbone is not None
        if options.workers or scheduler:
            fill_on_cluster(gap, backbone, options, scheduler, reporter, home.scratch)
        else:
            fill(gap, backbone.kept(), options, reporter)
    gap.done.seconds = time.perf_counter() - began


def _version(home: Home, image_set: str, found: Found, snapshots: tuple[str, ...]) -> Version:
    """Return what there is now to be trained on; of pairs it is remembered."""
    if found.pairs is None:
        return Version(snapshots)
    if not snapshots:
        # Heads that read images leave the stores as they are.
        snapshots = (versions(home, image_set) or [Version(("", ""))])[-1].snapshots
    version = Version(snapshots, save_pairs(home, image_set, found.pairs))
    note_version(home, image_set, version)
    return version


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
