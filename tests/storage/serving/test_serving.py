"""Serving equals evaluation: the model folder alone gives the scores that were evaluated."""

import base64
import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from features.backbones.backbone import load_backbone
from features.images.preprocess import preprocess
from heads.catalogue import get_head, make_config
from heads.contract import NullProgress, TrainOptions
from heads.judging.calibration import calibrate
from heads.training.sources import TensorSource
from headwater.errors import ConfigError, ImageError, ModelError, ShapeError
from headwater.spec import LayerSpec
from storage.registry.client import mlflow
from storage.registry.registry import Registry
from storage.serving.detector import Detector, save_model
from storage.serving.files import BACKBONE_FILE, HEAD_FILE, MANIFEST, write_parts
from storage.serving.pyfunc import decode_base64, decode_map, encode_image, encode_map

ROOT = Path(__file__).resolve().parents[3]
RNG = np.random.default_rng(7)
IMAGES = [RNG.integers(0, 255, (50 + 9 * k, 64, 3), dtype=np.uint8) for k in range(5)]
LAYERS = (LayerSpec.parse("layer1~mean3"),)


def stored(parts):
    """The images' features as the store gives them: through float16."""
    pixels = torch.stack([preprocess(image, parts["spec"]) for image in IMAGES])
    maps = parts["backbone"].maps(pixels, LAYERS, parts["spec"].precision)
    return TensorSource({k: v.half() for k, v in maps.items()})


@pytest.fixture(scope="module")
def trained():
    """A small gallery on a small net, and what evaluation from the store gives."""
    backbone = load_backbone("resnet18", untrained_seed=3)
    spec = backbone.default_spec((40, 48), precision="float32")
    parts = {"backbone": backbone, "spec": spec, "layers": LAYERS}
    source = stored(parts)
    config = make_config("patchcore", {"ratio": 0.2})
    head = get_head("patchcore")(config, source.shapes, spec.input_size)
    head.fit(
        source.subset([0, 1, 2]), source.subset([3]), TrainOptions(device="cpu"), NullProgress()
    )
    scores = head.score(source.read(0, 5))
    calibration = calibrate(scores.image.numpy(), scores.maps.numpy(), target_fpr=0.4)
    return {**parts, "head": head, "calibration": calibration}, scores


@pytest.fixture(scope="module")
def model(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("serving") / "model"
    return save_model(folder, **trained[0], example=IMAGES[0], about={"image_set": "noise"})


def test_a_detector_scores_as_evaluation_did_to_the_last_bit(trained, model):
    parts, scores = trained
    detector = Detector.load(model, device="cpu")
    for batch in (1, 3, 8):
        got = detector.predict(IMAGES, batch=batch)
        assert [p.score for p in got] == scores.image.tolist()
        assert all(np.array_equal(p.map, m) for p, m in zip(got, scores.maps.numpy(), strict=True))
    limit = parts["calibration"].threshold
    assert [p.verdict == "anomalous" for p in got] == (scores.image > limit).tolist()
    assert {p.verdict for p in got} == {"normal", "anomalous"}
    assert {p.threshold for p in got} == {limit}
    assert detector.manifest["about"] == {"image_set": "noise"}


def test_features_are_rounded_as_the_store_rounds_them(trained):
    parts, _ = trained
    detector = Detector(**{**parts, "calibration": parts["calibration"].to_json()})
    for dtype, torch_dtype in (("float16", torch.float16), ("bfloat16", torch.bfloat16)):
        detector.spec = replace(parts["spec"], dtype=dtype)
        (maps,) = detector.features(IMAGES[:1]).values()
        assert torch.equal(maps, maps.to(torch_dtype).float())
    detector.spec = replace(parts["spec"], dtype="float32")
    assert not torch.equal(maps, detector.features(IMAGES[:1])[LAYERS[0].name])


def test_thresholds_override(model):
    detector = Detector.load(model)
    assert [p.verdict for p in detector.predict(IMAGES, threshold=-1.0)] == ["anomalous"] * 5
    assert [p.verdict for p in detector.predict(IMAGES, threshold=1e9)] == ["normal"] * 5
    with pytest.raises(ModelError, match="no factors"):
        detector.predict(IMAGES, alpha=0.5)


def test_factors_override_the_model_s_own(trained, tmp_path):
    parts, _ = trained
    head = get_head("f2r")(
        make_config(
            "f2r", {"ratio": 0.05, "steps": 2, "epochs": 1, "select": "fixed", "beta": 0.9}
        ),
        parts["head"].shapes,
        parts["head"].map_size,
    )
    source = stored(parts)
    options = TrainOptions(device="cpu", precision="float32")
    head.fit(source.subset([0, 1, 2]), source.subset([3, 4]), options, NullProgress())
    write_parts(tmp_path, **{**parts, "head": head})
    detector = Detector.load(tmp_path, device="cpu")

    def expected(alpha, beta):
        head.prefer(alpha, beta)
        return head.score(source.read(0, 5)).image.tolist()

    def served(**factors):
        return [p.score for p in detector.predict(IMAGES, **factors)]

    own = expected(1.0, 0.9)
    assert served() == own
    assert served(alpha=0.5) == expected(0.5, 0.9) != own
    assert served(alpha=0.5, beta=0.0) == expected(0.5, 0.0)
    assert served(beta=0.3) == expected(1.0, 0.3)
    assert served() == own


def test_wrong_arrays_are_refused(model):
    detector = Detector.load(model)
    for bad in (
        np.zeros((9, 9), np.uint8),
        np.zeros((9, 9, 3), np.float32),
        np.zeros((9, 9, 4), np.uint8),
    ):
        with pytest.raises(ShapeError):
            detector.predict([bad])
    assert detector.predict([]) == []


def test_a_model_is_plain_files_and_tells_when_they_were_changed(trained, model, tmp_path):
    kinds = {p.suffix for p in model.rglob("*") if p.is_file()}
    assert not kinds & {".pkl", ".pt", ".pth", ".bin"}
    assert str(ROOT) not in (model / "MLmodel").read_text()  # no paths of this machine
    parts = tmp_path / "parts"
    write_parts(parts, **trained[0])
    assert Detector.load(parts).threshold == trained[0]["calibration"].threshold
    # only what the layer needs of the backbone travels
    assert (parts / BACKBONE_FILE).stat().st_size < 1_500_000
    for name in (HEAD_FILE, BACKBONE_FILE):
        copy = tmp_path / f"bad-{name}"
        shutil.copytree(parts, copy)
        data = bytearray((copy / name).read_bytes())
        data[-1] ^= 1
        (copy / name).write_bytes(data)
        with pytest.raises(ModelError, match="changed"):
            Detector.load(copy)
    manifest = json.loads((parts / MANIFEST).read_text())
    for key, value, said in (("format_version", 99, "newer"), ("format", "zip", "no manifest")):
        (parts / MANIFEST).write_text(json.dumps({**manifest, key: value}))
        with pytest.raises(ModelError, match=said):
            Detector.load(parts)
    with pytest.raises(ModelError, match="no model"):
        Detector.load(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="exists"):
        save_model(parts, **trained[0])


def test_what_the_pyfunc_takes_and_gives(trained, model):
    _, scores = trained
    served = mlflow.pyfunc.load_model(str(model))
    table = pd.DataFrame({"image": [encode_image(image) for image in IMAGES]})
    for kind in ("npy", "png"):
        got = served.predict(table, params={"map": kind})
        assert got["score"].tolist() == scores.image.tolist()
        assert got["error"].tolist() == [""] * 5
        for row, heat in zip(got.to_dict("records"), scores.maps.numpy(), strict=True):
            step = 0.0 if kind == "npy" else float(np.ptp(heat)) / 65535
            assert np.abs(decode_map(row) - heat).max() <= step
    assert served.predict(table, params={"threshold": -1.0})["verdict"].unique() == ["anomalous"]
    # a broken image, a path, not even text: that row says so, the others are scored
    mixed = pd.DataFrame({"image": ["aGVsbG8=", table["image"][0], "/etc/passwd", ""]})
    got = served.predict(mixed, params={"map": "none"}).to_dict("records")
    assert [bool(r["error"]) for r in got] == [True, False, True, True]
    assert [r["score"] for r in got] == [None, scores.image[0].item(), None, None]
    assert json.loads(json.dumps(got, allow_nan=False)) == got
    with pytest.raises(ConfigError, match="png, npy, none"):
        served.predict(table, params={"map": "gif"})
    with pytest.raises(ModelError, match="no factors"):
        served.predict(table, params={"alpha": 0.5})
    assert served.predict(served.input_example)["score"].tolist() == got_of(served, IMAGES[0])


def got_of(served, image):
    return served.predict(pd.DataFrame({"image": [encode_image(image)]}))["score"].tolist()


def test_images_are_taken_as_base64_and_nothing_else():
    png = base64.b64decode(encode_image(IMAGES[0]))
    for form in (png, encode_image(IMAGES[0]), "data:image/png;base64," + encode_image(IMAGES[0])):
        assert decode_base64(form, "x") == png
    file = io.BytesIO()
    Image.new("L", (20, 20)).save(file, "JPEG")
    folded = base64.encodebytes(file.getvalue()).decode()
    assert decode_base64(folded, "x") == file.getvalue()
    for bad in (None, 3, "é", "a b c!"):
        with pytest.raises(ImageError, match="base64"):
            decode_base64(bad, "x")
    flat = np.full((4, 5), 2.5, np.float32)
    row = {"map": encode_map(flat), "map_low": 2.5, "map_high": 2.5}
    assert np.array_equal(decode_map(row), flat)
    with pytest.raises(ImageError, match="without a map"):
        decode_map({"map": ""})


@pytest.fixture(scope="module")
def registered(model, empty_database, tmp_path_factory):
    """The model registered in a home of its own."""
    home = tmp_path_factory.mktemp("home")
    shutil.copy(empty_database, home / "mlflow.db")
    registry = Registry(home)
    with registry.start("noise", "patchcore", "key", tags={"snapshot": "S"}) as run:
        copy = home / "copy"
        shutil.copytree(model, copy)
        run.register(copy)
    return registry


def test_a_registered_model_scores_in_a_fresh_process(trained, registered, tmp_path):
    _, scores = trained
    registry = registered
    uri = registry.get_model("noise", "patchcore")["uri"]
    here = Detector.load(uri, registry).predict(IMAGES[:1])
    assert here[0].score == scores.image[0].item()
    code = (
        "import sys, mlflow, pandas\n"
        "mlflow.set_tracking_uri(sys.argv[1])\n"
        "model = mlflow.pyfunc.load_model(sys.argv[2])\n"
        "got = model.predict(pandas.DataFrame({'image': [sys.stdin.read()]}))\n"
        "print(got.drop(columns='map').to_json(orient='records'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, registry.uri, uri],
        input=encode_image(IMAGES[0]),
        capture_output=True,
        text=True,
        timeout=200,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout.splitlines()[-1])
    assert row["score"] == pytest.approx(here[0].score, abs=1e-9)
    assert row["verdict"] == here[0].verdict
    assert "arning" not in done.stderr


@pytest.mark.slow
def test_mlflow_models_serve_answers_a_request(trained, registered, tmp_path):
    _, scores = trained
    registry = registered
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = registry.get_model("noise", "patchcore")["uri"]
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "models",
        "serve",
        "-m",
        uri,
        "--env-manager",
        "local",
    ]
    server = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        cwd=tmp_path,
        env={
            **os.environ,
            "MLFLOW_TRACKING_URI": registry.uri,
            # MLflow starts uvicorn by its name: as in an activated environment
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    place = f"http://127.0.0.1:{port}"
    try:
        wait_for(place + "/ping", server)
        texts = [encode_image(IMAGES[0]), "no image"]
        for body in (
            {"dataframe_split": {"columns": ["image"], "data": [[t] for t in texts]}},
            {"dataframe_records": [{"image": t} for t in texts]},
            {"inputs": {"image": texts}},
        ):
            answer = ask(place, {**body, "params": {"threshold": 0.0, "map": "npy"}})
            good, bad = answer["predictions"]
            assert good["score"] == scores.image[0].item()
            assert (good["verdict"], good["threshold"]) == ("anomalous", 0.0)
            assert np.array_equal(decode_map(good), scores.maps[0].numpy())
            assert bad["score"] is None
            assert "base64" in bad["error"]
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(place, {"dataframe_records": [{"picture": "x"}]})
        assert refused.value.code == 400
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.communicate(timeout=30)


def wait_for(url, server, seconds=150):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert server.poll() is None, server.communicate()[0]
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"{url} did not answer in {seconds} s")


def ask(place, body):
    request = urllib.request.Request(
        place + "/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())
