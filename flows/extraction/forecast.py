"""What an extraction is going to do, before anything is written: layers, bytes, time, room."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from features.extract import Job, extract
from flows.extraction.fill import wanted_rows
from flows.extraction.plan import plan_extraction
from flows.runtime.console import size
from headwater.errors import DiskFullError
from storage.store.engine import is_remote, set_exists
from storage.store.extractors import Plan, make_plan
from storage.store.feature_store import FeatureStore
from storage.store.layout import DISK_DTYPE

if TYPE_CHECKING:
    from features.images.places.regions import Regions
    from flows.extraction.find import Found
    from flows.extraction.plan import ExtractionPlan, JobPlan
    from flows.runtime.home import Home
    from flows.runtime.settings import ExtractionSettings

#: Images that a measurement computes, after one batch to warm up.
MEASURED = 16
#: What compression leaves at the least; the room that is asked for must not refuse what fits.
_LEAST = {"none": 1.0, "lz4": 0.5, "zstd": 0.5}


@dataclass(frozen=True)
class LayerAhead:
    """One layer: its shape ``(channels, height, width)``, rows stored, rows to compute, bytes."""

    name: str
    shape: tuple[int, int, int]
    stored: int
    missing: int
    bytes: int


@dataclass(frozen=True)
class ExtractionAhead:
    """What one store lacks of one extractor.

    Parameters
    ----------
    store
        Name of the store: the set's, or that of one side.
    extractor, backbone, precision, views
        The extractor, and its copies of an image, 0 for plain ones.
    device
        Where the backbone runs.
    wanted, todo
        Rows wanted, and those that lack a layer.
    layers
        What each layer lacks.
    seconds_per_image
        A row, measured here, from file to features; None where it was not.
    tiles
        Whether rows are tiles of images.
    """

    store: str
    extractor: str
    backbone: str
    precision: str
    views: int
    device: str
    wanted: int
    todo: int
    layers: tuple[LayerAhead, ...]
    seconds_per_image: float | None = None
    tiles: bool = False

    @property
    def bytes(self) -> int:
        """Bytes of features to be stored, before compression."""
        return sum(layer.bytes for layer in self.layers)

    @property
    def seconds(self) -> float | None:
        """Time to compute what is missing, where it was measured."""
        return None if self.seconds_per_image is None else self.seconds_per_image * self.todo

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return {**asdict(self), "bytes": self.bytes, "seconds": self.seconds}


def extraction_ahead(
    home: Home,
    plan: JobPlan,
    found: Found,
    options: ExtractionSettings,
    regions: Regions,
    measure_from: int | None = None,
) -> list[ExtractionAhead]:
    """Return what `plan` lacks in the stores of a set; nothing is made or written.

    Parameters
    ----------
    home
        Where the stores are, or will be.
    plan, found
        What is read, and which images there are.
    options
        How images become features.
    regions
        Regions of interest, as they were given.
    measure_from
        The time an image takes is measured where at least so many are to be computed; None: not
        at all.
    """
    ahead = []
    for name, rows in found.sides.items():
        known = {row.sha256: row for row in rows}
        for one in plan_extraction(plan.heads):
            assert plan.backbone is not None
            backbone = plan.backbone.kept()
            wanted = wanted_rows(one, known, regions)
            missing = _missing(home, name, one, wanted)
            shapes = backbone.shapes(one.layers, one.spec.input_size)
            itemsize = DISK_DTYPE[one.spec.dtype].itemsize
            layers = tuple(
                LayerAhead(k, s, len(wanted) - n, n, n * s[0] * s[1] * s[2] * itemsize)
                for k, s in shapes.items()
                for n in [missing.missing.get(k, 0)]
            )
            rate = None
            if measure_from is not None and missing.todo >= measure_from:
                work = max(missing.tasks, key=lambda task: len(task.keys))
                jobs = [Job(s, found.root / known[s].path, view) for s, view in work.keys]
                rate = _measured(plan, one, jobs, options)
            ahead.append(
                ExtractionAhead(
                    store=name,
                    extractor=one.spec.id,
                    backbone=one.spec.backbone,
                    precision=one.spec.precision,
                    views=one.spec.views.count if one.spec.views else 0,
                    device=str(backbone.device),
                    wanted=len(wanted),
                    todo=missing.todo,
                    layers=layers,
                    seconds_per_image=rate,
                    tiles=one.spec.tiles is not None,
                )
            )
    return ahead


def _missing(home: Home, name: str, one: ExtractionPlan, wanted: list[tuple[str, int]]) -> Plan:
    if set_exists(home.store, name):
        return FeatureStore.open(home.store, name, create=False).plan(one.spec, one.layers, wanted)
    nothing = {x.name: np.zeros(len(wanted), bool) for x in one.layers}
    return make_plan(one.layers, wanted, nothing)


def _measured(
    plan: JobPlan, one: ExtractionPlan, jobs: Sequence[Job], options: ExtractionSettings
) -> float | None:
    """Return seconds an image takes from file to features, on a few of `jobs`; None without."""
    assert plan.backbone is not None
    backbone = plan.backbone.kept()

    def run(some: Sequence[Job]) -> int:
        blocks = extract(some, backbone, one.spec, one.layers, batch=options.batch)
        return sum(len(block.jobs) for block in blocks)

    run(jobs[: min(options.batch, 4)])
    # Tiles share their image's decoding: more of them, or it would count for too much.
    some = jobs[: MEASURED if one.spec.tiles is None else 4 * MEASURED]
    began = time.perf_counter()
    done = run(some)
    return (time.perf_counter() - began) / done if done else None


def free_bytes(place: str) -> int | None:
    """Return the free bytes of the disk of a folder that may not be there yet; None for S3."""
    if is_remote(place):
        return None
    path = Path(place).expanduser().absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def check_room(home: Home, ahead: Sequence[ExtractionAhead], options: ExtractionSettings) -> None:
    """Raise `DiskFullError` where the features to be computed do not fit on the disk."""
    free, needed = free_bytes(home.store), sum(one.bytes for one in ahead)
    if free is None or needed * _LEAST[options.compression] <= free:
        return
    todo, tiles = max(one.todo for one in ahead), any(one.tiles for one in ahead)
    raise DiskFullError(
        f"the features of {todo:,} {'tile' if tiles else 'image'}(s) take {size(needed)}, and "
        f"{home.store} has {size(free)} of free disk",
        expected="room for them; nothing was begun",
        remedy="fewer heads, a smaller --size, --store on a larger disk; or `headwater store gc "
        "SET --delete` frees what no snapshot needs",
    )
