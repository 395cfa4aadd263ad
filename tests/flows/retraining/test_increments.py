"""A retraining grows what it can, trains the rest in full, says which it was, and forgets."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from flows.retraining import run as running
from flows.training import growing
from flows.use.models.lineage import lineage
from flows.use.models.reproduce import reproduce
from flows.use.review import odd_normals, remove, settle
from headwater.errors import DataError, GrowthError, ModelError
from storage.registry.registry import Registry
from storage.serving.detector import Detector
from tests.flows.retraining.kit import Retrained
from tests.flows.setkit import QUIET


@pytest.fixture
def lines(tmp_path, resnet_weights, monkeypatch):
    """A set of 14 normals, and 4 good and 3 bad to test; trainings run in this process."""
    made = Retrained(tmp_path, resnet_weights).fill()
    made.heads = {"subspace": {}}
    monkeypatch.setattr(running, "on_prefect", made.flow)
    return made


def facts(lines, model):
    """Return the row, the parameters and the tags of ``SET.HEAD version N``."""
    registry = Registry(lines.home.root)
    name, _, version = model.partition(" version ")
    row = registry.get_model("s", name.removeprefix("s."), version)
    return row, *registry.facts(row["run_id"])


def head_of(lines, model):
    return Detector.load(facts(lines, model)[0]["uri"], Registry(lines.home.root), "cpu").head


def apart(one, other):
    """Return how far two heads' maps of noise lie apart, in units of their spread."""
    shapes = {k: torch.rand(5, *v) for k, v in one.shapes.items()}
    a, b = one.score(shapes).maps, other.score(shapes).maps
    return float((a - b).abs().max() / b.std())


def test_an_exact_head_grows_and_says_so(lines, monkeypatch):
    first = lines.retrain()
    assert facts(lines, first.champion)[1]["trained"] == "full"
    lines.draw(40)
    lines.draw(41)
    second = lines.retrain()
    assert second.champion == "s.subspace version 2"
    assert second.trained == {"subspace": "grown from s.subspace version 1 by 2 image(s)"}
    row, params, tags = facts(lines, second.champion)
    told = ("trained", "grown_from", "growths_since_full", "images_new", "images_gone")
    assert [params[k] for k in told] == ["grown", "s.subspace/1", "1", "2", "0"]
    assert "by that model's scores of the new ones" in tags["headwater.notes"]
    samples = Registry(lines.home.root).artifact_json(row["run_id"], "tables/samples.json")
    learnt = [r for r in samples if r["role"] == "train"]
    assert len(learnt) == 16
    assert all(r["calibration_score"] is not None for r in learnt)
    # With nothing new it is found again, without Prefect.
    monkeypatch.setattr(running, "on_prefect", None)
    assert lines.retrain().what == "nothing new"


@pytest.mark.slow
def test_the_grown_one_is_the_full_one_and_every_nth_is_full(lines):
    settings = {"full_every": 3}
    lines.retrain(retrain=settings)
    for number, want in ((40, "grown"), (41, "grown")):
        lines.draw(number)
        done = lines.retrain(retrain=settings)
        assert facts(lines, done.champion)[1]["trained"] == want
    lines.retrain(retrain={"increments": "none"})  # the same images in full
    grown, full = (head_of(lines, f"s.subspace version {v}") for v in (3, 4))
    assert facts(lines, "s.subspace version 4")[1]["trained"] == "full"
    assert apart(grown, full) < 1e-5
    lines.service.promote(facts(lines, "s.subspace version 3")[0], "", "Ada")
    lines.draw(42)
    done = lines.retrain(retrain=settings)
    assert done.trained == {"subspace": "in full: every 3. retraining is"}
    assert facts(lines, done.champion)[1]["trained"] == "full"


@pytest.mark.slow
@pytest.mark.parametrize("head", ["patchcore", "padim", "fast_flow"])
def test_what_else_grows_when_it_is_asked_for(lines, head):
    lines.heads = {head: {"epochs": 4} if head == "fast_flow" else {}}
    lines.retrain(retrain={"increments": "all"})
    lines.draw(40)
    done = lines.retrain(retrain={"increments": "all"})
    assert done.trained == {head: f"grown from s.{head} version 1 by 1 image(s)"}
    params = facts(lines, f"s.{head} version 2")[1]
    assert params["trained"] == "grown"
    assert params.get("epochs", "1") == "1"  # a quarter of four
    assert apart(*(head_of(lines, f"s.{head} version {v}") for v in (1, 2))) > 0


@pytest.mark.slow
def test_what_cannot_grow_is_trained_in_full_with_a_note(lines, monkeypatch):
    lines.retrain()
    lines.draw(40)

    def lost(registry, of):
        raise GrowthError("what it kept is lost")

    monkeypatch.setattr(growing, "_keepsake", lost)
    done = lines.retrain()
    row, params, tags = facts(lines, done.champion)
    assert (row["version"], params["trained"]) == ("2", "full")
    assert "trained in full instead of grown from s.subspace version 1" in tags["headwater.notes"]
    assert reproduce(lines.home, "s.subspace/2", QUIET).agree
    monkeypatch.undo()
    # Other settings than those of the model in service: there is nothing to grow.
    monkeypatch.setattr(running, "on_prefect", lines.flow)
    lines.heads = {"subspace": {"variance": 0.9}}
    lines.draw(41)
    done = lines.retrain()
    assert done.trained["subspace"].startswith("in full: the model in service was trained by other")


@pytest.mark.slow
def test_an_image_is_removed_forgotten_and_taken_in_again(lines, here):
    place = ("--home", lines.home.root)
    lines.retrain()
    file = lines.images / "train/good/5.png"
    told = here("remove", "s", "good/5.png", "--why", "scratched", "--by", "Ada", *place)
    assert "s.subspace version 1 (in service) learnt from 1 of 1" in told
    assert "headwater retrain s makes a model without it" in told
    (said,) = lines.home.reviews("s").values()
    assert (said["said"], said["who"], said["why"]) == ("removed", "Ada", "scratched")
    with pytest.raises(DataError, match="0 of the images of s that are in it"):
        remove(lines.home, "s", ["good/5.png"])
    with pytest.raises(DataError, match="was removed from s"):
        settle(lines.home, "s", odd_normals(lines.home, "s")[0], accept=["good/5.png"])
    # It is known by its bytes: neither its file nor a copy comes back.
    (lines.images / "train/good/copy.png").write_bytes(file.read_bytes())
    done = lines.retrain()
    how = "grown from s.subspace version 1 by 0 image(s), 1 taken out"
    assert done.trained == {"subspace": how}
    paths = {row.path for row in lines.store.table().images()}
    assert not {"train/good/5.png", "train/good/copy.png"} & paths
    lineage_of = ("lineage", "s.subspace/2", *place)
    here(*lineage_of, "--has", file, status=3)
    here("lineage", "s.subspace/1", *place, "--has", file)
    found = lineage(lines.home, "s.subspace/2")
    assert found["parents"]["grown_from"] == "s.subspace/1"
    with pytest.raises(ModelError, match=r"was grown from s\.subspace/1") as refused:
        reproduce(lines.home, "s.subspace/2", QUIET)
    assert "headwater train s --snapshot model-subspace-v2" in refused.value.remedy
    assert reproduce(lines.home, "s.subspace/1", QUIET).agree  # it knew of no removal


def test_what_is_removed_leaves_the_store_and_is_taken_in_again(lines, here):
    place = ("--home", lines.home.root)
    lines.run()
    file = lines.images / "train/good/5.png"
    lines.home.add_reviews("s", {sha_of(file): {"said": "accepted", "path": "train/good/5.png"}})
    told = json.loads(here("remove", "s", str(file), *place, "--json"))
    assert [row["path"] for row in told["images"]] == ["train/good/5.png"]
    assert (told["models"], told["in_locked_test"]) == ([], 0)
    lines.run()
    assert len(lines.store.table().images()) == 20
    purge = ("store", "gc", "s", "--purge-removed", "--delete", "--older-than", "0s", *place)
    assert json.loads(here(*purge, "--json"))["purged"]["images"] == 1
    # What was said before it was removed holds again.
    assert "taken in again" in here("remove", "s", "good/5.png", "--undo", *place)
    assert lines.home.reviews("s")[sha_of(file)]["said"] == "accepted"
    lines.run()
    assert "train/good/5.png" in {row.path for row in lines.store.table().images()}


def sha_of(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.slow
def test_python_removes_too(lines):
    import headwater

    lines.retrain()
    service = headwater.open(lines.home.root, quiet=True).service("s")
    found = service.remove(str(lines.images / "test/x/31.png"), why="wrong label", by="Ada")
    assert len(found) == 0  # tested by it, nothing learnt from it
    (said,) = lines.home.reviews("s").values()
    assert (said["path"], said["who"]) == ("test/x/31.png", "Ada")
    lines.run(seed=None)
    assert Path("test/x/31.png") not in {Path(r.path) for r in lines.store.table().images()}
    service.remove("test/x/31.png", undo=True)
    assert lines.home.reviews("s") == {}
