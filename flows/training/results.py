"""What comes of trainings and of a whole run: plain data, sent back from Dask workers."""

from __future__ import annotations

from dataclasses import dataclass, field

from flows.extraction.report import ExtractionReport
from headwater.errors import HeadwaterError


@dataclass
class TrainOutcome:
    """What came of a training.

    Parameters
    ----------
    head, version, run_id, model
        Where to find it in MLflow.
    metrics
        Final figures on the test images.
    seconds, peak_mb
        Time of the fit and peak memory of the process that did it.
    reused
        Whether a finished training with the same key was found instead.
    joined
        Whether nothing was learnt for it: it joins heads that were trained.
    pictures
        Files written for people to look at.
    notes
        Things to know, such as metrics that could not be computed.
    seed
        Of the training.
    """

    head: str
    version: str = ""
    run_id: str = ""
    model: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    peak_mb: float = 0.0
    reused: bool = False
    joined: bool = False
    pictures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seed: int | None = None


class HeadsFailedError(HeadwaterError, RuntimeError):
    """Some heads failed; `result` holds what the others gave."""

    result: RunResult


@dataclass
class RunResult:
    """What a run did.

    Parameters
    ----------
    image_set
        Name of the set.
    extraction
        None for `train` alone.
    outcomes
        One a head that was trained or found.
    failures
        ``(head, error)`` of the heads that failed; the others are unaffected.
    """

    image_set: str
    extraction: ExtractionReport | None = None
    outcomes: list[TrainOutcome] = field(default_factory=list)
    failures: list[tuple[str, BaseException]] = field(default_factory=list)

    @property
    def status(self) -> int:
        """Exit status: 1 or 2 where nothing was trained, 3 where something was left out."""
        if self.failures and not self.outcomes:
            return 2 if all(isinstance(e, HeadwaterError) for _, e in self.failures) else 1
        return 3 if self.set_aside else 0

    @property
    def set_aside(self) -> bool:
        """Whether something was left out and the exit status must say so."""
        return bool(self.failures or (self.extraction and self.extraction.set_aside))

    def or_raise(self) -> RunResult:
        """Return this; `HeadsFailedError`, which holds it, where heads failed."""
        if not self.failures:
            return self
        said = [f"{head}: {str(why).splitlines()[0]}" for head, why in self.failures if str(why)]
        names = ", ".join(head for head, _ in self.failures)
        error = HeadsFailedError("\n".join([f"failed: {names}", *said]))
        error.result = self
        raise error
