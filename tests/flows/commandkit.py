"""The command as tests run it: in a process of its own, or in this one over a small set."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from flows.command.main import main
from storage.store.feature_store import FeatureStore

ROOT = Path(__file__).resolve().parents[2]
HEADWATER = [sys.executable, "-m", "flows.command.main"]
HEADS = ("--heads", "patchcore", "--set", 'patchcore.nodes=["layer1"]')


def save_weights(folder):
    """Write the weights of a seeded resnet18; return the file."""
    torch.manual_seed(0)
    path = folder / "resnet18.safetensors"
    save_file(timm.create_model("resnet18").state_dict(), path)
    return path


def draw_image(images, i):
    """Make normal image `i` of the set in `images`; return the file."""
    path = images / "train/good" / f"{i}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(i)
    Image.fromarray(rng.integers(0, 255, (48, 48, 3), dtype=np.uint8)).save(path)
    return path


def environment(work):
    """Return the environment of a command whose home is below `work`."""
    known = {k: v for k, v in os.environ.items() if k != "HEADWATER_WEIGHTS"}
    return {
        **known,
        "HEADWATER_HOME": str(work / "home"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }


def run_command(work, *arguments, status=0):
    """Run the command in a process of its own; return what it printed on either side.

    Fails with all that it said where it ends with another status, or with a traceback.
    """
    done = subprocess.run(
        [*HEADWATER, *map(str, arguments)],
        cwd=work, env=environment(work), capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == status, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


def run_here(monkeypatch, capsys, *arguments, status=0):
    """Run the command in this process; return what it printed, with its complaints if it failed.

    Fails with all that it said where it ends with another status, or with a traceback.
    """
    monkeypatch.setattr(sys, "argv", ["headwater", *map(str, arguments)])
    ended = 0
    try:
        main()
    except SystemExit as done:
        ended = done.code or 0
    said = capsys.readouterr()
    assert ended == status, said.out + said.err
    assert "Traceback" not in said.err
    return said.out + said.err if status else said.out


class Desk:
    """A home, a set of ten images, and the command."""

    def __init__(self, folder, weights, monkeypatch, capsys):
        self.folder, self.images, self.home = folder, folder / "images", folder / "home"
        self.monkeypatch, self.capsys = monkeypatch, capsys
        monkeypatch.setenv("HEADWATER_HOME", str(self.home))
        monkeypatch.setenv("HEADWATER_WEIGHTS", str(weights))
        for i in range(10):
            self.draw(i)

    def draw(self, i):
        """Make image `i`."""
        return draw_image(self.images, i)

    def __call__(self, *arguments, status=0):
        """Run the command in this process; return what it printed."""
        return run_here(self.monkeypatch, self.capsys, *arguments, status=status)

    def extract(self):
        images = ("--images", self.images, "--size", 48, "--precision", "float32")
        return json.loads(self("extract", "s", *images, *HEADS, "--json"))

    @property
    def store(self):
        return FeatureStore.open(self.home / "store", "s", create=False)


def features(store):
    """Return every stored map: ``{(extractor, layer, sha256, view): values}``."""
    found = {}
    for extractor in store.extractors():
        for name, layer in extractor.layers.items():
            reader = store.reader(extractor.spec, (layer,), missing="skip")
            batch = reader.read(0, len(reader))[name]
            for i, (sha, view) in enumerate(zip(reader.ids, reader.views, strict=True)):
                found[extractor.spec.id, name, sha, view] = batch[i].numpy()
    return found


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)
