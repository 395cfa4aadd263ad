"""Recompute damaged features, and just those."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from features.extract import Job, extract
from features.images import BrokenImage, sha256_of
from flows.config import Settings
from flows.extraction import open_backbone
from headwater.errors import DataError, WeightsError
from headwater.spec import LayerSpec
from storage.store import FeatureStore
from storage.upkeep import Damage, damaged_keys, invalidate

if TYPE_CHECKING:
    from flows.console import Reporter
    from flows.home import Home


def repair(
    settings: Settings, home: Home, store: FeatureStore, damage: list[Damage], reporter: Reporter
) -> tuple[int, list[BrokenImage]]:
    """Compute the damaged maps again and commit them.

    Parameters
    ----------
    settings
        Names the backbone and its weights; by default those the set was last run with.
    home, store
        Where things are.
    damage
        What `verify` found.
    reporter
        Shows progress.

    Returns
    -------
    tuple
        Maps computed, and images that could not be read again.

    Raises
    ------
    WeightsError
        Where the backbone at hand is not the one that made the damaged features.
    """
    card = home.card(store.image_set)
    if card.get("backbone") and settings.backbone == type(settings.backbone)():
        settings.backbone = type(settings.backbone).model_validate(card["backbone"])
    root = Path(card.get("root", ""))
    work = damaged_keys(store, damage)
    backbone, _ = open_backbone(settings, home)
    for spec in work:
        if (spec.backbone, spec.weights) != (backbone.name, backbone.weights_id):
            raise WeightsError(
                f"extractor {spec.id} was made with {spec.backbone}, weights {spec.weights[:12]}; "
                f"at hand is {backbone.name}, weights {backbone.weights_id[:12]}",
                expected="the same backbone and weight file",
                remedy="name them with --backbone, --weights and --backbone-option",
            )
    paths = {row.sha256: root / row.path for row in store.table().images()}
    invalidate(store, damage)
    done, broken = 0, []
    for spec, layers in work.items():
        for name, keys in layers.items():
            jobs = []
            for sha, view in keys:
                path = paths.get(sha)
                if path is None or not path.is_file() or sha256_of(path) != sha:
                    broken.append(
                        BrokenImage(path or Path(sha), "the file is not what it was, or is gone")
                    )
                else:
                    jobs.append(Job(sha, path, view))
            for block in extract(jobs, backbone, spec, (LayerSpec.parse(name),)):
                broken += [BrokenImage(job.path, reason) for job, reason in block.failed]
                if block.jobs:
                    store.write(spec, [(j.sha256, j.view) for j in block.jobs], block.maps)
                    done += len(block.jobs)
                reporter.update("repair", done, len(damage))
    return done, broken


def parse_age(text: str) -> float:
    """Return seconds for ``30d``, ``12h``, ``15m`` or ``0``; `DataError` otherwise."""
    units = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
    try:
        return float(text[:-1]) * units[text[-1]] if text[-1:] in units else float(text)
    except ValueError:
        raise DataError(
            f"age {text!r}", expected="a number and d, h, m or s, such as 30d"
        ) from None
