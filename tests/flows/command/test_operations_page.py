"""docs/operations.md and the files beside it: what they name is there, by the tools' own word."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import dask
import distributed  # noqa: F401  its settings are dask's
import pytest
import typer
import yaml

from flows.command.main import app
from flows.command.options import completed
from flows.runtime.settings import every_setting

DOCS = Path(__file__).resolve().parents[3] / "docs"
PAGE = (DOCS / "operations.md").read_text()
FILES = DOCS / "operations"
#: Older names, which no setting has.
OLD = {"HEADWATER_HOME", "HEADWATER_ARTIFACTS", "HEADWATER_WEIGHTS"}


def commands():
    """Yield what stands behind `headwater` in the code of every page, with the page."""
    for page in [*sorted(DOCS.glob("*.md")), DOCS.parent / "README.md"]:
        blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
        plain = "".join(text for language, text in blocks if not language)
        for line in plain.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.match(r"\w+=", words[0]):
                words = words[1:]
            if words and words[0] in ("headwater", ".venv/bin/headwater") and "|" not in words:
                yield pytest.param(words[1:], id=f"{page.stem}: {' '.join(words[1:])}")


@pytest.mark.parametrize("words", commands())
def test_the_commands_of_the_pages_are_understood(words):
    command, context = typer.main.get_command(app), None
    words = completed(words)
    while hasattr(command, "commands"):
        if not words:
            return  # a group that does something by itself, as `headwater home`
        context = command.make_context(words[0], list(words), parent=context)
        # The group's own options are read; the rest is its command and that one's.
        words = [*context._protected_args, *context.args]
        if words:
            name, command, words = command.resolve_command(context, words)
    command.make_context(name, list(words), parent=context)


def test_the_variables_are_read_by_whom_they_name():
    text = PAGE + "".join(p.read_text() for p in FILES.iterdir())
    names = set(re.findall(r"\b(?:HEADWATER|PREFECT|MLFLOW)_[A-Z_]*[A-Z]\b", text))
    ours = {s.environment for s in every_setting()} | OLD
    from mlflow import cli, environment_variables
    from prefect.settings.legacy import _get_settings_fields
    from prefect.settings.models.root import Settings

    prefect = set(_get_settings_fields(Settings)) | {"PREFECT_AUTH"}  # that of compose.env
    mlflow = {getattr(v, "name", "") for v in vars(environment_variables).values()}
    mlflow |= {str(option.envvar) for option in cli.server.params}
    # Of the app for users, which the extra `server` alone can import.
    mlflow |= {"MLFLOW_AUTH_CONFIG_PATH", "MLFLOW_FLASK_SERVER_SECRET_KEY"}
    unknown = {n for n in names if n.removesuffix("_FILE") not in ours | prefect | mlflow}
    assert unknown == set()


def test_dasks_settings_are_its_own():
    names = re.findall(r"\bDASK_(\w+(?:\$\{who\}\w+)?)=", PAGE)
    assert len(names) == 4
    for name in names:
        for who in ("scheduler", "worker", "client"):
            key = name.replace("${who}", who).lower().replace("__", ".").replace("_", "-")
            dask.config.get(key)


def test_what_the_page_links_to_is_there():
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", PAGE)
    assert links
    assert all((DOCS / link).exists() for link in links)
    named = set(re.findall(r"docs/operations/([\w.@-]+)", PAGE)) - {""}
    assert all((FILES / name).exists() or "*" in name for name in named)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_systemd_takes_the_units(tmp_path):
    units = []
    for unit in sorted([*FILES.glob("*.service"), *FILES.glob("*.timer")]):
        # Where this installation has what they start.
        text = unit.read_text().replace(
            "/opt/headwater/.venv/bin", str(Path(sys.executable).parent)
        )
        (tmp_path / unit.name).write_text(text)
        units.append(tmp_path / unit.name)
    assert len(units) == 4
    done = subprocess.run(
        ["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_containers_start_what_is_installed_and_names_what_is_declared():
    file = yaml.safe_load((FILES / "compose.yaml").read_text())
    here = Path(sys.executable).parent
    started = [s.get("command", s.get("entrypoint")) for s in file["services"].values()]
    for command in filter(None, started):
        assert (here / command.split()[0]).exists(), command
    for service in file["services"].values():
        for volume in service.get("volumes", []):
            source = volume.rpartition(":/")[0]
            assert source in file["volumes"] or source.startswith("$") or (FILES / source).exists()
    env = (FILES / "compose.env").read_text()
    wanted = set(re.findall(r"\$\{(\w+)", (FILES / "compose.yaml").read_text()))
    assert wanted == set(re.findall(r"^(\w+)=", env, re.MULTILINE))


@pytest.mark.skipif(not shutil.which("docker-compose"), reason="needs docker-compose")
def test_compose_takes_its_file():
    values = {"DATABASE_PASSWORD": "abc", "PREFECT_AUTH": "inspector:x", "IMAGES": "/srv/images"}
    done = subprocess.run(
        ["docker-compose", "-f", FILES / "compose.yaml", "config"],
        env={**os.environ, **values}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    assert set(services) == {"database", "mlflow", "prefect", "scheduler", "worker", "headwater"}
    assert "headwater:abc@database" in json.dumps(services["mlflow"])
