"""Scores of held-out and test samples, and what follows: thresholds, metrics, the table.

Images and pairs are judged by the same steps. What differs is small and named: `JUDGING`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from features.images.masks import read_mask, scaled
from features.images.pixels import read_image
from features.images.preprocess import mask_to_input
from flows.extraction.samples import ACCEPTED, Sample, what_is_left_out
from flows.training.data import TrainingData
from flows.training.scoring import Maps, Scoring
from heads.contract import FeatureSource, Head
from heads.judging.calibration import Calibration, calibrate, calibrate_out_of_fold, fixed
from heads.judging.metrics import Metrics, auroc, evaluate
from heads.judging.pair_metrics import pair_metrics
from heads.judging.resampling import Resamples, count_pixels, resample
from heads.judging.rules import rule_of
from heads.looking import seen_of
from heads.training.out_of_fold import OutOfFold
from headwater.samples import IMAGE, PAIR
from headwater.spec import ExtractorSpec
from headwater.tiles import joined_size

#: A probability above this is a defect or a change.
EVEN = 0.5


@dataclass
class Judgement:
    """What a fitted head gives on data it has not learnt from.

    Parameters
    ----------
    samples
        ``N`` test samples.
    scores, maps, masks
        What the head gave, ``[N]`` and ``[N, H, W]`` float32, and ``N`` of ``[H, W]`` bool or None.
        The maps are a masked array where not all of every image is looked at; of images seen in
        tiles the joined ones, a list: each has a size of its own.
    calibration
        Thresholds.
    held_scores
        ``[M]`` out-of-fold scores of the normals, or those of held-out ones; None where the
        threshold is not theirs.
    score_seconds
        Time of scoring alone.
    metrics, notes
        Final figures, and what could not be computed.
    table
        A row a sample, worst mistakes first.
    example
        For the served model's input example: an image, or the two of a pair.
    resamples
        The figures over draws of the test set, if they were computed.
    """

    samples: Sequence[Sample]
    scores: np.ndarray
    maps: Maps
    masks: Sequence[np.ndarray | None]
    calibration: Calibration
    held_scores: np.ndarray | None
    score_seconds: float
    metrics: Metrics
    notes: list[str]
    table: list[dict[str, Any]]
    example: Any = None
    resamples: Resamples | None = None

    @property
    def labels(self) -> np.ndarray:
        """``[N]`` bool, true where there is something to be found, as far as is known."""
        return np.array([bool(s.defective) for s in self.samples], dtype=bool)

    @property
    def cut(self) -> float:
        """A pixel is called where its map value is greater."""
        found = self.calibration.pixel_threshold
        return EVEN if found is None else found


@dataclass(frozen=True)
class Judging:
    """What differs between judging images and judging pairs of them.

    Parameters
    ----------
    key
        What a sample's key is called in the table.
    metrics
        From a judgement's scores, maps and masks.
    resample
        The same over the draws of the test set; None where that is not done.
    columns
        What is told of sample number i beside its score and verdict.
    worst
        Sorts the table's rows.
    """

    key: str
    metrics: Callable[[Judgement], Metrics]
    resample: Callable[[Judgement], Resamples | None]
    columns: Callable[[Judgement, int], dict[str, Any]]
    worst: Callable[[dict[str, Any]], Any]


def judge(
    data: TrainingData, head: Head, held_out: FeatureSource, apart: OutOfFold | None = None
) -> Judgement:
    """Set thresholds and score the test samples.

    Probabilities are cut at 0.5. Other scores are cut where few normal samples reach: by their
    out-of-fold scores, `apart`, or else by the scores of those held out.
    """
    judging, target = JUDGING[data.kind], data.training.options.target_fpr
    calibration, held_scores = fixed(EVEN, target), None
    scored = Scoring(head, data)
    if apart is not None:
        held_scores = apart.scores
        if apart.parts is not None:
            rule_of(head).settle(apart.parts)
        told = apart.folds.told()
        known = {s.id: s.review == ACCEPTED for s in data.learnt}
        calibration = calibrate_out_of_fold(
            held_scores,
            apart.maps,
            told,
            accepted=[known[image] for image in apart.images],
            target_fpr=target,
        )
    elif not head.labelled:
        held_scores, maps = scored.held_out(held_out)
        found = calibrate(held_scores, maps, target_fpr=target, upper=scored.limit)
        calibration = dataclasses.replace(found, standard=scored.standard)
    samples = data.test
    data.check_files(samples, masks=True)
    began = time.perf_counter()
    scores, maps = np.empty(0, np.float32), np.empty((0, *head.map_size), np.float32)
    if samples:
        scores, maps = scored(data.source(samples))
    seconds = time.perf_counter() - began
    notes = what_is_left_out(data.head, data.readable)
    masks = [mask_of(s, data.spec, notes) for s in samples]
    samples, masks = _as_looked_at(data, samples, maps, masks, notes)
    judged = Judgement(
        samples, scores, maps, masks, calibration, held_scores, seconds, Metrics(), notes, []
    )
    judged.metrics = judging.metrics(judged)
    judged.resamples = judging.resample(judged)
    for reason in dict.fromkeys(judged.metrics.omitted.values()):
        names = [k for k, v in judged.metrics.omitted.items() if v == reason]
        notes.append(f"{head.name}: no {', '.join(names)}: {reason}")
    notes += [*ties(head.name, data.kind.name, scores), *calibration.caveats, *data.notes()]
    notes += getattr(head, "remarks", [])
    judged.table = sorted((_row(data, judged, i) for i in range(len(samples))), key=judging.worst)
    for sample in samples[:1]:
        with contextlib.suppress(OSError, ValueError):
            images = tuple(read_image(path) for path in sample.paths)
            judged.example = images if sample.is_pair else images[0]
    return judged


def _as_looked_at(
    data: TrainingData,
    samples: Sequence[Sample],
    maps: Maps,
    masks: Sequence[np.ndarray | None],
    notes: list[str],
) -> tuple[list[Sample], list[np.ndarray | None]]:
    """Return samples and masks as far as they are looked at.

    What has its defect outside of the region of interest alone is normal inside.
    """
    inside = [m if m is None else m & seen_of(heat) for m, heat in zip(masks, maps, strict=True)]
    if not data.spec.region:
        return list(samples), inside
    told, gone = list(samples), []
    for i, (mask, seen) in enumerate(zip(masks, inside, strict=True)):
        if mask is not None and seen is not None and mask.any() and not seen.any():
            told[i] = dataclasses.replace(samples[i], kind="good")
            gone.append(samples[i].key)
    if gone:
        notes.append(
            f"{len(gone)} test {data.kind.name}(s) with nothing to be found inside the region of "
            f"interest count as {data.kind.verdicts[0]}, such as {gone[0]}"
        )
    return told, inside


def ties(head: str, kind: str, scores: np.ndarray) -> list[str]:
    """Return a sentence where most samples share a score: then nothing is told apart.

    A score that has saturated (a probability of 1 in float32, say) is the same for all it is
    given, and its AUROC of .5 looks like that of a head that has learnt nothing.

    Examples
    --------
    >>> ties("ms_flow", "image", np.array([1.0, 1.0, 1.0, 0.5]))
    ['ms_flow: 3 of 4 test images have the same score, 1: they are not told apart (saturated?)']
    >>> ties("ms_flow", "image", np.array([0.9, 1.0, 0.7, 0.5]))
    []
    """
    if len(scores) < 4:
        return []
    values, counts = np.unique(scores, return_counts=True)
    most = int(counts.max())
    if 2 * most <= len(scores):
        return []
    return [
        f"{head}: {most} of {len(scores)} test {kind}s have the same score, "
        f"{values[counts.argmax()]:.4g}: they are not told apart (saturated?)"
    ]


def mask_of(sample: Sample, spec: ExtractorSpec, notes: list[str]) -> np.ndarray | None:
    """Return a sample's mask at the size of its map; None, noted, where it cannot be read."""
    if sample.mask is None:
        return None
    try:
        mask = read_mask(sample.mask, sample.size)
        if spec.tiles is not None:
            return scaled(mask, joined_size(*mask.shape))
        return mask_to_input(mask, spec)
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        notes.append(f"{sample.mask}: {first}; counts for image metrics only")
        return None


def _row(data: TrainingData, judged: Judgement, i: int) -> dict[str, Any]:
    sample, score = judged.samples[i], float(judged.scores[i])
    judging, flagged = JUDGING[data.kind], score > judged.calibration.threshold
    return {
        "index": i,
        judging.key: sample.key,
        "kind": sample.kind,
        "score": score,
        "verdict": data.kind.verdicts[flagged],
        "correct": None if sample.defective is None else flagged == sample.defective,
        **judging.columns(judged, i),
    }


# --- images --------------------------------------------------------------------------------------


def image_metrics(judged: Judgement) -> Metrics:
    """Return the metrics of images and of their pixels; a defect without mask has no pixels."""
    return evaluate(
        judged.scores,
        judged.maps,
        judged.labels,
        judged.masks,
        threshold=judged.calibration.threshold,
        pixel_threshold=judged.calibration.pixel_threshold,
    )


def image_resamples(judged: Judgement) -> Resamples | None:
    """Return the figures of images and their pixels over draws of the test images."""
    if not judged.samples:
        return None
    # As in `evaluate`: a normal image without a mask has an empty one.
    truth = [
        np.zeros(np.shape(heat), bool) if mask is None and not bad else mask
        for heat, mask, bad in zip(judged.maps, judged.masks, judged.labels, strict=True)
    ]
    return resample(
        judged.scores,
        judged.labels,
        [s.kind for s in judged.samples],
        judged.calibration.threshold,
        exact=judged.metrics,
        pixels=count_pixels(list(judged.maps), truth, judged.cut),
    )


def _image_columns(judged: Judgement, i: int) -> dict[str, Any]:
    beyond = float(judged.scores[i]) - judged.calibration.threshold
    return {
        "margin": beyond * (1 if judged.samples[i].defective else -1),
        "map_max": float(judged.maps[i].max()),
        "sha256": judged.samples[i].contents[0],
    }


# --- pairs ---------------------------------------------------------------------------------------


def change_metrics(judged: Judgement) -> Metrics:
    """Return the metrics over the pixels of labelled pairs, and the AUROC of whole pairs."""
    known = [i for i, mask in enumerate(judged.masks) if mask is not None]
    if not known:
        empty = Metrics()
        empty.omitted["pixel figures"] = "no test pair has a mask"
        return empty
    truth = [mask for mask in judged.masks if mask is not None]
    found = pair_metrics([judged.maps[i] for i in known], truth, threshold=judged.cut)
    changed = judged.labels[known]
    if changed.any() and not changed.all():
        found["image_auroc"] = auroc(judged.scores[known], changed)
    else:
        found.omitted["image_auroc"] = "needs changed and unchanged test pairs"
    return found


def _pair_columns(judged: Judgement, i: int) -> dict[str, Any]:
    called, mask, sample = judged.maps[i] > judged.cut, judged.masks[i], judged.samples[i]
    changed = wrong = overlap = None
    if mask is not None:
        either = int((called | mask).sum())
        changed, wrong = int(mask.sum()), int((called != mask).sum())
        overlap = int((called & mask).sum()) / either if either else None
    return {
        "called_pixels": int(called.sum()),
        "changed_pixels": changed,
        "wrong_pixels": wrong,
        "iou": overlap,
        "current": str(sample.paths[0]),
        "history": str(sample.paths[1]),
        "current_sha256": sample.contents[0],
        "history_sha256": sample.contents[1],
    }


def _most_wrong(row: dict[str, Any]) -> tuple[int, int]:
    """Most wrongly called pixels first, unlabelled pairs last."""
    wrong = row["wrong_pixels"]
    return (1 if wrong is None else -wrong, -row["index"])


JUDGING = {
    IMAGE: Judging(
        "path", image_metrics, image_resamples, _image_columns, lambda row: row["margin"]
    ),
    PAIR: Judging("key", change_metrics, lambda judged: None, _pair_columns, _most_wrong),
}
