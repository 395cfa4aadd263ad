"""One training as a run, against a real MLflow on SQLite: what it leaves, and how it ends."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from storage.registry.client import mlflow
from tests.storage.registry.conftest import PARAMS, TAGS, train


def test_what_a_training_leaves(registry, saved, tmp_path):
    images = [{"split": "train", "kind": "good"}] * 3 + [{"split": "test", "kind": "crack"}]
    picture = tmp_path / "heat-maps.png"
    picture.write_bytes(b"png")
    with (
        registry.parent("bottles", "SNAP1") as parent,
        registry.start(
            "bottles",
            "f2r",
            "k",
            parent_run=parent,
            params=PARAMS,
            tags=TAGS,
            images=images,
            store="s",
        ) as run,
    ):
        for epoch in range(1, 601):
            run.metric("loss of [a]", 1 / epoch, epoch)
        run.finish({"image_auroc": 0.9, "aupro": float("nan")}, seconds=3.0, peak_mb=99.0)
        run.log_table([{"path": "a, b", "score": 1.5}, {"path": "c", "kind": "good"}], "images")
        run.log_file(picture, "figures")
        assert run.register(saved()) == "1"
        assert registry.in_use("bottles") == {"SNAP1"}
    assert registry.in_use("bottles") == registry.in_use("nobody's") == set()
    client = registry.client
    kept = client.get_run(run.run_id)
    assert kept.info.status == client.get_run(parent).info.status == "FINISHED"
    assert kept.data.tags["headwater.command_run"] == parent
    assert "mlflow.parentRunId" not in kept.data.tags, "a nested run is hidden below its command"
    assert kept.info.run_name == "f2r resnet18 SNAP1"
    assert {"version.torch", "version.zarr", "code", "snapshot"} <= set(kept.data.tags)
    assert kept.data.params["config.nodes"] == '["layer2"]'
    assert len(kept.data.params["long"]) == 6000
    history = client.get_metric_history(run.run_id, "epoch/loss of _a_")
    assert [m.step for m in sorted(history, key=lambda m: m.step)] == list(range(1, 601))
    (data,) = kept.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("bottles", "SNAP1")
    assert json.loads(data.dataset.profile) == {"images": 4, "test/crack": 1, "train/good": 3}
    # a figure is tied to the model and to the data it was measured on
    ties = {
        m.key: (m.value, m.dataset_name, m.dataset_digest)
        for m in client.get_logged_model(run.model_id).metrics
    }
    assert ties["image_auroc"] == (0.9, "bottles", "SNAP1")
    assert "aupro" not in ties
    (found,) = registry.pictures(run.run_id)
    assert Path(found).read_bytes() == b"png"
    assert Path(found).is_relative_to(registry.home), "the picture that stays, not a copy"
    table = client.download_artifacts(run.run_id, "tables/images.csv", str(tmp_path))
    assert Path(table).read_text().splitlines() == ["path,score,kind", '"a, b",1.5,', "c,,good"]
    model = mlflow.models.Model.load(str(registry.download("models:/bottles.f2r/1") / "MLmodel"))
    assert (model.run_id, model.model_id) == (run.run_id, run.model_id)


def test_errors_end_runs_and_are_told(registry):
    for error, status in (
        (ValueError("no luck\nat all"), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
    ):
        with (
            pytest.raises(type(error)),
            registry.parent("bottles") as parent,
            registry.start("bottles", "f2r", "k", parent_run=parent) as run,
        ):
            run.metric("loss", 1.0, 1)
            raise error
        kept = registry.client.get_run(run.run_id)
        assert kept.info.status == registry.client.get_run(parent).info.status == status
        assert kept.data.metrics == {"epoch/loss": 1.0}
        assert str(registry.client.get_logged_model(run.model_id).status) == "FAILED"
    first = registry._search("bottles", "attributes.status = 'FAILED'")
    assert "no luck\nat all" in [r.data.tags.get("headwater.error") for r in first]


def test_threads_register_versions_of_one_model(registry, saved):
    folders = [saved(f"m{k}") for k in range(6)]
    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(train, registry, f, key=f.name) for f in folders]:
            done.result()
    assert sorted(r["version"] for r in registry.leaderboard("bottles")) == list("123456")
    assert registry.get_model("bottles", "patchcore", "challenger")["version"] == "6"
