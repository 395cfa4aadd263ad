"""The rooms and their rules (docs/architecture.md), read from every import of every file."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("headwater", "features", "storage", "heads", "flows")

#: What the files of a room may import besides their own room. The longest matching name holds.
MAY_IMPORT = {
    "headwater": (),
    "features": ("headwater", "features"),
    "features.images": ("headwater",),
    "features.backbones": ("headwater", "features.images"),
    "storage.store": ("headwater",),
    "storage.upkeep": ("headwater", "storage.store"),
    "storage.registry": ("headwater",),
    # From pixels to verdict: the one place where features and heads meet below the flows.
    "storage.serving": ("headwater", "features", "heads", "storage.registry"),
    "heads.looking": ("headwater",),
    "heads.contract": ("headwater", "heads.looking"),
    "heads.parts": ("headwater", "heads.looking", "heads.contract"),
    "heads.judging": ("headwater", "heads.looking", "heads.contract"),
    "heads.training": ("headwater", "heads.looking", "heads.contract", "heads.parts"),
    # Made of any heads, it knows none: by what they promise, and how they were calibrated.
    "heads.ensemble": ("headwater", "heads.looking", "heads.contract", "heads.judging",
                       "heads.training"),
    "heads.flow": ("headwater", "heads.looking", "heads.contract", "heads.parts", "heads.judging",
                   "heads.training"),
    # A gallery or a pair head may be built on a flow head, and says so in its docstring.
    "heads.gallery": ("headwater", "heads.looking", "heads.contract", "heads.parts",
                      "heads.judging", "heads.training", "heads.flow"),
    "heads.pairs": ("headwater", "heads.looking", "heads.contract", "heads.parts",
                    "heads.judging", "heads.training", "heads.flow"),
    "heads.catalogue": ("headwater", "heads"),
    "flows.runtime": ("headwater", "features", "storage", "heads"),
    "flows.pictures": ("headwater", "features", "storage", "heads"),
    "flows.extraction": ("headwater", "features", "storage", "heads", "flows.runtime",
                         "flows.pictures"),
    "flows.training": ("headwater", "features", "storage", "heads", "flows.runtime",
                       "flows.pictures", "flows.extraction"),
    "flows.use": ("headwater", "features", "storage", "heads", "flows.runtime", "flows.pictures",
                  "flows.extraction", "flows.training"),
    "flows.dags": ("headwater", "features", "storage", "heads", "flows.runtime",
                   "flows.extraction", "flows.training"),
    "flows.pipeline": ("headwater", "features", "storage", "heads", "flows.runtime",
                       "flows.extraction", "flows.training", "flows.use", "flows.dags"),
    "flows.retraining": ("headwater", "features", "storage", "heads", "flows.runtime",
                         "flows.extraction", "flows.training", "flows.use", "flows.dags",
                         "flows.pipeline"),
    "flows.serving": ("headwater", "features", "storage", "heads", "flows.runtime",
                      "flows.extraction", "flows.training", "flows.use", "flows.retraining"),
    "flows.scheduling": ("headwater", "features", "storage", "heads", "flows.runtime",
                         "flows.retraining", "flows.serving"),
    # How sets fare: no Prefect, and nothing that imports torch as it begins.
    "flows.watching": ("headwater", "features", "storage", "heads", "flows.runtime",
                       "flows.extraction", "flows.training", "flows.use", "flows.retraining",
                       "flows.serving", "flows.scheduling"),
    "flows.door": ("headwater", "features", "storage", "heads", "flows"),
    "flows.command": ("headwater", "features", "storage", "heads", "flows"),
}  # fmt: skip
#: Names that registered models and heads of other packages import: thin files, nothing else.
OLD_NAMES = {
    "storage.registry_mlflow": "models registered before the rooms were built",
    "storage.serving_pyfunc": "models registered before the rooms were built",
    "storage.serving_pairs_pyfunc": "models over pairs registered before the rooms were built",
    "heads.base": "heads of other packages",
    "heads.data": "heads of other packages",
    "heads.scoring": "heads of other packages",
    "heads.trainer": "heads of other packages",
    "heads.parts.flow_head": "flow heads of other packages",
}
#: The front door opens into the whole house, when it is used.
DOOR = "headwater"
ONLY_IN = {
    "prefect": (
        "flows.dags",
        "flows.retraining.dag",
        "flows.scheduling.dag",
        "flows.scheduling.plan",
        "flows.runtime",
    ),
    "mlflow": ("storage.registry", "storage.serving"),
    "zarr": ("storage.store", "storage.upkeep"),
    "icechunk": ("storage.store", "storage.upkeep"),
    "dask": ("flows", "storage.store.distributed"),
    "distributed": ("flows", "storage.store.distributed"),
}
#: Where all imports inside functions are for a quick start, as the room's docstring says.
LATE = ("flows.command", "headwater")


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {
    module_of(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))
}


def imports(path):
    """Yield ``(what is imported, node, inside a function)`` of a file, wherever it stands."""

    def walk(node, inside):
        for child in ast.iter_child_nodes(node):
            deeper = inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield alias.name, child, inside
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: a relative import"
                for alias in child.names:
                    full = f"{child.module}.{alias.name}"
                    yield (full if full in FILES else child.module), child, inside
            else:
                yield from walk(child, deeper)

    yield from walk(ast.parse(path.read_text()), False)


EDGES = {name: {t for t, _, _ in imports(path)} for name, path in FILES.items()}


def below(name, rooms):
    return any(name == room or name.startswith(room + ".") for room in rooms)


def room_of(name):
    return max((r for r in MAY_IMPORT if below(name, [r])), key=len, default=None)


@pytest.mark.parametrize("name", FILES)
def test_imports_run_downhill(name):
    if name == DOOR or name in OLD_NAMES:
        return
    room = room_of(name)
    own = {t for t in EDGES[name] if t.split(".")[0] in PACKAGES}
    if room is None:
        assert not own, f"{name} is in no room"
        return
    for target in own:
        assert target not in OLD_NAMES, f"{name} imports {target}, a name that is kept for others"
        assert target != DOOR, f"{name} imports the front door"
        assert below(target, (room, *MAY_IMPORT[room])), f"{name} ({room}) imports {target}"


@pytest.mark.parametrize("name", FILES)
def test_libraries_stay_in_their_rooms(name):
    if name in OLD_NAMES:
        return
    for target in EDGES[name]:
        library = target.split(".")[0]
        if library in ONLY_IN:
            assert below(name, ONLY_IN[library]), f"{name} imports {library}"


def test_no_circle_of_files():
    done, path, circles = set(), [], []

    def visit(name):
        if name in path:
            circles.append([*path[path.index(name) :], name])
            return
        if name in done or name not in FILES:
            return
        path.append(name)
        for target in sorted(EDGES[name]):
            visit(target)
        path.pop()
        done.add(name)

    # The door is where one comes in: nothing inside imports it, as the test above sees to.
    for name in FILES:
        visit(name)
    assert not circles, "\n".join(" -> ".join(c) for c in circles)


def test_an_import_inside_a_function_says_why():
    silent = []
    for name, path in FILES.items():
        if below(name, LATE):
            continue
        lines = path.read_text().splitlines()
        for target, node, inside in imports(path):
            said = "\n".join(lines[node.lineno - 2 : node.end_lineno])
            if inside and target.split(".")[0] in PACKAGES and "# late:" not in said:
                silent.append(f"{name}:{node.lineno} imports {target}")
    assert not silent, "\n".join(silent)


def test_rooms_are_not_crowded_and_modules_stay_readable():
    folders = {}
    for path in FILES.values():
        lines = path.read_text().count("\n")
        assert lines <= 400, f"{path.relative_to(ROOT)} has {lines} lines"
        if path.name != "__init__.py":
            folders.setdefault(path.parent, []).append(path.name)
    for folder, names in folders.items():
        assert len(names) <= 14, f"{folder.relative_to(ROOT)} has {len(names)} modules"


@pytest.mark.parametrize("name", [n for n, p in FILES.items() if p.name == "__init__.py"])
def test_a_room_says_what_it_is_for_and_imports_nothing_heavy(name):
    assert ast.get_docstring(ast.parse(FILES[name].read_text()))
    # What is imported for types alone, or inside a function, costs nothing until it is used.
    at_once = {n.module for n in ast.parse(FILES[name].read_text()).body if hasattr(n, "module")}
    assert at_once <= {"headwater.version", "__future__", "typing", "importlib"}, name


def test_old_names_only_hand_on():
    for name in OLD_NAMES:
        for node in ast.parse(FILES[name].read_text()).body:
            plain = isinstance(node, ast.Expr | ast.Import | ast.ImportFrom | ast.Assign)
            assert plain, f"{name} does more than hand names on"


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
