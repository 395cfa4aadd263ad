"""`--size HxW`: what lies at a corner of an image shows at that corner of its heat map."""

import numpy as np
import pytest
from PIL import Image

from flows.extraction.plan import plan_job, ready
from flows.training.train import train_head
from flows.training.trainings import Request
from headwater.errors import ConfigError
from storage.registry.registry import Registry
from storage.serving.detector import Detector
from tests.flows.setkit import SmallSet

VIT = {"name": "vit_tiny_patch16_224", "options": {"depth": 3}}


@pytest.fixture
def wide(tmp_path):
    """Grey images of 60x160 pixels, and one bright square at the top on the left."""
    small = SmallSet(tmp_path)
    parts = ("train/good", range(8)), ("test/good", (20, 21)), ("test/x", (30,))
    for part, number in ((part, n) for part, numbers in parts for n in numbers):
        pixels = np.random.default_rng(number).integers(90, 110, (60, 160, 3), dtype=np.uint8)
        if part == "test/x":
            pixels[4:20, 8:32] = 255
        path = small.images / part / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return small


@pytest.mark.parametrize("net", [{"name": "resnet18"}, VIT])
def test_a_defect_is_found_where_it_is(wide, net):
    wide.extraction["size"] = "48x128"
    wide.settings = lambda made=wide.settings(): made.model_copy(
        update={"backbone": made.backbone.model_validate(net)}
    )
    report = wide.run()
    settings, at = ready(wide.settings(), wide.home, images=False), report.version
    plan = plan_job(settings, wide.home, 3)
    outcome = train_head(Request(settings, wide.home, plan, at).trainings(at)[0])
    assert outcome.metrics["image_auroc"] == 1
    registry = Registry(wide.home.root)
    detector = Detector.load(registry.get_model("s", "patchcore")["uri"], registry, "cpu")
    image = np.asarray(Image.open(wide.images / "test/x/30.png"))
    sides, down = image[:, ::-1], image[::-1]
    seen_at = {(0, 0): image, (0, 1): sides, (1, 0): down, (1, 1): down[:, ::-1]}
    for corner, seen in seen_at.items():
        (got,) = detector.predict([np.ascontiguousarray(seen)])
        assert got.map.shape == (48, 128)
        row, column = divmod(int(got.map.argmax()), 128)
        assert (row >= 24, column >= 64) == corner
        assert min(column, 127 - column) < 36


def test_a_size_of_broken_patches_is_refused_with_the_next(wide):
    wide.extraction["size"] = "50x128"
    wide.settings = lambda made=wide.settings(): made.model_copy(
        update={"backbone": made.backbone.model_validate(VIT)}
    )
    with pytest.raises(ConfigError, match=r"50x128 px[\s\S]*whole patches, as 48x128") as refused:
        wide.run()
    assert "--size 48x128" in refused.value.remedy
