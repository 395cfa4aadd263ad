"""How ``home-v1`` was made: a small home with registered models that later versions must open.

A record more than a tool. The code of commit f3934a0952b3 made it (the runs' tag ``code`` says so
too), from a checkout of that commit without changes::

    cd CHECKOUT
    OMP_NUM_THREADS=1 PYTHONPATH=. python .../tests/golden/make_home.py .../tests/golden/home-v1

The home lies at `PLACE` while it is made, because MLflow's database, the models' ``MLmodel``
files, the sets' cards and the lists of pairs hold absolute addresses. Who opens a copy replaces
`PLACE` by the copy's folder, as ``tests/test_golden_home.py`` does.

The result:

- ``home.tar.xz``: the home as the commands left it, but for pictures, caches and Prefect's folder,
  and with a compacted database. Packed, because the store's chunks are full-sized and zeros;
- ``images/tiles``, an image set in MVTec layout, and ``images/boards``, a set of pairs;
- ``weights.safetensors``: timm's test_resnet, seeded, as far as layer2;
- ``expected.npz``: scores and maps of the test images; ``expected.json``: all else that is to stay,
  and the CPU and the torch that computed the numbers.

The settings name the heads' nodes: the file has the stages of strides 4 and 8 (layer1, layer2) and
nothing deeper, while most heads would look for stride 16.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import tarfile
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from safetensors.torch import save_file

from features.images import read_image
from storage.maintenance import tags
from storage.registry import Registry
from storage.registry_mlflow import mlflow
from storage.serving import Detector
from storage.serving_pairs import PairDetector
from storage.serving_pyfunc import encode_image
from storage.store import FeatureStore
from tests.commandkit import ROOT, features
from tests.nets import state_of

PLACE = Path("/tmp/headwater-golden-home")
NET = "test_resnet"
SIDES = ["current", "history"]
#: Options of every run.
COMMON = f"--backbone {NET} --weights {PLACE}/weights.safetensors --size 64 --precision float32"
COMMON += " --preset small --device cpu --epochs 1 --workers 1"
PATCHCORE = 'patchcore.nodes=["layer2"] patchcore.ratio=0.1'
TILES = [
    *PATCHCORE.split(),
    'padim.nodes=["layer1","layer2"]',
    "padim.channels=6",
    'fast_flow.nodes=["layer1","layer2"]',
    "fast_flow.channels=8",
    "fast_flow.steps=2",
]
#: A second version of the same head from the same features.
SECOND = [*PATCHCORE.split(), "patchcore.projection=16", "patchcore.reweight=false"]
BOARDS = [
    'pair_flow.nodes=["layer1","layer2"]',
    "pair_flow.channels=8",
    "pair_flow.steps=1",
    'pair_diff.nodes=["layer1","layer2"]',
    *(f"pair_diff.{k}" for k in ("width=4", "embedding=16", "mlp=16", "heads=2", "layers=1")),
]
#: The commands, in their order.
RUNS = [
    ("tiles", f"--images {PLACE}/images/tiles", "patchcore,padim,fast_flow", TILES),
    ("tiles", "", "patchcore", SECOND),
    ("boards", f"--pairs {PLACE}/images/boards", "pair_flow,pair_diff", BOARDS),
]
#: What nobody needs who opens the home: caches, Prefect's state, pictures.
LEFT_OUT = ("prefect", "tmp", "checkpoints", "figures", "files.sqlite", "mlflow.db.lock")


def plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Leave out what nobody needs, and whose files these were."""
    if Path(member.name).name in LEFT_OUT:
        return None
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path, optimize=True)


def texture(seed: int) -> np.ndarray:
    """Return a waved grey-brown tile; few grey levels, so that its PNG is small."""
    rng = np.random.default_rng(seed)
    down, right = np.mgrid[0:64, 0:64] / 64
    wave = np.sin(2 * np.pi * (4 * right + 2 * down + rng.random()))
    level = 100 + 24 * wave + 8 * rng.integers(-1, 2, (64, 64))
    return np.stack([level, 0.75 * level, 0.5 * level], -1) // 4 * 4


def draw(root: Path) -> None:
    """Draw both sets: 8 + 2 good tiles and 3 spotted ones, 9 pairs of which 4 changed."""
    tiles, boards = root / "tiles", root / "boards"
    for i in range(8):
        save(texture(i), tiles / f"train/good/{i}.png")
    for i in range(2):
        save(texture(10 + i), tiles / f"test/good/{i}.png")
    for i in range(3):
        pixels, mask = texture(20 + i), np.zeros((64, 64))
        mask[12 : 28 + 4 * i, 20:40] = 255
        pixels[mask > 0] = 220
        save(pixels, tiles / f"test/spot/{i}.png")
        save(mask, tiles / f"ground_truth/spot/{i}_mask.png")
    for i in range(9):
        split = "train" if i < 6 else "test"
        before, mask = texture(30 + i), np.zeros((64, 64))
        now = np.clip(before + 4 * np.random.default_rng(i).integers(-1, 2, (64, 64, 1)), 0, 255)
        if i in (4, 5, 7, 8):
            mask[16 : 32 + i, 24:44] = 255
            now[mask > 0] = 230
        for side, image in (("history", before), ("current", now), ("mask", mask)):
            save(image, boards / split / side / f"{i}.png")


def arguments(image_set: str, given: str, heads: str, settings: list[str]) -> list[str]:
    """Return one command's arguments."""
    options = [*given.split(), *COMMON.split(), "--heads", heads]
    return ["run", image_set, *options, *(x for one in settings for x in ("--set", one))]


def run(command: list[str]) -> None:
    """Run the command itself."""
    known = {"HEADWATER_HOME": str(PLACE / "home"), "PYTHONPATH": str(ROOT)}
    known |= {"OMP_NUM_THREADS": "1", "USER": "golden", "LOGNAME": "golden"}
    headwater = [sys.executable, "-m", "flows.cli", *command]
    subprocess.run(headwater, cwd=PLACE, env={**os.environ, **known}, check=True)


def cpu() -> dict[str, str]:
    """Return what decides the last bits of floating-point results."""
    about = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [x.partition(":")[2].strip() for x in about.splitlines() if x.startswith("model name")]
    return {
        "machine": platform.machine(),
        "model": names[0] if names else platform.processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }


def expect(root: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """Return what the models below `root` say of the test images: facts, and arrays."""
    torch.set_num_threads(1)
    registry = Registry(root / "home")
    mlflow.set_tracking_uri(registry.uri)
    mlflow.set_registry_uri(registry.uri)
    tiles, sides = root / "images/tiles", [root / "images/boards/test" / s for s in SIDES]
    images = sorted((tiles / "test").glob("*/*.png"))
    single = [read_image(path) for path in images]
    pairs = [tuple(read_image(s / f"{i}.png") for s in sides) for i in (6, 7, 8)]
    facts: dict = {"cpu": cpu(), "images": [str(p.relative_to(root)) for p in images]}
    arrays: dict[str, np.ndarray] = {}
    facts |= {"leaderboard": {}, "keys": {}, "verdicts": {}, "tags": {}, "features": {}}
    for image_set in ("tiles", "boards"):
        facts["leaderboard"][image_set] = registry.leaderboard(image_set)
        for row in registry.leaderboard(image_set):
            uri, name = row["uri"], row["uri"].removeprefix("models:/")
            facts["keys"][name] = registry.client.get_run(row["run_id"]).data.tags["headwater.key"]
            if image_set == "tiles":
                got = Detector.load(uri, registry, device="cpu").predict(single)
                table = pd.DataFrame({"image": [encode_image(x) for x in single]})
            else:
                got = PairDetector.load(uri, registry, device="cpu").predict(pairs)
                table = pd.DataFrame([map(encode_image, x) for x in pairs], columns=SIDES)
            served = mlflow.pyfunc.load_model(uri).predict(table)
            arrays[f"{name}/scores"] = np.array([p.score for p in got])
            arrays[f"{name}/maps"] = np.stack([p.map for p in got])
            arrays[f"{name}/served"] = served["score"].to_numpy()
            facts["verdicts"][name] = [p.verdict for p in got]
    for name in ("tiles", "boards.current", "boards.history"):
        store = FeatureStore.open(root / "home/store", name, create=False)
        facts["tags"][name] = tags(store)
        facts["features"][name] = {
            " ".join(map(str, key)): hashlib.sha256(values.tobytes()).hexdigest()[:16]
            for key, values in sorted(features(store).items())
        }
    return facts, arrays


def main(target: Path) -> None:
    """Make the home at `PLACE`, and `target` of it."""
    PLACE.mkdir()
    state = state_of(NET)
    parts = ("conv1", "bn1", "layer1", "layer2")
    save_file(
        {k: v for k, v in state.items() if k.split(".")[0] in parts}, PLACE / "weights.safetensors"
    )
    draw(PLACE / "images")
    commands = [arguments(*one) for one in RUNS]
    for command in commands:
        run(command)
    facts, arrays = expect(PLACE)
    facts["commands"] = commands
    database = PLACE / "home/mlflow.db"
    with closing(sqlite3.connect(database)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.execute("PRAGMA journal_mode=DELETE")
        db.execute("VACUUM")
    target.mkdir(parents=True)
    with tarfile.open(target / "home.tar.xz", "w:xz", preset=9) as packed:
        packed.add(PLACE / "home", "home", filter=plain)
    shutil.copytree(PLACE / "images", target / "images")
    shutil.copy(PLACE / "weights.safetensors", target)
    (target / "expected.json").write_text(json.dumps(facts, indent=1) + "\n")
    np.savez_compressed(target / "expected.npz", **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
