"""Pairs through the product: one run in real processes, looked at from several sides."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from flows.extraction.pair_list import versions
from flows.runtime.home import Home
from storage.registry.client import mlflow
from storage.registry.registry import Registry
from storage.serving.detector import Detector
from storage.serving.encoding import decode_map, encode_image
from storage.store.feature_store import FeatureStore
from storage.upkeep.history import tags
from tests.flows.commandkit import run_command
from tests.flows.setkit import TINY

RUN = ["--size", "64", "--weights", "resnet18.safetensors", "--precision", "float32"]


@pytest.fixture(scope="module")
def work(boards):
    """The folder that commands run in."""
    return boards


def headwater(work, *arguments, status=0):
    """Run the command; return all that it said."""
    return "".join(run_command(work, *arguments, status=status))


SETTINGS = [f"pair_diff.{key}={value}" for key, value in TINY.items()] + ["pair_flow.steps=1"]
HEADS = ["--heads", "pair_diff,pair_flow", "--epochs", "2"]
HEADS += [part for setting in SETTINGS for part in ("--set", setting)]


@pytest.fixture(scope="module")
def first(work):
    """What the first run said."""
    return headwater(work, "run", "boards", "--pairs", "boards", *RUN, *HEADS, "--workers", "1")


@pytest.fixture(scope="module")
def rows(work, first):
    """The leaderboard, by head."""
    return {r["head"]: r for r in Registry(work / "home").leaderboard("boards")}


def table_of(work, row):
    client = Registry(work / "home").client
    return json.loads(
        Path(client.download_artifacts(row["run_id"], "tables/pairs.json")).read_text()
    )


def test_a_run_gives_models_with_pair_figures_and_both_snapshots_tagged(work, first, rows):
    assert "IoU" in first
    assert "6 changed training pair(s) left out" in first
    assert set(rows) == {"pair_diff", "pair_flow"}
    figures = {"precision", "recall", "overall_accuracy", "f1", "iou", "auc", "eer", "image_auroc"}
    client = Registry(work / "home").client
    for head, row in rows.items():
        assert figures <= set(row["metrics"]) | {"precision"}
        run = client.get_run(row["run_id"])
        # pair_flow learns from all pairs: none is held out.
        curve = "epoch/held_out" if head == "pair_diff" else "epoch/train"
        assert any(k.startswith(curve) for k in run.data.metrics)
        for path in ("figures/change-maps.png", "tables/pairs.csv", "pairs.json"):
            assert Path(client.download_artifacts(row["run_id"], path)).stat().st_size > 100
        for side, which in (("current", "snapshot"), ("history", "history_snapshot")):
            store = FeatureStore.open(work / "home/store", f"boards.{side}", create=False)
            assert tags(store)[f"model-{head}-v1"] == row[which]
    # 8:2 by hash, and of pair_flow's only the unchanged ones.
    counts = [client.get_run(rows[h]["run_id"]).data.params for h in ("pair_diff", "pair_flow")]
    assert [int(p["train_rows"]) + int(p["held_out_images"]) for p in counts] == [14, 8]


def test_a_second_run_does_nothing(work, first, rows):
    again = headwater(work, "run", "boards", *RUN, *HEADS)
    assert "the backbone was not run" in again
    assert "found in MLflow: pair_diff v1, pair_flow v1" in again  # before, and of each after it
    assert again.count("found in MLflow") == 3
    assert len(versions(Home(work / "home"), "boards")) == 1


def test_the_served_model_gives_what_the_evaluation_gave(work, rows):
    registry = Registry(work / "home")
    for row in rows.values():
        model = mlflow.pyfunc.load_model(str(registry.download(row["uri"])))
        table = table_of(work, row)
        assert len(table) == 4
        sides = ("current", "history")
        given = [{s: encode_image(np.asarray(Image.open(e[s]))) for s in sides} for e in table]
        got = model.predict(pd.DataFrame(given), params={"map": "npy"})
        assert got["score"].tolist() == pytest.approx([e["score"] for e in table], rel=1e-5)
        assert got["verdict"].tolist() == [e["verdict"] for e in table]
        cut = Detector.load(registry.download(row["uri"])).cut
        called = [int((decode_map(one) > cut).sum()) for _, one in got.iterrows()]
        assert called == pytest.approx([e["called_pixels"] for e in table], abs=2)
        broken = model.predict(pd.DataFrame([{"current": "no", "history": given[0]["history"]}]))
        assert "current 0" in broken["error"][0]


def test_predict_writes_the_change_map(work, rows, monkeypatch, here):
    monkeypatch.chdir(work)
    test = work / "boards/test"
    pair = ["--pair", test / "current", test / "history", "--head", "pair_diff"]
    got = json.loads(here("predict", "boards", *pair, "--json", "--home", work / "home"))
    known = {e["current"]: e for e in table_of(work, rows["pair_diff"])}
    assert len(got) == 4
    for one in got:
        assert one["score"] == pytest.approx(known[one["current"]]["score"], rel=1e-5)
        with Image.open(one["change_map"]) as shown:
            assert shown.width > 3 * 250


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "x", "--pairs", "boards", "--heads", "patchcore"], "patchcore reads single"),
        (["run", "x", "--images", "images", "--heads", "pair_diff"], "pair_diff reads pairs"),
        (["run", "boards", "--images", "images"], "boards is a set of pairs"),
        (["run", "x", "--images", "images", "--pairs", "boards"], "one of them, not both"),
        (["run", "x", "--pairs", "nowhere"], "nowhere: no such folder"),
        (["train", "boards", "--heads", "patchcore"], "patchcore reads single images"),
        (["train", "boards", "--set", "f2r.alpha=1"], "HEAD.KEY with HEAD of pair_diff"),
        (["predict", "boards", "one.png", "--head", "pair_flow"], "--pair CURRENT HISTORY"),
        (["predict", "boards"], "--pair CURRENT HISTORY"),
        (["store", "log", "boards"], "boards.current or boards.history"),
        (["run", "boards.current", "--images", "images"], "image set name"),
    ],
)  # fmt: skip
def test_mistakes_are_named_before_anything_is_computed(
    work, rows, arguments, said, monkeypatch, here
):
    monkeypatch.chdir(work)
    monkeypatch.setenv("HEADWATER_HOME", str(work / "home"))
    (work / "images/train/good").mkdir(parents=True, exist_ok=True)
    shutil.copy(work / "boards/test/current/20.png", work / "one.png")
    assert said in here(*arguments, status=2)
    assert not (work / "home/sets/x.json").exists()


def test_the_store_commands_work_on_a_side(work, rows, monkeypatch, here):
    monkeypatch.setenv("HEADWATER_HOME", str(work / "home"))
    for arguments in (["verify"], ["inspect"], ["gc", "--older-than", "0"]):
        command, *options = arguments
        facts = json.loads(here("store", command, "boards.history", *options, "--json"))
    assert rows["pair_flow"]["history_snapshot"] not in facts["expired"]
