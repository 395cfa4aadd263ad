"""Settings: defaults, files, overrides, and mistakes that are reported with their place."""

import sys
from pathlib import Path

import pytest
import yaml

from flows.command.main import main
from flows.command.options import settings_from
from flows.runtime.home import Home
from flows.runtime.resolve import as_before, remember, resolve_images
from flows.runtime.settings import TEMPLATE, Settings, load_settings
from headwater.errors import ConfigError


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_template_holds_every_key_with_its_default():
    shown = yaml.safe_load(TEMPLATE)
    settings = Settings.model_validate(shown)
    assert settings.extraction == Settings().extraction
    assert settings.training == Settings().training
    for name, field in Settings.model_fields.items():
        assert f"{name}:" in TEMPLATE, name
        for key in getattr(field.annotation, "model_fields", {}):
            assert f"{key}:" in TEMPLATE, key


def test_options_override_the_file_and_paths_are_relative_to_it(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "headwater.yaml").write_text("images: photos\ntraining: {seed: 3, held_out: 0.2}\n")
    settings = load_settings(folder / "headwater.yaml", {"training.seed": 7, "home": None})
    assert settings.images == folder / "photos"
    assert (settings.training.seed, settings.training.held_out) == (7, 0.2)


def test_heads_may_be_a_list_or_a_mapping():
    Path("headwater.yaml").write_text("heads: [patchcore, f2r]\n")
    assert load_settings(None, {}).heads == {"patchcore": {}, "f2r": {}}
    Path("headwater.yaml").write_text("heads:\n  patchcore:\n  f2r: {alpha: 0.5}\n")
    assert load_settings(None, {}).heads == {"patchcore": {}, "f2r": {"alpha": 0.5}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("backbone:\n  nam: x\n", ["line 2", "backbone.nam", "'name'?", "name, options, weights"]),
        ("\nextraction:\n  precision: int8\n", ["line 3", "'int8'", "'float32' or 'bfloat16'"]),
        ("home: [\n", ["line 2", "expected: valid YAML"]),
        ("- a\n", ["keys and values"]),
        ("training: {device: gpu}\n", ["'gpu'", "auto, cpu, cuda or cuda:1"]),
        ("training: {held_out: 2}\n", ["line 1", "held_out = 2", "less than or equal to 0.5"]),
    ],
)
def test_a_mistake_is_reported_with_its_place_and_the_choices(text, said):
    Path("headwater.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        load_settings(None, {})
    for part in ["headwater.yaml", *said]:
        assert part in str(error.value)


def test_all_mistakes_are_reported_together():
    Path("headwater.yaml").write_text("trainng: {}\nextraction: {batch: 0}\n")
    with pytest.raises(ConfigError) as error:
        load_settings(None, {})
    assert "trainng" in str(error.value)
    assert "extraction.batch" in str(error.value)


def test_a_mistake_in_an_option_names_the_option():
    with pytest.raises(ConfigError, match="option --precision"):
        load_settings(None, {"extraction.precision": "int8"})


def test_a_missing_file_is_an_error_only_where_it_was_named():
    assert load_settings(None, {}) == Settings()
    with pytest.raises(ConfigError, match="No such file"):
        load_settings(Path("other.yaml"), {})


def test_a_set_is_run_again_as_it_was(tmp_path):
    home = Home(tmp_path)
    (tmp_path / "photos").mkdir()
    first = Settings(image_set="bolts", images=tmp_path / "photos")
    first.backbone.weights, first.extraction.size = tmp_path / "w.safetensors", 128
    remember(first, home, "bolts", tmp_path / "photos")
    again = resolve_images(Settings(image_set="bolts"), home)
    assert (again.images, again.backbone) == (first.images, first.backbone)
    assert again.extraction.size == 128
    other = Settings(image_set="bolts")
    other.backbone.name, other.extraction.size = "resnet50", 64
    as_before(other, home)
    assert (other.backbone.name, other.backbone.weights) == ("resnet50", None)
    assert other.extraction.size == 64


def test_a_head_is_set_up_among_those_that_will_run(tmp_path):
    home = Home.at(tmp_path / "home")
    home.write_card("boards", {"pairs": str(tmp_path)})
    given = {"image_set": "boards", "home": home.root, "settings": ["pair_diff.seed=3"]}
    assert settings_from(given)[0].heads == {"pair_diff": {"seed": 3}}
    with pytest.raises(ConfigError, match="HEAD of patchcore, f2r, cs_flow"):
        settings_from({**given, "images": tmp_path})


@pytest.mark.parametrize(
    ("line", "culprit", "expected"),
    [
        ("run s --size 0", "option --size 0", "greater than or equal to 16"),
        ("store log s --limit x", "option --limit x", "a valid integer"),
        ("grid s --coreset foo", "option --coreset foo", "one of 'once', 'per_point'"),
        ("run s --sizes 3", "no such option: --sizes", "--size"),
        ("run", "missing argument 'SET'", "run [OPTIONS]"),
        ("store logs", "no such command 'logs'", "diff, drift, export, gc, inspect, log, ls"),
        ("run s --target-fpr 5", "option --target-fpr", "less than 1"),
    ],
)
def test_a_command_line_that_cannot_be_read_is_explained_as_all_mistakes_are(
    line, culprit, expected, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "argv", ["headwater", *line.split()])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    first, second, third = capsys.readouterr().err.splitlines()
    assert first.startswith(f"error: {culprit}")
    assert second.startswith("  expected: ")
    assert expected in second
    assert third.startswith("  remedy: ")
