"""A set's feature store, opened: what it holds, its history, and what keeps it well."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from flows.runtime.home import Home
from flows.use.upkeep import Collected, collect, parse_age
from storage.store.feature_store import FeatureStore
from storage.upkeep import contents, history
from storage.upkeep.datasets import to_xarray
from storage.upkeep.export import export
from storage.upkeep.verify import VerifyReport, verify

if TYPE_CHECKING:
    import xarray as xr

    from storage.upkeep.contents import StoreDiff


class OpenStore:
    """The feature store of one image set; `OpenHome.store` gives it.

    Snapshots are named by id or tag; without one the newest is meant.
    """

    def __init__(self, home: Home, image_set: str) -> None:
        self._home = home
        #: The store itself, for those who go on with Headwater's own modules.
        self.features = FeatureStore.open(home.store, image_set, create=False)

    def __repr__(self) -> str:
        return f"<store of {self.features.name!r}, snapshot {self.features.snapshot}>"

    def _repr_html_(self) -> str:
        layers = [
            {"extractor": e["id"], "backbone": e["extractor"]["backbone"], **layer}
            for e in self.inspect()["extractors"]
            for layer in e["layers"]
        ]
        return f"<p>{html.escape(repr(self))}</p>" + pd.DataFrame(layers).to_html(index=False)

    # --- what is in it ---------------------------------------------------------------------------

    def to_xarray(
        self,
        extractor: str | None = None,
        layers: Sequence[str] | None = None,
        snapshot: str | None = None,
        *,
        removed: bool = False,
    ) -> xr.Dataset:
        """Return the features of one extractor, lazily; see `storage.upkeep.datasets.to_xarray`."""
        return to_xarray(self.features, extractor, layers, snapshot, removed=removed)

    def images(self, snapshot: str | None = None) -> pd.DataFrame:
        """Return the images that are there: path, split, kind, mask, size, digest."""
        return pd.DataFrame([dataclasses.asdict(r) for r in self.features.table(snapshot).images()])

    def inspect(self, snapshot: str | None = None) -> dict[str, Any]:
        """Return images, extractors, layers, shapes, coverage and bytes, ready for JSON."""
        return contents.inspect(self.features, snapshot)

    def diff(self, old: str, new: str | None = None) -> StoreDiff:
        """Return the images and layers that came, went or were renamed between two snapshots."""
        return contents.diff(self.features, old, new)

    # --- its history -----------------------------------------------------------------------------

    def log(self, limit: int | None = None) -> pd.DataFrame:
        """Return the snapshots, newest first, each with time, message and tags."""
        return pd.DataFrame([dataclasses.asdict(e) for e in history.log(self.features, limit)])

    def tags(self) -> dict[str, str]:
        """Return ``{tag: snapshot}``."""
        return history.tags(self.features)

    def tag(self, name: str, snapshot: str | None = None) -> str:
        """Give a snapshot a name that keeps it from expiring; return the snapshot."""
        return history.tag(self.features, name, snapshot)

    def untag(self, name: str) -> None:
        """Delete a tag; its name cannot be given again."""
        history.untag(self.features, name)

    # --- keeping it well -------------------------------------------------------------------------

    def verify(self, snapshot: str | None = None) -> VerifyReport:
        """Read every feature again; the report names damage by image and layer."""
        return verify(self.features, snapshot)

    def gc(
        self,
        older_than: str = "30d",
        *,
        grace: str = "1d",
        purge_removed: bool = False,
        delete: bool = False,
    ) -> Collected:
        """Expire old snapshots; without `delete` only say what would go. Ages as ``30d``, ``12h``.

        Parameters as of `flows.use.upkeep.collect`.
        """
        return collect(
            self._home,
            self.features,
            older_than=parse_age(older_than),
            grace=parse_age(grace),
            purge_removed=purge_removed,
            delete=delete,
        )

    def drift(self, since: str, picture: str | Path | None = None) -> dict[str, Any]:
        """Return how images that came after `since` differ from those before, by layer.

        Parameters
        ----------
        since
            Snapshot whose images are the reference.
        picture
            PNG to write; below the home without it.
        """
        from flows.use.drift import report_drift  # late: matplotlib takes a second

        place = self._home.pictures / self.features.image_set / "drift.png"
        facts, _ = report_drift(self.features, since, Path(picture or place))
        return facts

    def export(self, target: str | Path, snapshot: str | None = None, *, plain: bool = True) -> int:
        """Copy one snapshot to a plain Zarr folder, or to another store; return the bytes."""
        return export(self.features, target, snapshot, plain=plain)
