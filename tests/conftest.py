"""Fixtures that several test files share."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows.runtime.home import QUIET

# Before any test imports Prefect: its own patience of 20 s is too short for two busy cores.
for _name, _value in QUIET.items():
    os.environ.setdefault(_name, _value)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real weights and images; skips where it is absent."""
    path = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"needs the real weights and images of {path}, which is not there")
    return path


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database, migrated once; copy it to ``HOME/mlflow.db`` (60 ms instead of 3 s)."""
    from storage.registry.client import prepare_database

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    prepare_database(path)
    return path


@pytest.fixture
def tiny_set(tmp_path: Path) -> Path:
    """A folder in MVTec layout: 6 training images, 2 good and 3 + 2 defective test images.

    32x40 px textures; defects are bright squares. ``spot`` has masks, ``dent`` has none.
    """
    root = tmp_path / "tiny"
    rng = np.random.default_rng(0)

    def texture() -> np.ndarray:
        return rng.integers(60, 120, (32, 40, 3), dtype=np.uint8)

    def save(pixels: np.ndarray, name: str) -> None:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)

    for i in range(6):
        save(texture(), f"train/good/{i:03}.png")
    for i in range(2):
        save(texture(), f"test/good/{i:03}.png")
    for kind, count in (("spot", 3), ("dent", 2)):
        for i in range(count):
            pixels, mask = texture(), np.zeros((32, 40), np.uint8)
            mask[8 : 16 + i, 10:20] = 255
            pixels[mask > 0] = 250
            save(pixels, f"test/{kind}/{i:03}.png")
            if kind == "spot":
                save(mask, f"ground_truth/{kind}/{i:03}_mask.png")
    return root


SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket on moto's server in a process of its own; the environment points to it."""
    pytest.importorskip("moto")
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdout is not None
    port = int(server.stdout.readline())
    patch = pytest.MonkeyPatch()
    patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    patch.setenv("AWS_ACCESS_KEY_ID", "test")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    request = urllib.request.Request(f"http://127.0.0.1:{port}/features", method="PUT")
    urllib.request.urlopen(request, timeout=20).close()
    try:
        yield "s3://features"
    finally:
        patch.undo()
        server.kill()
        server.wait()


@pytest.fixture(scope="session")
def resnet_weights(tmp_path_factory):
    """A weight file of a seeded resnet18."""
    from tests.flows.commandkit import save_weights

    return save_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def desk(tmp_path, resnet_weights, monkeypatch, capsys):
    """A home with an extracted set of ten images, and the command."""
    from tests.flows.commandkit import Desk

    made = Desk(tmp_path, resnet_weights, monkeypatch, capsys)
    made.extract()
    return made
