"""The registry against a real MLflow on SQLite: what was kept comes back, nothing stays RUNNING."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from headwater.errors import ConfigError, ModelError, StoreError
from storage.registry.client import MlflowClient, mlflow, prepare_database
from storage.registry.facts import process_tags
from storage.registry.read import model_name
from storage.registry.registry import Registry

TAGS = {"snapshot": "SNAP1", "extractor_id": "e1"}
PARAMS = {
    "backbone": "resnet18",
    "weights_sha256": "ab",
    "config.nodes": ["layer2"],
    "long": "x" * 7000,
}


@pytest.fixture
def registry(tmp_path, empty_database, monkeypatch):
    monkeypatch.chdir(tmp_path)  # what MLflow would leave in the working folder shows
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    yield Registry(tmp_path)
    assert not (tmp_path / "mlruns").exists()


@pytest.fixture
def saved(tmp_path):
    """The smallest folder that MLflow takes for a model."""

    def make(name="model"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "MLmodel").write_text("flavors: {}\n")
        (folder / "state.bin").write_bytes(b"state")
        return folder

    return make


def train(registry, folder, head="patchcore", key="k1", image_set="bottles", auroc=0.9, **more):
    with registry.start(image_set, head, key, params=PARAMS, tags=TAGS, **more) as run:
        run.metric("loss", 2.0, 1)
        run.metric("loss", 1.0, 2)
        run.finish({"image_auroc": auroc, "aupro": float("nan")}, seconds=3.0, peak_mb=99.0)
        run.register(folder)
    return run


def test_what_a_training_leaves(registry, saved, tmp_path):
    images = [{"split": "train", "kind": "good"}] * 3 + [{"split": "test", "kind": "crack"}]
    picture = tmp_path / "heat-maps.png"
    picture.write_bytes(b"png")
    with (
        registry.parent("bottles", "SNAP1") as parent,
        registry.start(
            "bottles",
            "f2r",
            "k",
            parent_run=parent,
            params=PARAMS,
            tags=TAGS,
            images=images,
            store="s",
        ) as run,
    ):
        for epoch in range(1, 601):
            run.metric("loss of [a]", 1 / epoch, epoch)
        run.finish({"image_auroc": 0.9, "aupro": float("nan")}, seconds=3.0, peak_mb=99.0)
        run.log_table([{"path": "a, b", "score": 1.5}, {"path": "c", "kind": "good"}], "images")
        run.log_file(picture, "figures")
        assert run.register(saved()) == "1"
        assert registry.in_use("bottles") == {"SNAP1"}
    assert registry.in_use("bottles") == registry.in_use("nobody's") == set()
    client = registry.client
    kept = client.get_run(run.run_id)
    assert kept.info.status == client.get_run(parent).info.status == "FINISHED"
    assert kept.data.tags["mlflow.parentRunId"] == parent
    assert {"version.torch", "version.zarr", "code", "snapshot"} <= set(kept.data.tags)
    assert kept.data.params["config.nodes"] == '["layer2"]'
    assert len(kept.data.params["long"]) == 6000
    history = client.get_metric_history(run.run_id, "epoch/loss of _a_")
    assert [m.step for m in sorted(history, key=lambda m: m.step)] == list(range(1, 601))
    (data,) = kept.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("bottles", "SNAP1")
    assert json.loads(data.dataset.profile) == {"images": 4, "test/crack": 1, "train/good": 3}
    # a figure is tied to the model and to the data it was measured on
    ties = {
        m.key: (m.value, m.dataset_name, m.dataset_digest)
        for m in client.get_logged_model(run.model_id).metrics
    }
    assert ties["image_auroc"] == (0.9, "bottles", "SNAP1")
    assert "aupro" not in ties
    (found,) = registry.pictures(run.run_id)
    assert Path(found).read_bytes() == b"png"
    table = client.download_artifacts(run.run_id, "tables/images.csv", str(tmp_path))
    assert Path(table).read_text().splitlines() == ["path,score,kind", '"a, b",1.5,', "c,,good"]
    model = mlflow.models.Model.load(str(registry.download("models:/bottles.f2r/1") / "MLmodel"))
    assert (model.run_id, model.model_id) == (run.run_id, run.model_id)


def test_leaderboard_and_choice_of_a_model(registry, saved):
    train(registry, saved("a"), "patchcore", "k1", auroc=0.8)
    train(registry, saved("b"), "patchcore", "k2", auroc=0.7)
    train(registry, saved("c"), "cs_flow", "k3", auroc=0.9)
    train(registry, saved("d"), "patchcore", "k4", image_set="bottles_2")  # "_" is SQL's wildcard
    rows = json.loads(json.dumps(registry.leaderboard("bottles")))
    assert [(r["head"], r["version"]) for r in rows] == [
        ("cs_flow", "1"),
        ("patchcore", "1"),
        ("patchcore", "2"),
    ]
    assert rows[0]["metrics"] == {"image_auroc": 0.9}
    assert (rows[0]["seconds"], rows[0]["peak_mb"]) == (3.0, 99.0)
    assert (rows[0]["snapshot"], rows[0]["extractor_id"], rows[0]["backbone"]) == (
        "SNAP1",
        "e1",
        "resnet18",
    )
    assert [r["version"] for r in registry.leaderboard("bottles", newest_only=True)] == ["1", "2"]

    def version(wanted=None):
        return registry.get_model("bottles", "patchcore", wanted)["version"]

    assert [version(w) for w in (None, "latest", "challenger", 1, "v1")] == [
        "2",
        "2",
        "2",
        "1",
        "1",
    ]
    registry.client.set_registered_model_alias("bottles.patchcore", "champion", "1")
    assert [version(w) for w in (None, "champion", "latest")] == ["1", "1", "2"]
    with pytest.raises(ModelError, match=r"2, 1, challenger, champion, latest"):
        version("7")
    with pytest.raises(ModelError, match=r"bottles.cs_flow, bottles.patchcore"):
        registry.get_model("bottles", "f2r")


def test_a_training_is_found_by_its_key_only_when_it_is_whole(registry, saved):
    run = train(registry, saved("a"), key="whole")
    with pytest.raises(ZeroDivisionError), registry.start("bottles", "patchcore", "broken"):
        raise ZeroDivisionError("by zero")
    with registry.start("bottles", "patchcore", "unregistered") as bare:
        bare.finish({"image_auroc": 1.0})
    found = registry.find_finished("bottles", "patchcore", "whole")
    assert found is not None
    assert (found["version"], found["run_id"], found["seconds"]) == ("1", run.run_id, 3.0)
    assert found["metrics"] == {"image_auroc": 0.9}
    for head, key in (("patchcore", "broken"), ("patchcore", "unregistered"), ("f2r", "whole")):
        assert registry.find_finished("bottles", head, key) is None
    assert registry.find_finished("nothing", "patchcore", "whole") is None
    registry.client.delete_model_version("bottles.patchcore", "1")
    assert registry.find_finished("bottles", "patchcore", "whole") is None


def test_errors_end_runs_and_are_told(registry):
    for error, status in (
        (ValueError("no luck\nat all"), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
    ):
        with (
            pytest.raises(type(error)),
            registry.parent("bottles") as parent,
            registry.start("bottles", "f2r", "k", parent_run=parent) as run,
        ):
            run.metric("loss", 1.0, 1)
            raise error
        kept = registry.client.get_run(run.run_id)
        assert kept.info.status == registry.client.get_run(parent).info.status == status
        assert kept.data.metrics == {"epoch/loss": 1.0}
        assert str(registry.client.get_logged_model(run.model_id).status) == "FAILED"
    first = registry._search(registry._experiment("bottles"), "attributes.status = 'FAILED'")
    assert "no luck\nat all" in [r.data.tags.get("headwater.error") for r in first]


def test_runs_of_dead_processes_are_reaped_and_living_ones_are_not(registry):
    mine = registry.start("bottles", "f2r", "k1")
    dead, far, reused = (registry.start("bottles", "f2r", k) for k in ("k2", "k3", "k4"))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    client = registry.client
    client.set_tag(dead.run_id, "headwater.pid", str(ended.pid))
    client.set_tag(far.run_id, "headwater.host", "another-machine")
    client.set_tag(reused.run_id, "headwater.pid_started", "12.5")  # the id was given away again
    assert set(registry.reap("bottles")) == {dead.run_id, reused.run_id}
    with registry.start("bottles", "f2r", "k3"):  # the same training again: the far one is given up
        assert client.get_run(far.run_id).info.status == "KILLED"
    assert client.get_run(mine.run_id).info.status == "RUNNING"
    assert process_tags()["headwater.pid"] == str(os.getpid())


def test_an_empty_home_is_read_without_making_anything(tmp_path):
    registry = Registry(tmp_path / "home")
    assert registry.leaderboard("bottles") == []
    assert registry.find_finished("bottles", "f2r", "k") is None
    with pytest.raises(ModelError, match="headwater run bottles"):
        registry.get_model("bottles", "f2r")
    assert not (tmp_path / "home").exists()


def test_places_that_cannot_be_used_say_so(tmp_path):
    with pytest.raises(ConfigError, match="MLflow tracking URL"):
        Registry(tmp_path, "ftp://host/x")
    with pytest.raises(StoreError, match="no MLflow server answers"):
        Registry(tmp_path, "http://127.0.0.1:9").leaderboard("bottles")
    (tmp_path / "mlflow.db").write_text("no database at all, by no means")
    with pytest.raises(StoreError, match="not an MLflow database"):
        Registry(tmp_path).leaderboard("bottles")
    with pytest.raises(ConfigError):
        model_name("a/b", "f2r")


def test_databases_of_other_versions(tmp_path, empty_database):
    path = tmp_path / "mlflow.db"
    shutil.copy(empty_database, path)

    def stamp(revision):
        with sqlite3.connect(path) as db:
            (old,) = db.execute("SELECT version_num FROM alembic_version").fetchone()
            db.execute("UPDATE alembic_version SET version_num = ?", (revision,))
        return old

    newest = stamp("from_the_future")
    with pytest.raises(StoreError, match="newer MLflow"):
        prepare_database(path)
    stamp(newest)
    assert prepare_database(path) == f"sqlite:///{path}"


def test_several_processes_may_want_the_database_at_once(tmp_path):
    code = (
        "import sys; from storage.registry.registry import Registry\n"
        "with Registry(sys.argv[1]).start('bottles', 'f2r', sys.argv[2]) as run:\n"
        "    run.metric('loss', 1, 1)"
    )
    begun = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), str(k)],
            cwd=Path(__file__).resolve().parents[3],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for k in range(2)
    ]
    said = [p.communicate(timeout=200)[0] for p in begun]
    assert [p.returncode for p in begun] == [0, 0], said
    assert said == ["", ""]  # MLflow's chatter is silenced
    registry = Registry(tmp_path)
    kept = list(registry._search(registry._experiment("bottles"), "attributes.status = 'FINISHED'"))
    assert len(kept) == 2
    assert not list(tmp_path.glob("*.tmp"))


def test_threads_register_versions_of_one_model(registry, saved):
    folders = [saved(f"m{k}") for k in range(6)]
    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(train, registry, f, key=f.name) for f in folders]:
            done.result()
    assert sorted(r["version"] for r in registry.leaderboard("bottles")) == list("123456")
    assert registry.get_model("bottles", "patchcore", "challenger")["version"] == "6"


def test_trainings_that_begin_at_once_share_a_data_set(registry, monkeypatch):
    together, plain = threading.Barrier(8), MlflowClient.log_inputs
    waited = set()

    def at_once(client, run_id, *inputs, **named):
        if run_id not in waited:  # not when asked again
            waited.add(run_id)
            together.wait(60)
        return plain(client, run_id, *inputs, **named)

    monkeypatch.setattr(MlflowClient, "log_inputs", at_once)

    def begin(n):
        with registry.start("bottles", f"head{n}", "k", params={}, tags=TAGS) as run:
            return run.run_id

    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(begin, range(8)))
    for run_id in runs:
        assert len(registry.client.get_run(run_id).inputs.dataset_inputs) == 1


def test_the_ui_is_for_this_machine_alone(registry, tmp_path):
    command = registry.ui_command(5001)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert f"sqlite:///{tmp_path}/mlflow.db" in command
    with pytest.raises(ConfigError, match="browser"):
        Registry(tmp_path, "http://mlflow.example:5000").ui_command()


def test_mlflow_sends_and_prints_nothing(registry):
    assert mlflow.telemetry.client.get_telemetry_client() is None
    assert isinstance(registry.client, MlflowClient)
