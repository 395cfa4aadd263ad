"""The front door in Python: the page that walks through it, and what a notebook shows."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import headwater
from headwater.errors import ConfigError, DataError, ImageError, ModelError
from tests.golden.home import unpack

PAGE = Path(__file__).resolve().parents[3] / "docs" / "python.md"
#: The page's settings are the defaults; on pictures of 32 px a test has smaller ones.
SETTINGS = """
heads:
  patchcore: {nodes: [layer2]}
  fast_flow: {nodes: [layer2], channels: 8, steps: 1}
extraction: {size: 64, precision: float32}
training: {epochs: 1, preset: small, device: cpu}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The golden home, opened: its models answer without a run."""
    return headwater.open(unpack(tmp_path_factory.mktemp("golden")) / "home", quiet=True)


@pytest.fixture(scope="module")
def picture(home):
    return next((home.home.root.parent / "images/tiles/test").rglob("*.png"))


@pytest.mark.slow
def test_the_page_runs_from_top_to_bottom(tiny_set, tmp_path, resnet_weights, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEADWATER_WEIGHTS", str(resnet_weights))
    tiny_set.rename(tmp_path / "leather")
    (tmp_path / "headwater.yaml").write_text(SETTINGS)
    Image.open("leather/test/spot/000.png").save("new.png")
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) > 5
    scope: dict = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), scope)
    assert scope["done"].status == 0
    assert [o.reused for o in scope["done"].outcomes] == [True, True]
    assert set(scope["board"]["head"]) == {"patchcore", "fast_flow"}
    assert scope["report"].computed == 0
    assert scope["features"]["layer2"].chunks is not None
    # Without a head: the first that the set was run with.
    assert scope["home"].detector("leather").name.startswith("leather.patchcore version")
    assert scope["again"].outcomes[0].version == "2"
    assert Path("marked.png").stat().st_size
    assert scope["page"].read_text().startswith("<!doctype html>")
    assert set(scope["odd"]["heads"][0]) == {"patchcore", "fast_flow"}


def test_importing_is_quick_and_pulls_in_nothing(tmp_path):
    code = """
import sys, time
began = time.perf_counter()
import headwater
assert time.perf_counter() - began < 0.3
assert not {"torch", "prefect", "mlflow", "zarr", "pandas", "pydantic"} & sys.modules.keys()
headwater.open(sys.argv[1])
assert not {"torch", "prefect", "mlflow"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)


def test_a_detector_takes_files_pictures_and_arrays_alike(home, picture, tmp_path):
    detector = home.detector("tiles", head="padim")
    assert "tiles.padim version 1" in repr(detector)
    opened = Image.open(picture)
    results = detector.predict([str(picture), picture, opened, np.asarray(opened.convert("RGB"))])
    alone = detector.predict(picture)
    # As `predict --json` has them; in words where people read.
    assert (
        (alone.model, alone.version) == (detector.model, detector.version) == ("tiles.padim", "1")
    )
    assert str(alone).startswith(f"{alone.verdict}: score ")
    assert str(alone).endswith("by tiles.padim version 1")
    assert repr(alone) == f"Result({alone})"
    assert len({r.score for r in [*results, alone]}) == 1
    assert alone.verdict == ("anomalous" if alone.score > alone.threshold else "normal")
    assert np.array_equal(alone.map, results[0].map)
    # A folder that is not there is made, as for all that is written out.
    assert alone.save(tmp_path / "new" / "deep" / "marked.png").stat().st_size
    assert alone._repr_png_().startswith(b"\x89PNG")
    assert alone.image().size[0] > 64
    assert detector.predict(picture, threshold=1e9).verdict == "normal"


def test_a_model_over_pairs_takes_two(home):
    boards = home.home.root.parent / "images/boards/test"
    names = sorted(p.name for p in (boards / "current").iterdir())
    pair = (boards / "current" / names[0], boards / "history" / names[0])
    detector = home.detector("boards", head="pair_flow")
    result = detector.predict(pair)
    assert result.verdict in ("changed", "unchanged")
    assert result._repr_png_().startswith(b"\x89PNG")
    assert [r.score for r in detector.predict([pair, pair])] == [result.score] * 2
    with pytest.raises((ConfigError, ModelError), match="pair"):
        detector.predict(pair[0])


def test_mistakes_are_told(home, tmp_path):
    with pytest.raises(ConfigError, match="'preset'"):
        home.run("tiles", prset="small")
    for wrong in ({"home": "elsewhere"}, {"heads": []}, {"heads": 3}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            home.run("tiles", **wrong)
    with pytest.raises(ConfigError, match="image set 3"):
        home.run(3)
    with pytest.raises(DataError, match="age '30'"):
        home.store("tiles").gc("30")
    with pytest.raises(DataError, match="no models"):
        home.leaderboard("nowhere")
    with pytest.raises(ConfigError, match="size = huge"):
        home.run("tiles", size="huge")
    with pytest.raises(ModelError, match="several heads"):
        home.detector("tiles")  # its card is older than the memory of heads
    with pytest.raises(ModelError, match="nowhere"):
        home.detector("nowhere")
    with pytest.raises(ImageError, match="missing"):
        home.detector("tiles", "padim").predict("missing.png")
    with pytest.raises(ImageError, match="float64"):
        home.detector("tiles", "padim").predict(np.zeros((64, 64, 3)))
    with pytest.raises(DataError, match="no such file"):
        headwater.open(tmp_path, config="missing.yaml")


def test_stores_and_leaderboards_show_themselves_in_a_notebook(home):
    store = home.store("tiles")
    assert home.sets() == ["boards.current", "boards.history", "tiles"]
    assert "layer2" in store._repr_html_()
    assert len(store.images()) == 13
    assert len(home.leaderboard("tiles")) == 4
    assert home.leaderboard("tiles")._repr_html_()
    assert store.gc().snapshots.dry_run
