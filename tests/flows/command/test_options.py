"""What a command line may say: the options, made from the settings, and its mistakes explained."""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest
import typer

from flows.command.main import app, main
from flows.command.options import takes
from flows.runtime.given import Given
from flows.runtime.settings import every_setting
from headwater.errors import ConfigError
from tests.flows.commandkit import HEADWATER, environment

#: Every option of the first version's commands: none is ever lost.
V1 = json.loads((Path(__file__).parent / "options-v1.json").read_text())


def commands(group, *path):
    """Yield ``(name, command)`` of all commands below a group."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, *path, name)
        else:
            yield " ".join((*path, name)), command


COMMANDS = dict(commands(typer.main.get_command(app)))


def names(command):
    return {
        name
        for p in command.params
        for name in (p.opts if p.param_type_name == "option" else [f"<{p.name}>"])
    }


@pytest.mark.parametrize("name", sorted(V1))
def test_every_option_of_the_first_version_is_there(name):
    command = COMMANDS[name] if name else typer.main.get_command(app)
    assert set(V1[name]) <= names(command)


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_every_command_has_help_with_its_options(name, monkeypatch, capsys):
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 200)
    for flag in ("--help", "-h"):
        monkeypatch.setattr(sys, "argv", ["headwater", *name.split(), flag])
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code
        shown = capsys.readouterr().out
        for option in V1.get(name, ()):
            assert option.startswith("<") or option in shown


def test_help_says_limits_and_defaults(monkeypatch, capsys):
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 200)
    monkeypatch.setattr(sys, "argv", ["headwater", "run", "--help"])
    with pytest.raises(SystemExit):
        main()
    shown = " ".join(capsys.readouterr().out.split())
    assert "--target-fpr <number > 0, < 1>" in shown
    assert "False-positive rate the threshold aims at. [default: 0.05]" in shown
    assert "a side, or height x width" in shown


def test_help_is_quick():
    code = (
        "import sys; sys.argv = ['headwater', *sys.argv[1:]]\n"
        "from flows.command.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'prefect', 'pandas', 'mlflow', 'numpy', 'yaml', 'zarr', 'dask'}\n"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    for arguments in (["--help"], ["run", "--help"], ["store", "log", "--help"], ["--version"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_a_command_gets_what_was_given_and_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    got = []
    one = typer.Typer()

    @one.command()
    @takes("extract")
    def show(
        image_set: Annotated[str, typer.Argument()],
        given: Given,
        loud: Annotated[bool, typer.Option("--loud")] = False,
    ) -> None:
        got.append((given, loud, image_set))

    line = "bolts --workers 2 --size 64 --backbone-option a=1 --backbone-option b=x --loud"
    one(line.split(), standalone_mode=False)
    ((given, loud, image_set),) = got
    assert (loud, image_set, given.config, given.tuned) == (True, "bolts", None, ())
    assert given.values == {
        "image_set": "bolts",
        "extraction.workers": "2",
        "extraction.size": "64",
        "backbone.options": ["a=1", "b=x"],
    }
    settings, home = Given({**given.values, "home": tmp_path / "h"}, ("cs_flow.seed=3",)).open()
    assert (settings.extraction.workers, settings.extraction.size) == (2, 64)
    assert settings.backbone.options == {"a": 1, "b": "x"}
    assert settings.heads["cs_flow"] == {"seed": 3}
    assert home.root == tmp_path / "h"
    for wrong in ("seed", "padim.seed=3", "=3"):
        with pytest.raises(ConfigError, match="--set"):
            Given({"image_set": "bolts", "home": tmp_path / "h"}, (wrong,)).open()
    with pytest.raises(AssertionError, match="no setting"):
        takes("extrakt")


def test_each_setting_with_an_option_is_taken_by_a_command():
    taken = {(p.name, *p.opts) for c in COMMANDS.values() for p in c.params}
    for setting in every_setting():
        if setting.option:
            assert (setting.path.replace(".", "__"), setting.option) in taken


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
        ("run s --epochs x", "option --epochs x", "a valid integer"),
        ("run s --preset tiny", "option --preset tiny", "'auto', 'small' or 'paper'"),
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


def test_a_reader_that_has_seen_enough_is_no_fault(tmp_path):
    command = f"{shlex.join(HEADWATER)} settings | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=environment(tmp_path), capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_an_option_of_one_value_that_is_given_twice_is_a_mistake(here):
    told = here("run", "s", "--size", "64", "--size=96", status=2)
    assert "--size is given twice" in told
    told = here("store", "log", "s", "--home", "a", "--limit", "1", "--home", "b", status=2)
    assert "--home is given twice" in told
    assert "A,B" in here("run", "s", "--heads", "padim", "--heads", "patchcore", status=2)
    # What may be repeated may be; the value of one that may is none of the others.
    told = here("run", "nothing", "--set", "padim.channels=3", "--set", "padim.seed=1", status=2)
    assert "twice" not in told
