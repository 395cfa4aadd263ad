"""`headwater ui` as one sees it: MLflow's pages in a browser, and how it ends."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from PIL import Image

from storage.registry.registry import Registry
from tests.browser import chromium
from tests.flows.commandkit import HEADWATER, environment, run_command

pytestmark = pytest.mark.slow
FILES = "its tables and pictures"
LINK = "[...document.querySelectorAll('a[href]')].find(e => e.innerText.trim() === %s)?.href"


@pytest.fixture
def results(tmp_path, empty_database):
    """A home with two trainings of a set and a grid over four points."""
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(empty_database, home / "mlflow.db")
    registry, picture = Registry(home), tmp_path / "heat-maps.png"
    Image.new("RGB", (2000, 300), "red").save(picture)
    images = [{"split": "train", "kind": "good"}] * 3 + [{"split": "test", "kind": "crack"}]
    with registry.parent("bottles", "SNAP1") as command:
        for head, auroc in (("padim", 0.8125), ("fast_flow", 0.9375)):
            params = {"backbone": "resnet18", "input_size": "64x64"}
            with registry.start(
                "bottles", head, head, params=params, tags={"snapshot": "SNAP1"},
                images=images, parent_run=command, summary="Looks at bottles.",
            ) as run:  # fmt: skip
                for epoch in range(1, 4):
                    run.metric("loss", 1 / epoch, epoch)
                run.finish({"image_auroc": auroc, "recall": 0.75}, seconds=1.0)
                run.tell(["few held-out images"], threshold="1.5")
                run.log_file(picture, "figures")
                model = tmp_path / head
                model.mkdir()
                (model / "MLmodel").write_text("flavors: {}\n")
                run.register(model)
    with registry.study("bottles", "f2r grid (oracle) of v1", {}) as study:
        study.log_file(picture, "figures")
        points = [(a / 10, b / 10) for a in range(4) for b in range(4)]
        rows = [
            (f"alpha {a}, beta {b}", {"alpha": a, "beta": b}, {"image_auroc": 0.5 + a * b})
            for a, b in points
        ]
        registry.points("bottles", study.run_id, rows, {})
    return home


@pytest.fixture
def served(tmp_path, results):
    """The process of `headwater ui bottles` and the address that it prints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*HEADWATER, "ui", "bottles", "--port", str(port), "--no-browser"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment(tmp_path), stdout=subprocess.PIPE, text=True
    )
    try:
        yield process, process.stdout.readline().split()[-1]
    finally:
        process.kill()
        process.wait()


def test_the_pages_are_about_models_wherever_one_clicks(served, results, tmp_path):
    process, address = served
    root, _, page = address.partition("#")
    assert re.fullmatch(r"/experiments/\d+/runs\?workflowType=machine_learning", page)
    kept = os.environ.get("BROWSER_PICTURES")  # a folder for what the browser saw

    with chromium(tmp_path / "profile") as browser:

        def seen(name, *texts):
            said = browser.sees(*texts)
            assert "Prompts" not in said, "a page about language models"
            assert "Ask a question" not in said
            if kept:
                time.sleep(2)
                browser.picture(Path(kept) / f"{name}.png")
            return said

        browser.open(address)
        seen("runs", "padim resnet18 SNAP1", "fast_flow resnet18 SNAP1", "image_auroc", "0.9375")
        assert "fast_flow v1 leads the newest of 2 heads: image AUROC 0.9375" in browser.text
        browser.open(address.split("?")[0] + "?compareRunsMode=CHART")
        seen("charts", "epoch/loss")
        browser.until("document.querySelectorAll('.js-line').length > 1")
        browser.open(root)  # without a word on the mode, as a bookmark may be
        seen("home", "Welcome to MLflow", "bottles")
        browser.click("Model registry")
        seen("models", "bottles.padim", "bottles.fast_flow")
        browser.click("bottles.fast_flow")
        seen("model", "Looks at bottles.", "0.9375", "challenger")
        browser.follow("version 1")
        seen("version", "image AUROC 0.9375", "few held-out images", "resnet18")
        shown = "[...document.images].find(i => i.src.includes('heat-maps') && i.naturalWidth)"
        browser.until(f"!!{shown}")
        # The links of a description, as they are: relative, and about models.
        tabs = {t: browser.until(LINK % json.dumps(t)) for t in ("its curves", FILES)}
        browser.follow("the training")
        seen("training", "fast_flow resnet18 SNAP1", "epoch/loss")
        browser.open(tabs["its curves"])
        seen("curves", "loss")
        browser.until("document.querySelectorAll('.js-line').length > 0")
        browser.open(tabs[FILES])
        seen("files", "figures")
        grids = Registry(results).client.get_experiment_by_name("bottles grids").experiment_id
        view = "compareRunsMode=CHART&viewStateShareKey=headwater-grid"
        browser.open(f"{root}#/experiments/{grids}/runs?{view}")
        seen("grid", "Over alpha and beta")
        browser.until("document.querySelectorAll('.contour').length > 0")

    _, said = run_command(tmp_path, "ui", "--port", root.rstrip("/").rpartition(":")[2], status=2)
    assert "cannot be used" in said
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    assert time.monotonic() - began < 5
