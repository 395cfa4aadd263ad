"""Normals that do not look normal: found by their out-of-fold scores, settled by people."""

from __future__ import annotations

import getpass
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows.extraction.samples import ACCEPTED, HELD, REJECTED, REMOVED
from flows.runtime.home import Home
from flows.training.artifacts import ODD
from heads.judging.odd import standing_out
from headwater.errors import DataError, ModelError
from storage.registry.registry import Registry
from storage.store.feature_store import FeatureStore

#: Normals with a p-value up to this are worth a look.
WORTH_A_LOOK = 0.05


def odd_normals(
    home: Home, image_set: str, head: str | None = None
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the normals of a set that look least normal to its newest models, and their sheets.

    Parameters
    ----------
    head
        Of one head alone; by default of all.

    Returns
    -------
    tuple
        A row an image, the oddest first: ``path`` (of pairs ``key``), ``sha256``, ``p_value`` (the
        lowest of all heads), ``stands_out`` (to any), ``heads`` (of each: fold, score, p-value) and
        what was said of it: ``said``, ``who``, ``when``, and of those that a retraining holds
        ``why``. These come first, those that were settled last. And local pictures of the oddest
        with their heat maps.

    Raises
    ------
    ModelError
        Where no model of the set has out-of-fold scores.
    """
    registry = Registry(home.root, home.tracking_url)
    # The newest that has such scores: one that was calibrated quick after it has none.
    newest: dict[str, tuple[str, Path]] = {}
    rows = registry.leaderboard(image_set)
    for row in sorted(rows, key=lambda row: (row["head"], -int(row["version"]))):
        if row["head"] in newest or head not in (None, row["head"]):
            continue
        if (file := registry.artifact(row["run_id"], "tables/normals.json")) is not None:
            newest[row["head"]] = row["run_id"], file
    found: dict[str, dict[str, Any]] = {}
    sheets: list[str] = []
    for name, (run_id, file) in newest.items():
        normals = json.loads(file.read_text())
        out = standing_out([row["score"] for row in normals])
        for row, odd in zip(normals, out.tolist(), strict=True):
            about = {k: row[k] for k in ("fold", "score", "p_value")}
            kept = {k: row[k] for k in ("path", "key", "sha256") if k in row}
            new = {**kept, "p_value": 1.0, "stands_out": False, "heads": {}}
            one = found.setdefault(row["sha256"], new)
            one["p_value"] = min(one["p_value"], row["p_value"])
            one["stands_out"] |= odd
            one["heads"][name] = about
        sheet = registry.artifact(run_id, f"figures/{ODD}")
        sheets += [] if sheet is None else [str(sheet)]
    reviews = home.reviews(image_set)
    if not rows:
        raise ModelError(**registry.no_models(image_set))
    if not found and not reviews:
        raise ModelError(
            f"no model of {image_set!r} has out-of-fold scores" + (f" ({head})" if head else ""),
            expected="one that was trained with calibrate: folds",
            remedy=f"headwater train {image_set} --calibrate folds",
        )
    for image, said in reviews.items():
        bare = {"path": said["path"], "sha256": image, "p_value": None, "stands_out": False}
        one = found.setdefault(image, {**bare, "heads": {}})
        one |= {k: said[k] for k in ("said", "who", "when", "why") if k in said}
        if said["said"] == HELD and one["p_value"] is None:
            one["p_value"] = said.get("p_value")
    order = sorted(
        found.values(),
        key=lambda r: (
            r.get("said") in (ACCEPTED, REJECTED, REMOVED),
            r.get("said") != HELD,
            not r["stands_out"],
            r["p_value"] or 0,
            r["sha256"],
        ),
    )
    return order, sheets


def worth_a_look(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return those rows of `odd_normals` that somebody should see, or has settled."""
    return [r for r in rows if "said" in r or r["stands_out"] or r["p_value"] <= WORTH_A_LOOK]


def settle(
    home: Home,
    image_set: str,
    rows: Sequence[Mapping[str, Any]],
    *,
    accept: Sequence[str] = (),
    reject: Sequence[str] = (),
    who: str | None = None,
) -> dict[str, dict[str, str]]:
    """Keep what somebody says of normals; the next training goes by it.

    An accepted one counts for the threshold however odd it is; of a rejected one nothing learns.

    Parameters
    ----------
    rows
        As of `odd_normals`.
    accept, reject
        Images: the end of a path, or the beginning of a hash of at least 8 digits.
    who
        Says so; by default the user of this process.

    Raises
    ------
    DataError
        For a name that no normal has, or several have, or that is in both.
    """
    when = datetime.now(UTC).isoformat(timespec="seconds")
    said: dict[str, dict[str, str]] = {}
    for word, names in ((ACCEPTED, accept), (REJECTED, reject)):
        for name in names:
            fit = [row for row in rows if _is(row, name)]
            if len(fit) != 1:
                raise DataError(
                    f"{name}: {len(fit)} of the normals of {image_set}",
                    expected="the end of one path, or the beginning of its hash",
                    remedy=f"headwater review {image_set} --json names them",
                )
            (row,) = fit
            if row.get("said") == REMOVED:
                raise DataError(
                    f"{name}: was removed from {image_set}",
                    expected="an image of the set",
                    remedy=f"headwater remove {image_set} IMAGE --undo takes it in again",
                )
            if said.get(row["sha256"], {}).get("said", word) != word:
                raise DataError(f"{name}: accepted and rejected", expected="one of them")
            said[row["sha256"]] = {
                "said": word, "who": who or getpass.getuser(), "when": when, "path": _name(row),
            }  # fmt: skip
    home.add_reviews(image_set, said)
    return said


def remove(
    home: Home, image_set: str, images: Sequence[str], *, why: str = "", who: str | None = None
) -> list[dict[str, Any]]:
    """Take images out of a set: nothing learns from them or is tested by them any more.

    Their files may stay where they are. Their rows leave the store at the next extraction.

    Parameters
    ----------
    images
        The end of a path, a path, or the beginning of a hash of at least 8 digits.
    why
        Kept with it.
    who
        Says so; by default the user of this process.

    Returns
    -------
    list
        A row an image: ``sha256``, ``path``, ``split``, ``kind``.

    Raises
    ------
    DataError
        For a set of pairs; for a name that no image of the set has, or several have.
    """
    if home.card(image_set).get("pairs"):
        raise DataError(
            f"remove from {image_set}: a set of pairs",
            expected="a set of single images",
            remedy=f"headwater review {image_set} --reject PAIR keeps one from being learnt from",
        )
    store, known = FeatureStore.open(home.store, image_set, create=False), home.reviews(image_set)
    rows = [
        {"sha256": r.sha256, "path": r.path, "split": r.split, "kind": r.kind}
        for r in store.table().images()
        if known.get(r.sha256, {}).get("said") != REMOVED
    ]
    chosen = _chosen(home, image_set, rows, images, "that are in it")
    when = datetime.now(UTC).isoformat(timespec="seconds")
    about = {"said": REMOVED, "who": who or getpass.getuser(), "when": when, "why": why}
    said: dict[str, dict[str, Any]] = {}
    for row in chosen:
        before = {"before": known[row["sha256"]]} if row["sha256"] in known else {}
        said[row["sha256"]] = {**about, "path": row["path"], **before}
    home.add_reviews(image_set, said)
    return chosen


def take_back(home: Home, image_set: str, images: Sequence[str]) -> list[dict[str, Any]]:
    """Take removed images in again, as what they were; what was said of them before holds again.

    A file that is still there is in the store from the next extraction on, and a retraining's guard
    looks at it as at a new one where the model in service does not know it.

    Raises
    ------
    DataError
        For a name that no removed image has, or several have.
    """
    known = home.reviews(image_set)
    rows = [
        {"sha256": sha, "path": said["path"]}
        for sha, said in known.items()
        if said["said"] == REMOVED
    ]
    chosen = _chosen(home, image_set, rows, images, "that were removed from it")
    back: dict[str, Any] = {r["sha256"]: known[r["sha256"]].get("before", {}) for r in chosen}
    home.add_reviews(image_set, back)
    return chosen


def _chosen(
    home: Home,
    image_set: str,
    rows: Sequence[dict[str, Any]],
    names: Sequence[str],
    which: str,
) -> list[dict[str, Any]]:
    """Return the rows that names mean, each once; `DataError` where one does not mean one."""
    root, found = Path(home.card(image_set).get("root", "")), {}
    for name in names:
        path = Path(name)
        inside = path.is_absolute() and path.is_relative_to(root)
        fit = [row for row in rows if _is(row, str(path.relative_to(root)) if inside else name)]
        if len(fit) != 1:
            raise DataError(
                f"{name}: {len(fit)} of the images of {image_set} {which}",
                expected="the end of one path, or the beginning of its hash",
                remedy=f"headwater lineage {image_set}.HEAD --images lists what a model knows",
            )
        found[fit[0]["sha256"]] = fit[0]
    return list(found.values())


def _name(row: Mapping[str, Any]) -> str:
    return str(row.get("path", row.get("key")))


def _is(row: Mapping[str, Any], name: str) -> bool:
    """Whether a row is what a name means."""
    by_hash = len(name) >= 8 and str(row["sha256"]).startswith(name.lower())
    path = Path(_name(row)).parts
    wanted = Path(name).parts
    return by_hash or (bool(wanted) and path[-len(wanted) :] == wanted)
