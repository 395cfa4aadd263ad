"""Rates of a model in service, put together of what people say of some of its pictures.

People look at what was flagged more than at what was passed, so that the rates among the pictures
with an answer are not those of all. They are put together of two shares that are fair as far as
each kind was chosen by chance: of the flagged pictures with an answer how many are good, and of the
passed ones how many are defective; each weighs as many pictures as there are of its kind. The
intervals take both shares at the far ends of exact intervals (Clopper and Pearson 1934) of 97.5 %
each, so that both hold in 95 of 100 cases at least (Bonferroni); and they are never narrower than
that of so many pictures of which all was known.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flows.serving.said import DEFECT, OK, UNSURE, Said

#: Of each of the two shares.
_SURE = 0.975


def rates_of(rows: Iterable[Said]) -> dict[str, Any]:
    """Return the rates of what one model said.

    Parameters
    ----------
    rows
        Newest first; of a picture that was asked about twice the newest counts.

    Returns
    -------
    dict
        ``asked``; ``flagged`` and ``passed``: each ``pictures, ok, defect, unsure``; and what
        `rates` makes of them.
    """
    newest: dict[str, Said] = {}
    for row in rows:
        newest.setdefault(row.sha256, row)
    flagged = _counts([row for row in newest.values() if row.flagged])
    passed = _counts([row for row in newest.values() if not row.flagged])
    found = {"asked": len(newest), "flagged": flagged, "passed": passed}
    return found | rates(flagged, passed)


def rates(flagged: dict[str, int], passed: dict[str, int]) -> dict[str, Any]:
    """Return ``false_positive_rate``, ``recall`` and ``note``.

    Of each rate ``rate, low, high``, the rate None where nothing tells it.

    Examples
    --------
    >>> flagged = {"pictures": 10, "ok": 4, "defect": 6, "unsure": 0}
    >>> passed = {"pictures": 100, "ok": 96, "defect": 4, "unsure": 0}
    >>> found = rates(flagged, passed)
    >>> found["false_positive_rate"]["rate"], found["recall"]["rate"]
    (0.04, 0.6)
    """
    good, bad = _share(flagged, "ok"), _share(passed, "defect")
    many, rest = flagged["pictures"], passed["pictures"]

    def false_alarms(g: float, b: float) -> tuple[float, float]:
        return many * g, rest * (1 - b)

    def recall(g: float, b: float) -> tuple[float, float]:
        return many * (1 - g), rest * b

    low, high = (good[1], bad[1]), (good[2], bad[2])
    # Both shares raise the one and lower the other.
    made = {
        "false_positive_rate": _rate(false_alarms, good[0], bad[0], low, high),
        "recall": _rate(recall, good[0], bad[0], high, low),
    }
    silent = [
        name
        for name, counts in (("flagged", flagged), ("passed", passed))
        if counts["pictures"] and not counts["ok"] + counts["defect"]
    ]
    note = f"nobody has said of any {' or '.join(silent)} picture what it is" if silent else ""
    return {**made, "note": note}


def _rate(
    of: Any,
    good: float | None,
    bad: float | None,
    low: tuple[float, float],
    high: tuple[float, float],
) -> dict[str, float | None]:
    """Return a rate and its interval; see the module.

    However well it is known which of the pictures were good: few pictures tell little.
    """
    from scipy.stats import binomtest  # late: a second

    lowest, highest = _part(*of(*low)), _part(*of(*high))
    ends = [0.0 if lowest is None else lowest, 1.0 if highest is None else highest]
    rate = None
    if good is not None and bad is not None:
        one, other = of(good, bad)
        rate = _part(one, other)
        if count := round(one + other):
            few = binomtest(min(round(one), count), count).proportion_ci(0.95, "exact")
            ends = [min(ends[0], float(few.low)), max(ends[1], float(few.high))]
    return {"rate": rate, "low": ends[0], "high": ends[1]}


def _part(one: float, other: float) -> float | None:
    return one / (one + other) if one + other else None


def _share(counts: dict[str, int], word: str) -> tuple[float | None, float, float]:
    """Return the share of a kind's pictures with an answer that are `word`, and its interval."""
    from scipy.stats import binomtest  # late: a second

    known = counts["ok"] + counts["defect"]
    if not counts["pictures"]:
        return 0.0, 0.0, 0.0  # it weighs nothing
    if not known:
        return None, 0.0, 1.0
    found = binomtest(counts[word], known).proportion_ci(_SURE, "exact")
    return counts[word] / known, float(found.low), float(found.high)


def _counts(rows: list[Said]) -> dict[str, int]:
    told = [row.answer.partition(":")[0] for row in rows]
    return {"pictures": len(rows)} | {word: told.count(word) for word in (OK, DEFECT, UNSURE)}
