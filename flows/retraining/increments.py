"""Whether a retraining grows the model in service by what is new, or trains in full.

It grows where that gives what a full training would, or where it is asked for, and where all that
the model was trained by is still so: its head, configuration, features and settings. Every n-th
retraining is a full one. What is decided follows from the model in service and from the images that
there are, so that a retraining that goes on, or is asked for twice, decides the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

from flows.extraction.pair_list import Version
from flows.runtime.resolve import require_set
from flows.runtime.sections import RetrainSettings
from flows.training.artifacts import KEEPSAKE
from flows.training.data import TrainingData
from flows.training.growing import learnt_by
from flows.training.record import LINEAGE, training_from
from flows.training.trainings import GrownFrom, Request, Training
from heads.catalogue import get_head
from heads.training.growing import GrowingHead, grows
from heads.training.kept import KEPT
from headwater.errors import DataError
from storage.registry.registry import Registry
from storage.registry.service.in_service import InService


def known_growth(
    settings: RetrainSettings, registry: Registry, champion: Mapping[str, Any] | None
) -> dict[str, GrownFrom]:
    """Return by head what the model in service grew from itself: with nothing new it is found."""
    if champion is None or settings.increments == "none":
        return {}
    kept = registry.artifact_json(champion["run_id"], LINEAGE) or {}
    told = kept.get("training", {}).get("grown_from")
    return {champion["head"]: GrownFrom(**told)} if told else {}


def by_increments(asked: Request, at: Version) -> tuple[Request, dict[str, str]]:
    """Return a request with what its heads grow from, and by head, in words, what was decided.

    Parameters
    ----------
    asked
        What is to be trained.
    at
        The images that there are; the guard has said which of them wait.
    """
    settings, home = asked.settings.retrain, asked.home
    asked = dataclasses.replace(asked, grown={})
    registry = Registry(home.root, home.tracking_url)
    champion = InService(registry, require_set(asked.settings)).champion()
    if champion is None or settings.increments == "none":
        return asked, {}
    own = [one for one in asked.trainings(at) if one.plan.head == champion["head"]]
    if len(own) != 1 or own[0].plan.members:
        return asked, {}
    (one,) = own
    try:
        found, said = _decided(one, champion, registry, settings)
    except DataError:  # too few images: the training says so
        return asked, {}
    told = {one.plan.head: said} if said else {}
    return (dataclasses.replace(asked, grown={one.plan.head: found}) if found else asked), told


def _decided(
    one: Training, champion: Mapping[str, Any], registry: Registry, settings: RetrainSettings
) -> tuple[GrownFrom | None, str]:
    """Return what a training grows from, None for a full one; and why, in words."""
    kind, run_id = get_head(one.plan.head), champion["run_id"]
    kept = registry.artifact_json(run_id, LINEAGE)
    before = learnt_by(registry, run_id)
    if kept is None or before is None:
        return None, "in full: the model in service is from before its lineage was kept"
    then = training_from(kept, one.home, one.root)
    data = TrainingData(one)
    now = {s.id for s in data.learnt}
    if now == before:
        # What is in service is found again, whatever it grew from.
        return (then.grown_from if _alike(one, then) else None), ""
    if not grows(kind):
        return None, ""
    head = cast("type[GrowingHead]", kind)
    if settings.increments == "exact" and not head.grows_exactly:
        return None, ""
    growths = 1 + (0 if kept.get("growth") is None else kept["growth"]["growths"])
    gone = before - now
    if why := _why_full(one, then, head, growths, settings):
        return None, f"in full: {why}"
    if registry.artifact(run_id, KEPT) is None:
        return None, "in full: the run of the model in service kept no out-of-fold scores"
    if head.keeps and registry.artifact(run_id, KEEPSAKE) is None:
        return None, "in full: the run of the model in service kept nothing to grow from"
    if gone and not _stored(one, champion["snapshot"], gone):
        return None, "in full: features of images that are taken out were purged"
    if gone and not head.keeps:
        return None, "in full: what it has learnt of images that are taken out stays in its weights"
    found = GrownFrom(
        champion["model"],
        str(champion["version"]),
        champion["uri"],
        run_id,
        champion["snapshot"],
        growths,
        0.0 if head.keeps else settings.grown_epochs,
    )
    less = f", {len(gone)} taken out" if gone else ""
    return found, f"grown from {found} by {len(now - before)} image(s){less}"


def _why_full(
    one: Training,
    then: Training,
    head: type[GrowingHead],
    growths: int,
    settings: RetrainSettings,
) -> str:
    """Return why a training cannot grow that of the model in service; empty where it can."""
    if not _alike(one, then):
        return "the model in service was trained by other settings or features"
    if growths >= settings.full_every:
        return f"every {settings.full_every}. retraining is"
    if one.options.early_stop is not None:
        return "it chooses its epoch by images that are held out"
    if not one.folds:
        return "its thresholds are not by folds"
    return head.why_not(one.plan.make_config())


def _alike(one: Training, then: Training) -> bool:
    """Whether two trainings differ by their images alone."""
    return dataclasses.replace(then, grown_from=None).key("") == one.key("")


def _stored(one: Training, snapshot: str, images: set[str]) -> bool:
    """Whether images have their features at an older snapshot."""
    then = TrainingData(dataclasses.replace(one, at=Version((snapshot,))))
    return images <= {s.id for s in then.readable}
