"""The store is open: plain Zarr, xarray, ten lines of someone else's code, and old stores for ever.

``python -m tests.storage.store.test_format FOLDER`` writes a golden store for a new format version.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from storage.store.feature_store import FeatureStore
from storage.store.layout import StoreOptions
from storage.store.table import Selection
from storage.upkeep.contents import inspect
from storage.upkeep.export import export
from storage.upkeep.history import tag
from storage.upkeep.verify import verify
from tests.storage.storekit import (
    LAYERS,
    OPTIONS,
    SPEC,
    VIEWS,
    contents,
    expected,
    extract,
    image,
    keys_of,
    maps_of,
    write,
)

HERE = Path(__file__).parent
BF16 = replace(SPEC, dtype="bfloat16")


def build(location: Path, name: str) -> FeatureStore:
    """Write a store with some of everything in it."""
    store = FeatureStore.open(location, name, options=OPTIONS)
    images = [replace(image(i), kind="good" if i < 5 else "dent") for i in range(7)]
    extract(store, images, block=4)
    tag(store, "first")
    now = [*images[1:], image(8)]
    now[0] = replace(now[0], path="train/good/renamed.png")
    extract(store, now)
    extract(store, now[:3], spec=VIEWS, complete=False, block=9)
    packed = FeatureStore.open(location, name, options=StoreOptions("zstd", 3000))
    extract(packed, now, LAYERS[:1], spec=BF16, block=9)
    return store


def digests(store: FeatureStore) -> dict[str, str]:
    """Return a digest of the values of every row of every layer at both snapshots."""
    found = {}
    for snapshot in ("first", None):
        for extractor in store.extractors(snapshot):
            for name, layer in extractor.layers.items():
                values = contents(store, [layer], spec=extractor.spec, snapshot=snapshot)
                for (sha, view), maps in sorted(values.items()):
                    key = f"{snapshot or 'newest'} {extractor.spec.id} {name} {sha[:8]} {view}"
                    found[key] = hashlib.sha256(maps[name]).hexdigest()[:16]
    return found


@pytest.mark.parametrize(
    "folder", sorted(HERE.parents[1].glob("golden/store-*")), ids=lambda p: p.name
)
def test_what_was_written_once_opens_for_ever(folder, tmp_path):
    told = json.loads((folder / "expected.json").read_text())
    shutil.copytree(folder, tmp_path / "copy")
    store = FeatureStore.open(tmp_path / "copy", "golden", create=False, options=OPTIONS)
    assert digests(store) == told["digests"]
    assert verify(store).ok
    found = inspect(store)
    assert (found["images"], found["removed"], found["kinds"]) == (7, 1, told["kinds"])
    then = store.table("first").images()
    assert [i.path for i in then] == told["paths"]
    # It takes new features and a reader finds them with the old ones.
    new = [image("today")]
    write(store, new)
    assert len(store.reader(SPEC, LAYERS)) == 8
    assert verify(store).ok


def test_there_is_a_golden_store():
    assert list(HERE.parents[1].glob("golden/store-v1"))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return build(tmp_path_factory.mktemp("open"), "bolts")


def test_the_documented_ten_lines_read_a_store(tmp_path):
    store = FeatureStore.open(tmp_path, "bolts", options=OPTIONS)
    images = [replace(image(i), kind="good" if i % 3 else "dent") for i in range(9)]
    extract(store, images)
    extract(store, images[2:])
    text = (HERE.parents[2] / "docs" / "store-format.md").read_text()
    code = re.search(r"## Reading it in ten lines.*?```python\n(.*?)```", text, re.S)
    assert code is not None
    assert len([line for line in code[1].splitlines() if line.strip()]) <= 10
    assert "storage." not in code[1]
    scope: dict = {"path": str(tmp_path / "bolts"), "layer": "layer2"}
    exec(code[1], scope)
    good = [i for i in images[2:] if i.kind == "good"]
    assert scope["names"].tolist() == [i.path for i in good]
    np.testing.assert_array_equal(scope["maps"], maps_of(keys_of(good), ["layer2"])["layer2"])


def test_xarray_opens_it(store, tmp_path):
    xarray = pytest.importorskip("xarray")
    folder = tmp_path / "plain"
    export(store, folder)
    for where in (store.root().store, folder):
        maps = xarray.open_zarr(where, group=f"features/{SPEC.id}/layer2", consolidated=False)
        assert maps["maps"].dims == ("row", "channel", "height", "width")
        assert maps["statistics"].dims == ("block", "statistic", "channel")
        index = xarray.open_zarr(where, group=f"features/{SPEC.id}", consolidated=False)
        table = xarray.open_zarr(where, group="images", consolidated=False)
        assert table["sha256"].dims == ("image", "byte")
        there = (table["removed_at"] == 0).to_numpy()
        rows = index["image"].to_numpy()
        sha = bytes(table["sha256"].to_numpy()[rows[-1]]).hex()
        assert sha == image(8).sha256
        assert there.sum() == 7
        want = maps_of([(sha, 0)], ["layer2"])["layer2"][0]
        np.testing.assert_array_equal(maps["maps"][-1].to_numpy(), want)


def test_bfloat16_as_the_format_says(store, tmp_path):
    export(store, tmp_path / "plain")
    group = zarr.open_group(tmp_path / "plain", mode="r")[f"features/{BF16.id}"]
    maps = group["layer2/maps"]
    assert maps.attrs["encoding"] == "bfloat16"
    assert maps.attrs["compression"] == "zstd"
    values = (maps[:].astype("u4") << 16).view("f4")
    read = store.reader(BF16, LAYERS[:1]).read(0, 7)["layer2"].numpy()
    np.testing.assert_array_equal(values, read)


def test_everything_in_it_is_as_expected(store):
    now = [*(image(i) for i in range(1, 7)), image(8)]
    assert contents(store) == expected(now)
    kept = contents(store, select=Selection(normal=True))
    assert set(kept) == set(keys_of([*(image(i) for i in range(1, 5)), image(8)]))


if __name__ == "__main__":
    target = Path(sys.argv[1])
    made = build(target, "golden")
    facts = {
        "digests": digests(made),
        "kinds": inspect(made)["kinds"],
        "paths": [i.path for i in made.table("first").images()],
    }
    (target / "expected.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
    for lock in target.glob(".*.lock"):
        lock.unlink()
