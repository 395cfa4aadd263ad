"""A home wherever it stands: moved, copied, read-only, under names that mean something."""

import json
import shutil
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from headwater.errors import StoreError
from storage.registry import place
from storage.registry.client import mlflow, prepare_database
from storage.registry.registry import Registry
from tests.storage.registry.conftest import train

MODEL = "models:/bottles.patchcore/1"


@pytest.fixture
def moved(registry, saved, tmp_path):
    """A home with one model, moved to a folder of a name given; its old place is gone."""
    train(registry, saved(), store=str(tmp_path / "store"))

    def move(name):
        here = tmp_path / name / "home"
        here.mkdir(parents=True)
        for part in ("mlflow.db", "mlartifacts"):
            shutil.move(tmp_path / part, here / part)
        return Registry(here)

    return move


def addresses(database):
    with sqlite3.connect(database) as db:
        return [
            value
            for table, column in (*place._ADDRESSES, ("datasets", "dataset_source"))
            for (value,) in db.execute(f"SELECT {column} FROM {table}")
        ]


@pytest.mark.parametrize("name", ["plain", "line #2", "a%20b", "what? 100%"])
def test_a_home_that_was_moved_works_whole(moved, saved, tmp_path, name):
    registry = moved(name)
    (row,) = registry.leaderboard("bottles")
    model = registry.download(row["uri"])
    assert model.is_relative_to(registry.home)
    assert (model / "state.bin").read_bytes() == b"state"
    run = train(registry, saved("again"), key="k2", auroc=0.5)
    registry.client.log_text(run.run_id, "x", "x.txt")
    assert list((registry.home / "mlartifacts/bottles").rglob("x.txt"))
    # MLflow by itself, told where.
    told = mlflow.artifacts.download_artifacts(
        artifact_uri=f"{registry.client.get_run(run.run_id).info.artifact_uri}/x.txt"
    )
    assert Path(told).read_text() == "x"
    # Nothing beside the home, nothing at the old place.
    assert {p.name for p in tmp_path.iterdir()} <= {name, "model", "again", "mlflow.db.lock"}
    assert [p.name for p in (tmp_path / name).iterdir()] == ["home"]


def test_a_home_of_before_homes_remembered_their_place_is_moved_too(moved, tmp_path):
    registry = moved("new")
    with sqlite3.connect(registry.database) as db:
        db.execute("DROP TABLE headwater_home")
    assert registry.download(MODEL).is_relative_to(tmp_path / "new")
    (source,) = (json.loads(a) for a in addresses(registry.database) if a.startswith("{"))
    assert source["store"] == str(tmp_path / "new/home/store")
    assert (registry.home / "mlflow.db.moved.bak").exists()


def test_a_copy_and_what_it_was_copied_from_do_not_meet(registry, saved, tmp_path):
    train(registry, saved())
    copy = Registry(tmp_path / "copy")
    shutil.copytree(tmp_path / "mlartifacts", copy.home / "mlartifacts")
    shutil.copy(tmp_path / "mlflow.db", copy.home)
    before = addresses(registry.database)
    shutil.rmtree(copy.download(MODEL))
    train(copy, saved("b"), key="k2")
    assert registry.download(MODEL).is_dir()
    assert addresses(registry.database) == before
    assert len(registry.leaderboard("bottles")) == 1
    assert len(copy.leaderboard("bottles")) == 2


def test_another_name_of_the_same_folder_is_no_move(registry, saved, tmp_path):
    train(registry, saved())
    (tmp_path / "link").symlink_to(tmp_path)
    other = Registry(tmp_path / "link")
    before = registry.database.read_bytes()
    assert other.leaderboard("bottles")
    assert registry.database.read_bytes() == before


def test_artifacts_kept_elsewhere_on_purpose_stay_there(
    tmp_path, saved, empty_database, monkeypatch
):
    monkeypatch.setenv("HEADWATER_ARTIFACTS", (tmp_path / "disk/mlartifacts").as_uri())
    one = Registry(tmp_path / "one")
    one.home.mkdir()
    shutil.copy(empty_database, one.database)
    train(one, saved())
    shutil.move(one.home, tmp_path / "two")
    monkeypatch.delenv("HEADWATER_ARTIFACTS")
    two = Registry(tmp_path / "two")
    assert two.download(MODEL).is_relative_to(tmp_path / "disk")
    with sqlite3.connect(two.database) as db:
        db.execute("DROP TABLE headwater_home")
    assert Registry(two.home).download(MODEL).is_dir()
    assert two.uri


def test_a_home_that_cannot_be_written_is_looked_at_through_a_copy(moved, tmp_path, monkeypatch):
    registry = moved("shelf #1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(place, "can_write", lambda path: tmp_path / "cache" in path.parents)
    before = registry.database.read_bytes()
    assert registry.leaderboard("bottles")
    assert registry.download(MODEL).is_relative_to(registry.home)
    assert mlflow.MlflowClient(registry.uri).search_experiments()
    with pytest.raises(StoreError, match="no run is kept"):
        registry.start("bottles", "patchcore", "k9")
    assert registry.database.read_bytes() == before
    assert {p.name for p in registry.home.iterdir()} == {"mlflow.db", "mlartifacts"}


def test_two_that_open_a_moved_home_at_once_move_it_once(moved, monkeypatch):
    home = moved("new").home
    moves = []
    real = place._rewrite
    monkeypatch.setattr(place, "_rewrite", lambda *a: (moves.append(a), time.sleep(0.3), real(*a)))
    with ThreadPoolExecutor(2) as pool:
        found = set(pool.map(lambda _: Registry(home).download(MODEL), range(2)))
    assert len(moves) == 1
    (model,) = found
    assert model.is_relative_to(home)


def test_a_file_with_something_in_it_is_never_replaced(tmp_path):
    path = tmp_path / "line #2" / "mlflow.db"
    path.parent.mkdir()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE mine (x)")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="without MLflow's tables"):
        prepare_database(path)
    assert path.read_bytes() == before


def test_an_address_of_sqlite_is_read_as_it_is_written(tmp_path, empty_database):
    for name in ("a b", "a%20b", "#", "?"):
        (tmp_path / name).mkdir()
        shutil.copy(empty_database, tmp_path / name / "mlflow.db")
        registry = Registry(tmp_path / name)
        assert Registry(tmp_path, registry.uri).database == registry.database
