"""Where a model comes from, whether an image was in it, and whether it comes out again."""

import dataclasses
import json
import shutil

import pytest
from PIL import Image

from flows.extraction.plan import plan_job, ready
from flows.runtime.home import Home
from flows.training.train import train_head
from flows.training.trainings import Request
from flows.use.models.lineage import lineage, whether_in
from flows.use.models.reproduce import Reproduced, reproduce
from headwater.errors import ConfigError, DataError, ModelError
from storage.registry.registry import Registry
from storage.store.feature_store import FeatureStore
from tests.flows.setkit import QUIET, SmallSet
from tests.golden.home import unpack


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A set of 9 normal images, 2 test images of each kind, and a model of it, in two folds."""
    small = SmallSet(tmp_path_factory.mktemp("set"))
    for part, numbers in (
        ("train/good", range(9)), ("train/odd", (15,)), ("test/good", (20, 21)),
        ("test/x", (30, 31)),
    ):  # fmt: skip
        for number in numbers:
            small.draw(number, part)
    at = small.run().version
    settings = ready(small.settings(), small.home, images=False)
    options = settings.training.model_copy(update={"folds": 2})
    settings = settings.model_copy(update={"training": options})
    plan = plan_job(settings, small.home, 3)
    train_head(Request(settings, small.home, plan, at).trainings(at)[0])
    return small


def test_a_model_names_its_images_and_what_was_used(made):
    found = lineage(made.home, "s.patchcore@challenger")
    assert (found["model"], found["version"], found["seed"]) == ("s.patchcore", "1", "0")
    assert found["images"] == {"train": 9, "test": 4}
    assert found["data"]["snapshot"] == FeatureStore.open(made.home.store, "s").resolve(None)
    assert found["extractor"]["weights_sha256"] == "untrained:3"
    assert found["settings"]["folds"] == "2"
    assert not found["notes"]
    assert found["parents"] == {"before": {}, "reproduces": None}
    assert {"headwater", "torch"} <= found["versions"].keys()
    assert found["machine"]["device"] == "cpu"
    for part, learnt, role in (
        ("train/good/3.png", True, "train"), ("test/x/30.png", False, "test"),
    ):  # fmt: skip
        answer = whether_in(made.home, found, made.images / part)
        assert (answer["learnt"], [r["role"] for r in answer["rows"]]) == (learnt, [role])
        assert answer["rows"][0]["path"] == part
    with pytest.raises(DataError, match=r"nobody\.png"):
        whether_in(made.home, found, made.images / "nobody.png")


def test_the_commands_say_it(made, here):
    home = ("--home", made.home.root)
    told = here("lineage", "s.patchcore", *home, "--images")
    assert "9 train, 4 test" in told
    assert "test/x  test/x/30.png" in told
    assert json.loads(here("lineage", "s.patchcore/1", *home, "--json"))["images"]["train"] == 9
    copy = made.folder / "elsewhere.png"
    shutil.copy(made.images / "train/good/3.png", copy)
    assert here("lineage", "s.patchcore", *home, "--has", copy).startswith(
        "yes: s.patchcore version 1 has learnt from it, as train/good/3.png"
    )
    saved_anew = made.folder / "anew.bmp"
    Image.open(copy).save(saved_anew)
    assert here("lineage", "s.patchcore", *home, "--has", saved_anew).startswith(
        "yes: s.patchcore version 1 has learnt from it, as train/good/3.png (the same pixels in"
    )
    told = json.loads(here("lineage", "s.patchcore", *home, "--has", saved_anew, "--json"))
    assert ([row["matched"] for row in told["rows"]], told["unknown"]) == (["pixels"], 0)
    made.draw(99, "new")
    other = made.images / "new/99.png"
    assert "no: " in here("lineage", "s.patchcore", *home, "--has", other, status=3)
    assert "no: s.patchcore version 1 has been tested on it" in here(
        "lineage", "s.patchcore", *home, "--has", made.images / "test/x/30.png", status=3
    )
    assert "no model of head" in here("lineage", "s.padim", *home, status=2)
    said = here("lineage", "S.patchcore", *home, status=2)
    assert "no models of image set 'S'" in said
    assert "expected: one of s" in said


def test_a_champion_that_is_gone_does_not_hide_where_the_newest_comes_from(made, tmp_path):
    place = tmp_path / "home"
    shutil.copytree(made.home.root, place)
    registry = Registry(place)
    # As MLflow's pages leave it: the tag remembers a champion whose version is not there.
    registry.client.set_registered_model_tag("s.patchcore", "headwater.champion", "7")
    found = lineage(Home.at(place), "s.patchcore")
    assert found["version"] == "1"
    assert (
        "champion of s.patchcore, version 7, was deleted: this is the newest" in found["notes"][0]
    )
    assert lineage(Home.at(place), "s.patchcore/1")["notes"] == []
    with pytest.raises(ModelError, match="was deleted"):  # which one is meant is not to be guessed
        reproduce(Home.at(place), "s.patchcore", QUIET)


def test_a_model_comes_out_again_to_the_bit_whatever_was_reviewed_since(made, here):
    sha = lineage(made.home, "s.patchcore")["samples"][0]["sha256"]
    made.home.add_groups("s", {sha: "part 7"})
    made.home.add_reviews(
        "s", {sha: {"said": "rejected", "who": "a", "when": "now", "path": "train/good/0.png"}}
    )
    (made.images / "train/good/0.png").unlink()
    found = reproduce(made.home, "s.patchcore/1", QUIET)
    assert found.same == dict.fromkeys(("machine", "device", "libraries", "code"), True)
    assert (found.difference, found.verdicts, found.images, found.made) == (0.0, 0, 4, "")
    assert found.threshold[0] == found.threshold[1]
    assert found.agree
    registry = Registry(made.home.root)
    assert len(registry.leaderboard("s")) == 1  # nothing is kept

    told = here("reproduce", "s.patchcore/1", "--home", made.home.root, "--register", "--json")
    assert (json.loads(told)["made"], json.loads(told)["agree"]) == ("2", True)
    second = lineage(made.home, "s.patchcore/2")
    assert second["parents"] == {"before": {"challenger": "1"}, "reproduces": "s.patchcore/1"}
    assert second["data"] == lineage(made.home, "s.patchcore/1")["data"]


def test_what_does_not_come_out_again_is_told():
    same = dict.fromkeys(("machine", "device", "libraries", "code"), True)
    found = Reproduced("s.padim", "1", same, 4, 1e-9, 1.0, (0.5, 0.5), 0)
    assert not found.agree  # to the bit, or not
    elsewhere = dataclasses.replace(found, same={**same, "device": False})
    assert elsewhere.agree
    assert not dataclasses.replace(elsewhere, difference=0.02).agree
    assert dataclasses.replace(elsewhere, difference=0.02).to_json()["agree"] is False


def test_of_a_model_from_before_what_is_known_is_told(tmp_path):
    home = unpack(tmp_path) / "home"
    name = next(iter(Registry(home).leaderboard("tiles")))["model"]
    found = lineage(Home.at(home), name)
    assert found["images"]["train"] > 0
    assert "snapshot" in found["notes"][0]
    assert "seed" in found
    assert not [k for k in found["settings"] if k.startswith("training.")]
    with pytest.raises(ModelError, match=r"lineage\.json"):
        reproduce(Home.at(home), name, QUIET)
    with pytest.raises(ConfigError, match="SET"):
        lineage(Home.at(home), "a.b.c/d/e")
