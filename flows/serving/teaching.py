"""Which of the pictures that nobody has spoken of would teach most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flows.serving.kept import Kept
from flows.serving.said import Said

#: Answers that are looked at, the newest.
_LOOKED_AT = 20_000
NEAR, FAR = "near the threshold", "far from all that is stored"


def most_teaching(kept: Kept, few: int = 5) -> list[dict[str, Any]]:
    """Return the pictures without an answer that an answer to teaches most from.

    Parameters
    ----------
    few
        So many near the threshold, where the model is least sure, and as many of the largest
        scores, which are furthest from all that it knows.

    Returns
    -------
    list of dict
        A row a picture, the nearest to the threshold first, then the furthest above it: ``id,
        sha256, name, when, score, p_value, threshold, verdict, model, version, picture`` (absolute
        path, or empty) and ``why``: `NEAR` or `FAR`.
    """
    newest: dict[str, Said] = {}
    for row in kept.rows(answered=False, limit=_LOOKED_AT):
        newest.setdefault(row.sha256, row)
    rows = list(newest.values())
    # Within what parts the threshold from the median normal: nearer to it than normals are.
    close = [row for row in rows if abs(row.gap) < 1]
    near = sorted(close, key=lambda row: (abs(row.gap), row.id))[:few]
    rest = [row for row in rows if row not in near and row.flagged]
    far = sorted(rest, key=lambda row: (-row.gap, row.id))[:few]
    return [*_told(kept, near, NEAR), *_told(kept, far, FAR)]


def _told(kept: Kept, rows: Sequence[Said], why: str) -> list[dict[str, Any]]:
    keys = ("id", "sha256", "name", "when", "score", "p_value", "threshold", "verdict")
    return [
        {
            **{key: getattr(row, key) for key in (*keys, "model", "version")},
            "picture": str(kept.folder / row.picture) if row.picture else "",
            "why": why,
        }
        for row in rows
    ]
