"""What was kept comes back: the leaderboard, one model, a training that was done before."""

import json

import pytest

from headwater.errors import ConfigError, ModelError, StoreError
from storage.registry.read import model_name
from storage.registry.registry import Registry
from tests.storage.registry.conftest import train


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
    with pytest.raises(ModelError, match=r"one of bottles.cs_flow, bottles.patchcore\n"):
        registry.get_model("bottles", "f2r")  # and not those of other sets


def test_a_champion_that_was_deleted_is_missed_and_not_replaced(registry, saved):
    for name in "abc":
        train(registry, saved(name), "patchcore", name)
    client, name = registry.client, "bottles.patchcore"
    client.set_registered_model_alias(name, "champion", "2")

    def version(wanted=None):
        return registry.get_model("bottles", "patchcore", wanted)["version"]

    assert version() == "2"
    client.delete_model_version(name, "2")  # as MLflow's pages do
    with pytest.raises(ModelError, match=r"champion of bottles.patchcore, version 2, was") as lost:
        version()
    assert "3, 1 or latest" in lost.value.expected
    assert "alias champion" in lost.value.remedy
    assert "--version N" in lost.value.remedy
    # Both ways out, and a champion that is only taken back leaves the newest, as ever.
    assert (version("latest"), version(1)) == ("3", "1")
    client.set_registered_model_alias(name, "champion", "1")
    assert version() == "1"
    client.delete_registered_model_alias(name, "champion")
    assert version() == "3"


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
