"""What MLflow serves: tables in, tables out, here, in a fresh process and behind a server."""

import contextlib
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

from headwater.errors import ConfigError, ModelError
from storage.registry.client import mlflow
from storage.registry.registry import Registry
from storage.serving.detector import Detector
from storage.serving.encoding import decode_map
from tests.storage.serving.conftest import table_of


def test_what_the_pyfunc_takes_and_gives(trained, model):
    maps, kind = trained.scores.maps.numpy(), trained.detector.kind
    scores = [p.score for s in trained.samples for p in trained.detector.predict([s])]
    assert scores == pytest.approx(trained.scores.image.tolist(), rel=trained.near, abs=0)
    served = mlflow.pyfunc.load_model(str(model))
    table = table_of(trained)
    for form in ("npy", "png"):
        got = served.predict(table, params={"map": form})
        assert got["score"].tolist() == scores
        assert got["error"].tolist() == [""] * 5
        for row, heat in zip(got.to_dict("records"), maps, strict=True):
            step = 0.0 if form == "npy" else float(np.ptp(heat)) / 65535
            np.testing.assert_allclose(decode_map(row), heat, atol=step, rtol=trained.near)
    got = served.predict(table, params={"threshold": -1e9})
    assert got["verdict"].unique() == [kind.verdicts[1]]
    # a broken image, a path, not even text: that row says so, the others are scored
    name = kind.images[-1]
    bad = ["aGVsbG8=", table[name][0], "/etc/passwd", ""]
    mixed = pd.DataFrame({**{k: [table[k][0]] * 4 for k in kind.images}, name: bad})
    got = served.predict(mixed, params={"map": "none"}).to_dict("records")
    assert [f"{name} {k}" in r["error"] for k, r in enumerate(got)] == [True, False, True, True]
    assert [r["score"] for r in got] == [None, scores[0], None, None]
    assert json.loads(json.dumps(got, allow_nan=False)) == got
    with pytest.raises(ConfigError, match="png, npy, none"):
        served.predict(table, params={"map": "gif"})
    first = served.predict(table[:1])["score"].tolist()
    assert served.predict(served.input_example)["score"].tolist() == first


def test_what_is_not_in_the_table_or_the_head_is_named(trained, model):
    served = mlflow.pyfunc.load_model(str(model)).unwrap_python_model()
    paired = trained.detector.kind.paired
    said = "the columns current and history" if paired else "a column image"
    for wrong in (pd.DataFrame({"picture": ["x"]}), ["x"]):
        with pytest.raises(ConfigError, match=f"input without {said}"):
            served.predict(None, wrong)
    with pytest.raises(ModelError, match="no factors"):
        served.predict(None, table_of(trained), {"alpha": 0.5})


def test_signatures_stay_what_they_were(trained, model):
    told = mlflow.models.get_model_info(str(model)).signature
    own = {False: (["image"], ["threshold", "alpha", "beta", "map"])}
    inputs, params = own.get(
        trained.detector.kind.paired, (["current", "history"], ["threshold", "map"])
    )
    assert told.inputs.input_names() == inputs
    assert [p.name for p in told.params.params] == params
    outputs = ["score", "verdict", "threshold", "map", "map_low", "map_high", "error", "p_value"]
    # What came later stands behind what there was.
    outputs += ["regions", "model", "version", "note"]
    assert told.outputs.input_names() == outputs


def test_answers_say_where_and_which_model(trained, model):
    served, kind = mlflow.pyfunc.load_model(str(model)), trained.detector.kind
    inference = served.unwrap_python_model().detector
    # So that every pixel above the threshold belongs to one.
    inference.calibration = replace(inference.calibration, volume_threshold=0.0)
    table, expected = table_of(trained), trained.detector.predict(trained.samples)
    broken = table[:1].assign(**{kind.images[0]: "no image"})
    *rows, bad = served.predict(pd.concat([table, broken])).to_dict("records")
    above = [bool((p.map > trained.detector.cut).any()) for p in expected]
    assert [bool(row["regions"]) for row in rows] == above
    assert any(above)
    for row, sample in zip(rows, trained.samples, strict=True):
        height, width = (sample[0] if kind.paired else sample).shape[:2]
        for r in row["regions"]:
            assert 0 <= r["x"] < r["x"] + r["width"] <= width
            assert 0 <= r["y"] < r["y"] + r["height"] <= height
    assert {r["model"] for r in [*rows, bad]} == {f"noise.{trained.detector.head.name}"}
    assert (bad["regions"], rows[0]["note"], rows[0]["version"]) == ([], "", "")


@pytest.fixture(scope="module")
def registry(every, empty_database, tmp_path_factory):
    """The models registered in a home of their own."""
    home = tmp_path_factory.mktemp("home")
    shutil.copy(empty_database, home / "mlflow.db")
    registry = Registry(home)
    for head, (_, folder) in every.items():
        with registry.start("noise", head, "key", tags={"snapshot": "S"}) as run:
            shutil.copytree(folder, home / head)
            run.register(home / head)
    return registry


def test_registered_models_score_in_a_fresh_process(every, registry, tmp_path):
    code = (
        "import json, sys, mlflow, pandas\n"
        "mlflow.set_tracking_uri(sys.argv[1])\n"
        "for uri, rows in json.load(sys.stdin).items():\n"
        "    got = mlflow.pyfunc.load_model(uri).predict(pandas.DataFrame(rows))\n"
        "    print(got.drop(columns='map').to_json(orient='records'))"
    )
    uris = [registry.get_model("noise", head)["uri"] for head in every]
    rows = [table_of(one)[:1].to_dict("records") for one, _ in every.values()]
    done = subprocess.run(
        [sys.executable, "-c", code, registry.uri],
        input=json.dumps(dict(zip(uris, rows, strict=True))),
        capture_output=True,
        text=True,
        timeout=200,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for uri, said, (one, _) in zip(uris, done.stdout.splitlines(), every.values(), strict=True):
        (row,) = json.loads(said)
        (here,) = Detector.load(uri, registry).predict(one.samples[:1])
        assert row["score"] == pytest.approx(here.score, abs=1e-9)
        assert row["verdict"] == here.verdict
        regions = [region.to_json() for region in here.regions]
        assert row["regions"] == [r | {"peak": pytest.approx(r["peak"], abs=1e-9)} for r in regions]
        # From a registry MLflow knows which version it has fetched.
        assert (row["model"], row["version"]) == tuple(uri.removeprefix("models:/").split("/"))
        assert here.score == pytest.approx(one.scores.image[0].item(), rel=one.near, abs=0)
    assert "arning" not in done.stderr


@pytest.mark.slow
def test_mlflow_models_serve_answers_a_request(trained, registry, tmp_path):
    uri = registry.get_model("noise", trained.detector.head.name)["uri"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"]
    server = subprocess.Popen(
        [*serve, "-m", uri, "--host", "127.0.0.1", "--port", str(port)],
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
        rows = table_of(trained)[:2].to_dict("records")
        rows[1][trained.detector.kind.images[-1]] = "no image"
        table = pd.DataFrame(rows)
        for body in (
            {"dataframe_split": table.to_dict("split")},
            {"dataframe_records": rows},
            {"inputs": table.to_dict("list")},
        ):
            answer = ask(place, {**body, "params": {"threshold": -1e9, "map": "npy"}})
            good, bad = answer["predictions"]
            score = pytest.approx(trained.scores.image[0].item(), rel=trained.near, abs=0)
            assert good["score"] == score
            verdict = trained.detector.kind.verdicts[1]
            assert (good["verdict"], good["threshold"]) == (verdict, -1e9)
            heat = trained.scores.maps[0].numpy()
            np.testing.assert_allclose(decode_map(good), heat, rtol=trained.near)
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


@pytest.mark.parametrize("out", ["../other/artifacts", "artifacts/../../other/artifacts", None])
def test_files_outside_the_models_folder_are_refused(out, model, tmp_path):
    for name in ("mine", "other"):
        shutil.copytree(model, tmp_path / name)
    path = tmp_path / "mine/MLmodel"
    text = path.read_text()
    assert "path: artifacts/manifest.json" in text
    place = out or tmp_path / "other/artifacts"  # an absolute one is joined to itself
    path.write_text(text.replace("path: artifacts/", f"path: {place}/"))
    with pytest.raises(ModelError, match="MLmodel names a file outside it"):
        mlflow.pyfunc.load_model(str(tmp_path / "mine"))
    assert mlflow.pyfunc.load_model(str(tmp_path / "other")) is not None
