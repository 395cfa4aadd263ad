"""The models that a page shows: what their runs and files tell of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.extraction.pair_list import Version
from flows.runtime.home import Home
from flows.training.data import StoredSamples
from flows.training.record import threshold_in_words
from flows.training.scoring import Scoring
from flows.training.small_maps import FILE, SmallMap, load, small_maps
from flows.use.compare import content_of, named_model
from heads.judging.calibration import Calibration
from headwater.errors import HeadwaterError
from headwater.samples import IMAGE, PAIR, SampleKind
from headwater.spec import ExtractorSpec
from storage.registry.registry import Registry
from storage.serving.detector import Detector
from storage.serving.manifest import MANIFEST, read_manifest

if TYPE_CHECKING:
    from flows.runtime.console import Reporter

#: Test samples whose maps are made at a time.
_BATCH = 32


@dataclass
class Shown:
    """A model that a page shows in full.

    Parameters
    ----------
    row
        As of `flows.use.compare.compare_models`.
    calibration, spec
        Its thresholds, and how its images became inputs.
    params, tags
        Of its run.
    table
        The row of its run's table of test samples, by their content.
    normals
        The rows of its out-of-fold normals; empty where the run has none.
    maps, normal_maps
        Small maps of its test samples and of its normals, by name.
    """

    row: dict[str, Any]
    calibration: Calibration
    spec: ExtractorSpec
    params: dict[str, str]
    tags: dict[str, str]
    table: dict[str, dict[str, Any]]
    normals: list[dict[str, Any]]
    maps: Mapping[str, SmallMap]
    normal_maps: Mapping[str, SmallMap]

    @property
    def name(self) -> str:
        """What it is called on the page."""
        return f"{self.row['head']} v{self.row['version']}"

    @property
    def kind(self) -> SampleKind:
        """What it judges."""
        return IMAGE if all("sha256" in row for row in self.table.values()) else PAIR

    @property
    def at(self) -> Version:
        """What it was trained and tested on."""
        return version_of(self.tags, self.kind)

    def promise(self) -> list[str]:
        """Return in sentences where its threshold comes from, and what to mind."""
        told = threshold_in_words(self.calibration)
        return [f"Threshold {told}.", *(f"{said}." for said in self.calibration.caveats)]


def version_of(tags: Mapping[str, str], kind: SampleKind) -> Version:
    """Return what a run was trained and tested on, by its tags."""
    names = ("snapshot", "history_snapshot") if kind.paired else ("snapshot",)
    return Version(tuple(tags.get(name, "") for name in names), tags.get("pairs", ""))


def choose(
    registry: Registry, image_set: str, rows: Sequence[dict[str, Any]], names: Sequence[str]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the rows of the models to show in full, and a note for each that cannot be.

    Those named ``HEAD@VERSION``, else the newest of each head; all of one set of test samples:
    that of the newest.
    """
    if names:
        found = [named_model(registry, image_set, name) for name in names]
        wanted = {(row["head"], row["version"]) for row in found}
    else:
        newest: dict[str, int] = {}
        for row in rows:
            newest[row["head"]] = max(newest.get(row["head"], 0), int(row["version"]))
        wanted = {(head, str(number)) for head, number in newest.items()}
    chosen = [row for row in rows if (row["head"], row["version"]) in wanted]
    bare = [row for row in chosen if not row["test"]]
    notes = [f"{_called(r)} is not shown: the table of its test samples is gone" for r in bare]
    chosen = [row for row in chosen if row["test"]]
    if chosen:
        last = max(chosen, key=lambda row: row["created"])["test"]["digest"]
        apart = [row for row in chosen if row["test"]["digest"] != last]
        notes += [f"{_called(r)} is not shown: it was tested on other samples" for r in apart]
        chosen = [row for row in chosen if row["test"]["digest"] == last]
    return chosen, notes


def opened(
    home: Home,
    registry: Registry,
    image_set: str,
    rows: Sequence[dict[str, Any]],
    reporter: Reporter,
) -> tuple[list[Shown], list[str]]:
    """Return the models of these rows with all that is shown of them, and what is to be noted.

    Maps that the run kept are read. Of models from before they are made anew, from the features in
    the store, one model after the other.
    """
    made, notes = [], []
    for row in rows:
        facts = registry.facts(row["run_id"]) or ({}, {})
        try:
            file = registry.model_file(row["uri"], f"artifacts/{MANIFEST}")
            manifest = read_manifest(file.read_bytes(), str(file))
        except (HeadwaterError, OSError, ValueError) as error:
            notes.append(f"{_called(row)} is not shown: {str(error).splitlines()[0]}")
            continue
        kept = registry.artifact(row["run_id"], FILE)
        groups = {} if kept is None else load(kept)
        model = Shown(
            row,
            Calibration.from_json(manifest["calibration"]),
            ExtractorSpec.from_json(manifest["spec"]),
            *facts,
            {content_of(r): r for r in registry.sample_table(row["run_id"]) or []},
            registry.artifact_json(row["run_id"], "tables/normals.json") or [],
            groups.get("test", {}),
            groups.get("normals", {}),
        )
        if model.table and not model.maps:
            try:
                model.maps = _maps_anew(home, registry, image_set, model, reporter)
            except HeadwaterError as error:
                notes.append(f"{model.name}: no heat maps: {str(error).splitlines()[0]}")
        made.append(model)
    return made, notes


def _maps_anew(
    home: Home, registry: Registry, image_set: str, model: Shown, reporter: Reporter
) -> dict[str, SmallMap]:
    """Score the stored test samples again, a few at a time, and keep their maps small."""
    detector = Detector.load(model.row["uri"], registry)
    root = Path(home.card(image_set).get("root", ""))
    stored = StoredSamples(home, image_set, model.at, detector.spec, detector.layers, root)
    scoring = Scoring(detector.head, stored)
    scoring.standard = detector.calibration.standard
    samples = [s for s in stored.test if "".join(s.contents) in model.table]

    def each() -> Iterator[tuple[str, Any, tuple[int, int]]]:
        for start in range(0, len(samples), _BATCH):
            part = samples[start : start + _BATCH]
            reporter.update(f"maps of {model.name}", start, len(samples), part[0].key)
            _, maps = scoring(stored.source(part))
            for sample, heat in zip(part, maps, strict=True):
                yield sample.id, heat, stored.size_of(sample.contents[0])

    fixed = detector.calibration.rule == "fixed"
    found, _ = small_maps(each(), detector.spec, detector.cut, probabilities=fixed)
    return found


def _called(row: Mapping[str, Any]) -> str:
    return f"{row['head']} v{row['version']}"
