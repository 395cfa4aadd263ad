"""The command as it is against another checkout of it: what a change of the code costs its users.

``python -m benchmarks.revisions ../old IMAGES WEIGHTS`` takes turns between the two: each
extracts a folder into a home of its own, trains a flow head and a gallery from it, scores one
file and a folder, and tells what it knows, in processes of their own as a user's would be.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.machine import machine

HERE = Path(__file__).resolve().parents[1]


def module_of(checkout: Path) -> str:
    """The module that is the command there; it was ``flows.cli`` until 0.3."""
    return "flows.cli" if (checkout / "flows/cli.py").is_file() else "flows.command.main"


def jobs(images: Path, weights: Path) -> dict[str, list[str]]:
    """The daily jobs by name, in the order in which one builds on another."""
    exact = ["--precision", "float32"]
    net = ["--backbone", "resnet18", "--weights", str(weights), *exact]
    patchcore = ["--head", "patchcore"]
    net += ["--heads", "fast_flow,patchcore"]
    some = next(path for path in sorted((images / "test").iterdir()) if path.name != "good")
    return {
        "extract": ["extract", "set", "--images", str(images), *net],
        "train fast_flow, 4 epochs": [
            "train",
            "set",
            "--heads",
            "fast_flow",
            "--epochs",
            "4",
            *exact,
        ],
        "train patchcore": ["train", "set", "--heads", "patchcore", *exact],
        "predict one file": ["predict", "set", str(min(some.iterdir())), *patchcore],
        "predict a folder": ["predict", "set", str(some), *patchcore],
        "compare": ["compare", "set"],
        "--help": ["--help"],
    }


def measured(checkout: Path, arguments: list[str], home: Path) -> tuple[float, float]:
    """Wall and CPU seconds of one command, its processes included."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "HEADWATER_HOME": str(home)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-P", "-m", module_of(checkout), *arguments],
        cwd=home.parent, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{checkout}: {arguments} ended with {done.returncode}\n{done.stderr}")
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, spent


def main() -> None:
    """Measure by the arguments and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", type=Path, help="the other checkout")
    parser.add_argument("images", type=Path, help="a folder in MVTec layout")
    parser.add_argument("weights", type=Path, help="a weight file of resnet18")
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    images, weights = given.images.resolve(), given.weights.resolve()
    times: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for turn in range(given.turns):
        sides = [("other", given.other.resolve()), ("this", HERE)]
        for side, checkout in sides if turn % 2 == 0 else sides[::-1]:
            with tempfile.TemporaryDirectory() as folder:
                for name, arguments in jobs(images, weights).items():
                    spent = measured(checkout, arguments, Path(folder) / "home")
                    times.setdefault(name, {}).setdefault(side, []).append(spent)
                    print(turn, side, name, *(f"{s:.2f}" for s in spent), file=sys.stderr)
    print(json.dumps(machine()))
    print("| command | other, wall / CPU s | this, wall / CPU s | other / this, wall | CPU |")
    print("|---|---:|---:|---:|---:|")
    for name, both in times.items():
        (a, b), (c, d) = (
            [statistics.median(column) for column in zip(*both[side], strict=True)]
            for side in ("other", "this")
        )
        print(f"| {name} | {a:.2f} / {b:.2f} | {c:.2f} / {d:.2f} | {a / c:.2f} | {b / d:.2f} |")


if __name__ == "__main__":
    main()
