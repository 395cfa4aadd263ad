"""The feature store of one image set: images and features in one transaction.

Work is done in the order check, lock, look what is missing *now*, write, commit. Whatever
another process did meanwhile is found at the third step, so nothing is doubled, and a conflict
costs another try at the commit, never another pass of the backbone.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import icechunk
import numpy as np
import zarr

from headwater.errors import SnapshotError, StoreError
from headwater.spec import ExtractorSpec, LayerSpec
from headwater.tiles import all_rows
from headwater.version import __version__
from storage.store.checks import Key, prepare
from storage.store.engine import (
    LOCAL_PARALLEL,
    PARALLEL,
    commit_lock,
    guard,
    is_remote,
    open_repository,
)
from storage.store.extractors import Extractor, Plan, Shape, make_plan
from storage.store.fetch import ExcerptRef
from storage.store.layout import BRANCH, FEATURES, IMAGES, StoreOptions
from storage.store.reader import FeatureReader
from storage.store.sync import SyncReport, compare
from storage.store.table import ImageRow, Selection, Table
from storage.store.writing import (
    NothingToDoError,
    WriteReport,
    create_set,
    describe,
    is_empty,
    put_block,
    subgroup,
    unique_keys,
)

#: Seconds during which a lost race for the commit is run again.
RETRY_SECONDS = 600.0


class FeatureStore:
    """One image set's store. Cheap to open; safe to use from several threads and processes.

    Use `FeatureStore.open`.

    Examples
    --------
    >>> store = FeatureStore.open("store", "screws")
    >>> spec, layers = ExtractorSpec("resnet18", "untrained:0"), [LayerSpec.parse("layer2")]
    >>> images = [ImageRow(c * 64, f"train/good/{c}.png") for c in "abc"]
    >>> store.sync(images).counts["added"]  # they enter with their features
    3
    >>> store.plan(spec, layers, [(i.sha256, 0) for i in images]).todo
    3
    >>> maps = {"layer2": np.random.default_rng(0).random((3, 8, 4, 4), np.float32)}
    >>> store.write(spec, [(i.sha256, 0) for i in images], maps, images).images
    3
    >>> [i.path for i in store.table().images()]
    ['train/good/a.png', 'train/good/b.png', 'train/good/c.png']
    >>> reader = store.reader(spec, layers, Selection(normal=True))
    >>> [tuple(b["layer2"].shape) for b in reader.batches(2, seed=1)]
    [(2, 8, 4, 4), (1, 8, 4, 4)]
    """

    def __init__(
        self, repository: icechunk.Repository, location: str, image_set: str, options: StoreOptions
    ) -> None:
        self.repository, self.location, self.image_set = repository, location, image_set
        self.options = options
        self._tables: dict[str, Table] = {}
        self._extractors: dict[tuple[str, str], Extractor | None] = {}
        self._shapes: dict[str, dict[str, Shape]] = {}

    @classmethod
    def open(
        cls,
        location: str | Path,
        image_set: str,
        *,
        create: bool = True,
        options: StoreOptions | None = None,
    ) -> FeatureStore:
        """Open, or create, the store of an image set.

        Parameters
        ----------
        location
            A folder or ``s3://bucket/prefix``; the set's repository is one level below.
        image_set
            Name of the set.
        create
            Whether to create a missing one.
        options
            Compression and chunk size of layers created from now on.

        Raises
        ------
        SnapshotError
            There is no such set and `create` is false.
        StoreError
            It was written by a newer format, or cannot be reached.
        """
        where = str(location)
        if not is_remote(where):
            where = str(Path(where).expanduser().absolute())
        repository = open_repository(where, image_set, create=create)
        store = cls(repository, where, image_set, options or StoreOptions())
        with guard(store.name):
            empty = is_empty(repository, store.name)
        if empty:
            store.transact(lambda session: create_set(session, image_set))
        return store

    def __repr__(self) -> str:
        return f"FeatureStore({self.location!r}, {self.image_set!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        reopen = partial(FeatureStore.open, create=False, options=self.options)
        return (reopen, (self.location, self.image_set))

    @property
    def name(self) -> str:
        """Location and set, for messages."""
        return f"store {self.location}/{self.image_set}"

    # --- snapshots -------------------------------------------------------------------------------

    @property
    def snapshot(self) -> str:
        """Id of the newest snapshot."""
        with guard(self.name):
            return self.repository.lookup_branch(BRANCH)

    def resolve(self, snapshot: str | None) -> str:
        """Return the id of a snapshot given by id, by tag, or not at all (the newest).

        Raises `SnapshotError` where there is none.
        """
        if snapshot is None:
            return self.snapshot
        with guard(self.name):
            if snapshot in self.repository.list_tags():
                return self.repository.lookup_tag(snapshot)
            with contextlib.suppress(icechunk.IcechunkError, ValueError):
                # An id's last letter has bits to spare: another id may be read as this one.
                if self.repository.lookup_snapshot(snapshot).id == snapshot:
                    return snapshot
        raise SnapshotError(
            f"{self.name}: snapshot {snapshot!r} does not exist",
            expected="an id or a tag that `headwater store log` lists",
            remedy="it may have expired: tag the snapshots that must stay",
        )

    def root(self, snapshot: str | None = None) -> zarr.Group:
        """Return the root group, read-only, at a snapshot."""
        snapshot = self.resolve(snapshot)
        with guard(self.name):
            session = self.repository.readonly_session(snapshot_id=snapshot)
            try:
                return zarr.open_group(session.store, mode="r")
            except FileNotFoundError:
                raise SnapshotError(
                    f"{self.name}: snapshot {snapshot} is the empty one before the first commit",
                    expected="a later one",
                ) from None

    def table(self, snapshot: str | None = None) -> Table:
        """Return the image table at a snapshot."""
        snapshot = self.resolve(snapshot)
        if snapshot not in self._tables:
            self._tables = {snapshot: Table(subgroup(self.root(snapshot), IMAGES))}
        return self._tables[snapshot]

    def extractor(self, spec: ExtractorSpec | str, snapshot: str | None = None) -> Extractor | None:
        """Return an extractor's features at a snapshot, or None where there are none."""
        snapshot = self.resolve(snapshot)
        key = (snapshot, spec if isinstance(spec, str) else spec.id)
        if key not in self._extractors:
            kept = {k: v for k, v in self._extractors.items() if k[0] == snapshot}
            self._extractors = {**kept, key: Extractor.open(self.root(snapshot), key[1])}
        return self._extractors[key]

    def extractors(self, snapshot: str | None = None) -> list[Extractor]:
        """Return all extractors at a snapshot."""
        root = self.root(snapshot)
        return [Extractor(g) for _, g in sorted(subgroup(root, FEATURES).groups())]

    # --- changing --------------------------------------------------------------------------------

    def transact(
        self,
        work: Callable[[icechunk.Session], str],
        *,
        metadata: Callable[[], dict[str, Any]] | None = None,
    ) -> tuple[str, int]:
        """Run `work` on a writable session at the newest snapshot and commit it.

        Parameters
        ----------
        work
            Changes the session and returns the commit's message. It must look at the session's
            own state, for it runs again from the start where another commit came first.
        metadata
            Called after `work` for the commit's metadata.

        Returns
        -------
        The snapshot and the number of times the race was lost.
        """
        deadline, retries = time.monotonic() + RETRY_SECONDS, 0
        while True:
            with guard(self.name), commit_lock(self.location, self.image_set):
                session = self.repository.writable_session(BRANCH)
                try:
                    message = work(session)
                    facts = {"headwater": __version__, **(metadata() if metadata else {})}
                    return session.commit(message, facts), retries
                except NothingToDoError:
                    return session.snapshot_id, retries
                except icechunk.ConflictError as error:
                    if time.monotonic() > deadline:
                        raise StoreError(
                            f"{retries + 1} commits in a row lost the race",
                            remedy="let fewer processes write into this set at once",
                        ) from error
            retries += 1
            time.sleep(random.uniform(0, min(2.0, 0.05 * 2 ** min(retries, 6))))

    def sync(self, images: Iterable[ImageRow]) -> SyncReport:
        """Compare scanned images with the table; commit removals, returns, renames and labels.

        New contents are only reported: they enter the table with their features (`write`).
        """
        scan = list(images)
        changes = compare(self.table(), scan)
        if not changes.any:
            return SyncReport(**changes.report, snapshot=self.snapshot)

        def work(session: icechunk.Session) -> str:
            nonlocal changes
            table = Table(subgroup(zarr.open_group(session.store), IMAGES))
            changes = compare(table, scan)
            if not changes.any:
                raise NothingToDoError
            return changes.enter(table)

        snapshot, _ = self.transact(work)
        return SyncReport(**changes.report, snapshot=snapshot)

    def plan(
        self,
        spec: ExtractorSpec,
        layers: Sequence[LayerSpec],
        wanted: Sequence[Key] | None = None,
    ) -> Plan:
        """Find what of `wanted` is not stored yet.

        Parameters
        ----------
        spec, layers
            The extractor.
        wanted
            ``(sha256, view)`` keys; without it, every image that is there now, at view 0 or at the
            specification's tiles and views.
        """
        snapshot = self.snapshot
        table, extractor = self.table(snapshot), self.extractor(spec, snapshot)
        if wanted is None:
            images = table.images()
            wanted = [(i.sha256, v) for i in images for v in all_rows(i.height, i.width, spec)]
        keys = list(wanted)
        filled = {x.name: np.zeros(len(keys), bool) for x in layers}
        if extractor is not None and keys:
            rows = extractor.find(
                table.find([k[0] for k in keys]), np.array([k[1] for k in keys], np.int64)
            )
            found = rows >= 0
            for name in filled:
                if extractor.has(name):
                    filled[name][found] = extractor.block(name)[rows[found]] >= 0
        return make_plan(layers, keys, filled)

    def write(
        self,
        spec: ExtractorSpec,
        keys: Sequence[Key],
        maps: Mapping[str, Any],
        images: Iterable[ImageRow] = (),
    ) -> WriteReport:
        """Check a block of features and commit it together with its images.

        What is stored already, by whomever, is left alone.

        Parameters
        ----------
        spec
            How the features were made.
        keys
            ``(sha256, view)`` of each row of the block.
        maps
            ``{layer name: [n, C, H, W]}``, numpy or torch, in the stored dtype or float32.
        images
            The images of the block (all that are not in the table must be there).

        Raises
        ------
        FeatureRangeError
            All maps that are not fit to be stored, together; nothing of the block is written.
        DiskFullError
            The last snapshot is intact.
        """
        rows = {i.sha256: i for i in images}
        keys, pick = unique_keys(keys)
        maps = {k: v[pick] if pick is not None else v for k, v in maps.items()}
        # Once stored they never change.
        shapes = self._shapes.setdefault(spec.id, {})
        if any(x not in shapes for x in maps) and (known := self.extractor(spec)):
            shapes.update({x: known.shape(x) for x in maps if known.has(x)})
        ready = prepare(maps, keys, spec.dtype, shapes, {k: v.path for k, v in rows.items()})
        report: dict[str, Any] = {}
        parallel = PARALLEL if is_remote(self.location) else LOCAL_PARALLEL

        def work(session: icechunk.Session) -> str:
            report.clear()
            report.update(put_block(session, spec, keys, ready, rows, self.options, parallel))
            if not report["rows"] and not any(report["maps"].values()):
                raise NothingToDoError
            return describe(spec, report)

        def facts() -> dict[str, Any]:
            return {k: report[k] for k in ("rows", "images")} | {"extractor": spec.id}

        snapshot, retries = self.transact(work, metadata=facts)
        shapes.update({k: v.data.shape[1:] for k, v in ready.items()})  # type: ignore[misc]
        return WriteReport(snapshot, retries=retries, **report)

    # --- reading ---------------------------------------------------------------------------------

    def reader(
        self,
        spec: ExtractorSpec,
        layers: Sequence[LayerSpec],
        select: Selection | None = None,
        snapshot: str | None = None,
        *,
        missing: str = "error",
        memory: int | None = None,
    ) -> FeatureReader:
        """Return the features of a selection of images at a snapshot.

        Parameters
        ----------
        spec, layers
            The extractor; batches carry each layer under its name.
        select
            Which images; without it, all that are there at the snapshot.
        snapshot
            Id or tag; the newest without it. The reader stays at it whatever is written later.
        missing
            What to do about selected images that lack a layer: ``"error"`` or ``"skip"`` (they are
            listed in the reader's `missing`).
        memory
            Bytes that the reader may keep resident; a quarter of free memory, at most 2 GiB,
            without it.

        Raises
        ------
        LayerError
            A layer is not stored.
        StoreError
            Selected images lack a layer.
        """
        excerpt = ExcerptRef(
            location=self.location,
            image_set=self.image_set,
            snapshot=self.resolve(snapshot),
            spec_id=spec.id,
            layers=tuple(x.name for x in layers),
            select=select or Selection(),
            missing=missing,
        )
        reader = FeatureReader((excerpt,), memory=memory)
        reader.open()
        return reader
