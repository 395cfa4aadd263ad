"""The example of docs/adding-a-head.md: taken from the page, installed, tested, trained."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.flows.conftest import tiles  # noqa: F401  a small image set and a weight file
from tests.flows.test_dags import RUN
from tests.heads import test_contract as contract

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/adding-a-head.md").read_text()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The page's package, installed into a folder of its own."""
    package = tmp_path_factory.mktemp("package")
    files = re.findall(r"^```\w+ file=(\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    names = ["nearest_mean.py", "pyproject.toml", "tiny_nearest_mean.py"]
    assert [name for name, _ in files] == names
    for name, text in files:
        (package / name).write_text(text)
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--disable-pip-version-check", "--target", target, package]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    shutil.copy(package / names[-1], target)
    return target


def run(site, *arguments, cwd=ROOT, **more):
    path = os.pathsep.join([str(ROOT), str(site)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=280,
    )  # fmt: skip


@pytest.mark.slow  # the whole contract, in a process of its own
def test_the_example_keeps_the_contract(site):
    """The page's own command, but for the backbones, each of which takes a second to build."""
    (command,) = re.findall(r"^PYTHONPATH=\S+ pytest tests/heads (.*)$", PAGE, re.MULTILINE)
    files = [f"tests/heads/test_{name}.py" for name in ("contract", "switches")]
    done = run(site, "-m", "pytest", "-v", "-p", "no:cacheprovider", *files, *shlex.split(command))
    assert done.returncode == 0, done.stdout + done.stderr
    promises = re.findall(r"::(test_\w+)\[nearest_mean\S*\] PASSED", done.stdout)
    assert len(promises) > 8
    assert {"test_it_says_what_it_is", "test_mistakes_end_in_a_clear_error"} <= set(promises)


def test_a_head_without_its_entry_is_told_what_to_do():
    with pytest.raises(AssertionError, match=r"add some_head to TINY of tests/heads/tiny\.py"):
        contract.test_it_has_a_tiny_instance("some_head")


@pytest.mark.slow  # the whole command, Prefect and Dask with it
def test_the_example_is_trained_from_a_store_by_dask_workers(site, tiles):  # noqa: F811
    home = {"HEADWATER_HOME": str(tiles / "plugin-home")}
    command = ["-m", "flows.command.main", "run", "tiles", "--images", "images", *RUN]
    command += ["--heads", "nearest_mean", "--set", "nearest_mean.top_k=0.05"]
    done = run(site, *command, cwd=tiles, **home)
    assert done.returncode == 0, done.stdout + done.stderr
    scored = run(
        site,
        "-m",
        "flows.command.main",
        "predict",
        "tiles",
        "images/test/blob",
        "--json",
        cwd=tiles,
        **home,
    )
    assert scored.returncode == 0, scored.stderr
    assert len(json.loads(scored.stdout)) == 4


@pytest.mark.slow
def test_a_broken_package_keeps_no_other_head_from_working(site, tmp_path):
    (tmp_path / "nearest_mean.py").write_text("import nothing_of_this_name\n")
    path = os.pathsep.join([str(ROOT), str(tmp_path), str(site)])
    listed = run(site, "-m", "flows.command.main", "heads", PYTHONPATH=path)
    assert listed.returncode == 0, listed.stderr
    assert "patchcore" in listed.stdout
    assert "nearest-mean (nearest_mean): ModuleNotFoundError" in " ".join(listed.stdout.split())
    asked = run(
        site,
        "-c",
        "from heads.catalogue import get_head; get_head('nearest_mean')",
        PYTHONPATH=path,
    )
    assert "cannot be imported from nearest-mean" in asked.stderr
