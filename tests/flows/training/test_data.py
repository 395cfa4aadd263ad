"""What a training reads: which samples, under which key, and what of it may teach a head."""

import dataclasses
import datetime as dt
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows.extraction.extract import extract_set
from flows.extraction.pair_list import PairList, Version
from flows.extraction.plan import HeadPlan, plan_job
from flows.extraction.samples import Sample
from flows.runtime.home import Home
from flows.runtime.settings import Settings
from flows.training.data import TrainingData
from flows.training.evaluation import judge
from flows.training.train import find_trained, train_head
from flows.training.trainings import Request, Training, stored_version
from heads.catalogue import get_head
from heads.contract import NullProgress, TrainOptions
from headwater.errors import DataError
from headwater.spec import ExtractorSpec, LayerSpec, ViewSpec, digest
from storage.registry.registry import Registry
from storage.serving.detector import Detector
from storage.store.table import ImageRow
from storage.upkeep.purge import purge
from tests.flows.setkit import QUIET, TINY, make_pairs, pair_settings

SPEC = ExtractorSpec("resnet18", "0" * 64, resize=(64, 64))
PLAN = HeadPlan(
    "f2r",
    "small",
    {"nodes": (), "ratio": 0.05, "views": 2, "seed": 0},
    SPEC,
    (LayerSpec.parse("layer2"), LayerSpec.parse("layer3~avg3s1")),
    dataclasses.replace(SPEC, views=ViewSpec(2)),
)
QUICK = {"epochs": 2, "device": "cpu", "workers": 3, "calibrate": "quick"}
OPTIONS = Settings.model_validate({"training": QUICK})


def trainings_of(settings, home, *, seed=None, known_by=None):
    """Return the trainings that `headwater train` would begin at the newest version."""
    at = stored_version(home, settings.image_set, None, pairs=settings.pairs is not None)
    return Request(settings, home, plan_job(settings, home, seed), at, known_by).trainings(at)


def key_of(samples, lacking=(), plan=PLAN, **settings):
    """Return the key of a training that sees these samples."""
    data = object.__new__(TrainingData)
    options = OPTIONS.training.model_copy(update={"held_out": 0.1, **settings})
    home, at = Home(Path("h")), Version(("x",))
    data.training = Training(plan, "s", home, at, Path("r"), None, options)
    data.all, data.lacking = samples, list(lacking)
    return data.key()


def test_trainings_of_long_ago_are_found_by_the_same_keys():
    root = Path("/r")
    rows = [
        ImageRow("a" * 64, "train/good/1.png"),
        ImageRow("b" * 64, "test/good/1.png", "test"),
        ImageRow("c" * 64, "test/dent/1.png", "test", "dent", "ground_truth/dent/1_mask.png"),
    ]
    images = [Sample.of(row, root) for row in rows]
    # What the version of June 2026 gave, of which homes are full.
    assert key_of(images) == key_of(images[::-1]) == "9adf811d87a32cca"
    assert key_of(images, ["train/good/1.png"]) == "6160f6e2903bf5c4"
    name = "1@0_64.png"
    paths = (root / "train/current" / name, root / "train/history" / name)
    crop = Sample("train/1@0_64", "train", "good", ("a" * 64, "b" * 64), paths,
                  root / "train/mask" / name, "d" * 64)  # fmt: skip
    paths = (root / "test/current/2.png", Path("/elsewhere/2.png"))
    bare = Sample("test/2", "test", "unlabelled", ("c" * 64, "b" * 64), paths)
    assert key_of([crop, bare], held_out=0.2) == "58429930a7220570"
    # What folds a calibration has is part of it; where there is none they are of no matter.
    folded = [key_of(images, calibrate="folds", folds=n) for n in (5, 6)]
    assert len({*folded, key_of(images)}) == 3
    assert key_of(images, folds=6) == key_of(images)
    labelled = dataclasses.replace(PLAN, head="pair_diff")
    assert len({key_of([bare], plan=labelled, calibrate=c) for c in ("folds", "quick")}) == 1
    listed = PairList(root, (crop, bare))
    assert digest(listed.to_json()) == "9654127a03c3566a"
    assert PairList.from_json(json.loads(json.dumps(listed.to_json()))) == listed


def test_a_training_knows_which_images_of_its_view_have_no_features(small):
    small.run()
    moment = time.time_ns()
    (small.images / "train/good/0.png").unlink()
    small.run()

    def lacking(known_by):
        (training,) = trainings_of(small.settings(), small.home, seed=3, known_by=known_by)
        data = TrainingData(training)
        return data.lacking, data.notes()

    assert lacking(None) == lacking(moment) == ([], [])
    purge(small.store, older_than=dt.timedelta(0), dry_run=False)
    assert lacking(None) == ([], [])
    names, notes = lacking(moment)
    assert names == ["train/good/0.png"]
    assert "1 image(s) without stored features were left out, such as train/good/0" in notes[0]
    assert "--snapshot trains on the store as it was then" in notes[0]


def test_a_training_on_the_past_is_judged_by_images_that_have_left_since(small):
    small.run()
    moment = time.time_ns()
    for gone in ("train/good/0.png", "test/good/20.png", "test/x/30.png"):
        (small.images / gone).unlink()
    small.run()
    (training,) = trainings_of(small.settings(), small.home, seed=3, known_by=moment)
    data = TrainingData(training)
    assert len(data.all) == 13
    train, held_out = data.sources()
    assert len(train) + len(held_out) == len(data.normals()) == 10
    head = get_head("patchcore")(training.plan.make_config(), train.shapes, data.spec.input_size)
    head.fit(train, held_out, TrainOptions(), NullProgress())
    judged = judge(data, head, held_out)
    names = {row["path"] for row in judged.table}
    assert names == {"test/good/20.png", "test/good/21.png", "test/x/30.png"}
    assert 0 <= judged.metrics["image_auroc"] <= 1


def test_a_mask_that_was_changed_is_named(boards, tmp_path):
    shutil.copytree(boards / "boards", tmp_path / "boards")
    home, settings = Home(tmp_path / "home"), pair_settings(boards, pairs=tmp_path / "boards")
    extract_set(settings, home, QUIET)
    (tmp_path / "boards/train/mask/02.png").write_bytes(b"other")
    (training,) = trainings_of(settings, home)
    with pytest.raises(DataError, match=r"mask/02\.png is gone, or not what it was"):
        TrainingData(training).sources()


def test_an_encoder_of_its_own_reads_images_and_needs_no_store(boards, tmp_path):
    own = {"pair_diff": {"encoder": "trained", **TINY}}
    settings = pair_settings(boards, heads=own, backbone={})
    home = Home(tmp_path / "home")
    report = extract_set(settings, home, QUIET)
    assert (report.computed, report.sides) == (0, [])
    assert not (home.root / "store").exists()
    (training,) = trainings_of(settings, home)
    assert training.at == dataclasses.replace(report.version, at=training.at.at)
    assert training.at.snapshots == ("", "")
    outcome = train_head(training)
    registry = Registry(home.root)
    assert find_trained(training, TrainingData(training).key(), registry).version == outcome.version
    row = registry.get_model("boards", "pair_diff")
    detector = Detector.load(row["uri"], registry)
    client = registry.client
    table = json.loads(
        Path(client.download_artifacts(row["run_id"], "tables/pairs.json")).read_text()
    )
    seen = [[np.asarray(Image.open(e[s])) for s in ("current", "history")] for e in table]
    got = [p.score for p in detector.predict([(a, b) for a, b in seen])]
    assert got == pytest.approx([e["score"] for e in table], rel=1e-5)


def test_changed_pairs_never_teach_pair_flow_and_the_way_out_works(boards, tmp_path, here):
    make_pairs(tmp_path / "all", "train", range(2, 8), set(range(2, 8)))
    make_pairs(tmp_path / "all", "test", [20], {20})
    settings = pair_settings(boards, pairs=tmp_path / "all", heads={"pair_flow": {}})
    home = Home(tmp_path / "home")
    with pytest.raises(DataError, match="0 of 6 training pairs are unchanged") as error:
        extract_set(settings, home, QUIET)
    assert "headwater pairs cut" in str(error.value)
    assert not (home.root / "store").exists()
    here("pairs", "cut", tmp_path / "all", tmp_path / "crops", "--size", 16)
    settings = pair_settings(boards, pairs=tmp_path / "crops", heads={"pair_flow": {}})
    report = extract_set(settings, home, QUIET)
    assert report.pairs.train > 12
    (training,) = trainings_of(settings, home)
    parts = [{p.source for p in part.pairs} for part in TrainingData(training).sources()]
    assert sorted(parts[0] | parts[1]) == [f"train/train_{i:02}" for i in range(2, 8)]
    assert not parts[0] & parts[1]
    found = report.pairs
    assert (found.pairs - found.train, found.changed) == (16, 4)
    assert f"{found.train} training pair(s) have no mask and count as unchanged" in report.notes[0]
