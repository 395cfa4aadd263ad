"""One training: its folds set the thresholds, all normals are learnt, and what was done is kept."""

import dataclasses
import hashlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from features.images.pixels import read_image
from flows.extraction.plan import plan_job, ready
from flows.training import train
from flows.training.data import TrainingData
from flows.training.record import known_by_of, training_from
from flows.training.train import find_trained, score_fold, train_head
from flows.training.trainings import Request
from flows.use.predict import predict
from heads.training.folds import Folds
from heads.training.out_of_fold import FoldByFold
from storage.registry.client import mlflow
from storage.registry.registry import Registry
from storage.serving.detector import Detector
from storage.serving.encoding import encode_image
from storage.store.table import nanoseconds
from tests.flows.setkit import QUIET, SmallSet


@pytest.fixture(scope="module")
def extracted(tmp_path_factory):
    """A set of 12 normal images, and 2 good and 1 defective to test, extracted."""
    made = SmallSet(tmp_path_factory.mktemp("set"))
    for part, numbers in (("train/good", range(12)), ("test/good", (20, 21)), ("test/x", (30,))):
        for number in numbers:
            made.draw(number, part)
    return made, made.run().version


def training_of(extracted, **options):
    small, at = extracted
    settings = ready(small.settings(), small.home, images=False)
    training = settings.training.model_copy(update=options)
    settings = settings.model_copy(update={"training": training})
    return Request(settings, small.home, plan_job(settings, small.home, 3), at).trainings(at)[0]


def artifact(home, run_id, name):
    registry = Registry(home.root)
    return json.loads(Path(registry.client.download_artifacts(run_id, name)).read_text())


def trained_folds(monkeypatch):
    """Return the folds that are trained from here on, as they come."""
    seen, fit = [], FoldByFold.one

    def one(self, fold, options, progress):
        kept = self.keep / f"fold-{fold}.safetensors"
        if not kept.is_file():
            seen.append(fold)
        return fit(self, fold, options, progress)

    monkeypatch.setattr(FoldByFold, "one", one)
    return seen


def test_folds_done_ahead_are_not_done_again_and_the_model_tells_of_them(extracted, monkeypatch):
    small, _ = extracted
    training = training_of(extracted, folds=4)
    seen = trained_folds(monkeypatch)
    score_fold(training, 2)
    score_fold(training, 9)  # there is none of that number
    assert seen == [2]
    outcome = train_head(training)
    assert sorted(seen) == [0, 1, 2, 3]
    assert not (small.home.checkpoints / TrainingData(training).key()).exists()
    score_fold(training, 0)  # found, as the training is
    assert len(seen) == 4

    registry = Registry(small.home.root)
    row = registry.get_model("s", "patchcore", outcome.version)
    detector = Detector.load(row["uri"], registry, "cpu")
    found = detector.calibration
    assert (found.n, found.rule, found.odd) == (12, "largest", 0)
    assert found.folds["by"] == "file order"
    assert found.folds["count"] == 4
    assert found.threshold == max(found.scores)
    assert any("12 normals can promise a false-positive rate of 7.69%" in n for n in outcome.notes)
    assert outcome.metrics.keys() >= {"image_auroc", "recall"}

    folds = Folds.from_json(artifact(small.home, outcome.run_id, "folds.json"))
    rows = artifact(small.home, outcome.run_id, "tables/normals.json")
    assert [r["score"] for r in rows] == sorted(found.scores, reverse=True)
    assert {r["sha256"]: r["fold"] for r in rows} == folds.of
    by_name = sorted(rows, key=lambda r: int(Path(r["path"]).stem))
    assert [r["fold"] for r in by_name] == sorted(r["fold"] for r in rows)
    assert [r["p_value"] for r in rows] == [(i + 1) / 12 for i in range(12)]
    run = registry.client.get_run(outcome.run_id)
    assert run.data.metrics["promised_false_positive_rate"] == pytest.approx(1 / 13)
    assert run.data.metrics["calibration_seconds"] > 0
    assert (run.data.params["train_rows"], run.data.params["held_out_images"]) == ("12", "0")
    check_what_is_logged(small, training, outcome, run, folds)

    # What a fold's head gave is what a head without these images gives.
    image = small.images / "train/good" / Path(by_name[0]["path"]).name
    (got,) = detector.predict([read_image(image)])
    assert got.score < by_name[0]["score"]  # the model has learnt it, the fold's head had not
    assert got.p_value == (1 + sum(s >= got.score for s in found.scores)) / 13
    told = predict(small.home, "s", QUIET, images=[image], head="patchcore")
    assert told[0]["p_value"] == got.p_value
    # Served, by the model's own code: a column, empty where the image cannot be read.
    table = pd.DataFrame({"image": [encode_image(read_image(image)), "no image"]})
    served = mlflow.pyfunc.load_model(str(registry.download(row["uri"]))).predict(table)
    assert served["p_value"].tolist() == [got.p_value, None]


def check_what_is_logged(small, training, outcome, run, folds):
    """What was used has one name each, and every image is told by its content."""
    params, figures = run.data.params, run.data.metrics
    used = {
        "seed": "0", "calibrate": "folds", "folds": "4", "folds_by": "file order", "device": "cpu",
        "train_images": "12", "test_images": "3", "input_size": "48x48", "size": "48x48",
        "crop": "none", "resize": "squash", "range": "none", "roi": "none",
        "stored_dtype": "float16", "extractor_precision": "float32", "target_fpr": "0.05",
    }  # fmt: skip
    assert params.items() >= used.items()
    asked = ("training.", "config.seed", "config.epochs", "config.nodes", "epochs", "known_by")
    assert not [name for name in params if name.startswith(asked)]
    assert not {"fit_fit_seconds", "fit_epochs", "recall"} & figures.keys()
    assert figures["image_recall"] == outcome.metrics["recall"]
    assert figures["threshold"] == pytest.approx(
        Detector.load(f"models:/s.patchcore/{outcome.version}", Registry(small.home.root), "cpu")
        .calibration.threshold
    )  # fmt: skip
    assert figures["promised_pixel_false_positive_rate"] > 0
    assert figures["kind/x/images"] == 1
    assert figures["kind/x/image_recall"] == outcome.metrics["recall"]
    (row,) = Registry(small.home.root).leaderboard("s")
    assert row["metrics"]["recall"] == outcome.metrics["recall"]  # as rows always called it
    assert not [k for k in row["metrics"] if "threshold" in k or "/" in k]
    samples = artifact(small.home, outcome.run_id, "tables/samples.json")
    assert len(samples) == 15
    assert {s["sha256"] for s in samples if s["role"] == "train"} == folds.of.keys()
    assert all(s["fold"] == folds.of.get(s["sha256"]) for s in samples)
    assert [s["path"] for s in samples if s["role"] == "test"] == [
        "test/good/20.png", "test/good/21.png", "test/x/30.png",
    ]  # fmt: skip
    kept = artifact(small.home, outcome.run_id, "lineage.json")
    assert kept["data_digest"] == run.data.tags["data_digest"]
    (data,) = run.inputs.dataset_inputs
    assert data.dataset.digest == kept["data_digest"]
    again = training_from(kept, small.home, small.images)
    assert (again.at, again.known_by, again.folds) == (training.at, None, 4)
    assert again.key("") == training.key("")
    version = Registry(small.home.root).client.get_model_version("s.patchcore", outcome.version)
    for told in ("images learnt", "on the test images", kept["data_digest"], "false alarms"):
        assert told in version.description
    assert version.tags["notes"] == run.data.tags["headwater.notes"]


def test_a_layer_more_leaves_the_datas_digest_as_it_was(extracted):
    small, at = extracted
    before = TrainingData(training_of(extracted)).tags()
    small.heads = {"patchcore": {"nodes": ["layer1"]}}
    try:
        more = small.run().version
    finally:
        small.heads = {"patchcore": {}}
    assert more != at
    after = TrainingData(training_of((small, more))).tags()
    assert after["data_digest"] == before["data_digest"]
    assert after["snapshot"] != before["snapshot"]


def test_the_past_is_trained_on_though_its_test_images_have_left(small):
    """And the snapshot of such a model means the same images as the model learnt."""
    small.run()
    moment = time.time_ns() // 1000 * 1000
    left = {small.images / f"test/{name}.png" for name in ("good/20", "x/30")}
    gone = {hashlib.sha256(path.read_bytes()).hexdigest() for path in left}
    for path in left:
        path.unlink()
    for number in range(40, 44):
        small.draw(number)
    at = small.run().version
    training = dataclasses.replace(training_of((small, at), calibrate="quick"), known_by=moment)
    outcome = train_head(training)
    run = Registry(small.home.root).client.get_run(outcome.run_id)
    assert nanoseconds(run.data.params["known_by"]) == moment
    samples = artifact(small.home, outcome.run_id, "tables/samples.json")
    assert len(samples) == 13
    assert gone < {s["sha256"] for s in samples if s["role"] == "test"}
    held = [s for s in samples if s["role"] == "held out"]
    assert [s["calibration_score"] is None for s in held] == [False, False]
    (data,) = run.inputs.dataset_inputs
    assert json.loads(data.dataset.profile)["train/good"] == 10
    assert json.loads(data.dataset.source)["known_by"] == run.data.params["known_by"]

    registry, snapshot = Registry(small.home.root), at.snapshots[0]
    meant = known_by_of(registry, "s", "model-patchcore-v1", snapshot)
    assert meant == known_by_of(registry, "s", snapshot, snapshot) == moment
    assert known_by_of(registry, "s", None, snapshot) is None  # what there is now
    assert known_by_of(registry, "s", "other", "another snapshot") is None


def test_quick_holds_images_out_as_before(extracted, monkeypatch):
    small, _ = extracted
    seen = trained_folds(monkeypatch)
    training = training_of(extracted, calibrate="quick")
    outcome = train_head(training)
    assert (training.folds, seen) == (0, [])
    registry = Registry(small.home.root)
    detector = Detector.load(registry.get_model("s", "patchcore", outcome.version)["uri"], registry)
    assert (detector.calibration.rule, detector.calibration.n) == ("tail", 2)
    found = detector.predict([np.zeros((48, 48, 3), np.uint8)])[0].p_value
    assert found in (1 / 3, 2 / 3, 1.0)
    # Another way to set thresholds is another training.
    assert find_trained(training, TrainingData(training_of(extracted)).key(), registry) is None


def test_a_training_that_was_killed_keeps_its_folds(extracted, monkeypatch):
    training = training_of(extracted, folds=3, seed=7)
    seen = trained_folds(monkeypatch)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "judge", killed)
        with pytest.raises(KeyboardInterrupt):
            train_head(training)
    assert seen == [0, 1, 2]
    train_head(training)
    assert seen == [0, 1, 2]


def test_folds_are_by_group_where_there_are_groups(extracted):
    small, _ = extracted
    training = training_of(extracted)
    data = TrainingData(training)
    before = data.key()
    shas = [s.contents[0] for s in data.learnt]
    small.home.add_groups("s", {sha: f"part {i % 3}" for i, sha in enumerate(shas)})
    try:
        data = TrainingData(dataclasses.replace(training))
        folds = data.folds(data.normals())
        assert (folds.by, folds.count) == ("group", 3)
        assert all(folds.of[sha] == folds.of[shas[i % 3]] for i, sha in enumerate(shas))
        assert data.key() != before
    finally:
        (small.home.root / "groups/s.json").unlink()


def test_the_same_training_asked_for_twice_at_once_is_one_version(extracted):
    training = training_of(extracted, calibrate="quick", held_out=0.3)
    with ThreadPoolExecutor(2) as both:
        done = list(both.map(train_head, [training] * 2))
    assert len({outcome.version for outcome in done}) == 1
    assert sorted(outcome.reused for outcome in done) == [False, True]
    assert not list(training.home.checkpoints.glob("*.lock"))
