"""One way to predict, over images and over pairs."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from flows.runtime.console import Reporter
from flows.runtime.home import Home
from flows.use.predict import join_paths, predict
from headwater.errors import ConfigError, DataError, ModelError
from storage.registry.registry import Registry
from tests.storage.serving.conftest import IMAGES, PAIRS, every, train  # noqa: F401

SETS = {"patchcore": "noise", "pair_flow": "boards"}


@pytest.fixture(scope="module")
def home(every, empty_database, tmp_path_factory):  # noqa: F811
    """A home with a model of each kind, and files to predict on; the third of each is broken."""
    place = Home.at(tmp_path_factory.mktemp("predict") / "home")
    shutil.copy(empty_database, place.root / "mlflow.db")
    for head, (_, folder) in every.items():
        with Registry(place.root).start(SETS[head], head, "key", tags={"snapshot": "S"}) as run:
            shutil.copytree(folder, place.root / head)
            run.register(place.root / head)
    for name, index in (("now", 0), ("before", 1)):
        (place.root / name).mkdir()
        for k, pair in enumerate(PAIRS[:2]):
            Image.fromarray(pair[index]).save(place.root / name / f"{k}.png")
        (place.root / name / "2.png").write_text("no image")
    return place


def test_images_and_pairs_give_a_row_and_a_picture_each(home, every):  # noqa: F811
    folder, quiet = home.root / "now", Reporter(quiet=True)
    given = {
        "patchcore": {"images": [folder]},
        "pair_flow": {"pair": (folder, home.root / "before")},
    }
    for head, (one, _) in every.items():
        rows, broken = predict(home, SETS[head], quiet, **given[head])
        kind = one.detector.kind
        own = ["changed_share", "change_map"] if kind.paired else ["heat_map"]
        names = [*kind.images, "score", "p_value", "threshold", "verdict", *own]
        assert [list(row) for row in rows] == [names] * 2
        scores = one.scores.image[:2].tolist()
        assert [r["score"] for r in rows] == pytest.approx(scores, rel=one.near, abs=0)
        # Both images of a pair that cannot be read are named.
        assert [b.path.name for b in broken] == ["2.png"] * len(kind.images)
        shown = {r[own[-1]] for r in rows}
        assert len(shown) == 2
        place = home.pictures / SETS[head] / "predictions" / f"{head}-v1"
        assert shown == {str(p) for p in place.iterdir()}
        (again, *_), _ = predict(home, SETS[head], quiet, **given[head], threshold=-1e9)
        assert (again["threshold"], again["verdict"]) == (-1e9, kind.verdicts[1])


def test_folders_of_pairs_may_be_named_from_here(home, monkeypatch):
    monkeypatch.chdir(home.root)
    whole = join_paths(home.root / "now", home.root / "before")
    assert join_paths(Path("now"), Path("now/../before")) == whole
    assert [[p.name for p in pair] for pair in whole] == [[f"{k}.png"] * 2 for k in range(3)]


def test_another_image_of_the_same_name_has_a_picture_of_its_own(home, tmp_path):
    shown = set()
    for k, image in enumerate(IMAGES[:2]):
        (tmp_path / str(k)).mkdir()
        Image.fromarray(image).save(tmp_path / str(k) / "new.png")
        (row,), _ = predict(
            home, "noise", Reporter(quiet=True), images=[tmp_path / str(k)], folder=tmp_path / "out"
        )
        shown.add(row["heat_map"])
    assert len(shown) == 2


def test_mistakes_are_named(home, tmp_path):
    quiet, folder = Reporter(quiet=True), home.root / "now"
    with pytest.raises(ConfigError, match="patchcore of noise looks at single images"):
        predict(home, "noise", quiet, pair=(folder, folder))
    with pytest.raises(ConfigError, match="--pair CURRENT HISTORY"):
        predict(home, "boards", quiet, images=[folder])
    with pytest.raises(ModelError, match="no models of image set 'nothing'"):
        predict(home, "nothing", quiet, images=[folder])
    with pytest.raises(ModelError, match="one of patchcore"):
        predict(home, "noise", quiet, images=[folder], head="padim")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--out"):
        predict(home, "noise", quiet, images=[folder], folder=tmp_path / "file" / "out")
    with pytest.raises(DataError, match="a file and a folder"):
        join_paths(folder, folder / "0.png")
    Image.fromarray(IMAGES[0]).save(tmp_path / "other.png")
    with pytest.raises(DataError, match="no image of the same name"):
        join_paths(folder, tmp_path)
