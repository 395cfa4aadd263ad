"""Draws the pictures of docs/architecture.md and of made defects from the code: `make pictures`.

The rooms and their imports are read from the source. The way of a picture from file to verdict is
recorded while a small model answers, so what is drawn is what ran.
"""

from __future__ import annotations

import ast
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("headwater", "features", "storage", "heads", "flows")
COLOURS = {
    "headwater": "#d9d9d9",
    "features": "#cfe3f5",
    "storage": "#d5ecd4",
    "heads": "#fbe3c6",
    "flows": "#e6dbf2",
}


# --- the rooms -----------------------------------------------------------------------------------


def room_of(module: str) -> str:
    """Return the room of a module: its folder, or itself where it stands alone in a package."""
    names = module.split(".")
    if names[0] == "headwater":
        return "headwater"
    return ".".join(names[:2])


def read_rooms() -> dict[str, set[str]]:
    """Return ``{room: rooms it imports}``, all imports of all files counted."""
    files = {
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
        for package in PACKAGES
        for p in (ROOT / package).rglob("*.py")
    }
    # Old names only hand on; the front door opens into everything.
    shims = {n for n in files if '"Old names"' in files[n].read_text()}
    rooms: dict[str, set[str]] = {}
    for name, path in files.items():
        if name in shims or name in PACKAGES:
            continue
        own = rooms.setdefault(room_of(name), set())
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                found = [f"{node.module}.{a.name}" for a in node.names]
                targets = [f if f in files else node.module for f in found]
            elif isinstance(node, ast.Import):
                targets = [a.name for a in node.names]
            else:
                continue
            own |= {room_of(t) for t in targets if t.split(".")[0] in PACKAGES}
    return {room: targets - {room} for room, targets in rooms.items()}


def levels(rooms: dict[str, set[str]]) -> dict[str, int]:
    """Return how far each room lies above the ground: one more than what it imports."""
    found: dict[str, int] = {}

    def level(room: str) -> int:
        if room not in found:
            found[room] = 1 + max((level(t) for t in rooms.get(room, ())), default=-1)
        return found[room]

    for room in rooms:
        level(room)
    return found


def reduced(rooms: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return the imports without those that others imply."""

    def reach(room: str) -> set[str]:
        direct = rooms.get(room, set())
        return direct.union(*(reach(t) for t in direct)) if direct else set()

    return {
        room: {t for t in direct if not any(t in reach(o) for o in direct - {t})}
        for room, direct in rooms.items()
    }


def box(axes: Axes, x: float, y: float, width: float, text: str, colour: str) -> None:
    """Draw a box with its lower left corner at (x, y)."""
    shape = FancyBboxPatch(
        (x, y), width, 0.55, boxstyle="round,pad=0.02,rounding_size=0.08", fc=colour, ec="#555555"
    )
    axes.add_patch(shape)
    axes.text(x + width / 2, y + 0.275, text, ha="center", va="center", fontsize=9)


def draw_rooms(target: Path) -> None:
    """Draw the rooms, each above what it imports, every package in a column of its own."""
    rooms = read_rooms()
    height = levels(rooms)
    columns: dict[str, dict[int, list[str]]] = {p: {} for p in PACKAGES}
    for room in sorted(rooms):
        columns[room.split(".")[0]].setdefault(height[room], []).append(room)
    place: dict[str, tuple[float, float]] = {}
    left = 0.0
    for package in ("features", "storage", "heads", "flows"):
        rows = columns[package]
        widest = max(len(row) for row in rows.values())
        for level, names in rows.items():
            start = left + (widest - len(names)) * 1.05
            for i, room in enumerate(names):
                place[room] = (start + 2.1 * i, 1.05 * level)
        left += 2.1 * widest + 0.4
    # Below all others: what stands alone does not stand on it.
    place["headwater"] = (left / 2 - 1.2, -1.05)
    top = 1 + max(height.values())
    figure, axes = plt.subplots(figsize=(left, 1.05 * top), layout="constrained")
    for room, targets in reduced(rooms).items():
        for other in targets:
            (x0, y0), (x1, y1) = place[room], place[other]
            style = {"arrowstyle": "-|>", "color": "#999999", "lw": 0.8}
            axes.annotate(
                "", (x1 + 0.9, y1 + 0.58), (x0 + 0.9, y0 - 0.02), arrowprops=style, zorder=0
            )
    for room, (x, y) in place.items():
        box(axes, x, y, 1.8, room.replace(".", "/"), COLOURS[room.split(".")[0]])
    axes.set_xlim(-0.2, left)
    axes.set_ylim(-1.25, 1.05 * top - 0.2)
    axes.axis("off")
    figure.savefig(target, dpi=110)
    plt.close(figure)


# --- the way of a picture ------------------------------------------------------------------------


def record(work: Callable[[], Any]) -> list[tuple[str, str]]:
    """Return the calls that went from one room into another, in order, each once."""
    seen: list[tuple[str, str]] = []
    stack: list[str] = []

    def watch(frame: Any, event: str, _: Any) -> None:
        path = frame.f_code.co_filename
        if not path.startswith(str(ROOT)) or "/.venv/" in path or frame.f_code.co_name[0] == "<":
            return
        module = ".".join(Path(path).relative_to(ROOT).with_suffix("").parts)
        if module.split(".")[0] not in PACKAGES:
            return
        if event == "call":
            room = room_of(module)
            step = (module, frame.f_code.co_qualname.split(".<")[0])
            if (not stack or stack[-1] != room) and step not in seen and room != "headwater":
                seen.append(step)
            stack.append(room)
        elif event == "return" and stack:
            stack.pop()

    sys.setprofile(watch)
    try:
        work()
    finally:
        sys.setprofile(None)
    return seen


def draw_way(steps: list[tuple[str, str]], target: Path) -> None:
    """Draw the steps from top to bottom, each in the lane of its room."""
    lanes = list(dict.fromkeys(room_of(m) for m, _ in steps))
    figure, axes = plt.subplots(
        figsize=(1.75 * len(lanes), 0.4 * len(steps) + 0.9), layout="constrained"
    )
    for i, lane in enumerate(lanes):
        axes.axvline(i, color="#dddddd", lw=1, zorder=0)
        colour = COLOURS[lane.split(".")[0]]
        axes.text(
            i, 0.9, lane.replace(".", "/"), ha="center", fontsize=9, weight="bold",
            bbox={"boxstyle": "round", "fc": colour, "ec": "#555555"},
        )  # fmt: skip
    before: tuple[float, float] | None = None
    for row, (module, name) in enumerate(steps):
        x, y = lanes.index(room_of(module)), -float(row)
        if before is not None:
            style = {"arrowstyle": "-|>", "color": "#999999", "lw": 0.8, "shrinkA": 8, "shrinkB": 8}
            axes.annotate("", (x, y), before, arrowprops=style)
        words = f"{module.split('.')[-1]}.{name}"
        axes.text(x, y, words, ha="center", va="center", fontsize=8, backgroundcolor="white")
        before = (x, y)
    axes.set_xlim(-0.6, len(lanes) - 0.4)
    axes.set_ylim(-len(steps) + 0.4, 1.4)
    axes.axis("off")
    figure.savefig(target, dpi=110)
    plt.close(figure)


def answer(folder: Path) -> Callable[[], Any]:
    """Return what asks the golden home's patchcore model about one of its pictures."""
    import headwater
    from tests.golden.home import unpack  # only here: the rooms can be drawn without it

    home = headwater.open(unpack(folder) / "home")
    picture = next((folder / "images/tiles/test").rglob("*.png"))
    return lambda: home.detector("tiles", head="patchcore").predict(picture)


def draw_made(target: Path) -> None:
    """Draw each kind of made defect into pictures that scikit-image ships, outlined below."""
    from skimage import data

    from features.images.made.defects import KINDS, make_defect  # only here, as above

    normals = [data.brick()[:256, :256], data.coffee()[60:316, 150:406]]
    figure, axes = plt.subplots(4, len(KINDS), figsize=(10, 8.4), layout="constrained")
    for column, kind in enumerate(KINDS):
        for row, normal in enumerate(normals):
            made = make_defect(normal, kind, np.random.default_rng((11, row, column)))
            for below in (0, 1):
                axis = axes[2 * row + below][column]
                axis.imshow(made.image, cmap="gray", vmin=0, vmax=255)
                if below:
                    axis.contour(made.mask, [0.5], colors=["#e00000"], linewidths=1)
                axis.axis("off")
        axes[0][column].set_title(kind)
    figure.savefig(target, dpi=70)
    plt.close(figure)


def main() -> None:
    """Draw the pictures into docs/."""
    draw_made(ROOT / "docs" / "made-defects.png")
    draw_rooms(ROOT / "docs" / "rooms.png")
    with tempfile.TemporaryDirectory() as folder:
        work = answer(Path(folder))
        work()  # what is imported at the first time is no step of the way
        draw_way(record(work), ROOT / "docs" / "way-of-a-picture.png")


if __name__ == "__main__":
    main()
