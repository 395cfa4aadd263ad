"""Heads of other packages, written before the rooms were built, work as they did."""

import importlib
import math

import pytest
import torch

from heads.contract import REGISTERED, NullProgress, TrainOptions
from headwater.errors import NotFittedError, ShapeError
from tests.heads.tiny import structured

#: What a head of another package found in the modules that it was told to import.
NAMES = {
    "heads.base": "Batch FeatureSource H Head HeadConfig PLUGINS Reference Scores Shape "
    "broken_plugins device_of get_head make_config register registry",
    "heads.data": "Batch FeatureSource Shape TensorSource check_finite source_fingerprint "
    "split_held_out to_device",
    "heads.scoring": "Fusion LikelihoodScores Normaliser Scores fuse log_likelihood top_k_mean "
    "upsample",
    "heads.trainer": "LossFn NullProgress Progress Schedule TrainOptions TrainResult autocast "
    "choose_precision running train_module",
    "heads.parts.flow_head": "FlowHead check_channels nll_per_dimension",
}


@pytest.mark.parametrize("module", NAMES)
def test_old_names_are_there(module: str) -> None:
    found = importlib.import_module(module)
    assert all(hasattr(found, name) for name in NAMES[module].split())


def test_a_head_with_its_own_fit_and_score_works() -> None:
    """`tests/golden/nearest_mean.py`: the page's example of then."""
    try:
        kind = importlib.import_module("tests.golden.nearest_mean").NearestMean
    finally:
        REGISTERED.pop("nearest_mean", None)  # it is none of the heads that other tests run over
    shapes = {"m": (7, 4, 3)}
    head, source = kind(kind.Config(), shapes, (16, 16)), structured(shapes, 12, 0)
    batch = structured(shapes, 5, 1).read(0, 5)
    with pytest.raises(NotFittedError, match="nearest_mean"):
        head.score(batch)
    figures = head.fit(source, source.subset([0]), TrainOptions(), NullProgress())
    assert figures == {"positions": 12.0 * 4 * 3}
    scores = head.score(batch)
    assert scores.maps.shape == (5, 16, 16)
    assert math.isfinite(scores.image.sum())
    with pytest.raises(ShapeError, match="maps of shape"):
        head.score({"m": batch["m"][..., :-1]})
    again = kind(kind.Config(), shapes, (16, 16))
    again.load_state_dict(head.state_dict())
    assert torch.equal(again.score(batch).image, scores.image)
