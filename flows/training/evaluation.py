"""Scores of held-out and test samples, and what follows: thresholds, metrics, the table.

Images and pairs are judged by the same steps. What differs is small and named: `JUDGING`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from features.images.pixels import read_image
from flows.extraction.samples import ACCEPTED, Sample, what_is_left_out
from flows.training.data import TrainingData
from flows.training.known import KnownDefects, known_defects, settled_scores
from flows.training.scoring import Maps, Scoring
from flows.training.truth import Truth, truth_of
from heads.contract import FeatureSource, Head
from heads.judging.aupimo import TopPixels, aupimo
from heads.judging.calibration import Calibration, calibrate, calibrate_out_of_fold, fixed
from heads.judging.metrics import Metrics, auroc, evaluate
from heads.judging.pair_metrics import pair_metrics
from heads.judging.pair_resampling import resample_pairs
from heads.judging.resampling import Resamples, count_pixels, resample
from heads.judging.rules import rule_of
from heads.training.out_of_fold import OutOfFold
from headwater.samples import IMAGE, PAIR

#: A probability above this is a defect or a change.
EVEN = 0.5


@dataclass
class Judgement:
    """What a fitted head gives on data it has not learnt from.

    Parameters
    ----------
    samples
        ``N`` test samples.
    scores, maps
        What the head gave, ``[N]`` and ``[N, H, W]`` float32. The maps are a masked array where not
        all of every image is looked at; of images seen in tiles the joined ones, a list: each has a
        size of its own.
    truth
        What is to be found in their pixels.
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
    known
        Known defects and what they chose, where there are some.
    apart
        The out-of-fold scores, where they set the thresholds, by the rule that was chosen.
    aupimo
        By the number of a sample with marked pixels its own AUPIMO.
    """

    samples: Sequence[Sample]
    scores: np.ndarray
    maps: Maps
    truth: Truth
    calibration: Calibration
    held_scores: np.ndarray | None
    score_seconds: float
    metrics: Metrics
    notes: list[str]
    table: list[dict[str, Any]]
    example: Any = None
    resamples: Resamples | None = None
    known: KnownDefects | None = None
    apart: OutOfFold | None = None
    aupimo: dict[int, float] = field(default_factory=dict)

    @property
    def labels(self) -> np.ndarray:
        """``[N]`` bool, true where there is something to be found, as far as is known."""
        return np.array([bool(s.defective) for s in self.samples], dtype=bool)

    @functools.cached_property
    def masks(self) -> list[np.ndarray | None]:
        """What is to be found, of the size of the maps."""
        return self.truth.shown()

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
    scored, known = Scoring(head, data), None
    notes: list[str] = []
    if apart is not None:
        if apart.parts is not None:
            rule_of(head).settle(apart.parts)
        known = known_defects(data, scored, notes)
        held_scores = settled_scores(scored, known, apart.scores, apart.parts)
        apart = dataclasses.replace(apart, scores=held_scores)
        told = apart.folds.told()
        said = {s.id: s.review == ACCEPTED for s in data.learnt}
        calibration = calibrate_out_of_fold(
            held_scores,
            apart.maps,
            told,
            accepted=[said[image] for image in apart.images],
            target_fpr=target,
        )
        # A pixel of maps that are thinned out stands for several.
        if (least := calibration.volume_threshold) is not None:
            calibration = dataclasses.replace(calibration, volume_threshold=least * apart.step**2)
    elif not head.labelled:
        held_scores, maps = scored.held_out(held_out)
        known = known_defects(data, scored, notes)
        held_scores = settled_scores(scored, known, held_scores, scored.parts)
        found = calibrate(held_scores, maps, target_fpr=target, upper=scored.limit)
        calibration = dataclasses.replace(found, standard=scored.standard)
    if known is not None and held_scores is not None:
        calibration = known.choose_threshold(calibration, held_scores, data.training)
        notes += known.about_rule(head.name)
    samples = data.test
    data.check_files(samples, masks=True)
    began = time.perf_counter()
    scores, maps = np.empty(0, np.float32), np.empty((0, *head.map_size), np.float32)
    if samples:
        scores, maps = scored(data.source(samples))
    seconds = time.perf_counter() - began
    notes = [*what_is_left_out(data.head, data.readable), *notes]
    samples, truth = truth_of(data, samples, maps, notes)
    judged = Judgement(
        samples, scores, maps, truth, calibration, held_scores, seconds, Metrics(), notes, [],
        known=known, apart=apart,
    )  # fmt: skip
    judged.metrics = judging.metrics(judged)
    judged.resamples = judging.resample(judged)
    if known is not None and held_scores is not None:
        judged.metrics |= known.figures(calibration, held_scores)
    for reason in dict.fromkeys(judged.metrics.omitted.values()):
        names = [k for k, v in judged.metrics.omitted.items() if v == reason]
        notes.append(f"{head.name}: no {', '.join(names)}: {reason}")
    # A threshold that known defects chose is this head's own; the other caveats are of the images.
    own = calibration.known["told"] if calibration.known else None
    caveats = [f"{head.name}: {text}" if text == own else text for text in calibration.caveats]
    notes += [*ties(head.name, data.kind.name, scores), *caveats, *data.notes()]
    notes += getattr(head, "remarks", [])
    judged.table = sorted((_row(data, judged, i) for i in range(len(samples))), key=judging.worst)
    for sample in samples[:1]:
        with contextlib.suppress(OSError, ValueError):
            images = tuple(read_image(path) for path in sample.paths)
            judged.example = images if sample.is_pair else images[0]
    return judged


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
    found = evaluate(
        judged.scores,
        judged.truth.maps,
        judged.labels,
        judged.truth.masks,
        threshold=judged.calibration.threshold,
        pixel_threshold=judged.calibration.pixel_threshold,
    )
    if (scores := aupimo(judged.truth.maps, judged.truth.masks)) is not None:
        found["pixel_aupimo"] = float(scores.mean())
        marked = [i for i, mask in enumerate(judged.truth.masks) if mask is not None and mask.any()]
        judged.aupimo = dict(zip(marked, scores.tolist(), strict=True))
    good = [
        np.ma.compressed(m) for m, bad in zip(judged.maps, judged.labels, strict=True) if not bad
    ]
    if pixels := sum(values.size for values in good):
        called = sum(int((values > judged.cut).sum()) for values in good)
        found["pixel_false_positive_rate"] = called / pixels
    return found


def image_resamples(judged: Judgement) -> Resamples | None:
    """Return the figures of images and their pixels over draws of the test images."""
    if not judged.samples:
        return None
    # At the size of the maps, which is a sixteenth of the work: the draws are centred on the exact
    # figures.
    return resample(
        judged.scores,
        judged.labels,
        [s.kind for s in judged.samples],
        judged.calibration.threshold,
        exact=judged.metrics,
        pixels=(
            count_pixels(judged.maps, judged.masks, judged.cut),
            TopPixels.of(judged.maps, judged.masks),
        ),
    )


def _image_columns(judged: Judgement, i: int) -> dict[str, Any]:
    beyond = float(judged.scores[i]) - judged.calibration.threshold
    return {
        "margin": beyond * (1 if judged.samples[i].defective else -1),
        "map_max": float(judged.maps[i].max()),
        "pixel_aupimo": judged.aupimo.get(i),
        "sha256": judged.samples[i].contents[0],
    }


# --- pairs ---------------------------------------------------------------------------------------


def change_metrics(judged: Judgement) -> Metrics:
    """Return the metrics over the pixels of labelled pairs, and the AUROC of whole pairs."""
    truth = {i: mask for i, mask in enumerate(judged.truth.masks) if mask is not None}
    if not truth:
        empty = Metrics()
        empty.omitted["pixel figures"] = "no test pair has a mask"
        return empty
    known = list(truth)
    maps = [judged.truth.maps[i] for i in known]
    found = pair_metrics(maps, list(truth.values()), threshold=judged.cut)
    changed = judged.labels[known]
    if changed.any() and not changed.all():
        found["image_auroc"] = auroc(judged.scores[known], changed)
    else:
        found.omitted["image_auroc"] = "needs changed and unchanged test pairs"
    return found


def change_resamples(judged: Judgement) -> Resamples | None:
    """Return the figures of labelled pairs over draws of them."""
    known = [i for i, mask in enumerate(judged.masks) if mask is not None]
    return resample_pairs(
        judged.scores[known],
        judged.labels[known],
        [judged.maps[i] for i in known],
        [mask for mask in judged.masks if mask is not None],
        judged.cut,
        exact=judged.metrics,
    )


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
    PAIR: Judging("key", change_metrics, change_resamples, _pair_columns, _most_wrong),
}
