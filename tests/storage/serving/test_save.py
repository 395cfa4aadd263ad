"""Models as they are saved today, and the code that models saved long ago hold."""

import json
import shutil
from pathlib import Path

import pytest

from headwater.errors import ModelError
from storage.registry.client import mlflow
from storage.serving.detector import Detector
from storage.serving.manifest import MANIFEST
from storage.serving.save import save_model
from tests.storage.serving.conftest import table_of

ROOT = Path(__file__).resolve().parents[3]
#: The code that models hold which were registered before the rooms were built.
OLD_CODE = """
from mlflow.models import set_model

import storage.registry_mlflow  # noqa: F401  quiet before MLflow is used
from storage.{module} import {name}

set_model({name}())
"""


def test_a_saved_model_holds_no_pickles_and_no_paths_of_this_machine(trained, model):
    kinds = {p.suffix for p in model.rglob("*") if p.is_file()}
    assert not kinds & {".pkl", ".pt", ".pth", ".bin"}
    assert str(ROOT) not in (model / "MLmodel").read_text()
    assert [p.name for p in model.parent.iterdir()] == ["model"]
    with pytest.raises(ModelError, match="exists"):
        save_model(model, trained.detector)


def test_an_opened_model_may_be_saved_again(trained, model, tmp_path):
    again = save_model(tmp_path / "again", Detector.load(model, device="cpu"))
    made = [json.loads((m / "artifacts" / "manifest.json").read_text()) for m in (model, again)]
    assert made[0].pop("about") == {"image_set": "noise"}
    assert made[1].pop("about") == {}
    assert made[0]["sha256"].pop(MANIFEST) != made[1]["sha256"].pop(MANIFEST)
    assert made[0] == made[1]
    got = mlflow.pyfunc.load_model(str(again))
    # Grey, for none was given.
    assert got.predict(got.input_example)["error"].tolist() == [""]


def test_models_with_the_code_of_old_open_and_score_the_same(trained, model, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(model, old)
    names = {"module": "serving_pyfunc", "name": "AnomalyModel"}
    if trained.detector.kind.paired:
        names = {"module": "serving_pairs_pyfunc", "name": "PairModel"}
    (old / "model_code.py").write_text(OLD_CODE.format(**names))
    got, own = (mlflow.pyfunc.load_model(str(m)).predict(table_of(trained)) for m in (old, model))
    assert got.equals(own)


def test_old_names_offer_what_they_offered():
    from storage import registry_mlflow, serving_pairs_pyfunc, serving_pyfunc

    offered = {
        registry_mlflow: "MlflowClient MlflowException database_uri mlflow prepare_database",
        serving_pairs_pyfunc: "PAIR_SIGNATURE PairModel",
        serving_pyfunc: "OUTPUTS SIGNATURE AnomalyModel decode_base64 decode_map encode_image "
        "encode_map",
    }
    for module, names in offered.items():
        assert all(hasattr(module, name) for name in names.split()), module
