"""One small detector of each kind of sample, what evaluation gave, and both as MLflow models."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch

from features.backbones.backbone import load_backbone
from features.images.preprocess import preprocess
from heads.catalogue import get_head, make_config
from heads.contract import NullProgress, Scores, TrainOptions
from heads.judging.calibration import calibrate
from heads.pairs.source import Pair, PairSource
from heads.training.sources import TensorSource
from headwater.spec import LayerSpec
from storage.serving.detector import Detector
from storage.serving.encoding import encode_image
from storage.serving.save import save_model

RNG = np.random.default_rng(7)
IMAGES = [RNG.integers(0, 255, (50 + 9 * k, 64, 3), dtype=np.uint8) for k in range(5)]
#: Every image with the one before it.
PAIRS = [(IMAGES[k], IMAGES[k - 1]) for k in range(5)]
LAYERS = (LayerSpec.parse("layer1~mean3"),)


class Trained(NamedTuple):
    """A detector, samples for it, and the scores that evaluation from the store gives them."""

    detector: Detector
    samples: list[Any]
    scores: Scores

    @property
    def near(self) -> float:
        """How much scores may differ where other batches were computed: a gallery's not at all."""
        return 1e-6 if self.detector.kind.paired else 0.0


def table_of(trained):
    """Return the samples as the model takes them."""
    names = trained.detector.kind.images
    rows = [s if len(names) > 1 else (s,) for s in trained.samples]
    return pd.DataFrame([dict(zip(names, map(encode_image, r), strict=True)) for r in rows])


@pytest.fixture(scope="session")
def train():
    """What trains a head on the images as the store gives them: through float16."""
    backbone = load_backbone("resnet18", untrained_seed=3)
    spec = backbone.default_spec((40, 48), precision="float32")
    pixels = torch.stack([preprocess(image, spec) for image in IMAGES])
    maps = backbone.maps(pixels, LAYERS, spec.precision)
    stored = TensorSource({k: v.half() for k, v in maps.items()}, list("abcde"))
    ids = zip("abcde", "eabcd", strict=True)
    pairs = PairSource(stored, stored, [Pair(f"place {a}", a, b) for a, b in ids])

    def make(name, **settings):
        cls = get_head(name)
        source, samples = (pairs, PAIRS) if cls.pairs else (stored, IMAGES)
        head = cls(make_config(name, settings), stored.shapes, spec.input_size)
        options = TrainOptions(device="cpu", precision="float32", epochs=1)
        head.fit(source.subset([0, 1, 2]), source.subset([3, 4]), options, NullProgress())
        with torch.inference_mode():
            scores = head.eval().score(source.read(0, 5))
        calibration = calibrate(scores.image.numpy(), scores.maps.numpy(), target_fpr=0.4)
        return Trained(Detector(backbone, head, spec, LAYERS, calibration), samples, scores)

    return make


@pytest.fixture(scope="session")
def every(train, tmp_path_factory) -> dict[str, tuple[Trained, Path]]:
    """A gallery over single images and a flow head over pairs, each with its MLflow model."""
    made = {}
    for name, settings in (("patchcore", {"ratio": 0.2}), ("pair_flow", {"steps": 1})):
        one, folder = train(name, **settings), tmp_path_factory.mktemp("serving") / "model"
        about = {"image_set": "noise"}
        made[name] = one, save_model(folder, one.detector, example=one.samples[0], about=about)
    return made


@pytest.fixture(params=["patchcore", "pair_flow"])
def trained(every, request) -> Trained:
    """One of them."""
    return every[request.param][0]


@pytest.fixture
def model(every, trained) -> Path:
    """Its model."""
    return every[trained.detector.head.name][1]
