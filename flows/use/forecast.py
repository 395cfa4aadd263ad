"""What a run is going to do and cost, before it begins: features, trainings, time, disk.

One implementation for `headwater plan`, which changes nothing, and for the line that `run` begins
with. Times are measured: of features on a few images now, of trainings in earlier ones of the same
kind on this machine. What was not measured is called not known.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.extraction.backbone import forget
from flows.extraction.extract import as_seen
from flows.extraction.find import find
from flows.extraction.forecast import (
    ExtractionAhead,
    check_room,
    extraction_ahead,
    free_bytes,
)
from flows.extraction.pair_list import Version
from flows.extraction.plan import plan_job, ready
from flows.extraction.regions import copy_own, regions_given
from flows.extraction.report import ExtractionReport
from flows.extraction.samples import UNLEARNT, Sample, digest_of, reviewed
from flows.runtime.console import counted, duration, size
from flows.runtime.dask import check_device, gpus
from flows.runtime.home import Home
from flows.runtime.resolve import FOLDERS, READING, require_set
from flows.training.known import check_known
from flows.training.trainings import Request
from heads.catalogue import get_head
from heads.training.out_of_fold import leaves_out
from headwater.errors import DiskFullError
from headwater.tiles import parts
from storage.registry.registry import Registry

if TYPE_CHECKING:
    from flows.extraction.find import Found
    from flows.extraction.plan import JobPlan
    from flows.runtime.console import Reporter
    from flows.runtime.settings import Settings
    from flows.training.trainings import GrownFrom, Training

#: A run measures nothing for fewer images: they take seconds.
WORTH_MEASURING = 200


@dataclass(frozen=True)
class TrainingAhead:
    """One head of the run.

    Parameters
    ----------
    head, preset
        Which, and how.
    model
        The finished training that is found instead, as ``v3``; empty where it will be trained.
    seconds
        How long the fit will take, from an earlier one, folds included, one after the other; None
        where that is not known.
    basis
        In words, where that is from.
    folds
        Trainings beside the model's own, whose scores set the thresholds.
    joins
        Whether it joins heads and learns nothing.
    """

    head: str
    preset: str
    model: str = ""
    seconds: float | None = None
    basis: str = ""
    folds: int = 0
    joins: bool = False


@dataclass(frozen=True)
class Forecast:
    """What a run is going to do.

    Parameters
    ----------
    image_set, images, normal
        The set; its images or pairs in all, and the normal ones for training.
    extractions, trainings
        What is to be done.
    device
        Where heads learn.
    free
        Free bytes of the store's disk; None on S3.
    set_aside, notes
        As a run would tell them.
    refusal
        Why the run would not begin, where the features do not fit on the disk.
    read
        Files that were read for it, the others being known.
    """

    image_set: str
    images: int
    normal: int
    extractions: list[ExtractionAhead]
    trainings: list[TrainingAhead]
    device: str
    free: int | None
    set_aside: list[tuple[str, str]]
    notes: list[str]
    refusal: DiskFullError | None = None
    read: int = 0

    def check(self) -> None:
        """Raise `DiskFullError` where the features do not fit on the disk."""
        if self.refusal is not None:
            raise self.refusal

    @property
    def bytes(self) -> int:
        """Bytes of features to be stored."""
        return sum(one.bytes for one in self.extractions)

    @property
    def seconds(self) -> float | None:
        """Of the features; None where something of them was not measured."""
        ahead = [one for one in self.extractions if one.todo]
        known = [one.seconds for one in ahead if one.seconds is not None]
        return sum(known) if len(known) == len(ahead) else None

    @property
    def nothing_to_do(self) -> bool:
        """Whether every feature is stored and every training was finished before."""
        todo = any(one.todo for one in self.extractions)
        return not todo and all(one.model for one in self.trainings)

    def line(self) -> str:
        """Return all of it in a line."""
        said = [f"{self.image_set}: {self.images:,} images ({self.normal:,} normal for training)"]
        todo = sum(one.todo for one in self.extractions)
        if todo:
            layers = len({x.name for one in self.extractions for x in one.layers if x.missing})
            tiles = " tiles" * any(one.tiles for one in self.extractions)
            room = "" if self.free is None else f" of {size(self.free)} free"
            took = "" if self.seconds is None else f", about {duration(self.seconds)}"
            said.append(
                f"{counted(layers, 'layer')} of {todo:,}{tiles}: {size(self.bytes)}{room}{took}"
            )
        else:
            said.append("every feature is stored")
        joined = [one.head for one in self.trainings if one.joins and not one.model]
        new = [one for one in self.trainings if not (one.model or one.joins)]
        if new:
            times = [f" ({duration(x.seconds)})" if x.seconds is not None else "" for x in new]
            said.append("train " + ", ".join(x.head + t for x, t in zip(new, times, strict=True)))
            if folds := {x.folds for x in new if x.folds}:
                count = max(folds)
                said[-1] += (
                    f" ({counted(count + 1, 'training')} each: {count} folds set the thresholds; "
                    "--calibrate quick holds images out instead)"
                )
        if found := [f"{one.head} {one.model}" for one in self.trainings if one.model]:
            said.append("found in MLflow: " + ", ".join(found))
        if joined:
            said.append("join heads: " + ", ".join(joined))
        return "; ".join(said)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        told = ("image_set", "images", "normal", "bytes", "seconds", "free", "device")
        return {
            **{name: getattr(self, name) for name in told},
            "enough_room": self.refusal is None,
            "extractions": [one.to_json() for one in self.extractions],
            "trainings": [asdict(one) for one in self.trainings],
            "set_aside": self.set_aside,
            "notes": self.notes,
        }


def foresee(settings: Settings, home: Home, reporter: Reporter) -> Forecast:
    """Return what `run` would do with settings as they were given; the home stays as it is.

    Raises
    ------
    HeadwaterError
        For what `run` would refuse, but for too small a disk: see `Forecast.check`.
    """
    settings = ready(settings, home)
    check_device(settings.training.device, settings.dask.scheduler)
    with _shadow(home, require_set(settings)) as beside:
        plan = plan_job(settings, beside)
        try:
            return forecast(settings, home, plan, reporter, beside=beside, measure_from=1)
        finally:
            forget()


def forecast(
    settings: Settings,
    home: Home,
    plan: JobPlan,
    reporter: Reporter,
    *,
    rehash: bool = False,
    beside: Home | None = None,
    measure_from: int = WORTH_MEASURING,
    grown: Mapping[str, GrownFrom] | None = None,
) -> Forecast:
    """Return what a run of `plan` is going to do.

    Parameters
    ----------
    settings
        Made whole.
    home, plan
        Where, and what is read.
    rehash
        Read every file, even those that look unchanged.
    beside
        Instead of `home`: where is noted what files were read.
    measure_from
        As of `extraction_ahead`.
    grown
        As of `Request`.

    Raises
    ------
    StoreError
        Where MLflow does not answer.
    """
    given = {name: getattr(settings, name) for name in (*FOLDERS, *READING)}
    found = find(require_set(settings), given, beside or home, reporter, rehash)
    looked = ExtractionReport(require_set(settings), notes=[*found.notes, *plan.notes])
    regions = regions_given(settings.extraction.roi, home)
    settings, plan, _ = as_seen(settings, plan, found, looked, home)
    options = settings.extraction
    ahead = extraction_ahead(home, plan, found, options, regions, measure_from)
    samples = reviewed(_samples(found), home.reviews(require_set(settings)))
    normal = sum(
        s.split == "train" and not s.defective and s.review not in UNLEARNT for s in samples
    )
    asked = Request(settings, home, plan, grown=grown or {})
    trainings = _trainings(asked, samples, found.pairs is not None)
    if unknown := [x.head for x in trainings if not x.model and x.seconds is None]:
        looked.notes.append(
            f"how long a fit of {', '.join(unknown)} takes is not known before the first on this "
            "machine. A trial tells: `headwater run` with the same options, another set name and a "
            "folder of some 20 of the images; ask again then"
        )
    refusal = None
    try:
        check_room(home, ahead, settings.extraction)
    except DiskFullError as error:
        refusal = error
    return Forecast(
        require_set(settings),
        len(samples),
        normal,
        ahead,
        trainings,
        "cuda" if gpus(settings.training.device) else "cpu",
        free_bytes(home.store),
        found.set_aside,
        looked.notes,
        refusal,
        found.hashed,
    )


@contextmanager
def _shadow(home: Home, image_set: str) -> Iterator[Home]:
    """Yield a home of its own for what would be noted, beginning with what `home` knows."""
    with tempfile.TemporaryDirectory(prefix="headwater-plan-") as folder:
        beside = Home(Path(folder), home.store, home.tracking_url, home.artifacts_url)
        if card := home.card(image_set):
            beside.write_card(image_set, card)
            copy_own(home, beside, image_set)
        if reviews := home.reviews(image_set):
            beside.add_reviews(image_set, reviews)
        if home.file_cache.exists():
            # A cache that cannot be copied is one that remembers nothing.
            with contextlib.suppress(sqlite3.Error, OSError):
                shutil.copy(home.file_cache, beside.file_cache)
        yield beside


def _samples(found: Found) -> Sequence[Sample]:
    if found.pairs is not None:
        return found.pairs.samples
    (rows,) = found.sides.values()
    return [Sample.of(row, found.root, found.groups.get(row.sha256, "")) for row in rows]


def _trainings(asked: Request, samples: Sequence[Sample], pairs: bool) -> list[TrainingAhead]:
    at = Version(("", ""), pairs="to come") if pairs else Version(("",))
    home, seen = asked.home, digest_of(samples)
    registry, trainings = Registry(home.root, home.tracking_url), asked.trainings(at)
    known = sum(s.split == "val" for s in samples)
    for one in trainings:
        check_known(one, known, pairs=pairs)
    return [_training(registry, one, seen, samples) for one in trainings]


def _training(
    registry: Registry, one: Training, seen: str, samples: Sequence[Sample]
) -> TrainingAhead:
    head, preset = one.plan.head, one.plan.preset
    done = registry.find_finished(one.image_set, head, one.key(seen))
    if done is not None:
        return TrainingAhead(one.called, preset, f"v{done['version']}")
    if one.plan.members:
        joins = "nothing is learnt: trained heads are joined"
        return TrainingAhead(one.called, preset, "", 0.0, joins, joins=True)
    normal = sum(s.split == "train" and not s.defective for s in samples)
    # What leaves images out exactly takes about as long again as its fit.
    exact = bool(one.folds) and leaves_out(get_head(head))
    folds = 0 if exact else min(one.folds, normal)
    before = registry.last_fit(head, one.cost)
    if before is None:
        unknown = "not known: no such training on this machine yet"
        return TrainingAhead(one.called, preset, basis=unknown, folds=folds)
    units = sum(
        1 if s.size is None else len(parts(*s.size, one.plan.spec.tiles))
        for s in samples
        if s.split == "train" and not s.defective
    )
    assert one.options.held_out is not None
    views = one.plan.view_spec.views.count if one.plan.view_spec and one.plan.view_spec.views else 0
    # K heads that each learn from all but one of K folds, and the model's own that learns from all.
    share = 2 if exact else folds or 1 - one.options.held_out
    rows = units * share * (1 + views)
    basis = f"{before['seconds']:.1f} s for {before['rows']} rows in {before['image_set']}"
    seconds = before["seconds"] * rows / before["rows"]
    return TrainingAhead(one.called, preset, "", seconds, basis, folds)
