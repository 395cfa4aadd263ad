"""Heads of a run joined: found as they were trained, calibrated together, served as one model."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from features.images.pixels import read_image
from flows.extraction.combine import members
from flows.extraction.plan import plan_job, ready
from flows.runtime.sources import load_settings
from flows.training.data import TrainingData
from flows.training.found import find_trained
from flows.training.joint import work_of
from flows.training.train import train_head
from flows.training.trainings import Request
from flows.use.models.lineage import lineage
from flows.use.models.reproduce import reproduce
from heads.contract import Head
from heads.training.kept import kept
from headwater.errors import ConfigError, DataError
from headwater.spec import ExtractorSpec
from storage.registry.client import mlflow
from storage.registry.registry import Registry
from storage.serving.bundle import write_bundle
from storage.serving.detector import Detector
from storage.serving.encoding import encode_image
from tests.flows.setkit import QUIET, SmallSet, save

HEADS = {"patchcore": {"nodes": ["layer1"]}, "padim": {"nodes": ["layer1", "layer2"]}}


def requested(small, at, seen=None, **options):
    """The trainings of a request: those of the heads, and behind them the ensemble's."""
    settings = ready(small.settings(), small.home, images=False)
    training = settings.training.model_copy(update=options)
    settings = settings.model_copy(update={"training": training, "combine": ("all",)})
    asked = Request(settings, small.home, plan_job(settings, small.home, 3), at)
    asked = Request.from_json(asked.to_json())  # as Prefect hands it on
    return dataclasses.replace(asked, plan=asked.plan.seeing(**(seen or {}))).trainings(at)


def trained(trainings):
    return [train_head(one, None, work_of(one)) for one in trainings]


def opened(small, outcome):
    registry = Registry(small.home.root)
    return Detector.load(f"models:/{outcome.model}/{outcome.version}", registry, "cpu")


def drawn(folder, **extraction):
    small = SmallSet(folder)
    small.heads = HEADS
    small.extraction = {**small.extraction, **extraction}
    for part, numbers in (("train/good", range(9)), ("test/good", (20, 21)), ("test/x", (30, 31))):
        for number in numbers:
            small.draw(number, part)
    return small


@pytest.fixture(scope="module")
def made(tmp_path_factory, empty_database):
    """A set, its trainings, and what came of them."""
    small = drawn(tmp_path_factory.mktemp("set"))
    shutil.copy(empty_database, small.home.root / "mlflow.db")
    trainings = requested(small, small.run().version, folds=3)
    return small, trainings, trained(trainings)


def mean_of(values, normal):
    """The mean of values by mean and deviation of the normals', an array a member."""
    both = zip(values, normal, strict=True)
    return np.mean([(v - np.mean(n)) / np.std(n) for v, n in both], axis=0)


def test_it_scores_and_is_served_as_its_members_standardised_mean(made, tmp_path):
    small, _, outcomes = made
    images = [read_image(path) for path in sorted(small.images.rglob("test/*/*.png"))]
    *own, whole = (opened(small, one) for one in outcomes)
    normal = [np.array(one.calibration.scores) for one in own]
    apart = [[p.score for p in one.predict(images)] for one in own]
    got = whole.predict(images)
    scores = [p.score for p in got]
    assert scores == pytest.approx(mean_of(np.array(apart), normal), rel=1e-6, abs=1e-6)
    for batch in (1, 3):
        assert [p.score for p in whole.predict(images, batch=batch)] == pytest.approx(scores)
    # Its out-of-fold scores are those of its members, image by image.
    tables = [
        {r["sha256"]: r["score"] for r in json.loads(table(small, one, "normals").read_text())}
        for one in outcomes
    ]
    order = list(tables[0])
    parts = np.array([[one[sha] for sha in order] for one in tables])
    assert parts[2] == pytest.approx(mean_of(parts[:2], parts[:2]), rel=1e-6, abs=1e-6)
    assert sorted(parts[2]) == pytest.approx(whole.calibration.scores)
    assert whole.calibration.folds["count"] == 3
    assert whole.calibration.volume_threshold is not None
    # One backbone pass: the union of what the members read, in three files as any model.
    assert [x.name for x in whole.layers] == ["layer1~avg3s1", "layer1+layer2"]
    folder = Registry(small.home.root).download(f"models:/{outcomes[2].model}/1")
    assert sorted(p.name for p in (folder / "artifacts").iterdir()) == [
        "backbone.safetensors", "head.safetensors", "manifest.json",
    ]  # fmt: skip
    told = pd.DataFrame({"image": [encode_image(image) for image in images]})
    assert mlflow.pyfunc.load_model(str(folder)).predict(told)["score"].tolist() == scores
    write_bundle(folder, tmp_path / "e.zip", {"model": "s.ensemble", "version": "1"})
    again = Detector.load(tmp_path / "e.zip", device="cpu").predict(images)
    assert [p.score for p in again] == scores
    assert all(np.array_equal(one.map, p.map) for one, p in zip(again, got, strict=True))


def table(small, outcome, name):
    return Registry(small.home.root).artifact(outcome.run_id, f"tables/{name}.json")


def test_nothing_is_trained_for_it_and_it_is_found_again(made, monkeypatch):
    small, trainings, outcomes = made
    monkeypatch.setattr(Head, "fit", None)
    registry = Registry(small.home.root)
    training = dataclasses.replace(
        trainings[2], options=trainings[2].options.model_copy(update={"target_fpr": 0.05})
    )
    found = find_trained(training, TrainingData(training).key(), registry)
    assert (found.reused, found.version) == (True, "1")
    assert trainings[2].own_folds == 0
    # Anew, as of another run: from what the members' runs kept.
    registry.client.delete_tag(outcomes[2].run_id, "headwater.version")
    second = train_head(trainings[2], None, work_of(trainings[2]))
    one, other = opened(small, outcomes[2]).calibration, opened(small, second).calibration
    assert one == other
    registry.client.set_tag(outcomes[2].run_id, "headwater.version", "1")


def test_its_lineage_names_its_members_and_it_comes_out_again(made):
    small, _, _ = made
    found = lineage(small.home, "s.ensemble/1")
    assert found["images"] == {"train": 9, "test": 4}
    assert [(one["model"], one["version"]) for one in found["parents"]["members"]] == [
        ("s.patchcore", "1"), ("s.padim", "1"),
    ]  # fmt: skip
    assert found["settings"]["members"] == "s.patchcore/1, s.padim/1"
    assert "members" not in lineage(small.home, "s.padim")["parents"]
    again = reproduce(small.home, "s.ensemble/1", QUIET)
    assert (again.difference, again.verdicts, again.agree) == (0.0, 0, True)
    assert again.threshold[0] == again.threshold[1]


def test_of_runs_that_kept_no_maps_the_folds_are_scored_again(made):
    small, trainings, outcomes = made
    registry, gone = Registry(small.home.root), []
    for one in outcomes[:2]:
        file = registry.artifact(one.run_id, "out-of-fold.npz")
        gone.append((file, file.rename(file.with_suffix(".away"))))
    try:
        registry.client.delete_tag(outcomes[2].run_id, "headwater.version")
        second = train_head(trainings[2], None, work_of(trainings[2]))
    finally:
        for file, away in gone:
            Path(away).rename(file)
        registry.client.set_tag(outcomes[2].run_id, "headwater.version", "1")
    assert opened(small, second).calibration == opened(small, outcomes[2]).calibration


def test_each_seed_has_an_ensemble_of_its_own(made):
    small, trainings, _ = made
    found = requested(small, trainings[0].at, seeds=(0, 4), folds=3)
    assert [one.called for one in found] == [
        f"{name} seed {seed}" for seed in (0, 4) for name in ("patchcore", "padim", "ensemble")
    ]
    for at in (0, 3):
        *heads, ensemble = found[at : at + 3]
        assert [one.key("") for one in ensemble.members] == [one.key("") for one in heads]
    assert found[2].key("") == trainings[2].key("")  # as if it had been asked for alone
    assert found[5].key("") != found[2].key("")


def test_a_member_that_is_not_there_is_named(made):
    _, trainings, _ = made
    options = trainings[2].options.model_copy(update={"seed": 5, "target_fpr": 0.2})
    with pytest.raises(DataError, match="patchcore, a member of the ensemble, is not trained"):
        other = dataclasses.replace(trainings[2], options=options)
        train_head(other, None, work_of(other))


@pytest.mark.slow
def test_quick_calibration_and_tiles_take_the_held_out_images(tmp_path, empty_database):
    small = drawn(tmp_path, tile=32, overlap=8, size=32)
    small.heads = {"patchcore": {"nodes": ["layer1"]}, "fast_flow": {"epochs": 1, "steps": 1}}
    shutil.copy(empty_database, small.home.root / "mlflow.db")
    report = small.run()
    trainings = requested(small, report.version, report.seen)
    outcomes = trained(trainings)
    *own, whole = (opened(small, one) for one in outcomes)
    assert (whole.calibration.n, whole.calibration.rule) == (own[0].calibration.n, "tail")
    file = small.images / "test/x/30.png"
    (got,) = whole.predict([read_image(file)])
    rows = json.loads(table(small, outcomes[2], "images").read_text())
    assert got.score == pytest.approx(
        next(r["score"] for r in rows if r["path"] == "test/x/30.png"), rel=1e-5
    )
    # Of tiles maps are joined, and the score is the joined map's largest value.
    assert got.score == pytest.approx(float(got.map.max()))
    maps = [one.predict([read_image(file)])[0].map for one in own]
    scales = zip(maps, whole.head.heat.mean, whole.head.heat.deviation, strict=True)
    expected = np.mean([(m - float(x)) / float(d) for m, x, d in scales], axis=0)
    np.testing.assert_allclose(got.map, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_what_is_not_looked_at_is_none_of_the_ensembles_either(tmp_path, empty_database):
    small = SmallSet(tmp_path)
    small.heads, small.extraction = HEADS, {**small.extraction, "resize": "fit"}
    for part, numbers in (("train/good", range(8)), ("test/good", (20, 21)), ("test/x", (30,))):
        for number in numbers:
            pixels = np.random.default_rng(number).integers(90, 110, (48, 24, 3), dtype=np.uint8)
            save(pixels, small.images / part / f"{number}.png")
    shutil.copy(empty_database, small.home.root / "mlflow.db")
    report = small.run()
    *_, outcome = trained(requested(small, report.version, report.seen, folds=2))
    found = Registry(small.home.root).artifact(outcome.run_id, "out-of-fold.npz")
    maps = kept(found).maps  # half of each is padding
    assert np.ma.getmaskarray(maps).mean() == 0.5
    (got,) = opened(small, outcome).predict([read_image(small.images / "test/x/30.png")])
    (row,) = [
        r for r in json.loads(table(small, outcome, "images").read_text()) if "30" in r["path"]
    ]
    assert got.score == pytest.approx(row["score"], rel=1e-5)
    assert got.map.shape == (48, 24)


SPEC = ExtractorSpec("resnet18", "none", resize=(64, 64))
LARGE = dataclasses.replace(SPEC, resize=(96, 96))


def test_members_are_heads_of_the_run_that_see_the_same_images():
    run = {"patchcore": (SPEC, False), "padim": (SPEC, False), "cs_flow": (LARGE, False)}
    assert members(run, ("patchcore", "padim")) == (["patchcore", "padim"], [])
    names, notes = members(run, ("all",))
    assert names == ["patchcore", "padim"]
    assert "cs_flow is no part of the ensemble: it sees images at 96x96 px" in notes[0]
    for wanted, said in (
        (("patchcore", "cs_flow"), "cs_flow sees images at 96x96 px, others at 64x64"),
        (("patchcore", "f2r"), "f2r is none of the run's heads"),
        (("patchcore", "patchcore"), "2 heads or more"),
    ):
        with pytest.raises(ConfigError, match=said):
            members(run, wanted)
    pairs = {"pair_diff": (SPEC, True), "pair_flow": (SPEC, False)}
    with pytest.raises(ConfigError, match="pair_diff reads pairs"):
        members(pairs, ("all",))


def test_what_to_combine_is_said_in_several_ways(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given, found in (
        ("all", ("all",)), ("a, b", ("a", "b")), (True, ("all",)), (["a", "b"], ("a", "b")),
        ("no", ("no",)), (False, ()), ("false", ()), (None, None),
    ):  # fmt: skip
        assert load_settings(None, {"combine": given}).combine == found
    file = tmp_path / "headwater.yaml"
    file.write_text("combine: true\n")
    assert load_settings().combine == ("all",)
    file.write_text("combine: [patchcore, padim]\n")
    assert load_settings().combine == ("patchcore", "padim")
