"""Whether a challenger may take the champion's place: both judged on the same locked test.

The margins are what one would rather lose than miss an improvement. A figure that the locked test
cannot give is left out, and that is said: nothing passes for want of images without a word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from flows.runtime.sections import RetrainSettings
from heads.judging.metrics import Metrics
from heads.judging.resampling import resample

#: The level of the paired bootstrap: a challenger's loss may exceed its margin in so many draws.
CHANCE = 0.05


@dataclass(frozen=True)
class Answer:
    """What a model says of one image of the locked test."""

    kind: str
    score: float
    called: bool


#: By SHA-256.
Answers = Mapping[str, Answer]


@dataclass(frozen=True)
class Check:
    """One condition of the gate.

    Parameters
    ----------
    name
        What is compared.
    passed
        None where the locked test has nothing to tell: then it holds nobody back.
    said
        The figures, in words.
    """

    name: str
    passed: bool | None
    said: str

    def __str__(self) -> str:
        mark = {True: "passed", False: "failed", None: "not asked"}[self.passed]
        return f"{self.name}: {mark}: {self.said}"


@dataclass(frozen=True)
class Judgement:
    """What the gate says of one challenger.

    Parameters
    ----------
    model, version, head
        The challenger.
    champion
        What it was judged against, as ``SET.HEAD version N``; empty where nothing was in service.
    checks
        All that was asked.
    """

    model: str
    version: str
    head: str
    champion: str
    checks: Sequence[Check] = field(default_factory=tuple)

    @property
    def passed(self) -> bool:
        """Whether it may go in service."""
        return not any(check.passed is False for check in self.checks)

    @property
    def why(self) -> str:
        """What decided, in a line: what failed, or what it passed."""
        failed = [c for c in self.checks if c.passed is False]
        return "; ".join(str(c) for c in failed or self.checks if c.passed is not None)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return {**asdict(self), "passed": self.passed}


def checks_of(champion: Answers, challenger: Answers, margins: RetrainSettings) -> list[Check]:
    """Return the checks that the answers to one locked test allow.

    Parameters
    ----------
    champion, challenger
        What both say of the same images.
    margins
        What a challenger may lose.
    """
    images = sorted(champion.keys() & challenger.keys())
    kinds = [champion[i].kind for i in images]
    return [
        _ranking(images, kinds, champion, challenger, margins.auroc_margin),
        _false_alarms(images, champion, challenger, margins.fpr_margin),
        *_recalls(images, champion, challenger, margins.recall_margin),
    ]


def _ranking(
    images: Sequence[str],
    kinds: Sequence[str],
    champion: Answers,
    challenger: Answers,
    margin: float,
) -> Check:
    """Image AUROC: paired bootstrap over images, stratified by kind."""
    bad = [kind != "good" for kind in kinds]
    if not any(bad) or all(bad):
        lacking = "defects" if not any(bad) else "normals"
        return Check("image AUROC", None, f"the locked test has no {lacking}")
    drawn = []
    for answers in (champion, challenger):
        scores = [answers[i].score for i in images]
        once = resample(scores, bad, kinds, 0.0, exact=Metrics(image_auroc=0.0))
        drawn.append((_auroc(scores, bad), once))
    (before, old), (after, new) = drawn
    interval = new.difference(old, "image_auroc", 1 - 2 * CHANCE)
    assert interval is not None  # of the same draws
    said = (
        f"{after:.3f} against {before:.3f}, difference {after - before:+.3f}, in 19 of 20 draws "
        f"of the test above {interval[0]:+.3f}, which must not be below {-margin:g}"
    )
    return Check("image AUROC", bool(interval[0] >= -margin), said)


def _auroc(scores: Sequence[float], bad: Sequence[bool]) -> float:
    from sklearn.metrics import roc_auc_score  # late: half a second

    return float(roc_auc_score(bad, scores))


def _false_alarms(
    images: Sequence[str], champion: Answers, challenger: Answers, margin: float
) -> Check:
    good = [i for i in images if champion[i].kind == "good"]
    if not good:
        return Check("false positives", None, "the locked test has no normals")
    before, after = (sum(a[i].called for i in good) for a in (champion, challenger))
    said = (
        f"{after} of {len(good)} normals called anomalous against {before}, {margin:g} more allowed"
    )
    return Check("false positives", bool(after - before <= margin * len(good)), said)


def _recalls(
    images: Sequence[str], champion: Answers, challenger: Answers, margin: float
) -> list[Check]:
    made = []
    for kind in sorted({champion[i].kind for i in images} - {"good"}):
        own = [i for i in images if champion[i].kind == kind]
        before, after = (sum(a[i].called for i in own) for a in (champion, challenger))
        said = f"{after} of {len(own)} found against {before}, {margin:g} less allowed"
        passed = bool(before - after <= margin * len(own))
        made.append(Check(f"recall of {kind}", passed, said))
    return made or [Check("recall", None, "the locked test has no defects")]


def first_check(answers: Answers) -> Check:
    """Return what the first model does on the locked test: there is none to compare it with."""
    bad = [a.called for a in answers.values() if a.kind != "good"]
    good = [a.called for a in answers.values() if a.kind == "good"]
    said = (
        f"nothing is in service yet to compare it with; it finds {sum(bad)} of {len(bad)} defects "
        f"and calls {sum(good)} of {len(good)} normals anomalous"
    )
    return Check("the first model", None, said)


def made_check(before: float, after: float, count: int, margin: float) -> Check:
    """Return the check that stands in for recall where no defect is known: made ones."""
    said = f"{after:.0%} of {count} found against {before:.0%}, {margin:g} less allowed"
    return Check("recall of made defects", before - after <= margin, said)


def limit_check(name: str, value: float, limit: float, unit: str) -> Check:
    """Return the check of a limit on this machine."""
    return Check(name, value <= limit, f"{value:.0f} {unit}, limit {limit:g} {unit}")
