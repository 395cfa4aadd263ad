"""Figures of a day are what they are called; drift rings where it should, and not where not."""

import dataclasses
import hashlib
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from scipy import stats

from flows.serving.kept import Kept
from flows.serving.said import New, Said
from flows.watching.drift import FAR, LEAST, RARELY, drift
from flows.watching.served import service_of
from flows.watching.status import status_of
from storage.registry.registry import Registry
from storage.registry.service.in_service import InService

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)


def said(number, score, day="2026-11-28", answer="", p_value=0.5, version="1"):
    sha = hashlib.sha256(str(number).encode()).hexdigest()
    return Said(number, f"{day}T10:00:00.000+00:00", sha, "", score, p_value, 1.0,
                "anomalous" if score > 1 else "normal", (), "s.patchcore", "1", version,
                answer=answer)  # fmt: skip


CALIBRATION = {"rule": "conformal", "attained_fpr": 0.05}


def test_figures_of_days_by_hand():
    rows = [
        said(5, 0.5, p_value=0.1),
        said(4, 1.5, answer="ok", p_value=0.3),
        said(3, 1.5, "2026-11-27", "defect:dent"),
        said(2, 0.5, "2026-11-27", "defect"),
        said(1, 0.5, "2026-11-27", "unsure"),
        # The same picture as 4, of which people spoke once.
        dataclasses.replace(said(4, 1.5, "2026-11-27", "ok"), id=0),
    ]
    found = service_of(rows, CALIBRATION)
    assert (found.answers, found.flagged, found.share, found.promised) == (6, 3, 0.5, 0.05)
    assert [(d.day, d.answers, d.flagged) for d in found.days] == [
        ("2026-11-28", 2, 1), ("2026-11-27", 4, 2),
    ]  # fmt: skip
    assert found.days[0].mean_p == pytest.approx(0.2)
    assert found.days[0].scores[2] == 1.0, "the median of 0.5 and 1.5"
    assert found.days[0].drift is None, "too few"
    assert found.answered == 4
    assert found.realised == {"false_alarms": 1, "found": 1, "missed": 1, "right": 0, "unsure": 1}
    # A threshold that known defects chose, or a probability's, promises nothing of normals.
    for rule in ("fixed", "recall", "costs"):
        assert service_of(rows, CALIBRATION | {"rule": rule}).promised is None
    assert service_of([], {}).share == 0


def test_drift_is_the_largest_distance_of_the_shares():
    reference = np.arange(100.0)
    # Half of the day lies above all normals: there the shares are 1 and 1/2.
    found = drift(np.concatenate([np.arange(0, 100, 2.0), np.full(50, 200.0)]), reference)
    assert found.distance == pytest.approx(0.5)
    assert (
        found.p_value == stats.ks_2samp(np.r_[np.arange(0, 100, 2.0), [200.0] * 50], reference)[1]
    )
    assert (found.higher, found.drifted) == (True, True)
    assert str(found).startswith("higher by a distance of 0.50, by chance once in a million")
    low = drift(reference[:50] - 60, reference)
    assert (low.higher, low.drifted) == (False, True)
    assert drift(reference[: LEAST - 1], reference) is None
    assert drift(reference, reference[: LEAST - 1]) is None
    # Of very many answers a small distance is no chance, and no reason to call anybody.
    many = np.arange(20_000.0) / 200 + 5
    found = drift(many, np.arange(20_000.0) / 200)
    assert found.p_value < RARELY
    assert found.distance < FAR
    assert not found.drifted


def add(home, rows, when):
    """Have the model in service say something at a time."""
    kept = Kept(home, "s")
    ids = kept.add(
        [
            New(r.sha256, "", r.score, r.p_value, r.threshold, 0.0, r.verdict, (), r.model,
                r.version, r.service_version, 0.01)
            for r in rows
        ]
    )  # fmt: skip
    with kept._work(make=True) as db, db:
        for number in ids:
            db.execute("UPDATE said SET at = ? WHERE id = ?", (when.isoformat(), number))
    for r in rows:
        if r.answer:
            kept.answer(r.sha256, r.answer, "Ada")
    kept.close()


def test_the_status_says_what_was_served_and_what_is_wrong(home, monkeypatch):
    from flows.watching import wrong

    scores = np.linspace(0.2, 0.9, 100)
    real = wrong.as_saved
    known = {"rule": "conformal", "attained_fpr": 0.05}
    monkeypatch.setattr(wrong, "as_saved", lambda f: real(f) | {"calibration": known})
    table = [{"kind": "good", "score": s} for s in scores] + [{"kind": "x", "score": 99.0}]
    monkeypatch.setattr(Registry, "sample_table", lambda *_: table)
    add(home, [said(i, s) for i, s in enumerate(scores[::2])], NOW - timedelta(days=2))
    (found,) = status_of(home, ["s"], now=NOW).sets
    assert found.wrong == []
    assert (found.service.answers, found.service.promised) == (50, 0.05)
    # Older than a week, or said by another version: not counted.
    add(home, [said(i, 9.0) for i in range(200, 230)], NOW - timedelta(days=8))
    add(home, [said(i, 9.0, version="7") for i in range(300, 330)], NOW)
    (found,) = status_of(home, ["s"], now=NOW).sets
    assert (found.service.answers, found.wrong) == (50, [])
    # A brighter day is one day; two in a row are for people to see.
    later = [said(400 + i, s + 0.4) for i, s in enumerate(scores[::2])]
    add(home, later, NOW - timedelta(days=1))
    (found,) = status_of(home, ["s"], now=NOW).sets
    assert (found.service.days[0].drift.drifted, found.wrong) == (True, [])
    # And people call 20 alarms of the next day false, of 150 answers.
    later = [said(500 + i, s + 0.4, answer="ok" * (i > 29)) for i, s in enumerate(scores[::2])]
    add(home, later, NOW)
    (found,) = status_of(home, ["s"], now=NOW).sets
    wrong = {w.what: w.said for w in found.wrong}
    assert wrong.keys() == {"drift", "rate"}
    assert wrong["rate"].startswith("20 of 150 answers were false alarms by what people said")
    assert wrong["drift"].startswith("on 2026-11-27 and 2026-11-28 the scores were not those")
    assert found.to_json()["service"]["days"][0]["drift"]["drifted"]
    # Nothing in service: nothing to tell.
    InService(Registry(home.root), "s").drop()
    (found,) = status_of(home, ["s"], now=NOW).sets
    assert (found.service, found.wrong) == (None, [])
