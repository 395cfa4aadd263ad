"""One answer of the model in service, as it is kept, and the rule for its picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from flows.runtime.sections import KeepSettings

#: What people may say of a picture; a defect also with its kind, ``defect:KIND``.
OK, UNSURE, DEFECT = "ok", "unsure", "defect"


@dataclass(frozen=True)
class Said:
    """One answer of the model in service, and what people say of its picture.

    Parameters
    ----------
    id
        Number of the answer; never given twice.
    when
        ISO 8601, UTC.
    sha256
        Of the picture's bytes.
    name
        As whoever asked called it: to be shown by `headwater.text.shown` alone.
    score, p_value, threshold, verdict, regions
        As of `storage.serving.prediction.Prediction`.
    model, version, service_version
        Which model said so; the last is empty for one that is not in service.
    picture
        Where the picture is kept, relative to ``HOME/served/SET``; empty where it is not.
    answer
        Empty, ``ok``, ``defect``, ``defect:KIND`` or ``unsure``.
    answered_by, answered_at
        Who said so and when; where it was taken back, who took it back.
    seconds
        The model took.
    gap
        How far the score is above the threshold, in units of that between the threshold and the
        median normal.
    put
        Where the picture was put among the set's images because of the answer, relative to their
        folder; empty where it was not.
    """

    id: int
    when: str
    sha256: str
    name: str
    score: float
    p_value: float | None
    threshold: float
    verdict: str
    regions: tuple[dict[str, Any], ...]
    model: str
    version: str
    service_version: str
    picture: str = ""
    answer: str = ""
    answered_by: str = ""
    answered_at: str = ""
    seconds: float = 0.0
    gap: float = 0.0
    put: str = ""

    @property
    def flagged(self) -> bool:
        """Whether the model called it anomalous."""
        return self.score > self.threshold


@dataclass(frozen=True)
class New:
    """An answer that is to be kept: as of `Said`, with the picture's bytes.

    Parameters
    ----------
    content
        The picture; it is kept where the rule says so.
    suffix
        Of its format as it was decoded, as ``.png``.
    """

    sha256: str
    name: str
    score: float
    p_value: float | None
    threshold: float
    gap: float
    verdict: str
    regions: Sequence[dict[str, Any]]
    model: str
    version: str
    service_version: str
    seconds: float
    content: bytes | None = field(default=None, repr=False)
    suffix: str = ".png"


def wanted(new: New, rule: KeepSettings) -> bool:
    """Return whether the rule keeps the picture of an answer.

    Examples
    --------
    >>> sure = New("ab" * 32, "", 1.0, None, 2.0, -0.9, "normal", (), "s.padim", "1", "1", 0.0)
    >>> wanted(sure, KeepSettings()), wanted(sure, KeepSettings(pictures="all"))
    (False, True)
    """
    if rule.pictures == "all":
        return True
    if rule.pictures in ("flagged", "near") and new.score > new.threshold:
        return True
    if rule.pictures == "near" and abs(new.gap) <= rule.near:
        return True
    # By its bytes, so that the same picture is not drawn again with every request.
    return int(new.sha256[:8], 16) < rule.share * 2**32
