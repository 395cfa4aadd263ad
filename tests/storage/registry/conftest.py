"""A registry on a database of its own, and the smallest trainings that it keeps."""

import shutil

import pytest

from storage.registry.registry import Registry

TAGS = {"snapshot": "SNAP1", "extractor_id": "e1"}
PARAMS = {
    "backbone": "resnet18",
    "weights_sha256": "ab",
    "config.nodes": ["layer2"],
    "long": "x" * 7000,
}


@pytest.fixture
def registry(tmp_path, empty_database, monkeypatch):
    monkeypatch.chdir(tmp_path)  # what MLflow would leave in the working folder shows
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    yield Registry(tmp_path)
    assert not (tmp_path / "mlruns").exists()


@pytest.fixture
def saved(tmp_path):
    """The smallest folder that MLflow takes for a model."""

    def make(name="model"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "MLmodel").write_text("flavors: {}\n")
        (folder / "state.bin").write_bytes(b"state")
        return folder

    return make


def train(registry, folder, head="patchcore", key="k1", image_set="bottles", auroc=0.9, **more):
    with registry.start(image_set, head, key, params=PARAMS, tags=TAGS, **more) as run:
        run.metric("loss", 2.0, 1)
        run.metric("loss", 1.0, 2)
        run.finish({"image_auroc": auroc, "aupro": float("nan")}, seconds=3.0, peak_mb=99.0)
        run.register(folder)
    return run
