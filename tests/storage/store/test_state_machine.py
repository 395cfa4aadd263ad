"""The store against a plain dictionary, whatever is done to both in whatever order."""

from __future__ import annotations

import datetime as dt
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import storage.store.feature_store as module
from headwater.spec import LayerSpec
from storage.store.distributed import allocate, commit_blocks
from storage.store.feature_store import FeatureStore
from storage.store.table import ImageRow
from storage.upkeep.collect import gc
from storage.upkeep.contents import diff
from storage.upkeep.history import tag
from storage.upkeep.purge import purge
from storage.upkeep.verify import Damage, invalidate, verify
from tests.storage.storekit import (
    OPTIONS,
    SHAPES,
    SPEC,
    VIEWS,
    contents,
    expected,
    image,
    maps_of,
    work,
)

NAMES = list(SHAPES)  # the third layer, too
ZERO = dt.timedelta(0)
numbers = st.integers(0, 24)
layers = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True)


class Machine(RuleBasedStateMachine):
    """`table`: present images by content; `known`: contents ever stored; `stored`: maps."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="store-model-"))
        self.stores = [FeatureStore.open(self.folder, "bolts", options=OPTIONS) for _ in range(2)]
        self.table: dict[str, ImageRow] = {}
        self.known: dict[str, ImageRow] = {}
        self.stored: dict[str, set[tuple[str, str, int]]] = {SPEC.id: set(), VIEWS.id: set()}
        self.pinned: list[tuple[str, dict[str, ImageRow], dict[str, set]]] = []
        self.tagged: list[tuple[str, dict[str, ImageRow], dict[str, set]]] = []

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    def _write(self, store, spec, keys, names, rows) -> None:
        store.write(spec, keys, maps_of(keys, names), rows)
        for row in rows:
            if row.sha256 not in self.known and row.sha256 in {k[0] for k in keys}:
                self.known[row.sha256] = self.table[row.sha256] = row
        self.stored[spec.id] |= {(n, s, v) for s, v in keys for n in names}

    @rule(
        which=st.integers(0, 1),
        some=st.lists(numbers, min_size=1, max_size=12, unique=True),
        names=layers,
        views=st.booleans(),
    )
    def write(self, which, some, names, views):
        """A block of images, new, known or gone, with any layers."""
        rows = [self.known.get(image(i).sha256, image(i)) for i in some]
        spec, view = (VIEWS, (1, 2)) if views else (SPEC, (0,))
        keys = [(r.sha256, v) for r in rows for v in view]
        self._write(self.stores[which], spec, keys, names, rows)

    @rule(
        which=st.integers(0, 1),
        gone=st.lists(numbers, max_size=6),
        renamed=st.lists(numbers, max_size=3),
        relabelled=st.lists(numbers, max_size=3),
        back=st.lists(numbers, max_size=3),
    )
    def sync(self, which, gone, renamed, relabelled, back):
        """A scan in which some images are gone, back, renamed or relabelled."""
        lost = {image(i).sha256 for i in gone}
        scan = {s: r for s, r in self.table.items() if s not in lost}
        for i in back:
            sha = image(i).sha256
            scan[sha] = self.known.get(sha, image(i))
        for i in renamed:
            sha = image(i).sha256
            if sha in scan:
                scan[sha] = replace(scan[sha], path=f"moved/{len(scan[sha].path)}/{i}.png")
        for i in relabelled:
            sha = image(i).sha256
            if sha in scan:
                scan[sha] = replace(scan[sha], kind="dent", split="test", mask=f"{i}.png")
        report = self.stores[which].sync(scan.values())
        assert report.counts["removed"] == len(set(self.table) - set(scan))
        assert report.counts["added"] == len(set(scan) - set(self.known))
        self.table = {}
        for sha, row in scan.items():
            if sha in self.known:
                self.table[sha] = self.known[sha] = row

    @precondition(lambda self: self.table)
    @rule(which=st.integers(0, 1), data=st.data(), new=numbers)
    def replace(self, which, data, new):
        """Another content under the same name: the old one is gone, the new one comes with maps."""
        path = data.draw(st.sampled_from(sorted(r.path for r in self.table.values())))
        fresh = replace(image(f"new {new}"), path=path)
        if fresh.sha256 in self.known:
            return
        scan = {s: r for s, r in self.table.items() if r.path != path}
        report = self.stores[which].sync([*scan.values(), fresh])
        assert report.replaced == (path,)
        self.table = scan
        self._write(self.stores[1 - which], SPEC, [(fresh.sha256, 0)], NAMES[:1], [fresh])

    @rule(some=st.lists(numbers, min_size=1, max_size=6, unique=True), name=st.sampled_from(NAMES))
    def crash(self, some, name):
        """A writer dies after its last chunk and before its commit: nothing of it is to be seen."""
        rows = [self.known.get(image(i).sha256, image(i)) for i in some]
        store = FeatureStore.open(self.folder, "bolts", options=OPTIONS)
        before = store.snapshot

        class DiedError(BaseException):
            pass

        def die(*arguments, **more):
            real(*arguments, **more)
            raise DiedError

        real = module.put_block
        module.put_block = die
        try:
            keys = [(r.sha256, 0) for r in rows]
            store.write(SPEC, keys, maps_of(keys, [name]), rows)
        except DiedError:
            pass
        finally:
            module.put_block = real
        assert self.stores[0].snapshot == before

    @rule()
    def tag(self):
        """A model is registered here."""
        if len(self.tagged) < 2:
            state = (dict(self.table), {k: set(v) for k, v in self.stored.items()})
            name = f"model-{len(self.tagged)}"
            tag(self.stores[0], name)
            self.tagged.append((name, *state))

    @rule(purged=st.booleans())
    def collect(self, purged):
        """Everything expires that may; at times the features of removed images go first."""
        store = self.stores[0]
        if purged:
            purge(store, older_than=ZERO, dry_run=False)
            for spec, have in self.stored.items():
                self.stored[spec] = {k for k in have if k[1] in self.table}
        gc(store, older_than=ZERO, grace=ZERO, dry_run=False)
        self.pinned = []  # whom no tag protects must read at the newest

    @precondition(lambda self: self.table)
    @rule(some=st.lists(numbers, min_size=1, max_size=12, unique=True), name=st.sampled_from(NAMES))
    def write_by_tickets(self, some, name):
        """Workers of which one is lost, and somebody else writing in between."""
        store = self.stores[0]
        rows = {i: self.known.get(image(i).sha256, image(i)) for i in some}
        have = self.stored[SPEC.id]
        keys = [(r.sha256, 0) for r in rows.values() if (name, r.sha256, 0) not in have]
        if not keys:
            return
        tickets = allocate(store, SPEC, {name: SHAPES[name]}, keys, about_bytes=1)
        done = [work(t) for t in tickets]
        first = rows[some[0]]
        self._write(self.stores[1], SPEC, [(first.sha256, 0)], [name], [first])
        commit_blocks(store, done[1:], rows.values())
        commit_blocks(store, done, rows.values())
        for row in rows.values():
            if (row.sha256, 0) in keys and row.sha256 not in self.known:
                self.known[row.sha256] = self.table[row.sha256] = row
        have |= {(name, s, v) for s, v in keys}

    @precondition(lambda self: self.stored[SPEC.id])
    @rule(data=st.data())
    def damage(self, data):
        """Some maps are found to be damaged and are to be computed again."""
        have = sorted(self.stored[SPEC.id])
        some = data.draw(st.lists(st.sampled_from(have), min_size=1, max_size=4, unique=True))
        store = self.stores[0]
        extractor, table = store.extractor(SPEC), store.table()
        found = []
        for layer, sha, view in some:
            (row,) = extractor.find(table.find([sha]), np.array([view])).tolist()
            found.append(Damage(SPEC.id, layer, row, sha, view, "", "said so"))
        invalidate(store, found)
        self.stored[SPEC.id] -= set(some)

    @rule()
    def pin(self):
        """A reader elsewhere will want this snapshot."""
        state = (dict(self.table), {k: set(v) for k, v in self.stored.items()})
        self.pinned = [*self.pinned[-1:], (self.stores[1].snapshot, *state)]

    def _check(self, store, snapshot, table, stored):
        for spec, views in ((SPEC, (0,)), (VIEWS, (1, 2))):
            for name in NAMES:
                have = {(s, v) for n, s, v in stored[spec.id] if n == name and s in table}
                if not have:
                    continue
                layer = [LayerSpec.parse(name)]
                want = expected(table.values(), layer, views)
                got = contents(store, layer, spec=spec, snapshot=snapshot)
                assert got == {k: v for k, v in want.items() if k in have}

    @invariant()
    def holds_what_the_model_holds(self):
        store = self.stores[0]
        rows = store.table().images()
        assert {r.sha256: r for r in rows} == self.table
        assert len(rows) == len(self.table)
        assert len(store.table()) == len(self.known)
        self._check(store, None, self.table, self.stored)
        for spec, views in ((SPEC, (0,)), (VIEWS, (1, 2))):
            plan = store.plan(spec, [LayerSpec.parse(n) for n in NAMES])
            wanted = {(n, s, v) for n in NAMES for s in self.table for v in views}
            assert sum(plan.missing.values()) == len(wanted - self.stored[spec.id])
            todo = [(x.name, *k) for t in plan.tasks for x in t.layers for k in t.keys]
            assert sorted(todo) == sorted(wanted - self.stored[spec.id])
        for snapshot, table, stored in self.pinned + self.tagged:
            self._check(store, snapshot, table, stored)
            found = diff(store, snapshot)
            assert len(found.added) == len(set(self.table) - set(table))
            assert len(found.removed) == len(set(table) - set(self.table))

    def check_soundness(self):
        report = verify(self.stores[0])
        assert report.ok, (report.damage, report.problems)

    @rule()
    def is_sound(self):
        """Checksums, statistics and index agree."""
        self.check_soundness()


TestStore = Machine.TestCase
TestStore.settings = settings(
    max_examples=6,
    stateful_step_count=10,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
)


@pytest.mark.slow
@pytest.mark.timeout(1500)
class TestStoreLonger(Machine.TestCase):
    """The same, longer, and with other examples every time."""

    settings = settings(
        max_examples=40,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
