"""The layout and import rules of docs/architecture.md, read from the source."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("headwater", "features", "storage", "heads", "flows")
MAY_IMPORT = {
    "headwater": set(),
    "features": {"headwater"},
    "storage": {"headwater"},
    "heads": {"headwater"},
    "flows": {"headwater", "features", "storage", "heads"},
}
#: The MLflow serving model needs pixels -> features -> score.
SERVING = "storage/serving"
ONLY_IN = {
    "prefect": ("flows/",),
    "mlflow": ("storage/registry", "storage/serving"),
    "zarr": ("storage/",),
    "icechunk": ("storage/",),
    "dask": ("flows/",),
    "distributed": ("flows/",),
}


def modules():
    for package in PACKAGES:
        yield from sorted((ROOT / package).rglob("*.py"))


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").split(".")[0]


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_downhill(path):
    name = path.relative_to(ROOT).as_posix()
    package = name.split("/")[0]
    allowed = MAY_IMPORT[package] | {package}
    if name.startswith(SERVING):
        allowed |= {"features", "heads"}
    for imported in set(imports(path)):
        assert imported not in PACKAGES or imported in allowed, f"{name} imports {imported}"
        for library, places in ONLY_IN.items():
            if imported == library:
                assert name.startswith(places), f"{name} imports {library}"


def test_modules_stay_readable():
    long = {
        str(p.relative_to(ROOT)): n for p in modules() if (n := p.read_text().count("\n")) > 400
    }
    assert not long


def test_no_package_index_is_named():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if files.returncode:
        pytest.skip("not a git checkout")
    # Spelled apart, so that this file does not name one.
    hosts = ["pypi" + ".org", "python" + "hosted.org", "index" + "-url", "npmjs" + ".org"]
    for name in files.stdout.split():
        path = ROOT / name
        if path.suffix in {".png", ".npz"} or not path.is_file():
            continue
        text = path.read_text(errors="ignore")
        assert not [h for h in hosts if h in text], name


def test_an_installation_without_room_is_refused_before_it_begins(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    full = tmp_path / "bin" / "df"
    full.parent.mkdir()
    full.write_text("#!/bin/sh\necho Filesystem\necho /dev/sda 9000000 7000000 2000000 78% /\n")
    full.chmod(0o755)
    done = subprocess.run(
        ["make", "setup"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
        env={**os.environ, "PATH": f"{full.parent}:{os.environ['PATH']}", "PYTHON": sys.executable},
    )  # fmt: skip
    assert done.returncode != 0
    assert "needs 8 GB of free disk" in done.stdout
    assert "has 2 GB" in done.stdout
    assert not (tmp_path / ".venv").exists()
