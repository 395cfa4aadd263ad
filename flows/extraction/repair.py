"""Recompute damaged features, and just those."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from features.extract import Job, extract
from features.images.records import BrokenImage
from flows.extraction.backbone import BackboneRef
from flows.extraction.regions import regions_of
from flows.runtime.resolve import resolve
from flows.runtime.settings import Settings
from headwater.errors import WeightsError
from headwater.spec import LayerSpec
from storage.store.feature_store import FeatureStore
from storage.upkeep.verify import Damage, damaged_keys, invalidate

if TYPE_CHECKING:
    from flows.runtime.console import Reporter
    from flows.runtime.home import Home


def repair(
    settings: Settings, home: Home, store: FeatureStore, damage: list[Damage], reporter: Reporter
) -> tuple[int, list[BrokenImage]]:
    """Compute the damaged maps again and commit them; give up those of removed images.

    Parameters
    ----------
    settings
        Names the backbone and its weights; by default those the set was last run with.
    home, store
        Where things are.
    damage
        What `verify` found.

    Returns
    -------
    tuple
        Maps computed, and images that could not be read again: their damaged maps are given up.

    Raises
    ------
    WeightsError
        Where the backbone at hand is not the one that made the damaged features.
    """
    card = home.card(store.image_set)
    settings = resolve(settings, home, images=False)
    root = Path(card.get("root", ""))
    work = damaged_keys(store, damage)
    if not work:
        invalidate(store, damage)
        return 0, []
    # What was damaged says in which arithmetic it was made: nothing is to be measured.
    backbone = BackboneRef.of(settings.backbone).load()
    for spec in work:
        if (spec.backbone, spec.weights) != (backbone.name, backbone.weights_id):
            raise WeightsError(
                f"extractor {spec.id} was made with {spec.backbone}, weights {spec.weights[:12]}; "
                f"at hand is {backbone.name}, weights {backbone.weights_id[:12]}",
                expected="the same backbone and weight file",
                remedy="name them with --backbone, --weights and --backbone-option",
            )
    paths = {row.sha256: root / row.path for row in store.table().images()}
    for layers in work.values():
        backbone.check_weights([LayerSpec.parse(name) for name in layers])
    invalidate(store, damage)
    total = sum(len(keys) for layers in work.values() for keys in layers.values())
    done, broken = 0, []
    for spec, layers in work.items():
        regions = regions_of(spec, home)
        for names, keys in _together(layers):
            jobs = [
                Job(sha, paths[sha], view, regions.of(sha)) for sha, view in keys if sha in paths
            ]
            gone = dict.fromkeys(sha for sha, _ in keys if sha not in paths)
            broken += [BrokenImage(Path(sha[:12]), "the image was removed") for sha in gone]
            for block in extract(jobs, backbone, spec, [LayerSpec.parse(n) for n in names]):
                failed = [BrokenImage(job.path, reason) for job, reason in block.failed]
                broken += [one for one in dict.fromkeys(failed) if one not in broken]
                if block.jobs:
                    store.write(spec, [(j.sha256, j.view) for j in block.jobs], block.maps)
                    done += len(block.jobs) * len(names)
                reporter.update("repair", done, total)
    return done, broken


def _together(
    layers: Mapping[str, Sequence[tuple[str, int]]],
) -> list[tuple[tuple[str, ...], list[tuple[str, int]]]]:
    """Group keys by the layers they lack, so that an image is seen once for all of them."""
    lacking: dict[tuple[str, int], list[str]] = {}
    for name, keys in layers.items():
        for key in keys:
            lacking.setdefault(key, []).append(name)
    groups: dict[tuple[str, ...], list[tuple[str, int]]] = {}
    for key, names in lacking.items():
        groups.setdefault(tuple(names), []).append(key)
    return list(groups.items())
