"""What the model in service said, by day: how much it flagged, beside its promise and its answers.

Days are UTC's. A day counts what the model that is in service now said; what another one said
before it is no sign of drift.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.serving.kept import Kept
from flows.serving.rates import rates_of
from flows.serving.said import DEFECT, OK, UNSURE
from flows.watching.drift import IN_A_ROW, Drift, drift
from flows.watching.wrong import Wrong

if TYPE_CHECKING:
    from flows.runtime.home import Home
    from flows.serving.said import Said

#: Days that are looked at, today among them.
DAYS = 7
#: Of scores, lowest first.
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
#: Confirmed false alarms are beyond the promise where it gives as many more rarely than this.
_RARELY = 0.01


@dataclass(frozen=True)
class Day:
    """What was said in a day.

    Parameters
    ----------
    day
        ISO 8601.
    answers, flagged
        How many, and how many of them were called anomalous.
    mean_p
        Mean p-value: 0.5 of normal images. None where the model gives none.
    scores
        Quantiles of the scores, at `QUANTILES`.
    drift
        Against the normal test images of the model's training; None where there are too few of
        either.
    """

    day: str
    answers: int
    flagged: int
    mean_p: float | None
    scores: tuple[float, ...]
    drift: Drift | None = None

    @property
    def share(self) -> float:
        """Share flagged."""
        return self.flagged / self.answers


@dataclass(frozen=True)
class Service:
    """What the model in service said in the last days.

    Parameters
    ----------
    promised
        The false-positive rate that its threshold promises; None where it promises none.
    answers, flagged
        In all these days.
    answered
        Of how many pictures people said what they are.
    realised
        What they said, by what the model had said: ``false_alarms`` (flagged, and right),
        ``found`` (flagged, and defective), ``missed`` and ``right`` (not flagged), ``unsure``.
    days
        Newest first; days without an answer are left out.
    rates
        What follows for all pictures: ``false_positive_rate`` and ``recall``, as of
        `flows.serving.rates.rates`.
    """

    promised: float | None
    answers: int
    flagged: int
    answered: int = 0
    realised: Mapping[str, int] = field(default_factory=dict)
    days: Sequence[Day] = ()
    rates: Mapping[str, Any] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """Share flagged."""
        return self.flagged / self.answers if self.answers else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        days = [{**asdict(day), "share": day.share} for day in self.days]
        return {**asdict(self), "share": self.share, "days": days}


def look(
    home: Home,
    image_set: str,
    champion: Mapping[str, Any] | None,
    manifest: Mapping[str, Any] | None,
    normals: Callable[[], Sequence[float]],
    now: datetime,
) -> tuple[Service | None, list[Wrong]]:
    """Return what the model in service said in the last days, and what of it needs a person.

    Parameters
    ----------
    champion
        With its ``service_version``; None where none is in service.
    manifest
        Of its model; None where that is not known.
    normals
        Returns its scores of normals that it has not learnt from; asked where it is needed.
    now
        Aware of its zone.

    Returns
    -------
    tuple
        None where nothing is in service or it was never asked.

    Raises
    ------
    StoreError
        Where what was said cannot be read.
    """
    if champion is None or not (home.root / "served" / f"{image_set}.sqlite").exists():
        return None, []
    first = (now - timedelta(days=DAYS - 1)).date().isoformat()
    with Kept(home, image_set) as kept:
        rows = kept.rows(since=first)
    mine = [row for row in rows if row.service_version == champion["service_version"]]
    calibration = (manifest or {}).get("calibration") or {}
    service = service_of(mine, calibration, normals() if mine else ())
    return service, [*_rates(image_set, service), *_drifts(image_set, service)]


def service_of(
    rows: Sequence[Said], calibration: Mapping[str, Any], normals: Sequence[float] = ()
) -> Service:
    """Return what one model said, by day.

    Parameters
    ----------
    rows
        Newest first, as of `Kept.rows`.
    calibration
        As the model's manifest has it.
    normals
        As of `look`.
    """
    reference = np.asarray(normals, np.float64)
    promised = calibration.get("attained_fpr")
    if calibration.get("rule") not in ("conformal", "largest", "tail"):
        promised = None  # a probability's, or chosen by known defects: nothing of normals
    days = []
    for day, found in groupby(rows, lambda row: row.when[:10]):
        own = list(found)
        scores = np.asarray([row.score for row in own])
        p_values = [row.p_value for row in own if row.p_value is not None]
        days.append(
            Day(
                day,
                len(own),
                sum(row.flagged for row in own),
                float(np.mean(p_values)) if p_values else None,
                tuple(np.quantile(scores, QUANTILES).tolist()),
                drift(scores, reference),
            )
        )
    told = rates_of(rows)
    flagged, passed = told["flagged"], told["passed"]
    realised = {
        "false_alarms": flagged[OK],
        "found": flagged[DEFECT],
        "missed": passed[DEFECT],
        "right": passed[OK],
        "unsure": flagged[UNSURE] + passed[UNSURE],
    }
    return Service(
        promised,
        len(rows),
        sum(row.flagged for row in rows),
        sum(realised.values()),
        realised,
        days,
        {name: told[name] for name in ("false_positive_rate", "recall")},
    )


def _rates(image_set: str, service: Service) -> list[Wrong]:
    """Return whether people called more alarms false than the promise allows for.

    Of all answers: those that nobody looked at count as no false alarm, so that the rate is at
    least this.
    """
    alarms = service.realised.get("false_alarms", 0)
    if service.promised is None or not alarms:
        return []
    from scipy.stats import binom  # late: a second

    if float(binom.sf(alarms - 1, service.answers, service.promised)) > _RARELY:
        return []
    return [
        Wrong(
            "rate",
            f"{alarms} of {service.answers} answers were false alarms by what people said, and "
            f"{service.promised:.1%} of normals is the promise",
            f"headwater feedback has what was said; new normals and headwater retrain {image_set} "
            "set the threshold anew",
        )
    ]


def _drifts(image_set: str, service: Service) -> list[Wrong]:
    """Return whether the newest days that can be told of drifted, so many in a row."""
    told = [day for day in service.days if day.drift is not None][:IN_A_ROW]
    if len(told) < IN_A_ROW or not all(day.drift and day.drift.drifted for day in told):
        return []
    newest = told[0]
    return [
        Wrong(
            "drift",
            f"on {' and '.join(day.day for day in told[::-1])} the scores were not those of the "
            f"normal test images: of {newest.answers} on the last of these {newest.drift}",
            f"look at pictures of these days: light, camera, product, or many defects? If they are "
            f"right, headwater retrain {image_set} with normals of now, and headwater lock "
            f"{image_set} with test images of now",
        )
    ]
