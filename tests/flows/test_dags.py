"""The main job through the command itself: images to registered models, in real processes.

One run is made for the module; the tests look at it from several sides. Weights are those of a
seeded net written to a file, so that everything here runs without ../shared.
"""

import json
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Semaphore
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.flows.commandkit import HEADWATER, environment, run_command


@pytest.fixture(scope="module")
def work(tiles):
    """The folder that commands run in."""
    return tiles


def headwater(work, *arguments, status=0):
    """Run the command; return its standard output, and all it said where that was a mistake."""
    said, complained = run_command(work, *arguments, status=status)
    return said + complained if status == 2 else said


RUN = ["--size", "64", "--weights", "resnet18.safetensors", "--backbone", "resnet18"]


@pytest.fixture(scope="module")
def first(work):
    """All that the first run said."""
    heads = ["--heads", "patchcore,cs_flow", "--epochs", "2", "--workers", "1"]
    return "".join(run_command(work, "run", "tiles", "--images", "images", *RUN, *heads))


def rows_of(work, *arguments):
    return json.loads(headwater(work, "compare", "tiles", "--json", *arguments))


def test_run_ends_with_a_leaderboard_pictures_and_the_ui_command(work, first):
    assert "leaderboard" in first
    pictures = [line.strip() for line in first.splitlines() if line.strip().endswith(".png")]
    assert len(pictures) == 2
    for picture in pictures:
        with Image.open(work / picture) as shown:
            assert shown.width > 300
    assert "headwater ui --home" in first
    # Every image and mask, whoever of forecast and extraction read it.
    assert "24 files read" in first
    # Few images promise little: said, and once for both heads.
    assert first.count("12 normals can promise a false-positive rate of 7.69%, not 5.00%") == 1
    # That every fold is a training is said before it begins.
    assert "(6 trainings each: 5 folds set the thresholds" in first


def test_plan_finds_what_a_run_would_find(work, first):
    assert "; train patchcore, cs_flow" in first  # said before it began
    heads = ["--heads", "patchcore,cs_flow,padim", "--epochs", "2"]
    said = json.loads(headwater(work, "plan", "tiles", *RUN, *heads, "--json"))
    models = {one["head"]: one["model"] for one in said["trainings"]}
    assert models == {"patchcore": "v1", "cs_flow": "v1", "padim": ""}
    # With another seed it is another training, and how long it takes is known.
    said = json.loads(headwater(work, "plan", "tiles", *RUN, *heads, "--seed", "5", "--json"))
    known = {one["head"]: one["seconds"] for one in said["trainings"] if not one["model"]}
    assert known["patchcore"] > 0
    assert known["cs_flow"] > 0
    assert known["padim"] is None


def test_versions_are_numbered_in_the_order_of_the_seeds():
    from flows.dags import train_head, train_task

    made, folds = [], Semaphore(0)

    class Dask:
        """Takes folds as they come and notes trainings; that of seed 2 fails."""

        def scheduler_info(self, n_workers):
            return {"workers": {}}

        def submit(self, work, training, *number, **how):
            made.extend([training.seed] * (work is train_head))
            return SimpleNamespace(result=lambda: 1 / (training.seed - 2))

        def gather(self, futures, errors):
            folds.release()

    ended = [Event() for _ in range(3)]
    turns = list(zip((5, 2, 7), (None, *ended), ended, strict=False))
    with ThreadPoolExecutor(3) as pool:

        def start(seed, before, done):
            options = SimpleNamespace(device="cpu")
            plan = SimpleNamespace(members=())
            one = SimpleNamespace(
                seed=seed, own_folds=5, plan=plan, options=options, grown_from=None
            )
            started = pool.submit(train_task.fn, Dask(), "", one, before, done)
            assert folds.acquire(timeout=20)  # those of all may go side by side
            return started

        last, second = (start(*turn) for turn in (turns[2], turns[1]))
        assert made == []
        start(*turns[0]).result(20)
        assert isinstance(second.exception(20), ZeroDivisionError)
        last.result(20)
    assert made == [5, 2, 7]


def test_compare_gives_models_with_exact_names(work, first):
    rows = rows_of(work)
    assert {r["head"] for r in rows} == {"patchcore", "cs_flow"}
    for row in rows:
        assert row["version"] == "1"
        assert {"image_auroc", "pixel_auroc", "aupro", "image_f1", "image_recall"} <= set(
            row["metrics"]
        )
        assert row["snapshot"]
        assert row["extractor_id"]


def test_a_second_run_extracts_and_trains_nothing(work, first):
    heads = ["--heads", "patchcore,cs_flow", "--epochs", "2"]
    again = headwater(work, "run", "tiles", *RUN, *heads)
    assert "the backbone was not run" in again
    assert again.count("found in MLflow") == 2
    assert len(rows_of(work)) == 2


@pytest.mark.slow
def test_predict_scores_as_the_evaluation_did(work, first):
    (row,) = [r for r in rows_of(work) if r["head"] == "patchcore"]
    from storage.registry.registry import Registry

    table = json.loads(
        Path(
            Registry(work / "home").client.download_artifacts(row["run_id"], "tables/images.json")
        ).read_text()
    )
    known = {r["path"]: r for r in table}
    arguments = ["predict", "tiles", "images/test/blob", "--head", "patchcore", "--json"]
    got = json.loads(headwater(work, *arguments))
    assert len(got) == 4
    refused = headwater(work, *arguments, "--out", "resnet18.safetensors", status=2)
    assert "resnet18.safetensors: File exists" in refused
    for one in got:
        evaluated = known[str(Path(one["image"]).relative_to("images"))]  # named as it was given
        assert one["score"] == pytest.approx(evaluated["score"], rel=1e-3)
        assert one["verdict"] == evaluated["verdict"]
        with Image.open(one["heat_map"]) as overlay:
            assert np.asarray(overlay).std() > 0


def test_new_images_cost_only_themselves(work, first):
    copy = work / "more"
    shutil.copytree(work / "images", copy)
    extra = sorted((work / "made/train/good").iterdir())[20:23]
    for path in extra:
        shutil.copy(path, copy / "train/good")
    (copy / "train/good/broken.png").write_bytes(extra[0].read_bytes()[:500])
    arguments = ["extract", "tiles", "--images", "more", *RUN, "--heads", "patchcore", "--json"]
    report = json.loads(headwater(work, *arguments, status=3))
    assert report["computed"] == 3
    assert report["backbone_calls"] == 1
    assert report["images"] == 23
    assert "broken.png" in report["set_aside"][0][0]


@pytest.mark.slow
def test_another_weight_file_is_another_extractor(work, first):
    torch.manual_seed(1)
    save_file(timm.create_model("resnet18").state_dict(), work / "other.safetensors")
    arguments = ["--size", "64", "--weights", "other.safetensors", "--heads", "patchcore"]
    report = json.loads(
        headwater(work, "extract", "tiles", "--images", "images", *arguments, "--json")
    )
    assert report["computed"] == 20
    back = json.loads(
        headwater(work, "extract", "tiles", "--images", "images", *RUN, "--heads", "patchcore",
                  "--json")
    )  # fmt: skip
    assert back["computed"] == 0


@pytest.fixture
def grown(work, first):
    """The first run's home with three images more and one removed since."""
    copy = work / "grown"
    shutil.copytree(work / "images", copy)
    for path in sorted((work / "made/train/good").iterdir())[20:23]:
        shutil.copy(path, copy / "train/good")
    next((copy / "train/good").iterdir()).unlink()
    yield copy
    shutil.rmtree(copy)


@pytest.mark.slow
def test_gc_spares_what_models_refer_to_and_the_past_can_be_trained_on(work, first, grown):
    rows = {r["head"]: r for r in rows_of(work)}
    trained_at = rows["patchcore"]["snapshot"]
    extract = ["extract", "tiles", "--images", "grown", *RUN, "--heads", "patchcore"]
    headwater(work, *extract)
    sweep = ["store", "gc", "tiles", "--older-than", "0", "--grace", "0", "--purge-removed"]
    assert "nothing was changed" in headwater(work, *sweep)
    headwater(work, *sweep, "--delete")
    log = json.loads(headwater(work, "store", "log", "tiles", "--json"))
    assert trained_at in {e["snapshot"] for e in log}
    assert "all is well" in headwater(work, "store", "verify", "tiles", "--snapshot", trained_at)
    # The same training on the past is found by its tag; another seed's is done there.
    past = ["train", "tiles", *RUN, "--heads", "patchcore", "--epochs", "2", "--snapshot"]
    assert "found in MLflow" in headwater(work, *past, "model-patchcore-v1")
    assert "trained" in headwater(work, *past, trained_at, "--seed", "1")
    newest = max((r for r in rows_of(work) if r["head"] == "patchcore"), key=lambda r: r["version"])
    assert newest["snapshot"] == trained_at
    got = headwater(work, "predict", "tiles", "images/test/blob", "--head", "patchcore",
                    "--version", "1", "--json")  # fmt: skip
    assert len(json.loads(got)) == 4


@pytest.mark.slow
def test_a_training_does_not_notice_that_others_extract(work, first, grown):
    at = rows_of(work)[0]["snapshot"]
    train = ["train", "tiles", *RUN, "--heads", "cs_flow", "--epochs", "3", "--seed", "5",
             "--snapshot", at, "--tracking"]  # fmt: skip
    headwater(work, *train, f"sqlite:///{work}/calm.db")
    (work / "small.yaml").write_text("extraction: {block_mb: 1, batch: 1}\n")
    others = [
        subprocess.Popen(
            [*HEADWATER, "extract", "tiles", "--images", "grown", "--weights",
             "resnet18.safetensors", "--size", size, "--heads", "cs_flow,padim", "--config",
             "small.yaml"],
            cwd=work, env=environment(work), stdout=subprocess.DEVNULL,
        )
        for size in ("96", "96", "128")
    ]  # fmt: skip
    headwater(work, *train, f"sqlite:///{work}/busy.db")
    assert [p.wait(timeout=200) for p in others] == [0, 0, 0]
    calm, busy = (rows_of(work, "--tracking", f"sqlite:///{work}/{n}.db") for n in ("calm", "busy"))
    one, other = (
        {k: v for k, v in row["metrics"].items() if "seconds" not in k}
        for row in (calm[0], busy[0])
    )
    assert "image_auroc" in one
    assert one == other
    assert "all is well" in headwater(work, "store", "verify", "tiles")


@pytest.mark.slow
def test_heads_together_are_one_model_more_and_nothing_is_trained_anew(work, first):
    # Others of this file extract from folders that are gone by now.
    heads = ["--images", "images", "--heads", "patchcore,cs_flow", "--epochs", "2"]
    said = headwater(work, "plan", "tiles", *RUN, *heads, "--combine")
    assert "found in MLflow: patchcore v1, cs_flow v1; join heads: ensemble" in " ".join(
        said.split()
    )
    said = headwater(work, "run", "tiles", *RUN, *heads, "--combine")
    rows = {line.split()[0]: line.rstrip() for line in said.splitlines() if "  v1  " in line}
    assert rows["ensemble"].endswith("joined")
    assert rows["patchcore"].endswith("found in MLflow")
    again = headwater(work, "run", "tiles", *RUN, *heads, "--combine", "cs_flow,patchcore")
    assert again.count("found in MLflow") == 3
    got = json.loads(headwater(work, "predict", "tiles", "images/test/blob", "--head", "ensemble",
                               "--json"))  # fmt: skip
    assert {one["model"] for one in got} == {"tiles.ensemble"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "x", "--images", "nowhere"], "nowhere: no such folder"),
        (["run", "x"], "nothing says where the images"),
        (["run", "a/b", "--images", "images"], "image set name 'a/b'"),
        (["run", "x", "--images", "images", "--heads", "patchcor"], "one of"),
        (["run", "x", "--images", "images", "--weights", "no.safetensors"], "no.safetensors"),
        (["run", "x", "--images", "images", "--set", "patchcore.rato=1"], "rato"),
        (["predict", "never", "images"], "no models"),
        (["compare", "never"], "no models"),
        (["predict", "x", "images", "--threshold", "nan"], "--threshold nan"),
        (["grid", "never"], "no model"),
        (["run", "x", "--images", "images", "--heads", ""], "--heads ''"),
        (["run", "x", "--images", "images", "--backbone", "resnt18"], "near it: resnet18"),
        (["train", "never", "--heads", "patchcore"], "never"),
        (["run", "x", "--images", "images", "--heads", "patchcore", "--combine"], "2 heads or"),
    ],
)  # fmt: skip
def test_mistakes_are_explained_without_a_traceback(
    work, arguments, said, tmp_path, monkeypatch, here
):
    monkeypatch.chdir(work)
    monkeypatch.setenv("HEADWATER_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HEADWATER_WEIGHTS", raising=False)
    assert said in here(*arguments, status=2)
    if arguments[0] in ("compare", "predict", "grid"):
        assert not (tmp_path / "home").exists()  # looking makes no home
