"""One way to predict, over images and over pairs."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows.runtime.console import Reporter
from flows.runtime.home import Home
from flows.use.answers import write_tables
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
        rows = predict(home, SETS[head], quiet, **given[head])
        kind = one.detector.kind
        own = ["changed_share", "change_map"] if kind.paired else ["heat_map"]
        told = ["score", "p_value", "threshold", "verdict", "regions"]
        told += ["model", "version", "service_version"]
        # In the order of the files, the broken one where it stands: the last of the three.
        *rows, broken = rows
        assert [list(row) for row in (*rows, broken)] == [
            [*kind.images, *told, *own, "note", "error"]
        ] * 3
        named = {(r["model"], r["version"]) for r in (*rows, broken)}
        assert named == {(f"{SETS[head]}.{head}", "1")}
        expected = one.detector.predict(one.samples[:2])
        for row, p in zip(rows, expected, strict=True):
            for told, region in zip(row["regions"], p.regions, strict=True):
                # One image at a time and two at once differ in the last digits on some processors.
                assert told == region.to_json() | {"peak": pytest.approx(region.peak, rel=1e-5)}
        scores = one.scores.image[:2].tolist()
        assert [r["score"] for r in rows] == pytest.approx(scores, rel=one.near, abs=0)
        # Both images of a pair that cannot be read are named.
        assert (broken["score"], broken["verdict"], broken["regions"]) == (None, "", [])
        assert {Path(broken[name]).name for name in kind.images} == {"2.png"}
        assert broken["error"].count("2.png") == (2 if kind.paired else 0)
        shown = {r[own[-1]] for r in rows}
        assert len(shown) == 2
        place = home.pictures / SETS[head] / "predictions" / f"{head}-v1"
        assert shown == {str(p) for p in place.iterdir()}
        (
            again,
            *_,
        ) = predict(home, SETS[head], quiet, **given[head], threshold=-1e9)
        assert (again["threshold"], again["verdict"]) == (-1e9, kind.verdicts[1])


def test_what_cannot_be_read_stands_where_it_was_given(home):
    folder = home.root / "now"
    given = [folder / "2.png", folder / "1.png", folder / "0.png"]
    rows = predict(home, "noise", Reporter(quiet=True), images=given)
    assert [(row["image"], bool(row["error"])) for row in rows] == [
        (str(path), path.name == "2.png") for path in given
    ]


def test_a_path_that_is_not_there_does_not_end_the_others(home, tmp_path):
    quiet, there = Reporter(quiet=True), home.root / "now" / "0.png"
    (tmp_path / "empty").mkdir()
    given = [tmp_path / "gone.png", there, tmp_path / "empty"]
    rows = predict(home, "noise", quiet, images=given)
    assert [row["image"] for row in rows] == [str(path) for path in given]
    assert rows[0]["error"] == "no such file or folder"
    assert (rows[1]["error"], rows[1]["verdict"] in ("normal", "anomalous")) == ("", True)
    assert rows[2]["error"].startswith("no images")
    with pytest.raises(DataError, match=r"gone\.png: no such file.*\n.*empty: no images"):
        predict(home, "noise", quiet, images=[given[0], given[2]])
    with pytest.raises(DataError, match=r"gone\.png: no such file"):
        predict(home, "noise", quiet, images=given[:1])


def test_regions_are_those_of_the_picture_as_it_is_shown(home, tmp_path):
    upright = np.array(Image.fromarray(IMAGES[2]).resize((300, 200)))
    upright[:, 120:] = 255
    turn = Image.Exif()
    turn[0x0112] = 6  # the camera was held upright: viewers turn it by a quarter to the right
    Image.fromarray(upright).save(tmp_path / "plain.png")
    Image.fromarray(np.rot90(upright)).save(tmp_path / "turned.png", exif=turn)
    rows = predict(home, "noise", Reporter(quiet=True), images=[tmp_path])
    plain, turned = (row["regions"] for row in rows)
    assert plain == turned != []
    assert all(r["x"] + r["width"] <= 300 and r["y"] + r["height"] <= 200 for r in plain)


def test_tables_are_for_spreadsheets(tmp_path):
    region = {"x": 1, "y": 2, "width": 3, "height": 4, "area": 9, "peak_x": 1, "peak_y": 2}
    region["peak"] = -0.5
    answer = {"score": 1.5, "p_value": None, "verdict": "anomalous", "regions": [region, region]}
    rows = [
        {"image": "=cmd()", "score": None, "p_value": None, "verdict": "", "regions": []}
        | {"error": "-gone"},
        {"image": "@ü.png", **answer, "error": ""},
    ]
    files = write_tables(rows, tmp_path / "out.csv")
    assert [f.name for f in files] == ["out.csv", "out-regions.csv"]
    one, two = (list(csv.DictReader(f.open(encoding="utf-8-sig"))) for f in files)
    assert [list(r.values()) for r in one] == [
        ["'=cmd()", "", "", "", "", "'-gone"],
        ["'@ü.png", "1.5", "", "anomalous", "2", ""],
    ]
    assert [list(r.values()) for r in two] == [
        ["'@ü.png", "1", "2", "3", "4", "9", "1", "2", "-0.5"]
    ] * 2
    # The mark without which spreadsheets take the name for another, and none where none is needed.
    assert files[0].read_bytes().startswith(b"\xef\xbb\xbf")
    broken = {"current": "a", "history": "b", "regions": [], "error": "gone"}
    files = write_tables([broken], tmp_path / "p.csv")
    assert [f.read_text().splitlines()[0] for f in files] == [
        "current,history,regions,error",
        "current,history," + ",".join(region),
    ]
    with pytest.raises(ConfigError, match="--csv"):
        write_tables(rows, tmp_path / "out.csv" / "x.csv")


def test_folders_of_pairs_may_be_named_from_here(home, monkeypatch):
    monkeypatch.chdir(home.root)
    whole = join_paths(home.root / "now", home.root / "before")
    found = join_paths(Path("now"), Path("now/../before"))
    assert [tuple(p.resolve() for p in pair) for pair in found] == whole
    assert found[0] == (Path("now/0.png"), Path("now/../before/0.png"))  # as they were named
    assert [[p.name for p in pair] for pair in whole] == [[f"{k}.png"] * 2 for k in range(3)]


def test_another_image_of_the_same_name_has_a_picture_of_its_own(home, tmp_path):
    shown = set()
    for k, image in enumerate(IMAGES[:2]):
        (tmp_path / str(k)).mkdir()
        Image.fromarray(image).save(tmp_path / str(k) / "new.png")
        (row,) = predict(
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
