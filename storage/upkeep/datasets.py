"""A snapshot's features as an xarray dataset: lazy, each chunk read when it is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from headwater.errors import LayerError
from storage.store.feature_store import FeatureStore
from storage.store.table import sha_names

if TYPE_CHECKING:
    from storage.store.extractors import Extractor


def to_xarray(
    store: FeatureStore,
    extractor: str | None = None,
    layers: Sequence[str] | None = None,
    snapshot: str | None = None,
    *,
    removed: bool = False,
) -> xr.Dataset:
    """Return one extractor's features with what is known of each row's image.

    Parameters
    ----------
    store
        The store.
    extractor
        Id of the extractor; not needed where the store has one.
    layers
        Names of layers; all that the extractor has without it.
    snapshot
        Id or tag; the newest without it.
    removed
        Whether rows of removed images are among them.

    Returns
    -------
    xarray.Dataset
        A variable a layer, ``[row, LAYER_channel, LAYER_y, LAYER_x]``, with Dask underneath. Rows
        are those that every layer has; their coordinates are ``sha256, path, split, kind, mask``
        and ``view`` (0 is the plain image). The attributes say how the features were made.

    Raises
    ------
    LayerError
        Where the store has no such extractor or layer, or several extractors and none is named.
    """
    snapshot = store.resolve(snapshot)
    found = _choose(store, extractor, snapshot)
    names = list(layers or found.layers)
    if unknown := [name for name in names if name not in found.layers]:
        raise LayerError(
            f"{store.name}: extractor {found.spec.id} has no layer {', '.join(unknown)}",
            expected="some of " + ", ".join(found.layers),
        )
    table = store.table(snapshot)
    image, kept = found.image, found.image >= 0
    for name in names:
        kept = kept & (found.block(name) >= 0)
    if not removed:
        # A row without an image reads the last one here and is left out above.
        kept &= table.removed_at[image] == 0
    rows = np.flatnonzero(kept)
    image = image[rows]
    columns = {"path": table.path, "split": table.split, "kind": table.kind, "mask": table.masks}
    coordinates = {
        "sha256": ("row", sha_names(table.sha[image])),
        **{name: ("row", column[image]) for name, column in columns.items()},
        "view": ("row", found.view[rows]),
    }
    variables = {name: _maps(found, name).isel(row=rows) for name in names}
    facts = {"image_set": store.image_set, "snapshot": snapshot, "extractor": found.spec.id}
    about = {"backbone": found.spec.backbone, "weights": found.spec.weights}
    return xr.Dataset(variables, coordinates, facts | about)


def _choose(store: FeatureStore, extractor: str | None, snapshot: str) -> Extractor:
    known = {e.spec.id: e for e in store.extractors(snapshot)}
    if extractor is None and len(known) == 1:
        return next(iter(known.values()))
    if extractor not in known:
        said = ", ".join(f"{name} ({e.spec.backbone})" for name, e in known.items())
        asked = "no extractor named" if extractor is None else f"no extractor {extractor!r}"
        raise LayerError(f"{store.name}: {asked}", expected=f"one of {said}" if said else "")
    return known[extractor]


def _maps(extractor: Extractor, layer: str) -> xr.DataArray:
    """Return all rows of a layer, lazily; bfloat16, stored as bits, as float32."""
    group = extractor.group
    place = f"{group.path}/{layer}"
    opened = xr.open_zarr(group.store, group=place, consolidated=False, chunks={})
    maps = opened["maps"]
    if maps.attrs.get("encoding") == "bfloat16":
        bits = maps.astype("u4") << 16
        maps = bits.copy(data=bits.data.map_blocks(lambda b: b.view("f4"), dtype="f4"))
    maps = maps.reset_coords(drop=True)  # statistics blocks say nothing of a row
    own = {"channel": f"{layer}_channel", "height": f"{layer}_y", "width": f"{layer}_x"}
    return maps.rename(own).rename(layer)
