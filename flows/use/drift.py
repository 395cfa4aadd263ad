"""Drift of new images against those that were there, as numbers, lines and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from flows.pictures import charts as figures
from flows.runtime.console import table
from headwater.errors import DataError
from storage.store.layout import side_of
from storage.store.table import Selection
from storage.upkeep.drift import LayerDrift, drift

if TYPE_CHECKING:
    from storage.store.feature_store import FeatureStore


def report_drift(
    store: FeatureStore, since: str, picture: Path
) -> tuple[dict[str, Any], list[str | Table]]:
    """Compare, draw, and return JSON-ready facts and the lines (and a table) to print.

    Parameters
    ----------
    store
        The set's store.
    since
        Snapshot or tag; what was there is the reference.
    picture
        PNG to write.
    """
    # Of pairs a side's images are of interest whether or not they show a change.
    everything = Selection() if side_of(store.image_set)[1] else None
    kind = "images" if everything else "normal images"
    found = drift(store, since, select=everything)
    if not found:
        raise DataError(
            f"{store.image_set}: no features to compare", remedy="run `headwater extract` first"
        )
    picture.parent.mkdir(parents=True, exist_ok=True)
    widest = max(found, key=lambda one: one.frechet / max(one.frechet_chance, 1e-12))
    figures.drift(
        {_name(one, found): one.frechet for one in found},
        {_name(one, found): one.frechet_chance for one in found},
        widest.nearest_reference,
        widest.nearest_new,
        picture,
        f"{store.image_set}: {widest.new} new images against {widest.reference} since {since}",
    )
    drifted = [one for one in found if one.drifted]
    facts = {
        "image_set": store.image_set,
        "since": store.resolve(since),
        "drifted": bool(drifted),
        "layers": [one.to_json() for one in found],
        "picture": str(picture),
    }
    rows = [
        [
            _name(one, found),
            one.mean_distance,
            one.mean_chance,
            one.frechet,
            one.frechet_chance,
            f"{one.nearest_ratio:.2f}x",
            "drifted" if one.drifted else "",
        ]
        for one in found
    ]
    columns = ["layer", "mean moved", "chance", "Frechet", "chance", "nearest", ""]
    return facts, [
        f"{store.image_set}: {widest.new} new {kind} against {widest.reference} of {since}",
        table(columns, rows),
        "drift found" if drifted else "no drift beyond chance",
        f"picture: {picture}",
    ]


def _name(one: LayerDrift, found: list[LayerDrift]) -> str:
    """Return the layer's name, with its extractor where several have it."""
    twins = [x for x in found if x.layer == one.layer]
    return one.layer if len(twins) == 1 else f"{one.layer} ({one.extractor[:6]})"
