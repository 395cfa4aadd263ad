"""The status as figures for Prometheus: a collector, an application at /metrics, a text file."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client import (
    CONTENT_TYPE_PLAIN_0_0_4,
    CollectorRegistry,
    generate_latest,
    make_wsgi_app,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from flows.watching.status import SetStatus, Status, status_of
from headwater.files import write_text
from headwater.text import shown

if TYPE_CHECKING:
    from flows.runtime.home import Home

#: Name, what it is, and its value of a set; None where it is not known.
_OF_SET: tuple[tuple[str, str, Callable[[SetStatus, float], float | None]], ...] = (
    ("reviews_waiting", "Images that wait for a review.", lambda s, _: s.waiting),
    ("wrong", "Things that need a person.", lambda s, _: len(s.wrong)),
    (
        "promised_false_positive_ratio",
        "Share of normal images that the model in service may call anomalous.",
        lambda s, _: None if s.service is None else s.service.promised,
    ),
    ("answers_week", "Answers of the model in service in seven days.",
     lambda s, _: None if s.service is None else s.service.answers),
    ("flagged_week", "Those of them that called the image anomalous.",
     lambda s, _: None if s.service is None else s.service.flagged),
    ("false_alarms_week", "Flagged images of seven days that people called right.",
     lambda s, _: None if s.service is None else s.service.realised.get("false_alarms")),
    ("missed_week", "Images of seven days that people called defective and the model did not.",
     lambda s, _: None if s.service is None else s.service.realised.get("missed")),
    ("answers_day", "Answers of the model in service on the newest day.",
     lambda s, _: _newest(s, "answers")),
    ("flagged_day", "Those of them that called the image anomalous.",
     lambda s, _: _newest(s, "flagged")),
    ("drift_distance", "Kolmogorov-Smirnov distance of the newest day's scores from those of "
     "the normal test images.", lambda s, _: _drift(s)),
    ("retrain_age_seconds", "Seconds since the last retraining ended.",
     lambda s, now: None if (end := _end(s)) is None else now - end),
    ("retrain_seconds", "Seconds that the last retraining took.",
     lambda s, _: None if s.retrained is None else s.retrained.get("seconds")),
    ("retrain_cpu_seconds", "Processor seconds of the last retraining.",
     lambda s, _: None if s.retrained is None else s.retrained.get("cpu_seconds")),
    ("retrain_failed", "1 where the last retraining failed or broke off.",
     lambda s, _: None if s.retrained is None else any(w.what == "retrain" for w in s.wrong)),
)  # fmt: skip
PREFIX = "headwater_set_"


class StatusCollector(Collector):
    """Figures of a home's sets, asked anew each time they are read.

    Parameters
    ----------
    home
        Of which home.
    sets
        Of which sets; all where none is named.
    """

    def __init__(self, home: Home, sets: Iterable[str] = ()) -> None:
        self.home, self.sets = home, tuple(sets)

    def describe(self) -> list[Metric]:
        """Return nothing: registering asks for nothing."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the figures of now."""
        yield from families(status_of(self.home, self.sets))


def families(status: Status) -> Iterator[Metric]:
    """Yield a status as Prometheus' families of figures; what is not known is left out.

    Labels are text that is not ours, as `headwater.text.shown` shows it; the client escapes it.
    """
    now = datetime.fromisoformat(status.when).timestamp()
    wrong = GaugeMetricFamily("headwater_home_wrong", "Things of the home that need a person.")
    wrong.add_metric([], len(status.wrong))
    yield wrong
    when = GaugeMetricFamily(
        "headwater_status_timestamp_seconds", "When the figures were gathered."
    )
    when.add_metric([], now)
    yield when
    for name, about, value in _OF_SET:
        family = GaugeMetricFamily(PREFIX + name, about, labels=["set"])
        for one in status.sets:
            found = value(one, now)
            if found is not None and math.isfinite(found):
                family.add_metric([shown(one.image_set)], float(found))
        yield family
    champion = GaugeMetricFamily(
        f"{PREFIX}champion_version",
        "Version in service, of the set's own registered model.",
        labels=["set", "model", "model_version"],
    )
    for one in status.sets:
        if one.champion is not None:
            labels = (one.image_set, one.champion["model"], one.champion["version"])
            champion.add_metric([*map(shown, labels)], float(one.champion["service_version"]))
    yield champion
    kinds = GaugeMetricFamily(
        f"{PREFIX}wrong_kinds", "Things that need a person, by what they are about.",
        labels=["set", "kind"],
    )  # fmt: skip
    for one in status.sets:
        told = [w.what for w in one.wrong]
        for kind in sorted(set(told)):
            kinds.add_metric([shown(one.image_set), kind], told.count(kind))
    yield kinds


def registry_of(home: Home, sets: Iterable[str] = ()) -> CollectorRegistry:
    """Return a registry of a home's figures, to which others may be added."""
    made = CollectorRegistry()
    made.register(StatusCollector(home, sets))
    return made


def metrics_app(home: Home, sets: Iterable[str] = ()) -> Any:
    """Return a WSGI application that answers with a home's figures, to be mounted at /metrics."""
    return make_wsgi_app(registry_of(home, sets))


class MetricsEndpoint:
    """An ASGI application that answers with a home's figures, beside whatever else answers.

    They are gathered in a thread, and anew where they are older than `every` seconds.

    Parameters
    ----------
    home, sets
        As of `StatusCollector`.
    every
        Seconds.
    """

    def __init__(self, home: Home, sets: Iterable[str] = (), *, every: float = 10.0) -> None:
        self.home, self.sets, self.every = home, tuple(sets), every
        self._lock, self._at, self._text = threading.Lock(), -math.inf, ""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        from starlette.concurrency import run_in_threadpool  # late: for a server alone
        from starlette.responses import Response

        made = await run_in_threadpool(self.text)
        await Response(made, media_type=CONTENT_TYPE_PLAIN_0_0_4)(scope, receive, send)

    def text(self) -> str:
        """Return the figures in Prometheus' text format."""
        with self._lock:
            if time.monotonic() - self._at > self.every:
                self._text = text_of(status_of(self.home, self.sets))
                self._at = time.monotonic()
            return self._text


def text_of(status: Status) -> str:
    """Return a status in Prometheus' text format."""

    class Once(Collector):
        def collect(self) -> Iterator[Metric]:
            return families(status)

    made = CollectorRegistry()
    made.register(Once())
    return generate_latest(made).decode()


def write_textfile(status: Status, file: Path) -> None:
    """Replace a file for the node exporter's textfile collector in one step.

    It is readable for others, as the exporter is another user.

    Raises
    ------
    OSError
        Where it cannot be written.
    """
    write_text(file, text_of(status))
    file.chmod(0o644)


def _newest(one: SetStatus, figure: str) -> float | None:
    if one.service is None or not one.service.days:
        return None
    return float(getattr(one.service.days[0], figure))


def _drift(one: SetStatus) -> float | None:
    if one.service is None or not one.service.days or one.service.days[0].drift is None:
        return None
    return one.service.days[0].drift.distance


def _end(one: SetStatus) -> float | None:
    end = (one.retrained or {}).get("end")
    return None if end is None else datetime.fromisoformat(end).timestamp()
