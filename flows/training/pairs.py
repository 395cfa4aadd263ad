"""What a training of a pair head reads and how it is judged, by reference to two snapshots."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from features.images.pairs import CHANGED
from features.images.pixels import read_image, read_mask, sha256_of
from features.images.preprocess import mask_to_input, preprocess
from features.images.records import ImageRecord
from features.images.sources import ImageSource, PairMasks
from flows.extraction.pair_list import (
    UNLABELLED,
    PairRow,
    load_pairs,
    pairs_digest,
    present,
    usable,
    what_is_left_out,
)
from flows.runtime.home import Home
from flows.training.evaluation import calibrate_head, score_source
from flows.training.jobs import Judgement, TrainJob, key_of
from flows.training.pair_artifacts import write_pair_artifacts
from heads.catalogue import get_head
from heads.contract import FeatureSource, Head
from heads.judging.calibration import fixed
from heads.judging.metrics import Metrics, auroc
from heads.judging.pair_metrics import pair_metrics
from heads.pairs.source import Pair, PairSource
from headwater.errors import ConfigError, DataError
from headwater.spec import SIDES
from storage.registry.runs import Run
from storage.store.feature_store import FeatureStore
from storage.store.layout import side_name
from storage.store.table import Selection
from storage.upkeep.history import tag

#: A probability above this is a change.
EVEN = 0.5


class PairWork:
    """Pairs to learn from, and test pairs, joined over the snapshots of both sides.

    Raises
    ------
    ConfigError
        For a point in time with a head that reads images, which no store dates.
    """

    def __init__(self, job: TrainJob, home: Home) -> None:
        assert job.pairs is not None
        self.job, self.head = job, get_head(job.plan.head)
        self.list = load_pairs(home, job.image_set, job.pairs.digest)
        self.snapshots = (job.snapshot, job.pairs.history)
        self.stores: list[FeatureStore] = []
        self.rows: Sequence[PairRow] = self.list.rows
        if job.plan.reads_images:
            if job.known_by is not None:
                raise ConfigError(
                    f"--known-by with {job.plan.head} that learns its own encoder",
                    expected="a head that reads stored features: only the store knows arrivals",
                )
            return
        names = [side_name(job.image_set, side) for side in SIDES]
        self.stores = [FeatureStore.open(home.store, n, create=False) for n in names]
        tables = [s.table(at) for s, at in zip(self.stores, self.snapshots, strict=True)]
        self.rows = present(self.list.rows, tables, job.known_by)

    def key(self) -> str:
        """The same images paired and labelled alike give the same key, whatever the snapshots."""
        return key_of(self.job, pairs_digest(self.rows))

    def images(self) -> Sequence[Any]:
        """Return the pairs."""
        return self.rows

    def tags(self) -> dict[str, str]:
        """Return both snapshots and the digest of the pairs' list."""
        assert self.job.pairs is not None
        named = dict(zip(("snapshot", "history_snapshot"), self.snapshots, strict=True))
        return {**named, "pairs": self.job.pairs.digest}

    def keep(self, name: str) -> None:
        """Tag the snapshots of both sides."""
        for store, at in zip(self.stores, self.snapshots, strict=False):
            tag(store, name, at)

    # --- reading ---------------------------------------------------------------------------------

    @functools.cached_property
    def sides(self) -> tuple[FeatureSource, FeatureSource]:
        """The features of either side, or its images where the head has its own encoder."""
        plan = self.job.plan
        if plan.reads_images:
            prepare = functools.partial(preprocess, spec=plan.spec)
            # One source for both: an image of several pairs is one row.
            source = ImageSource(_records(self.rows), prepare, plan.spec.input_size)
            return source, source
        select = Selection(known_by=self.job.known_by)
        readers = [
            store.reader(plan.spec, plan.layers, select, at, missing="skip")
            for store, at in zip(self.stores, self.snapshots, strict=True)
        ]
        return readers[0], readers[1]

    @functools.cached_property
    def readable(self) -> list[PairRow]:
        """The pairs both of whose images have features."""
        have = [set(side.ids) for side in self.sides]
        return [r for r in self.rows if r.current in have[0] and r.history in have[1]]

    def join(self, rows: Sequence[PairRow], *, labelled: bool) -> PairSource:
        """Return a source of these pairs, with their masks where `labelled`."""
        prepare = functools.partial(mask_to_input, spec=self.job.plan.spec)
        masks = PairMasks(rows, prepare) if labelled else None
        pairs = [Pair(r.key, r.current, r.history, r.source) for r in rows]
        return PairSource(*self.sides, pairs, masks)

    def sources(self) -> tuple[FeatureSource, FeatureSource]:
        """Return the training pairs a head may learn from, and those of them that are held out.

        Raises
        ------
        DataError
            With too few pairs, or files that are not what they were when they were scanned.
        """
        labelled = self.head.labelled
        rows = usable(self.head, self.job.image_set, self.readable)
        check_files(rows, images=self.job.plan.reads_images, masks=labelled)
        return self.join(rows, labelled=labelled).split(self.job.training["held_out"])

    # --- judging ---------------------------------------------------------------------------------

    def judge(self, head: Head, held_out: FeatureSource) -> Judgement:
        """Score the test pairs; the metrics are over the pixels of those that have a mask.

        Probabilities are cut at 0.5. Other scores are cut where few held-out pairs, all of them
        unchanged, reach.
        """
        job, held_scores = self.job, None
        if head.labelled:
            calibration = fixed(EVEN, job.training["target_fpr"])
        else:
            calibration, held_scores = calibrate_head(head, held_out, job.training["target_fpr"])
        rows = [r for r in self.readable if r.split == "test"]
        check_files(rows, images=job.plan.reads_images, masks=True)
        notes = [*what_is_left_out(self.head, self.readable), *calibration.caveats]
        if absent := len(self.rows) - len(self.readable):
            notes.append(f"{job.plan.head}: {absent} pair(s) left out: an image has no features")
        size, began = head.map_size, time.perf_counter()
        scores, maps = np.empty(0, np.float32), np.empty((0, *size), np.float32)
        if rows:
            scores, maps = score_source(head, self.join(rows, labelled=False))
        seconds = time.perf_counter() - began
        masks = [
            None if r.mask is None else mask_to_input(read_mask(r.mask), job.plan.spec)
            for r in rows
        ]
        cut = EVEN if calibration.pixel_threshold is None else calibration.pixel_threshold
        metrics = evaluate_pairs(rows, scores, maps, masks, cut)
        for reason in dict.fromkeys(metrics.omitted.values()):
            names = [k for k, v in metrics.omitted.items() if v == reason]
            notes.append(f"{job.plan.head}: no {', '.join(names)}: {reason}")
        table = per_pair_rows(rows, scores, maps, masks, calibration.threshold, cut)
        example = None
        for row in rows[:1]:
            with contextlib.suppress(OSError, ValueError):
                example = (read_image(row.current_path), read_image(row.history_path))

        def draw(run: Run) -> None:
            write_pair_artifacts(
                job, run, rows, table, scores, maps, masks, held_scores, calibration, cut
            )
            run.log_json(self.list.to_json(), "pairs.json")

        return Judgement(calibration, metrics, notes, table, seconds, draw, example)


def _records(rows: Sequence[PairRow]) -> list[ImageRecord]:
    found: dict[str, Path] = {}
    for r in rows:
        found.setdefault(r.current, r.current_path)
        found.setdefault(r.history, r.history_path)
    # Only path and content are read of these.
    return [ImageRecord(path, sha, "train", "good", None, 0, 0, 0) for sha, path in found.items()]


def check_files(rows: Sequence[PairRow], *, images: bool, masks: bool) -> None:
    """Raise `DataError` for a file whose content is not the one that was scanned."""
    files: dict[Path, str] = {}
    for r in rows:
        if images:
            files |= {r.current_path: r.current, r.history_path: r.history}
        if masks and r.mask is not None:
            files[r.mask] = r.mask_sha256
    for path, sha in files.items():
        try:
            same = sha256_of(path) == sha
        except OSError:
            same = False
        if not same:
            raise DataError(
                f"{path} is gone, or not what it was when it was scanned",
                expected=f"content {sha[:12]}",
                remedy="put it back, or run again with --pairs to take the new one",
            )


def evaluate_pairs(
    rows: Sequence[PairRow],
    scores: np.ndarray,
    maps: np.ndarray,
    masks: Sequence[np.ndarray | None],
    cut: float,
) -> Metrics:
    """Return the pixel metrics over labelled pairs, and the AUROC of whole pairs.

    Parameters
    ----------
    rows, scores, maps, masks
        ``N`` pairs, ``[N]``, ``[N, H, W]``, ``N`` of ``[H, W]`` bool or None.
    cut
        A pixel is called changed where its value is greater.
    """
    with_mask = [i for i, mask in enumerate(masks) if mask is not None]
    if not with_mask:
        empty = Metrics()
        empty.omitted["pixel figures"] = "no test pair has a mask"
        return empty
    truth = [mask for mask in masks if mask is not None]
    found = pair_metrics([maps[i] for i in with_mask], truth, threshold=cut)
    changed = np.array([rows[i].kind == CHANGED for i in with_mask])
    if changed.any() and not changed.all():
        found["image_auroc"] = auroc(scores[with_mask], changed)
    else:
        found.omitted["image_auroc"] = "needs changed and unchanged test pairs"
    return found


def per_pair_rows(
    rows: Sequence[PairRow],
    scores: np.ndarray,
    maps: np.ndarray,
    masks: Sequence[np.ndarray | None],
    threshold: float,
    cut: float,
) -> list[dict[str, Any]]:
    """Return the per-pair table: most wrongly called pixels first, unlabelled pairs last."""
    table = []
    for i, (row, mask) in enumerate(zip(rows, masks, strict=True)):
        called, score = maps[i] > cut, float(scores[i])
        flagged = score > threshold
        entry: dict[str, Any] = {
            "index": i,
            "key": row.key,
            "kind": row.kind,
            "score": score,
            "verdict": "changed" if flagged else "unchanged",
            "correct": None if row.kind == UNLABELLED else flagged == (row.kind == CHANGED),
            "called_pixels": int(called.sum()),
            "changed_pixels": None,
            "wrong_pixels": None,
            "iou": None,
        }
        if mask is not None:
            either = int((called | mask).sum())
            entry["changed_pixels"] = int(mask.sum())
            entry["wrong_pixels"] = int((called != mask).sum())
            entry["iou"] = int((called & mask).sum()) / either if either else None
        entry |= {
            "current": str(row.current_path),
            "history": str(row.history_path),
            "current_sha256": row.current,
            "history_sha256": row.history,
        }
        table.append(entry)
    return sorted(table, key=lambda e: -1 if e["wrong_pixels"] is None else e["wrong_pixels"])[::-1]
