"""The page of settings and the file to fill in are what the code says."""

import re
import sys
from pathlib import Path

import pytest
import typer
import yaml

from flows.command.main import app, main
from flows.command.settings_page import file_template, settings_tables
from flows.runtime.settings import Settings, every_setting
from flows.runtime.sources import load_settings

PAGE = Path(__file__).resolve().parents[3] / "docs" / "settings.md"


def test_the_page_in_docs_holds_what_the_code_says():
    # What `headwater settings --markdown` prints stands below the comment there.
    _, _, tables = PAGE.read_text().partition("-->\n\n")
    assert tables == settings_tables(typer.main.get_command(app))


def test_the_page_tells_all_of_every_setting():
    rows = [line.split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert [row[0].strip("| `*") for row in rows] == [s.path for s in every_setting()]
    (seed,) = [row for row in rows if "training.seed`" in row[0]]
    assert seed[1:] == ["Of weights, orders, splits.", "integer", "0",
                        "`--seed` (run, train, plan, doctor, retrain)",
                        "`HEADWATER_TRAINING__SEED` |"]  # fmt: skip
    (images,) = [row for row in rows if "`images`" in row[0]]
    assert "(run, extract, plan, retrain, demo)" in images[4]
    (home,) = [row for row in rows if "`home`" in row[0]]
    assert home[4].endswith("delete, demo, home, store)")


def test_the_template_holds_every_key_with_its_default_and_a_comment(tmp_path, monkeypatch):
    for setting in every_setting():
        monkeypatch.delenv(setting.environment, raising=False)
    lines = file_template().splitlines()
    for setting in every_setting():
        (line,) = [
            x for x in lines
            if x.strip().startswith(f"# {setting.path.rpartition('.')[2]}: ")
            and str(setting.field.description) in x
        ]  # fmt: skip
        assert len(line.split(" # ")) == (3 if "." in setting.path else 2)
    file = tmp_path / "headwater.yaml"
    file.write_text("\n".join(lines))
    assert load_settings(file) == Settings()
    assert not load_settings(file).model_dump(exclude_unset=True)
    # With all keys set free they are the defaults, too.
    free = re.sub(r"^( *)# (\w+: )", r"\1\2", "\n".join(lines), flags=re.MULTILINE)
    data = yaml.safe_load(free)
    assert set(data) == set(Settings.model_fields)
    assert Settings.model_validate(data) == Settings()


def test_init_writes_the_template_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for more, status in (
        ([], 0),
        ([], 2),
        (["--force"], 0),
        (["made/as/well.yaml"], 0),
        (["headwater.yaml/x.yaml"], 2),
    ):
        monkeypatch.setattr(sys, "argv", ["headwater", "init", *more])
        with pytest.raises(SystemExit) as end:
            main()
        assert (end.value.code or 0) == status
    assert Path("headwater.yaml").read_text() == Path("made/as/well.yaml").read_text()
    assert Path("headwater.yaml").read_text() == file_template()
    said = capsys.readouterr().err
    assert "headwater.yaml is there already\n  remedy: --force overwrites it" in said
    assert "a file that can be written" in said


def test_the_settings_are_listed_for_people(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["headwater", "settings"])
    with pytest.raises(SystemExit):
        main()
    lines = capsys.readouterr().out.splitlines()
    for setting in every_setting():
        assert any(line.split()[:1] == [setting.path] for line in lines)
    assert any("height x width" in line for line in lines)


def test_a_word_finds_the_settings_of_heads_too(here):
    found = [line.split()[0] for line in here("settings", "coreset").splitlines() if line]
    assert "heads.f2r|patchcore.ratio" in found, "by its meaning"
    assert not [name for name in found if name.endswith(".score")]
    (line,) = (
        x for x in here("settings", "patchcore.ratio").splitlines() if x.startswith("heads.")
    )
    assert line.split()[:4] == ["heads.patchcore.ratio", "--set", "HEAD.ratio=VALUE", "0.1"]
    both = [line.split()[0] for line in here("settings", "seed").splitlines() if line]
    assert "training.seeds" in both
    assert any(name.startswith("heads.") and name.endswith(".seed") for name in both)
    assert "no setting has that word" in here("settings", "nonsense", status=2)
