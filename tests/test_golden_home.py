"""A home of an earlier version opens, predicts to the bit, and goes on: for ever.

``golden/make_home.py`` says how ``golden/home-*`` came to be. A test opens a copy of it, in which
the folder it was made at is replaced by the copy's in all that holds absolute addresses.
"""

import dataclasses
import hashlib
import json
import platform
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from features.backbones.backbone import Backbone
from features.images.pixels import read_image
from flows import pipeline
from flows.command.main import main
from flows.extraction.extract import extract_set
from flows.extraction.plan import plan_job
from flows.runtime.console import Reporter
from flows.runtime.home import Home
from flows.runtime.settings import Settings
from flows.training.train import train_head
from flows.training.trainings import Request
from heads.catalogue import get_head
from heads.training.arithmetic import running
from storage.registry.client import mlflow
from storage.registry.registry import Registry
from storage.serving.detector import Detector
from storage.serving.encoding import encode_image
from storage.store.feature_store import FeatureStore
from storage.upkeep.history import tags
from tests.flows.commandkit import features
from tests.golden.home import GOLDEN, MADE_AT, unpack

TOLD = json.loads((GOLDEN / "expected.json").read_text())
MODELS = sorted(TOLD["keys"])
SIDES = ["current", "history"]
#: Of the largest value: what another CPU, or another torch, may differ by; see `agree`.
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """A copy to look at."""
    return unpack(tmp_path_factory.mktemp("golden"))


@pytest.fixture
def one_thread():
    """As the numbers were made: sums of several threads differ in their last bits."""
    with running(torch.device("cpu"), 1):
        yield


def same_machine() -> bool:
    about = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [x.partition(":")[2].strip() for x in about.splitlines() if x.startswith("model name")]
    here = {
        "machine": platform.machine(),
        "model": names[0] if names else platform.processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }
    return here == TOLD["cpu"]


def agree(got, expected) -> bool:
    """Compare to the bit on the kind of CPU, and with the torch, that computed what is expected.

    Other instruction sets and other versions of the libraries add up in another order, and now and
    then a feature is then rounded to the other float16 next to it. Measured with torch held to
    its plainest kernels: 2e-4 of the largest value in a map, 7e-6 in a score; to AVX2: 2e-7.
    """
    got, expected = np.asarray(got), np.asarray(expected)
    if same_machine():
        return np.array_equal(got, expected)
    return np.allclose(got, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


@pytest.mark.parametrize("name", MODELS)
def test_a_model_predicts_as_it_did(name, golden, one_thread, monkeypatch):
    registry = Registry(golden / "home")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.uri)
    uri = f"models:/{name}"
    if name.startswith("tiles"):
        given = [read_image(golden / path) for path in TOLD["images"]]
        table = pd.DataFrame({"image": [encode_image(x) for x in given]})
    else:
        test = golden / "images/boards/test"
        given = [tuple(read_image(test / s / f"{i}.png") for s in SIDES) for i in (6, 7, 8)]
        table = pd.DataFrame([map(encode_image, x) for x in given], columns=SIDES)
    got = Detector.load(uri, registry, device="cpu").predict(given)
    with np.load(GOLDEN / "expected.npz") as expected:
        assert agree([p.score for p in got], expected[f"{name}/scores"])
        assert agree(np.stack([p.map for p in got]), expected[f"{name}/maps"])
        # By the code file in the model's folder, which names modules of the version that wrote it.
        served = mlflow.pyfunc.load_model(uri).predict(table)
        assert agree(served["score"], expected[f"{name}/served"])
    assert [p.verdict for p in got] == served["verdict"].tolist() == TOLD["verdicts"][name]


@pytest.mark.parametrize("name", sorted(TOLD["features"]))
def test_the_store_reads_the_same(name, golden):
    store = FeatureStore.open(golden / "home/store", name, create=False)
    found = {
        " ".join(map(str, key)): hashlib.sha256(values.tobytes()).hexdigest()[:16]
        for key, values in features(store).items()
    }
    assert found == TOLD["features"][name]
    assert tags(store) == TOLD["tags"][name]


@pytest.mark.parametrize("image_set", sorted(TOLD["leaderboard"]))
def test_the_leaderboard_says_the_same(image_set, golden):
    """All of it: figures, snapshots, ids of extractors and runs, versions, aliases."""
    assert Registry(golden / "home").leaderboard(image_set) == TOLD["leaderboard"][image_set]


def called(*_, **__):
    raise AssertionError("the backbone was run, or Prefect")


def test_the_same_commands_extract_and_train_nothing(tmp_path, monkeypatch, capsys):
    unpack(tmp_path)
    monkeypatch.setenv("HEADWATER_HOME", str(tmp_path / "home"))
    # As they were trained: out-of-fold scores are another way, and so another training.
    monkeypatch.setenv("HEADWATER_TRAINING__CALIBRATE", "quick")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Backbone, "maps", called)
    # Prefect takes longer to start than all of it.
    monkeypatch.setattr(pipeline, "_through_prefect", called)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home/prefect"))
    for command in TOLD["commands"]:
        given = [x.replace(MADE_AT, str(tmp_path)) for x in command]
        # As was then, before there was a choice.
        named = given[given.index("--heads") + 1].split(",")
        for setting in ("score=paper", "whiten=never"):
            fields = {n: {f.name for f in dataclasses.fields(get_head(n).Config)} for n in named}
            own = [n for n in named if setting.split("=")[0] in fields[n]]
            given += [part for n in own for part in ("--set", f"{n}.{setting}")]
        monkeypatch.setattr(sys, "argv", ["headwater", *given])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        assert end.value.code == 0, said.out + said.err
        assert "the backbone was not run" in said.out
        wanted = given[given.index("--heads") + 1].split(",")
        assert said.out.count("found in MLflow") == len(wanted)
        assert "trained" not in said.out
    registry = Registry(tmp_path / "home")
    for image_set, rows in TOLD["leaderboard"].items():
        assert registry.leaderboard(image_set) == rows


@pytest.mark.parametrize(
    ("image_set", "head", "values", "version"),
    [
        ("tiles", "patchcore", {"nodes": ["layer2"], "ratio": 0.3}, "3"),
        ("boards", "pair_flow", {"nodes": ["layer1", "layer2"], "channels": 8, "steps": 2}, "2"),
    ],
)
def test_training_goes_on_from_the_stored_features(
    image_set, head, values, version, tmp_path, monkeypatch
):
    unpack(tmp_path)
    home, quiet = Home(tmp_path / "home"), Reporter(quiet=True)
    card = home.card(image_set)
    settings = Settings.model_validate(
        {
            "image_set": image_set,
            **{k: card[k] for k in ("images", "pairs", "backbone")},
            "extraction": {"size": 64, "precision": "float32"},
            "training": {"epochs": 1, "preset": "small", "device": "cpu"},
            "heads": {head: values},
        }
    )

    monkeypatch.setattr(Backbone, "maps", called)
    report = extract_set(settings, home, quiet)
    assert report.computed == 0
    (training,) = Request(settings, home, plan_job(settings, home)).trainings(report.version)
    outcome = train_head(training)
    assert (outcome.version, outcome.reused) == (version, False)
    rows = {(r["head"], r["version"]) for r in Registry(home.root).leaderboard(image_set)}
    assert rows == {(r["head"], r["version"]) for r in TOLD["leaderboard"][image_set]} | {
        (head, version)
    }
