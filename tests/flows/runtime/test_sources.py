"""Settings from files, variables and callers, and mistakes that are told with their place."""

from pathlib import Path

import pytest

from flows.runtime.settings import Settings
from flows.runtime.sources import by_keyword, load_settings
from headwater.addresses import whole
from headwater.errors import ConfigError
from headwater.spec import DEFAULT_BACKBONE


@pytest.fixture(autouse=True)
def _elsewhere(bare):
    pass


def given(settings):
    return settings.model_dump(exclude_unset=True)


def test_options_override_the_file_and_paths_are_relative_to_it(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "headwater.yaml").write_text(
        "images: photos\nbackbone: {weights: w.pth}\ntraining: {seed: 3, held_out: 0.2}\n"
    )
    settings = load_settings(folder / "headwater.yaml", {"training.seed": 7, "home": None})
    assert settings.images == folder / "photos"
    assert settings.backbone.weights == folder / "w.pth"
    assert (settings.training.seed, settings.training.held_out) == (7, 0.2)


def test_a_file_of_the_first_version_says_what_it_said():
    settings = load_settings(Path(__file__).parent / "headwater-v1.yaml")
    assert given(settings) == {
        "home": Path(__file__).parent / "headwater-home",
        "image_set": "my-product",
        "images": Path(__file__).parent / "images/my-product",
        "backbone": {"name": "resnet18"},
        "extraction": {"precision": "auto", "dtype": "float16", "compression": "none",
                       "batch": 16, "block_mb": 64},
        "heads": {"patchcore": {}, "f2r": {}, "cs_flow": {}},
        "training": {"preset": "auto", "device": "auto", "precision": "auto",
                     "target_fpr": 0.05, "seed": 0},
    }  # fmt: skip


def test_heads_may_be_a_list_or_a_mapping():
    Path("headwater.yaml").write_text("heads: [patchcore, f2r]\n")
    assert load_settings().heads == {"patchcore": {}, "f2r": {}}
    Path("headwater.yaml").write_text("heads:\n  patchcore:\n  f2r: {alpha: 0.5}\n")
    assert load_settings().heads == {"patchcore": {}, "f2r": {"alpha": 0.5}}
    # Named again by an option, a head keeps what the file says of it.
    assert load_settings(None, {"heads": "f2r, padim"}).heads == {
        "f2r": {"alpha": 0.5},
        "padim": {},
    }


def test_the_caller_comes_before_variables_and_these_before_the_file(monkeypatch):
    Path("headwater.yaml").write_text("training: {seed: 1, epochs: 1, held_out: 0.1}\n")
    monkeypatch.setenv("HEADWATER_TRAINING__SEED", "2")
    monkeypatch.setenv("HEADWATER_TRAINING__EPOCHS", "2")
    monkeypatch.setenv("HEADWATER_TRAINING__PRESET", "")  # nothing
    monkeypatch.setenv("HEADWATER_EXTRACTION__SIZE", "[320, 256]")
    monkeypatch.setenv("HEADWATER_EXTRACTION__CROP", "256x128")
    monkeypatch.setenv("HEADWATER_BACKBONE__OPTIONS", '{"pad_type": "same", "mean": 0.5}')
    monkeypatch.setenv("HEADWATER_HEADS", "patchcore,f2r")
    settings = load_settings(None, {"training.seed": "3"})
    assert given(settings) == {
        "training": {"seed": 3, "epochs": 2, "held_out": 0.1},
        "extraction": {"size": (320, 256), "crop": (256, 128)},
        "backbone": {"options": {"pad_type": "same", "mean": 0.5}},
        "heads": {"patchcore": {}, "f2r": {}},
    }


def test_the_older_variables_come_after_the_file(monkeypatch):
    monkeypatch.setenv("HEADWATER_HOME", "/there")
    monkeypatch.setenv("HEADWATER_ARTIFACTS", "s3://there")
    monkeypatch.setenv("HEADWATER_WEIGHTS", "/weights")  # looked into by `find_weights`
    settings = load_settings()
    assert (settings.home, settings.artifacts) == (Path("/there"), "s3://there")
    assert settings.backbone.weights is None
    Path("headwater.yaml").write_text("home: here\n")
    assert load_settings().home == Path("here").absolute()
    assert load_settings(None, {"home": "/mine"}).home == Path("/mine")


def test_what_equals_the_default_counts_as_given_from_wherever_it_comes(monkeypatch):
    Path("headwater.yaml").write_text("extraction: {dtype: float16, size: null}\n")
    monkeypatch.setenv("HEADWATER_TRAINING__SEED", "0")
    settings = load_settings(None, {"backbone.name": DEFAULT_BACKBONE})
    assert given(settings) == {
        "extraction": {"dtype": "float16", "size": None},
        "training": {"seed": 0},
        "backbone": {"name": DEFAULT_BACKBONE},
    }
    assert settings == Settings()
    assert given(load_settings(Path("headwater.yaml"), {})) != {}


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({"images": "i"}, {"images"}),
        ({"normal": "n"}, {"normal", "defective", "masks"}),
        ({"pairs": "p"}, {"pairs"}),
        ({"masks": "m"}, {"images", "defective", "masks"}),
    ],
)
def test_folders_of_another_kind_replace_those_of_the_file(options, left):
    Path("headwater.yaml").write_text("images: a\ndefective: b\nmasks: c\n")
    assert set(given(load_settings(None, options))) == left


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("backbone:\n  nam: x\n", ["line 2", "backbone.nam", "'name'?", "name, options, weights"]),
        ("\nextraction:\n  precision: int8\n", ["line 3", "'int8'", "'float32' or 'bfloat16'"]),
        ("home: [\n", ["line 2", "expected: valid YAML"]),
        ("- a\n", ["keys and values"]),
        ("training: {device: gpu}\n", ["'gpu'", "auto, cpu, cuda or cuda:1"]),
        ("training: {held_out: 2}\n", ["line 1", "held_out = 2", "less than or equal to 0.5"]),
        ("\nextraction: {size: [8, 300]}", ["line 2", "size = [8, 300]", "or equal to 16"]),
        ("extraction: {size: 8x300}", ["line 1", "size = '8x300'", "height and width as 256x512"]),
        ("1: x\n", ["line 1", "unknown key '1'"]),
        ("heads: {f2r: 3}\n", ["line 1", "heads.f2r = 3"]),
        ("a: !!python/object:b.c {}\n", ["line 1", "expected: valid YAML"]),
        ("\x00", ["expected: valid YAML"]),
        ("home: a\nimages: b\nhome: c\n", ["lines 1 and 3", "home is there twice"]),
        ("training:\n  seed: 1\n  seed: 1\n", ["lines 2 and 3", "training.seed is there twice"]),
        ("heads: {f2r: {alpha: 1, alpha: 1}}", ["lines 1 and 1", "heads.f2r.alpha is there twice"]),
        ("training: {seed: yes}\n", ["line 1", "seed = True", "a number, not yes"]),
        ("training: {target_fpr: no, epochs: on}\n", ["a number, not no", "a number, not yes"]),
        ("home: 3\n", ["line 1: home = 3", "expected: a path\n"]),
        ("training: 7\n", ["line 1: training = 7", "expected: keys with values"]),
    ],
)
def test_a_mistake_is_reported_with_its_place_and_the_choices(text, said):
    Path("headwater.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        load_settings()
    for part in ["headwater.yaml", *said]:
        assert part in str(error.value)


def test_all_mistakes_are_reported_together_each_with_its_source(monkeypatch):
    Path("headwater.yaml").write_text("trainng: {}\nextraction: {batch: 0, block_mb: 0}\n")
    monkeypatch.setenv("HEADWATER_TRAINING__SEED", "x")
    monkeypatch.setenv("HEADWATER_TRAINING__SED", "3")
    with pytest.raises(ConfigError) as error:
        load_settings(None, {"extraction.block_mb": "many", "backbone.options": ["pad"]})
    for said in (
        "headwater.yaml, line 1: unknown key 'trainng'\n  expected: 'training'?",
        "headwater.yaml, line 2: extraction.batch = 0\n  expected: greater than or equal to 1",
        "HEADWATER_TRAINING__SEED=x\n  expected: a valid integer",
        "HEADWATER_TRAINING__SED: unknown key 'training.sed'\n  expected: 'seed'?",
        "many\n  expected: a valid integer",
        "option --backbone-option pad\n  expected: KEY=VALUE instead of 'pad'",
    ):
        assert said in str(error.value)
    assert "block_mb = " not in str(error.value)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("HEADWATER_SEED", "HEADWATER_TRAINING__SEED"),
        ("HEADWATER_TRAINING", "HEADWATER_TRAINING__SEED"),
        ("HEADWATER_HOMME", "HEADWATER_HOME"),
        ("HEADWATER_XYZZY", "the name of a setting"),
    ],
)
def test_a_variable_that_sets_nothing_is_told(monkeypatch, name, meant):
    monkeypatch.setenv(name, "7")
    with pytest.raises(ConfigError, match=f"environment variable {name}=7") as error:
        load_settings()
    assert meant in str(error.value)


def test_variables_that_kubernetes_sets_are_none_of_ours(monkeypatch):
    for name in ("SERVICE_HOST", "PORT", "PORT_8786_TCP_ADDR", "MLFLOW_SERVICE_PORT_HTTP"):
        monkeypatch.setenv(f"HEADWATER_{name}", "tcp://10.0.0.1:8786")
    assert load_settings() == Settings()


def test_a_tilde_is_the_users_folder_wherever_it_comes_from(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HEADWATER_HOME", "~/state")
    monkeypatch.setenv("HEADWATER_STORE", "~/store")
    Path("headwater.yaml").write_text("images: ~/photos\n")
    settings = load_settings(None, {"backbone.weights": "~/w.pth"})
    assert settings.home == tmp_path / "state"
    assert settings.store == str(tmp_path / "store")
    assert settings.images == tmp_path / "photos"
    assert settings.backbone.weights == tmp_path / "w.pth"
    assert load_settings(None, {"store": "s3://a/~b"}).store == "s3://a/~b"


def test_mistakes_found_later_know_their_place():
    Path("headwater.yaml").write_text("images: nowhere\nheads:\n  patchcore:\n    ratioo: 1\n")
    settings = load_settings(None, {"training.seed": 3})
    assert settings.place("images").endswith("headwater.yaml, line 1")
    assert settings.place("heads.patchcore.ratioo").endswith("headwater.yaml, line 4")
    assert settings.place("training.seed") == ""
    assert load_settings(None, {"images": "there"}).place("images") == ""


def test_a_mistake_in_an_option_names_the_option():
    with pytest.raises(ConfigError, match="option --precision int8\n"):
        load_settings(None, {"extraction.precision": "int8"})
    with pytest.raises(ConfigError, match="option --heads ''\n"):
        load_settings(None, {"heads": ""})


def test_a_missing_file_is_an_error_only_where_it_was_named():
    assert load_settings() == Settings()
    with pytest.raises(ConfigError, match="No such file"):
        load_settings(Path("other.yaml"))


def test_python_says_settings_by_keyword():
    options = {"weights": "w", "extraction_dtype": "float32", "workers": 2, "heads": ["f2r"]}
    paths = by_keyword("run", options)
    assert list(paths) == ["backbone.weights", "extraction.dtype", "training.workers", "heads"]
    assert by_keyword("extract", {"workers": 2}) == {"extraction.workers": 2}
    assert load_settings(None, paths).heads == {"f2r": {}}
    with pytest.raises(ConfigError, match="keyword wieghts='w'\n  expected: 'weights'"):
        by_keyword("run", {"wieghts": "w"})
    with pytest.raises(ConfigError, match="epochs"):
        by_keyword("extract", {"epochs": 2})
    with pytest.raises(ConfigError, match="epochs=0\n"):
        load_settings(None, {"training.epochs": 0}, lambda setting: f"{setting.keyword}=")


def test_a_secret_may_stand_in_a_file_that_a_variable_names(tmp_path, monkeypatch):
    (tmp_path / "secret").write_text("postgresql://me:hunter22@host/db\n")
    monkeypatch.setenv("HEADWATER_TRACKING_FILE", str(tmp_path / "secret"))
    settings = load_settings()
    assert settings.tracking == "postgresql://host/db"
    assert whole(settings.tracking) == "postgresql://me:hunter22@host/db"
    monkeypatch.setenv("HEADWATER_TRACKING", "http://host")
    with pytest.raises(ConfigError, match=r"(?s)HEADWATER_TRACKING and HEADWATER_TRACKING_FILE"):
        load_settings()
    monkeypatch.setenv("HEADWATER_TRACKING", "")
    monkeypatch.setenv("HEADWATER_TRACKING_FILE", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"HEADWATER_TRACKING_FILE=.*No such file"):
        load_settings()


@pytest.mark.parametrize("path", ["store", "artifacts", "dask.scheduler"])
def test_an_address_that_takes_no_password_is_refused_without_showing_it(path):
    with pytest.raises(ConfigError, match=r"(?s)tcp://\*\*\*@host.*AWS_ACCESS_KEY_ID") as error:
        load_settings(None, {path: "tcp://me:hunter22@host:1"})
    assert "hunter22" not in str(error.value)
