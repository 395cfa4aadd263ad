"""Scores of held-out and test images, and what follows from them: thresholds, metrics, table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from features.images.pixels import read_mask
from features.images.preprocess import mask_to_input
from heads.contract import FeatureSource, Head
from heads.judging.calibration import Calibration, calibrate
from heads.judging.metrics import Metrics, evaluate
from headwater.spec import ExtractorSpec, LayerSpec
from storage.store.feature_store import FeatureStore
from storage.store.table import Selection

if TYPE_CHECKING:
    from flows.training.jobs import TrainJob


@dataclass
class ScoredImages:
    """Scores of one split, with what is known of each image.

    Parameters
    ----------
    table
        Per image ``path, sha256, kind, mask``.
    scores
        ``[N]`` float32.
    maps
        ``[N, H, W]`` float32.
    """

    table: list[dict[str, Any]]
    scores: np.ndarray
    maps: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """``[N]`` bool, true where defective."""
        return np.array([row["kind"] != "good" for row in self.table], dtype=bool)


@torch.no_grad()
def score_source(
    head: Head, source: FeatureSource, batch: int = 8
) -> tuple[np.ndarray, np.ndarray]:
    """Return ``(scores [N], maps [N, H, W])`` of a source, float32, in its order."""
    scores = np.empty(len(source), np.float32)
    maps = np.empty((len(source), *head.map_size), np.float32)
    for start in range(0, len(source), batch):
        stop = min(start + batch, len(source))
        got = head.score(source.read(start, stop))
        scores[start:stop] = got.image.float().cpu().numpy()
        maps[start:stop] = got.maps.float().cpu().numpy()
    return scores, maps


def calibrate_head(
    head: Head, held_out: FeatureSource, target_fpr: float
) -> tuple[Calibration, np.ndarray]:
    """Set the thresholds on held-out normal images; return them with the scores they came from."""
    scores, maps = score_source(head, held_out)
    return calibrate(scores, maps, target_fpr=target_fpr, upper=head.score_limit), scores


def labelled_test(
    store: FeatureStore,
    spec: ExtractorSpec,
    layers: tuple[LayerSpec, ...],
    snapshot: str,
    known_by: int | None = None,
) -> tuple[FeatureSource, list[dict[str, Any]]]:
    """Return the stored test images, and per row ``path, sha256, kind, mask``."""
    select = Selection(split="test", known_by=known_by)
    reader = store.reader(spec, layers, select, snapshot, missing="skip")
    rows = {r.sha256: r for r in store.table(snapshot).images()}
    found = [rows[sha] for sha in reader.ids]
    return reader, [
        {"path": r.path, "sha256": r.sha256, "kind": r.kind, "mask": r.mask} for r in found
    ]


def score_test(store: FeatureStore, job: TrainJob, head: Head) -> ScoredImages:
    """Score the stored test images, each alone as far as its score is concerned."""
    plan = job.plan
    reader, table = labelled_test(store, plan.spec, plan.layers, job.snapshot, job.known_by)
    if not table:
        empty = np.empty(0, np.float32)
        return ScoredImages([], empty, np.empty((0, *head.map_size), np.float32))
    scores, maps = score_source(head, reader)
    return ScoredImages(table, scores, maps)


def evaluate_scores(
    job: TrainJob, scored: ScoredImages, calibration: Calibration
) -> tuple[Metrics, list[str]]:
    """Compute the metrics; a mask that cannot be read any more is noted, its image kept."""
    notes: list[str] = []
    masks: list[np.ndarray | None] = []
    for row in scored.table:
        masks.append(mask_of(Path(job.root), job.plan.spec, row, notes))
    metrics = evaluate(
        scored.scores,
        scored.maps,
        scored.labels,
        masks,
        threshold=calibration.threshold,
        pixel_threshold=calibration.pixel_threshold,
    )
    for reason in dict.fromkeys(metrics.omitted.values()):
        names = [k for k, v in metrics.omitted.items() if v == reason]
        notes.append(f"{job.plan.head}: no {', '.join(names)}: {reason}")
    return metrics, notes


def mask_of(
    root: Path, spec: ExtractorSpec, row: dict[str, Any], notes: list[str]
) -> np.ndarray | None:
    """Return an image's mask at the net's input size; None, noted, where it cannot be read."""
    if row["kind"] == "good" or not row["mask"]:
        return None
    path = root / row["mask"]
    try:
        return mask_to_input(read_mask(path), spec)
    except (OSError, ValueError) as error:
        notes.append(f"{path}: {str(error).splitlines()[0]}; counts for image metrics only")
        return None


def per_image_rows(scored: ScoredImages, threshold: float) -> list[dict[str, Any]]:
    """Return the per-image table: worst mistakes first, then by score."""
    rows = []
    for i, row in enumerate(scored.table):
        score, bad = float(scored.scores[i]), row["kind"] != "good"
        flagged = score > threshold
        rows.append(
            {
                "index": i,
                "path": row["path"],
                "kind": row["kind"],
                "score": score,
                "verdict": "anomalous" if flagged else "normal",
                "correct": flagged == bad,
                "margin": (score - threshold) * (1 if bad else -1),
                "map_max": float(scored.maps[i].max()),
                "sha256": row["sha256"],
            }
        )
    return sorted(rows, key=lambda r: r["margin"])
