"""The whole job against an S3 server on loopback: store and MLflow artifacts, by settings alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.flows.commandkit import save_weights

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


def test_features_and_artifacts_live_in_the_bucket(bucket, tiny_set, tmp_path):
    save_weights(tmp_path)
    (tmp_path / "headwater.yaml").write_text(
        f"home: home\nstore: {bucket}/features\nartifacts: {bucket}/mlflow\n"
        f"image_set: tiny\nimages: {tiny_set}\n"
        "backbone: {weights: resnet18.safetensors}\nextraction: {size: 48}\n"
        "heads: [patchcore]\n"
    )

    def headwater(*arguments):
        done = subprocess.run(
            [sys.executable, "-m", "flows.command.main", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    headwater("run", "tiny")
    (row,) = json.loads(headwater("compare", "tiny", "--json"))
    assert row["metrics"]["image_auroc"] >= 0
    assert not (tmp_path / "home/store").exists()
    assert not (tmp_path / "home/mlartifacts").exists()
    facts = json.loads(headwater("store", "inspect", "tiny", "--json"))
    assert facts["images"] == 13
    got = json.loads(headwater("predict", "tiny", str(tiny_set / "test/spot"), "--json"))
    assert len(got) == 3
    assert "the backbone was not run" in headwater("run", "tiny")
