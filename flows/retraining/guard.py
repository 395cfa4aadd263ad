"""What new normal images must be before they may train: like what the champion knows as normal.

A single image waits for a review where its p-value is low: the champion would be surprised by it.
A whole batch waits where the champion calls more of it anomalous than its promise allows, or where
it would move what is learnt from too far: another camera, light or product is for people to see.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.extraction.samples import HELD
from flows.runtime.home import Home
from flows.runtime.sections import RetrainSettings
from flows.training.record import SAMPLES
from flows.use.predict import ask
from headwater.errors import DataError, ImageError
from storage.registry.registry import Registry
from storage.serving.detector import Detector
from storage.store.feature_store import FeatureStore
from storage.store.table import ImageRow, Selection
from storage.upkeep.drift import drift

if TYPE_CHECKING:
    from flows.runtime.console import Reporter

#: A batch with so many flagged that its promise would give so rarely is not of the set.
_RARELY = 1e-3


@dataclass(frozen=True)
class Guarded:
    """What the guard says of new images.

    Parameters
    ----------
    new
        How many there were.
    flagged
        How many of them the champion calls anomalous.
    held
        Of those that wait ``path, sha256, score, p_value, why``.
    batch
        Why all of them wait; empty where they do not.
    waiting
        Paths of all images of the set that wait, also of those that came before.
    notes
        What could not be asked, and why.
    """

    new: int = 0
    flagged: int = 0
    held: list[dict[str, Any]] = field(default_factory=list)
    batch: str = ""
    waiting: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def unseen(
    home: Home, image_set: str, champion: Mapping[str, Any], rows: Sequence[ImageRow]
) -> list[ImageRow]:
    """Return the normal training images that the champion's training did not know.

    Those that somebody has settled are not new, nor those that wait already.
    """
    registry = Registry(home.root, home.tracking_url)
    table = registry.artifact_json(champion["run_id"], f"tables/{SAMPLES}.json")
    if table is None:  # a model of before: what its snapshot held
        store = FeatureStore.open(home.store, image_set, create=False)
        known = {row.sha256 for row in store.table(champion["snapshot"]).images()}
    else:
        known = {row["sha256"] for row in table}
    known |= home.reviews(image_set).keys()
    found = {r.sha256: r for r in rows if r.split == "train" and r.kind == "good"}
    return [row for sha, row in found.items() if sha not in known]


def guard(
    home: Home,
    image_set: str,
    champion: Mapping[str, Any],
    new: Sequence[ImageRow],
    root: Path,
    limits: RetrainSettings,
    reporter: Reporter,
) -> Guarded:
    """Ask the champion and the store about new images; keep which ones wait.

    Parameters
    ----------
    champion
        Row of the model in service.
    new
        From `unseen`; their features are stored.
    root
        What their paths are relative to.
    limits
        What may pass.
    """
    if not new:
        return Guarded()
    registry = Registry(home.root, home.tracking_url)
    detector = Detector.load(champion["uri"], registry)
    held: dict[str, dict[str, Any]] = {}
    flagged = 0
    said: dict[str, dict[str, Any]] = {}
    for done, row in enumerate(new):
        reporter.update("guard", done, len(new), Path(row.path).name)
        about: dict[str, Any] = {
            "path": row.path,
            "sha256": row.sha256,
            "score": None,
            "p_value": None,
        }
        said[row.sha256] = about
        try:
            got = ask(detector, root / row.path)
        except ImageError as error:
            held[row.sha256] = {**about, "why": f"cannot be read: {error.culprit}"}
            continue
        above = got.score > got.threshold
        flagged += above
        about |= {"score": got.score, "p_value": got.p_value}
        if above and surprising(got.p_value, detector.calibration.n, limits.guard):
            of = "" if got.p_value is None else f", p-value {got.p_value:.3g}"
            held[row.sha256] = {**about, "why": f"{_named(champion)} calls it anomalous{of}"}
    notes: list[str] = []
    batch = many_flagged(flagged, len(new), detector.calibration.target_fpr, limits.most_flagged)
    rest = [row for row in new if row.sha256 not in held]
    batch = batch or _moved(home, image_set, champion, rest, limits.most_moved, notes)
    if batch:
        for sha, about in said.items():
            held.setdefault(sha, {**about, "why": f"its batch: {batch}"})
    keep(home, image_set, list(held.values()))
    return Guarded(len(new), flagged, list(held.values()), batch, notes)


def surprising(p_value: float | None, normals: int, rate: float) -> bool:
    """Whether a p-value is so low that one waits; of few normals, lower than that of any.

    Examples
    --------
    >>> surprising(0.01, 200, 0.01), surprising(1 / 51, 50, 0.01), surprising(2 / 51, 50, 0.01)
    (True, True, False)
    """
    return p_value is None or p_value <= max(rate, 1 / (normals + 1)) + 1e-12


def many_flagged(flagged: int, count: int, promised: float, most: float) -> str:
    """Return why a batch with so many flagged images waits; empty where it does not.

    Examples
    --------
    >>> many_flagged(3, 20, 0.05, 0.25)
    ''
    >>> many_flagged(9, 20, 0.05, 0.25)
    '9 of 20 are called anomalous, and 5% of good ones should be'
    """
    from scipy.stats import binom  # late: a second

    if flagged <= most * count or float(binom.sf(flagged - 1, count, promised)) > _RARELY:
        return ""
    return f"{flagged} of {count} are called anomalous, and {promised:.0%} of good ones should be"


def _moved(
    home: Home,
    image_set: str,
    champion: Mapping[str, Any],
    new: Sequence[ImageRow],
    most: float,
    notes: list[str],
) -> str:
    """Return how a batch would move what is learnt from, where that is too far."""
    if not champion.get("snapshot") or not new:
        return ""
    store = FeatureStore.open(home.store, image_set, create=False)
    known = {r.sha256 for r in store.table(champion["snapshot"]).images()}
    waiting = {k for k, v in home.reviews(image_set).items() if v["said"] == HELD}
    chosen = known - waiting | {row.sha256 for row in new}
    select = Selection(split="train", normal=True, sha256=tuple(sorted(chosen)))
    try:
        layers = drift(store, champion["snapshot"], select=select)
    except DataError as error:  # one new image has no spread
        notes.append(f"how far they move what is learnt from is not known: {error.culprit}")
        return ""
    far = [
        (one.mean_distance * one.new / (one.new + one.reference), one.layer)
        for one in layers
        if one.drifted
    ]
    worst, layer = max(far, default=(0.0, ""))
    if worst <= most:
        return ""
    return f"they move the mean of {layer} by {worst:.2f} of its spread, and {most:g} is the limit"


def keep(home: Home, image_set: str, held: Sequence[Mapping[str, Any]]) -> None:
    """Keep which images wait for a review."""
    if held:
        when = datetime.now(UTC).isoformat(timespec="seconds")
        told = ("path", "score", "p_value", "why")
        home.add_reviews(
            image_set,
            {
                one["sha256"]: {
                    "said": HELD, "who": "guard", "when": when, **{k: one[k] for k in told},
                }
                for one in held
            },
        )  # fmt: skip


def _named(row: Mapping[str, Any]) -> str:
    return f"{row['model']} version {row['version']}"
