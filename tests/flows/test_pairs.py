"""Pairs through the product: one run in real processes, looked at from several sides."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from flows.command.main import main
from flows.dags import make_jobs
from flows.extraction.extract import extract_set, plan_all
from flows.extraction.pair_list import load_pairs, pairs_digest, version_at, versions
from flows.runtime.console import Reporter
from flows.runtime.home import Home
from flows.runtime.settings import Settings
from flows.training.jobs import PairsRef
from flows.training.train import find_trained, train_head, work_of
from headwater.errors import ConfigError, DataError, SnapshotError
from storage.registry.client import mlflow
from storage.registry.registry import Registry
from storage.serving.detector import Detector
from storage.serving.encoding import decode_map, encode_image
from storage.store.feature_store import FeatureStore
from storage.upkeep.history import tags
from tests.flows.commandkit import run_command, save_weights

RUN = ["--size", "64", "--weights", "resnet18.safetensors", "--precision", "float32"]


def make_pairs(root: Path, split: str, numbers, changed, seed: int = 0) -> None:
    """Textures; in `changed` ones a bright square is new. Pairs 0 and 1 have one template."""
    for n in numbers:
        rng = np.random.default_rng((seed, 1 if n == 0 else n))
        before = rng.integers(60, 120, (64, 64, 3), dtype=np.uint8)
        now = np.clip(before + np.random.default_rng(n).integers(-4, 5, before.shape), 0, 255)
        mask = np.zeros((64, 64), np.uint8)
        if n in changed:
            mask[16 : 36 + n % 5, 20:44] = 255
            now[mask > 0] = 240
        for side, pixels in (("history", before), ("current", now), ("mask", mask)):
            path = root / split / side / f"{n:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder of pairs and a weight file; ``one.png`` is on both sides."""
    folder = tmp_path_factory.mktemp("pairs")
    make_pairs(folder / "boards", "train", range(14), {2, 3, 4, 5, 6, 7})
    make_pairs(folder / "boards", "test", range(20, 24), {21, 22, 23})
    shutil.copy(folder / "boards/train/current/08.png", folder / "boards/train/history/09.png")
    save_weights(folder)
    return folder


def headwater(work, *arguments, status=0):
    """Run the command; return all that it said."""
    return "".join(run_command(work, *arguments, status=status))


#: A tiny network: what is learnt is other tests' business.
TINY = {"width": 4, "embedding": 16, "mlp": 16, "heads": 2, "layers": 1}
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


def settings_of(work, **more) -> Settings:
    return Settings.model_validate(
        {
            "image_set": "boards",
            "pairs": work / "boards",
            "backbone": {"weights": work / "resnet18.safetensors"},
            "extraction": {"size": 64, "precision": "float32"},
            "training": {"epochs": 2, "preset": "small"},
            "heads": {"pair_diff": {}},
            **more,
        }
    )


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
        assert any(k.startswith("epoch/held_out") for k in run.data.metrics)
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
    assert again.count("found in MLflow") == 2
    assert len(versions(Home(work / "home"), "boards")) == 1


def test_each_image_is_computed_once_and_new_pairs_cost_only_themselves(work, first, tmp_path):
    more = tmp_path / "more"
    shutil.copytree(work / "boards", more)
    names = [p for side in ("current", "history") for p in more.glob(f"*/{side}/*.png")]
    distinct = {p.read_bytes() for p in names}
    assert len(distinct) == len(names) - 2  # one template of two pairs, one image on both sides
    home, quiet = Home(tmp_path / "home"), Reporter(quiet=True)
    report = extract_set(settings_of(work, pairs=more), home, quiet)
    assert report.computed == len(distinct)
    before = report.version
    make_pairs(more, "train", [0, 30], {30})  # 0 is there already
    (more / "train/history/31.png").write_bytes((more / "train/history/30.png").read_bytes())
    shutil.copy(more / "train/current/30.png", more / "train/current/31.png")
    report = extract_set(settings_of(work, pairs=more), home, quiet)
    assert (report.computed, report.pairs) == (2, 20)
    # The list belongs to its time: at the old snapshot there were 18 pairs.
    assert len(load_pairs(home, "boards", version_at(home, "boards").pairs).rows) == 20
    for snapshot in (before.current, before.history):
        assert version_at(home, "boards", snapshot) == versions(home, "boards")[0]
    with pytest.raises(SnapshotError, match="no pairs at snapshot"):
        version_at(home, "boards", "nowhere")
    # What was current becomes history: nothing is computed again.
    rolled = tmp_path / "rolled"
    for side, source in (("current", "current"), ("history", "current"), ("mask", "mask")):
        shutil.copytree(more / "train" / source, rolled / "train" / side)
    assert extract_set(settings_of(work, pairs=rolled), home, quiet).computed == 0
    # Another label is another training, another path is not.
    listed = load_pairs(home, "boards", report.version.pairs)
    Image.new("L", (64, 64)).save(more / "train/mask/30.png")
    report = extract_set(settings_of(work, pairs=more), home, quiet)
    relabelled = load_pairs(home, "boards", report.version.pairs)
    assert pairs_digest(relabelled.rows) != pairs_digest(listed.rows)
    cut = [dataclasses.replace(r, key=f"{r.key}@0_0") for r in listed.rows]
    assert pairs_digest(cut) != pairs_digest(listed.rows)
    assert cut[0].source == listed.rows[0].key
    (more / "train/mask/30.png").write_bytes(b"other")
    job = make_jobs(settings_of(work), home, plans_of(work, home), report.version, weights=None)[0]
    with pytest.raises(DataError, match=r"mask/30\.png is gone, or not what it was"):
        train_head(job)


def plans_of(work, home, **more):
    return plan_all(settings_of(work, **more), home)[1]


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


def test_predict_writes_the_change_map(work, rows, monkeypatch, capsys):
    monkeypatch.chdir(work)
    test = work / "boards/test"
    pair = ["--pair", str(test / "current"), str(test / "history")]
    command = ["headwater", "predict", "boards", *pair, "--head", "pair_diff", "--json"]
    monkeypatch.setattr(sys, "argv", [*command, "--home", str(work / "home")])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    got = json.loads(capsys.readouterr().out)
    known = {e["current"]: e for e in table_of(work, rows["pair_diff"])}
    assert len(got) == 4
    for one in got:
        assert one["score"] == pytest.approx(known[one["current"]]["score"], rel=1e-5)
        with Image.open(one["change_map"]) as shown:
            assert shown.width > 3 * 250


def test_an_encoder_of_its_own_reads_images_and_needs_no_store(work, tmp_path):
    own = {"pair_diff": {"encoder": "trained", **TINY}}
    settings = settings_of(work, heads=own, backbone={})
    home = Home(tmp_path / "home")
    report = extract_set(settings, home, Reporter(quiet=True))
    assert (report.computed, report.sides) == (0, [])
    assert not (home.root / "store").exists()
    (plan,) = plan_all(settings, home)[1]
    (job,) = make_jobs(settings, home, [plan], version_at(home, "boards"), weights=None)
    assert job.pairs == PairsRef(report.version.pairs, "")
    outcome = train_head(job)
    registry = Registry(home.root)
    assert find_trained(job, work_of(job, home).key(), registry).version == outcome.version
    row = registry.get_model("boards", "pair_diff")
    detector = Detector.load(row["uri"], registry)
    client = registry.client
    table = json.loads(
        Path(client.download_artifacts(row["run_id"], "tables/pairs.json")).read_text()
    )
    seen = [[np.asarray(Image.open(e[s])) for s in ("current", "history")] for e in table]
    got = [p.score for p in detector.predict([(a, b) for a, b in seen])]
    assert got == pytest.approx([e["score"] for e in table], rel=1e-5)


def test_changed_pairs_never_teach_pair_flow_and_the_way_out_works(work, tmp_path, monkeypatch):
    make_pairs(tmp_path / "all", "train", range(2, 8), set(range(2, 8)))
    make_pairs(tmp_path / "all", "test", [20], {20})
    settings = settings_of(work, pairs=tmp_path / "all", heads={"pair_flow": {}})
    home = Home(tmp_path / "home")
    with pytest.raises(DataError, match="0 of 6 training pairs are unchanged") as error:
        extract_set(settings, home, Reporter(quiet=True))
    assert "headwater pairs cut" in str(error.value)
    assert not (home.root / "store").exists()
    arguments = ["headwater", "pairs", "cut", tmp_path / "all", tmp_path / "crops", "--size", "16"]
    monkeypatch.setattr(sys, "argv", [str(a) for a in arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    settings = settings_of(work, pairs=tmp_path / "crops", heads={"pair_flow": {}})
    report = extract_set(settings, home, Reporter(quiet=True))
    assert report.train > 12
    (plan,) = plan_all(settings, home)[1]
    (job,) = make_jobs(settings, home, [plan], version_at(home, "boards"), weights=None)
    parts = [{p.source for p in part.pairs} for part in work_of(job, home).sources()]
    assert sorted(parts[0] | parts[1]) == [f"train/train_{i:02}" for i in range(2, 8)]
    assert not parts[0] & parts[1]
    assert (report.pairs - report.train, report.changed) == (16, 4)
    assert f"{report.train} training pair(s) have no mask and count as unchanged" in report.notes[0]


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
    work, rows, arguments, said, monkeypatch, capsys
):
    monkeypatch.chdir(work)
    monkeypatch.setenv("HEADWATER_HOME", str(work / "home"))
    monkeypatch.setattr(sys, "argv", ["headwater", *arguments])
    (work / "images/train/good").mkdir(parents=True, exist_ok=True)
    shutil.copy(work / "boards/test/current/20.png", work / "one.png")
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert "Traceback" not in shown
    assert not (work / "home/sets/x.json").exists()


def test_the_store_commands_work_on_a_side(work, rows, monkeypatch, capsys):
    monkeypatch.setenv("HEADWATER_HOME", str(work / "home"))
    for arguments in (["verify"], ["inspect"], ["gc", "--older-than", "0"]):
        command = ["headwater", "store", arguments[0], "boards.history", *arguments[1:], "--json"]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 0
        facts = json.loads(capsys.readouterr().out)
    assert rows["pair_flow"]["history_snapshot"] not in facts["expired"]


def test_heads_and_sets_must_fit(work):
    from flows.extraction.plan import check_kind

    with pytest.raises(ConfigError, match="patchcore, padim read single images"):
        check_kind(settings_of(work, heads={"patchcore": {}, "padim": {}, "pair_diff": {}}))
