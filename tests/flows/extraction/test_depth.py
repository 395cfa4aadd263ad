"""A range of values is found once, belongs to the extractor, and is what every step sees by."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import headwater
from flows.extraction.extract import extract_set
from flows.runtime.console import Reporter
from flows.runtime.home import Home
from flows.runtime.settings import Settings
from storage.store.feature_store import FeatureStore


def deepen(folder: Path, factor: int = 4) -> None:
    """Write a set's images as 10-bit values in 16-bit grey files."""
    for path in folder.rglob("*.png"):
        if "ground_truth" not in path.parts:
            grey = np.asarray(Image.open(path).convert("L")).astype(np.uint16) * factor
            Image.fromarray(grey).save(path)


def test_a_range_is_found_kept_and_given(tiny_set, tmp_path, resnet_weights):
    home = Home.at(tmp_path / "home")

    def extract(**extraction):
        values = {"name": "resnet18", "weights": resnet_weights}
        settings = Settings.model_validate(
            {
                "image_set": "tiny",
                "images": tiny_set,
                "heads": "padim",
                "backbone": values,
                "extraction": {"size": 32, "precision": "float32"} | extraction,
            }
        )
        report = extract_set(settings, home, Reporter(quiet=True))
        (spec,) = {one.spec for one in report.extracted}
        store = FeatureStore.open(home.store, "tiny", create=False)
        (kept,) = [e.spec.value_range for e in store.extractors() if e.spec.id == spec]
        return report, kept

    report, kept = extract()
    assert kept is None  # 8 bits: nothing is new, the id neither
    assert not any("8 bits" in note for note in report.notes)

    deepen(tiny_set)
    report, kept = extract()
    assert kept is not None
    low, high = kept
    assert 180 < low < 250 < 450 < high < 560
    assert any("black" in note and "6 training image(s)" in note for note in report.notes)
    # Brighter normals do not move what is black and white; they are told.
    bright = np.full((32, 40), 900, np.uint16)
    bright[::2] = 1000
    Image.fromarray(bright).save(tiny_set / "train/good/900.png")
    report, again = extract()
    assert again == kept
    assert any("are cut" in note for note in report.notes)
    _, found = extract(range="auto")
    assert found[1] > 1000
    _, given = extract(range="0:1023")
    assert given == (0, 1023)
    assert extract()[1] == (0, 1023)
    # An old card knows no range: what it means is what was then.
    card = home.card("tiny")
    del card["extraction"]["range"]
    home.write_card("tiny", card)
    report, old = extract()
    assert old is None
    assert any("65535 is white" in note for note in report.notes)


@pytest.mark.slow
def test_16_bits_score_as_8_bits_do(tiny_set, tmp_path, resnet_weights, monkeypatch):
    """From file, PIL image, array and served model the same score; a defect as in 8 bits."""
    home = headwater.open(tmp_path / "home", quiet=True)
    more = {"size": 64, "backbone": "resnet18", "weights": resnet_weights, "precision": "float32"}
    for path in tiny_set.rglob("*.png"):
        if "ground_truth" not in path.parts:
            Image.open(path).convert("L").save(path)
    flat = home.run("flat", tiny_set, heads="patchcore", **more).outcomes[0]
    deepen(tiny_set)
    deep = home.run("deep", tiny_set, heads="patchcore", range="0:1020", **more).outcomes[0]
    for name in ("image_auroc", "pixel_auroc", "aupro"):
        assert abs(deep.metrics[name] - flat.metrics[name]) < 0.01, name
    model = home.detector("deep")
    path = tiny_set / "test/spot/000.png"
    values = np.asarray(Image.open(path)).astype(np.uint16)
    scores = [
        model.predict(given).score
        for given in (path, Image.open(path), values, values.astype(float))
    ]
    assert len(set(scores)) == 1
    lit = model.predict(np.asarray(Image.open(path)).astype(np.float32) // 4).score
    assert lit != scores[0]
    manifest = next((tmp_path / "home").rglob("deep*/**/manifest.json"), None) or next(
        p
        for p in (tmp_path / "home").rglob("manifest.json")
        if json.loads(p.read_text())["spec"].get("value_range")
    )
    assert json.loads(manifest.read_text())["spec"]["value_range"] == [0, 1020]
