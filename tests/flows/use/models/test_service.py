"""What is in service answers: the command, Python, lineage; deletion holds it; it moves."""

import json
import shutil

import pytest

import headwater
from flows.runtime.home import Home
from flows.use.delete import plan_deletion
from flows.use.models.choose import choose_model
from flows.use.soundness import check
from headwater.errors import ConfigError, ModelError
from storage.registry.registry import Registry
from tests.flows.commandkit import run_here
from tests.golden.home import unpack


@pytest.fixture
def work(tmp_path):
    """A copy of the golden home, of a version before anything was in service."""
    return unpack(tmp_path)


@pytest.fixture
def hw(work, monkeypatch, capsys):
    def run(*arguments, status=0):
        place = ("--home", work / "home")
        return run_here(monkeypatch, capsys, *arguments, *place, status=status)

    return run


def test_the_one_in_service_answers_until_told_otherwise(work, hw):
    image = next((work / "images/tiles/test").rglob("*.png"))
    said = hw("predict", "tiles", image, status=2)
    assert "--head with one of" in said
    assert "nothing was ever in service" in hw("history", "tiles")
    assert "tiles.patchcore version 1, is in service" in hw(
        "promote", "tiles", "patchcore@1", "--why", "[red]it is[/] good", "--by", "ann\x1b[1m"
    )
    first = json.loads(hw("predict", "tiles", image, "--json"))[0]
    assert (first["model"], first["version"], first["service_version"]) == (
        "tiles.patchcore", "1", "1"
    )  # fmt: skip
    put = json.loads(hw("promote", "tiles", "padim", "--json"))
    assert (put["from"], put["to"], put["changed"]) == ("1", "2", True)
    assert "in service as version 2" in hw("predict", "tiles", image)
    # Told otherwise, by head or by alias.
    other = json.loads(hw("predict", "tiles", image, "--head", "patchcore", "--json"))
    assert other[0]["version"] == "2"
    assert other[0]["service_version"] is None
    back = json.loads(hw("predict", "tiles", image, "--version", "previous", "--json"))
    assert back[0]["service_version"] == "1"
    assert "of which head?" in hw("predict", "tiles", image, "--version", "1", status=2)
    assert json.loads(hw("lineage", "tiles", "--json"))["model"] == "tiles.padim"
    assert "is in service already" in hw("promote", "tiles", "padim")
    assert "instead of version 2" in hw("rollback", "tiles")
    told = hw("history", "tiles")
    assert "[red]it is[/] good" in told
    assert "\x1b" not in told
    events = json.loads(hw("history", "tiles", "--json"))["history"]
    assert [(e["what"], e["to"]) for e in events] == [
        ("rollback", "1"), ("promote", "2"), ("promote", "1")
    ]  # fmt: skip
    assert "was in service before" in hw("rollback", "tiles", status=2)
    assert "no model of head 'nosuch'" in hw("promote", "tiles", "nosuch", status=2)
    assert "SET.HEAD/VERSION" in hw("promote", "tiles", "padim@2@3", status=2)
    assert "tiles" in hw("history", "tilse", status=2)
    assert "version 3, tiles.padim" in hw("promote", "tiles", "tiles.padim/1")
    hw("delete", "tiles.padim/1", "--yes", "--force")
    told = hw("history", "tiles", status=3)
    assert "version 3 (deleted)" in told
    assert "goes back to version 1" in told


def test_a_home_with_a_model_in_service_moves(work):
    home = headwater.open(work / "home", quiet=True)
    home.service("tiles").promote("patchcore@1", why="try", by="ann")
    shutil.move(work / "home", work / "line #2 of 50% ?x")
    moved = headwater.open(work / "line #2 of 50% ?x", quiet=True)
    row = moved.service("tiles").champion
    assert (row["model"], row["version"]) == ("tiles.patchcore", "1")
    picture = next((work / "images/tiles/test").rglob("*.png"))
    assert moved.detector("tiles").predict(picture).verdict
    frame = moved.service("tiles").history()
    assert list(frame["who"]) == ["ann"]
    assert frame["image_auroc"].notna().all()


def test_what_is_in_service_is_held_and_missed(work):
    place = Home(work / "home")
    service = headwater.open(place.root, quiet=True).service("tiles")
    for model in ("patchcore@1", "padim", "patchcore@2"):
        service.promote(model)
    plain = plan_deletion(place, "tiles.patchcore/1")
    plain.check(force=False)  # it was in service once, and nothing goes back to it at once
    for target, why in (
        ("tiles.patchcore/2", "is in service"),
        ("tiles.padim/1", "goes back to"),
        ("tiles", "is in service"),
    ):
        with pytest.raises(ConfigError, match=why):
            plan_deletion(place, target).check(force=False)
    plan_deletion(place, "tiles.patchcore/2").run()
    registry = Registry(place.root)
    with pytest.raises(ModelError, match="rollback tiles goes back to version 2"):
        choose_model(registry, "tiles")
    assert service.rollback()["model"] == "tiles.padim"
    assert choose_model(registry, "tiles")["head"] == "padim"
    assert not [f for f in check(place) if "padim" in str(f)]
    plan_deletion(place, "tiles").run()
    assert service.champion is None
