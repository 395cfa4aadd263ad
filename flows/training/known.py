"""A set's known defects: what they choose, how a head does on them, and what is kept of that.

They may choose a head's `score` rule and its threshold. Nothing learns from them, and no figure of
the test counts them.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.extraction.samples import Sample, digest_of
from flows.training.truth import Truth, truth_of
from heads.judging.calibration import Calibration
from heads.judging.known import choose_threshold
from heads.judging.metrics import auroc, evaluate
from heads.judging.rules import BY_DEFECTS, ChosenRule
from headwater.errors import ConfigError, DataError
from headwater.prices import Prices

if TYPE_CHECKING:
    from flows.training.data import TrainingData
    from flows.training.scoring import Scoring
    from flows.training.trainings import Training


def asks(training: Training) -> list[str]:
    """Return the settings of a training that known defects are to settle."""
    options = training.options
    found = [] if options.target_recall is None else [f"target_recall {options.target_recall:g}"]
    found += [] if options.costs is None else [f"costs {options.costs}"]
    if training.plan.config.get("score") == BY_DEFECTS:
        found.append(f"{training.plan.head}.score {BY_DEFECTS}")
    return found


def check_known(training: Training, known: int, *, pairs: bool) -> None:
    """Raise `DataError` where a training is to choose by known defects and there are none.

    Parameters
    ----------
    known
        How many there are.
    pairs
        Whether it is a set of pairs, which has none: `ConfigError`.
    """
    if not (wanted := asks(training)) or known:
        return
    if pairs:
        raise ConfigError(
            " and ".join(wanted), expected="another: pairs have no known defects to choose by"
        )
    raise DataError(
        f"{training.image_set} has no known defects for {' and '.join(wanted)}",
        expected="defective images in val/KIND beside train/good, or --validation DIR",
        remedy="run with some: they choose, and are never trained on or tested",
    )


@dataclasses.dataclass
class KnownDefects:
    """The known defects of a set and what a fitted head gives on them.

    Parameters
    ----------
    samples
        ``M`` of them, M at least 1.
    scores, parts
        ``[M]``, and what they were joined of, ``[M, K]``, or None.
    truth
        What is to be found in their pixels.
    chose
        What they chose, JSON-ready.
    """

    samples: list[Sample]
    scores: np.ndarray
    parts: np.ndarray | None
    truth: Truth
    chose: dict[str, Any] = dataclasses.field(default_factory=dict)

    def choose_rule(self, rule: Any, normals: np.ndarray, default: str) -> np.ndarray:
        """Let a head's rule be chosen; return the normals' scores ``[N]`` by the one that was.

        Parameters
        ----------
        rule
            Of the head, which has learnt its scales of the normals.
        normals
            ``[N, K]``, parts of the normals' scores by heads that have not learnt from them.
        default
            What stays where it is as good as any.
        """
        assert self.parts is not None
        name, found = rule.choose(normals, self.parts, default)
        self.chose["score"] = {"rule": name, "image_auroc": found}
        self.scores = rule.scores(self.parts)
        return rule.scores(normals)

    def about_rule(self, head: str) -> list[str]:
        """Return a sentence on the rule that they chose, if they chose one."""
        if (chose := self.chose.get("score")) is None:
            return []
        others = sorted(set(chose["image_auroc"].values()), reverse=True)
        best = chose["image_auroc"][chose["rule"]]
        next_best = next((value for value in others if value < best), best)
        return [
            f"{head}: of its score rules {len(self.samples)} known defects chose {chose['rule']} "
            f"(image AUROC {best:.3f} against held-out normals, the next {next_best:.3f})"
        ]

    def choose_threshold(
        self, found: Calibration, normals: np.ndarray, training: Training
    ) -> Calibration:
        """Return the calibration with the threshold that is asked for, if one is."""
        recall, costs = training.options.target_recall, training.options.costs
        if recall is None and costs is None:
            return found
        prices = None if costs is None else Prices.of(costs)
        made = choose_threshold(found, normals, self.scores, recall=recall, prices=prices)
        assert made.known is not None
        self.chose["threshold"] = {k: v for k, v in made.known.items() if k != "told"}
        return made

    def figures(self, found: Calibration, normals: np.ndarray) -> dict[str, float]:
        """Return figures by their names in MLflow: known defects against `normals` ``[N]``.

        Those of pixels are of the known defects alone: their marked pixels against their others.
        """
        labels = np.arange(len(normals) + len(self.scores)) >= len(normals)
        told = {
            "val_images": float(len(self.scores)),
            "val_image_auroc": auroc(np.concatenate([normals, self.scores]), labels),
            "val_image_recall": float((self.scores > found.threshold).mean()),
            "val_image_false_positive_rate": float((normals > found.threshold).mean()),
        }
        if any(mask is not None for mask in self.truth.masks):
            maps, masks = self.truth.maps, self.truth.masks
            own = evaluate(self.scores, maps, np.ones(len(self.scores), bool), masks)
            told |= {f"val_{k}": own[k] for k in ("pixel_auroc", "aupro") if k in own}
        return told

    def record(self) -> dict[str, Any]:
        """Return how many there are, of which kinds and content, and what they chose."""
        return {
            "images": len(self.samples),
            "kinds": dict(sorted(Counter(s.kind for s in self.samples).items())),
            "digest": digest_of(self.samples),
            "chose": self.chose,
        }

    def in_words(self) -> str:
        """Return what was chosen by them."""
        rule = self.chose.get("score", {}).get("rule")
        said = [f"score: {rule}"] if rule else []
        if "threshold" in self.chose:
            said.append("the threshold")
        return f"{' and '.join(said) or 'nothing'}, of {len(self.samples)}"


def known_defects(data: TrainingData, scored: Scoring, notes: list[str]) -> KnownDefects | None:
    """Score the known defects of a set that has some; add to `notes` what is to be known of them.

    Those with nothing to be found in what is looked at choose nothing.
    """
    if not data.known:
        return None
    scores, maps, parts = scored.with_parts(data.source(data.known))
    told, truth = truth_of(data, data.known, maps, notes, called="validation")
    at = [i for i, sample in enumerate(told) if sample.defective]
    if not at:
        return None
    return KnownDefects(
        [told[i] for i in at],
        scores[at],
        None if parts is None else parts[at],
        truth.only(at),
    )


def settled_scores(
    scored: Scoring, known: KnownDefects | None, scores: np.ndarray, parts: np.ndarray | None
) -> np.ndarray:
    """Return the scores of the normals by the rule that known defects choose, where they do."""
    if not isinstance(scored.rule, ChosenRule) or parts is None:
        return scores
    if known is None:
        raise DataError(
            f"{scored.head.name}.score {BY_DEFECTS}: no known defect is looked at",
            expected="one or more with something to be found in what is looked at",
            remedy="look at their masks, the crop and the region of interest",
        )
    return known.choose_rule(scored.rule, parts, "max" if scored.tiled else "pooled")
