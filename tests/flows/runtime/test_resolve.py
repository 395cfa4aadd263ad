"""Settings made whole: what was given, what the set remembers, the default."""

import json
from pathlib import Path

import pytest

import flows.runtime.settings as module
from flows.runtime.home import Home
from flows.runtime.resolve import _BEFORE, FOLDERS, READING, remember, resolve, tune_heads
from flows.runtime.settings import Settings, changed, every_setting
from flows.runtime.sources import load_settings
from headwater.errors import ConfigError, DataError
from headwater.spec import DEFAULT_BACKBONE


@pytest.fixture
def home(tmp_path):
    for name in ("photos/train/good", "bad", "masks", "good", "pairs"):
        (tmp_path / name).mkdir(parents=True)
    return Home(tmp_path)


def settings(**values):
    return Settings.model_validate({"image_set": "bolts", **values})


def run(home, **values):
    """Do what an extraction does with settings: make them whole and remember them."""
    whole = resolve(settings(**values), home)
    remember(whole, home, "bolts", whole.images or whole.normal or whole.pairs)
    return whole


def test_a_set_is_run_again_as_it_was(home):
    file = home.root / "resnet18.w.safetensors"
    file.write_bytes(b"")
    own = {"weights": file, "options": {"pad_type": "same"}}
    first = run(home, images=home.root / "photos", backbone=own, extraction={"size": 128})
    for images in (True, False):
        again = resolve(settings(), home, images=images)
        assert (again.backbone, again.extraction) == (first.backbone, first.extraction)
        assert again.images == (first.images if images else None)
    assert first.backbone.name == "resnet18"  # as the file's name says
    other = {"name": "resnet50"}
    again = resolve(settings(backbone=other, extraction={"size": 64}), home)
    # Another backbone has weights and options of its own.
    assert (again.backbone.name, again.backbone.weights) == ("resnet50", None)
    assert again.backbone.options == {}
    assert again.extraction.size == 64


def test_a_new_set_has_the_backbone_named_or_its_file_s_or_the_default(home, monkeypatch):
    photos, file = home.root / "photos", home.root / "resnet50.pth"
    monkeypatch.delenv("HEADWATER_WEIGHTS", raising=False)
    assert resolve(settings(images=photos), home).backbone.name == DEFAULT_BACKBONE
    file.write_bytes(b"")
    other = {"name": "resnet18", "weights": file}  # told when it is read
    assert resolve(settings(images=photos, backbone=other), home).backbone.name == "resnet18"
    monkeypatch.setenv("HEADWATER_WEIGHTS", str(home.root))
    assert resolve(settings(images=photos), home).backbone.name == DEFAULT_BACKBONE
    monkeypatch.setenv("HEADWATER_WEIGHTS", str(file))
    assert resolve(settings(images=photos), home).backbone.name == "resnet50"
    nameless = file.rename(home.root / "mine.pth")
    monkeypatch.delenv("HEADWATER_WEIGHTS")
    with pytest.raises(ConfigError, match=r"mine\.pth: no backbone is named[\s\S]*--backbone"):
        resolve(settings(images=photos, backbone={"weights": nameless}), home)
    # A set that remembers its backbone does not need the file's name.
    run(home, images=photos, backbone={"name": "resnet18", "weights": nameless})
    assert resolve(settings(backbone={"weights": nameless}), home).backbone.name == "resnet18"


def test_what_was_given_and_equals_the_default_counts_as_given(home):
    last = {"size": 128, "crop": 112, "dtype": "float32"}
    run(home, images=home.root / "photos", backbone={"name": "resnet50"}, extraction=last)
    again = resolve(
        settings(backbone={"name": "resnet18"}, extraction={"dtype": "float16", "size": None}), home
    )
    assert again.backbone.name == "resnet18"
    assert (again.extraction.dtype, again.extraction.size) == ("float16", None)
    assert again.extraction.crop == 112  # not given
    # The backbone of the last run is not another one: what belongs to it is taken.
    run(home, backbone={"name": "resnet50", "weights": home.root / "w"})
    for given in ({"name": "resnet50"}, {}):
        assert resolve(settings(backbone=given), home).backbone.weights == home.root / "w"
    again = resolve(settings(backbone={"weights": home.root / "v"}), home).backbone
    assert (again.name, again.weights) == ("resnet50", home.root / "v")


def test_a_later_default_extracts_nothing_anew(home, monkeypatch):
    first = run(home, images=home.root / "photos")
    assert first.extraction.size is None
    assert first.extraction.default_size == module.DEFAULT_SIZE
    for section, key, value in (
        ("extraction", "default_size", 512),
        ("extraction", "dtype", "bfloat16"),
        ("backbone", "name", "resnet50"),
    ):
        model = Settings.model_fields[section].annotation
        monkeypatch.setattr(model.model_fields[key], "default", value)
        model.model_rebuild(force=True)
    Settings.model_rebuild(force=True)
    try:
        assert Settings().extraction.default_size == 512
        assert Settings().backbone.name == "resnet50"
        again = resolve(settings(), home)
        # As no size was given none is remembered: heads with a size of their own keep it.
        assert again.extraction == first.extraction
        assert again.backbone == first.backbone
        assert resolve(settings(image_set="new", images=again.images), home).extraction.dtype == (
            "bfloat16"
        )
    finally:
        monkeypatch.undo()
        for section in ("extraction", "backbone"):
            Settings.model_fields[section].annotation.model_rebuild(force=True)
        Settings.model_rebuild(force=True)
    assert Settings().extraction.default_size == module.DEFAULT_SIZE


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        ({"backbone": {"name": "resnet50", "weights": "w", "options": {}},
          "extraction": {"size": [320, 256], "crop": None, "dtype": "float32"}},
         ("resnet50", Path("w"), (320, 256), 256, "float32")),
        ({"backbone": {"name": "resnet18", "weights": None, "options": {}},
          "extraction": {"size": None, "crop": None, "dtype": "float16"}},
         ("resnet18", None, None, 256, "float16")),
        ({}, ("resnet18", None, None, 256, "float16")),
    ],
)  # fmt: skip
def test_cards_written_before_mean_the_defaults_of_then(home, kept, expected):
    card = {"images": str(home.root / "photos"), "root": str(home.root / "photos"), **kept}
    (home.root / "sets").mkdir()
    (home.root / "sets/bolts.json").write_text(json.dumps(card))
    got = resolve(settings(), home)
    size = got.extraction
    assert (got.backbone.name, got.backbone.weights, size.size, size.default_size, size.dtype) == (
        expected
    )


def test_the_card_holds_all_that_is_kept_and_nothing_else(home):
    kept = {s.path for s in every_setting() if s.kept}
    known = {*FOLDERS, *READING, *(f"{s}.{key}" for s, keys in _BEFORE.items() for key in keys)}
    assert kept == known
    home.write_card("bolts", {"precision": {"net:0": "float32"}})  # of no extraction yet
    assert resolve(settings(images=home.root / "photos"), home).backbone.model_fields_set == set()
    run(home, images=home.root / "photos")
    card = home.card("bolts")
    assert card["precision"] == {"net:0": "float32"}
    assert set(card) == {"precision", "root", "heads", *FOLDERS, *READING, *_BEFORE}
    assert card["extraction"] == {"size": None, "default_size": module.DEFAULT_SIZE, "crop": None,
                                  "dtype": "float16", "resize": None, "roi": None, "range": "auto",
                                  "tile": None, "overlap": None, "scale": "tiles"}  # fmt: skip


def test_paths_are_remembered_whole(home, monkeypatch):
    monkeypatch.chdir(home.root)
    run(home, images="photos", backbone={"name": "resnet18", "weights": "w.pth"})
    monkeypatch.chdir("/")
    again = resolve(settings(), home)
    assert again.images == home.root / "photos"
    assert again.backbone.weights == home.root / "w.pth"


def test_folders_are_those_given_or_all_of_the_last_run(home):
    root = home.root
    run(home, normal=root / "good", defective=root / "bad")
    again = resolve(settings(masks=root / "masks"), home)
    assert (again.normal, again.defective, again.masks) == (
        root / "good",
        root / "bad",
        root / "masks",
    )
    assert resolve(settings(normal=root / "good"), home).defective is None
    with pytest.raises(ConfigError, match="--images and --normal\n  expected: one of them"):
        resolve(settings(normal=root / "good", images=root / "photos"), home)
    with pytest.raises(ConfigError, match="bolts is a set of single images, and pairs were given"):
        resolve(settings(pairs=root / "pairs"), home)
    with pytest.raises(DataError, match=r"--masks .*no such folder"):
        resolve(settings(masks=root / "nowhere"), home)
    with pytest.raises(DataError, match="no folder train/good"):
        resolve(settings(images=root / "good"), home)
    with pytest.raises(DataError, match="nothing says where the images of 'nuts' are") as told:
        resolve(settings(image_set="nuts"), home)
    assert told.value.remedy == "headwater run nuts --images DIR; the home has bolts"
    home.write_card("nails", {})
    home.write_card("bolt", {})
    with pytest.raises(DataError, match="the home has bolts, bolt, nails"):
        resolve(settings(image_set="bolts2"), home)
    with pytest.raises(ConfigError, match="no image set named"):
        resolve(settings(image_set=None), home)


def test_resolving_changes_nothing_that_is_whole(home):
    run(home, images=home.root / "photos", extraction={"size": 128})
    whole = resolve(settings(), home)
    assert resolve(whole, home) == whole
    passed = Settings.model_validate(whole.model_dump(mode="json"))  # as a flow gets it
    assert passed == whole


def test_a_head_is_set_up_among_those_that_will_run(tmp_path):
    home = Home.at(tmp_path / "home")
    home.write_card("boards", {"pairs": str(tmp_path)})
    boards = Settings(image_set="boards")
    assert tune_heads(boards, home, {"pair_diff.seed": 3}).heads == {"pair_diff": {"seed": 3}}
    assert tune_heads(boards, home, {}) is boards
    with pytest.raises(
        ConfigError, match=r"--set pair_diff.seed\n.*HEAD of patchcore, f2r, cs_flow"
    ):
        tune_heads(changed(boards, {"images": tmp_path}), home, {"pair_diff.seed": 3})
    with pytest.raises(ConfigError, match=r"--set seed\n"):
        tune_heads(boards, home, {"seed": 3})


def test_what_came_along_with_a_home_is_found_where_it_is_now(tmp_path):
    old = Home.at(tmp_path / "old/home")
    inside, beside = old.root / "demo", tmp_path / "old/photos"
    far = tmp_path / "far"
    for folder in (inside, beside, far):
        folder.mkdir(parents=True)
    card = {"root": str(beside), "images": str(inside), "masks": str(far), "normal": None}
    card["backbone"] = {"name": "resnet18", "weights": str(tmp_path / "old/w.pth"), "options": {}}
    (tmp_path / "old/w.pth").touch()
    old.write_card("s", card)
    assert old.card("s") == card
    (tmp_path / "old").rename(tmp_path / "new")
    moved = Home.at(tmp_path / "new/home").card("s")
    assert moved["images"] == str(tmp_path / "new/home/demo")
    assert moved["root"] == str(tmp_path / "new/photos")
    assert moved["backbone"]["weights"] == str(tmp_path / "new/w.pth")
    assert (moved["masks"], moved["normal"]) == (str(far), None)


def test_folders_that_are_not_there_are_told_by_who_named_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    home = Home.at(tmp_path / "home")
    Path("headwater.yaml").write_text("\nimages: nowhere\n")
    with pytest.raises(DataError, match=r"headwater.yaml, line 2: images = .*/nowhere"):
        resolve(load_settings(None, {"image_set": "s"}), home)
    with pytest.raises(DataError, match=r"--images .*gone: no such"):
        resolve(load_settings(None, {"image_set": "s", "images": tmp_path / "gone"}), home)
    Path("headwater.yaml").unlink()
    home.write_card("s", {"root": "/gone", "images": "/gone/photos"})
    with pytest.raises(DataError, match="/gone/photos, the folder of s's images when it was last"):
        resolve(load_settings(None, {"image_set": "s"}), home)
