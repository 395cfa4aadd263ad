"""What is in a home, what is broken in it, what may go, and a model that leaves it as one file."""

import json
import shutil
import sqlite3

import numpy as np
import pytest

import headwater
from features.images.pixels import read_image
from flows.runtime.home import Home
from flows.use.bundle import bundle, model_parts
from flows.use.compare import compare_models
from flows.use.delete import plan_deletion
from flows.use.inventory import folder_size, inventory
from flows.use.soundness import check
from headwater.errors import ConfigError, DataError, ModelError
from storage.registry.registry import Registry
from storage.serving.detector import Detector
from storage.store.feature_store import FeatureStore
from storage.upkeep.history import tags
from tests.golden.home import unpack


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The golden home, to be looked at."""
    return Home(unpack(tmp_path_factory.mktemp("kept")) / "home")


@pytest.fixture
def home(tmp_path):
    """A copy of the golden home, to be changed."""
    return Home(unpack(tmp_path) / "home")


def models(home):
    rows = Registry(home.root).leaderboard("")
    return {f"{r['model']}/{r['version']}": r["aliases"] for r in rows}


def test_an_inventory_counts_every_byte_once(kept):
    parts = inventory(kept)
    found = {(p.what, p.name): p for p in parts}
    assert (found["set", "tiles"].count, found["set", "boards"].count) == (13, 18)
    assert found["model", "tiles.patchcore"].count == 2
    assert found["model", "tiles.patchcore"].note == "challenger v2"
    assert found["set", "boards"].note == "pairs"
    assert sum(p.bytes for p in parts) == folder_size(kept.root)
    assert inventory(Home(kept.root / "nothing")) == []


def test_a_sound_home_is_sound(kept):
    assert check(kept) == []


def test_each_fault_is_found_with_a_remedy(home, tmp_path):
    model = next((home.root / "mlartifacts/tiles/models").rglob("head.safetensors"))
    model.write_bytes(b"x" + model.read_bytes()[1:])
    shutil.rmtree(tmp_path / "images/tiles")
    for path in (home.root / "store/boards.history/refs").rglob("*.json"):
        path.write_text("{")
    with sqlite3.connect(home.root / "mlflow.db") as db:
        db.execute(
            "UPDATE model_version_tags SET value = 'GONE' WHERE key = 'snapshot'"
            " AND name = 'tiles.padim'"
        )
    (home.root / "tmp/model-x").mkdir(parents=True)
    found = check(home)
    assert {(f.what, f.broken) for f in found} == {
        ("model", True), ("images", True), ("store", True), ("snapshot", True), ("leftover", False),
    }  # fmt: skip
    assert all(f.remedy for f in found)
    assert {f.name for f in found if f.what == "snapshot"} == {"tiles.padim v1"}
    assert {f.name for f in found if f.what == "store"} == {"boards.history"}
    (home.root / "mlflow.db").write_bytes(b"no database")
    assert ("database", True) in {(f.what, f.broken) for f in check(home)}


def test_a_version_goes_and_aliases_stay_true(home):
    plan = plan_deletion(home, "tiles.patchcore/2")
    plan.check(force=False)
    assert plan.bytes > 10_000
    assert models(home)["tiles.patchcore/2"] == ["challenger"]  # so far it was only said
    place = Registry(home.root).download("models:/tiles.patchcore/2")
    plan.run()
    left = models(home)
    assert "tiles.patchcore/2" not in left
    assert left["tiles.patchcore/1"] == ["challenger"]
    assert not place.exists()
    store = FeatureStore.open(home.store, "tiles", create=False)
    assert {t for t in tags(store) if "patchcore" in t} == {"model-patchcore-v1"}
    plan_deletion(home, "tiles.patchcore@challenger").run()
    assert not [name for name in models(home) if name.startswith("tiles.patchcore")]
    assert check(home) == []


def test_what_mlflow_deletes_is_cleared_away(home):
    registry = Registry(home.root)
    client, name = registry.client, "tiles.patchcore"
    place = registry.download("models:/tiles.patchcore/2")
    run = registry.get_model("tiles", "patchcore", 2)["run_id"]
    client.delete_model_version(name, "2")  # as its pages do
    (found,) = check(home)
    assert (found.name, found.broken) == ("tiles.patchcore v2", False)
    assert found.remedy == "headwater delete tiles.patchcore/2"
    assert place.is_dir()
    assert models(home)["tiles.patchcore/1"] == []  # nothing is the challenger any more
    plan = plan_deletion(home, "tiles.patchcore/2")
    assert "deleted in MLflow" in plan.parts[0][0]
    assert plan.bytes > 10_000
    plan.run()
    assert not place.exists()
    assert models(home)["tiles.patchcore/1"] == ["challenger"]
    store = FeatureStore.open(home.store, "tiles", create=False)
    assert {t for t in tags(store) if "patchcore" in t} == {"model-patchcore-v1"}
    assert client.get_run(run).data.tags["headwater.model_deleted"] == "2"
    assert check(home) == []
    with pytest.raises(ModelError, match="no version '2'"):
        plan_deletion(home, "tiles.patchcore/2")
    # The last version, and its run as well: nothing of the model is in any list.
    run = registry.get_model("tiles", "patchcore", 1)["run_id"]
    client.delete_run(run)
    (row,) = (r for r in compare_models(registry, "tiles") if r["head"] == "patchcore")
    assert row["run_deleted"]
    client.delete_model_version(name, "1")
    plan_deletion(home, name).run()
    assert check(home) == []
    assert not [t for t in tags(store) if "patchcore" in t]
    with pytest.raises(DataError):
        plan_deletion(home, name)


def test_what_a_champion_needs_stays_unless_forced(home):
    registry = Registry(home.root)
    registry.client.set_registered_model_alias("tiles.padim", "champion", "1")
    store = FeatureStore.open(home.store, "tiles", create=False)
    (extractor,) = store.extractors()
    for target in ("tiles", "tiles.padim", f"tiles/{extractor.spec.id}"):
        plan = plan_deletion(home, target)
        with pytest.raises(ConfigError, match="champion"):
            plan.check(force=False)
        plan.check(force=True)
    plan_deletion(home, f"tiles/{extractor.spec.id}").run()
    assert store.extractors() == []
    # Registered models' snapshots still have it.
    assert store.extractors(store.resolve("model-padim-v1"))
    for wrong in ("nothing", "tiles.f2r", "tiles/0123456789abcdef"):
        with pytest.raises(DataError):
            plan_deletion(home, wrong)


def test_a_set_goes_whole_and_another_stays(home, tmp_path):
    before = models(home)
    plan_deletion(home, "boards").run()
    assert models(home) == {k: v for k, v in before.items() if k.startswith("tiles")}
    assert [p.name for p in inventory(home) if p.what == "set"] == ["tiles"]
    assert not [p for p in home.root.rglob("*boards*") if not p.name.endswith(".lock")]
    assert (tmp_path / "images/boards").is_dir()
    # Nothing of it comes back with a set of the same name.
    registry = Registry(home.root)
    assert registry.find_finished("boards", "pair_flow", "key") is None
    assert registry._search("boards", "") == []
    assert check(home) == []


@pytest.mark.parametrize("name", ["tiles.patchcore/1", "boards.pair_flow"])
def test_a_bundle_predicts_as_the_registered_model_does_to_the_bit(kept, tmp_path, name):
    facts = bundle(kept, name, tmp_path / "m.zip")
    images = kept.root.parent / "images"
    given = [images / "tiles/test/good/0.png", images / "tiles/test/spot/0.png"]
    if name.startswith("boards"):
        sides = (images / "boards/test" / side / "6.png" for side in ("current", "history"))
        given = [tuple(sides)]
    registry = Registry(kept.root)
    own = Detector.load(f"models:/{facts['model']}/{facts['version']}", registry, "cpu")
    loaded = headwater.load(tmp_path / "m.zip", device="cpu")
    samples = [[read_image(p) for p in (g if isinstance(g, tuple) else (g,))] for g in given]
    for one, other in zip(own.predict(samples), loaded.predict(given), strict=True):
        assert (one.score, one.verdict, one.threshold) == (
            other.score,
            other.verdict,
            other.threshold,
        )
        assert np.array_equal(one.map, other.map)
    assert loaded.name == f"{facts['model']} version {facts['version']}"
    with pytest.raises(ConfigError, match="is there already"):
        bundle(kept, name, tmp_path / "m.zip")
    bundle(kept, name, tmp_path / "m.zip", replace=True)


def test_models_are_named_as_mlflow_names_them():
    assert model_parts("bolts") == ("bolts", None, None)
    assert model_parts("models:/bolts.f2r@champion") == ("bolts", "f2r", "champion")
    for wrong in ("", "a b", "../x", "a.b.c/1", "a.b/1/2"):
        with pytest.raises(ConfigError, match=r"SET.HEAD/VERSION"):
            model_parts(wrong)


def test_the_command_needs_no_home_for_a_bundle_and_asks_before_it_deletes(
    home, tmp_path, here, monkeypatch
):
    work = tmp_path / "elsewhere"
    work.mkdir()
    monkeypatch.chdir(work)
    place = ("--home", home.root)
    here("bundle", "tiles.patchcore/1", "--out", "m.zip", *place)
    image = home.root.parent / "images/tiles/test/spot/0.png"
    (row,) = json.loads(here("predict", "--model", "m.zip", image, "--json"))
    assert row["verdict"] == "anomalous"
    assert {p.name for p in work.iterdir()} == {"m.zip", "predictions"}
    assert "no bundle" in here("predict", "--model", image, image, status=2)
    assert "--pair is for models of pair heads" in here(
        "predict", "--model", "m.zip", "--pair", image, image, status=2
    )
    assert "not there" in here("predict", "--model", "gone.zip", image, status=2)
    assert "SET and images, or --model" in here("predict", status=2)
    told = here("delete", "tiles", *place, status=2)
    assert "nothing was deleted" in told
    assert len(models(home)) == 6
    here("delete", "tiles", "--yes", *place)
    assert len(models(home)) == 2
    assert json.loads(here("home", "--json", *place))["bytes"] == folder_size(home.root)
    assert "nothing is broken" in here("home", "check", *place)
    assert "no such home" in here("home", "check", "--home", "misspelt", status=2)
    shutil.rmtree(home.root.parent / "images")
    assert "1 fault" in here("home", "check", *place, status=3)
