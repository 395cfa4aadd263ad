"""Serving equals evaluation: the model's files alone give the scores that were evaluated."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from headwater.errors import ModelError, ShapeError
from storage.serving.detector import Detector
from tests.storage.serving.conftest import IMAGES, LAYERS, PAIRS


def test_a_detector_scores_as_evaluation_did_to_the_last_bit(trained, model):
    scores, kind = trained.scores, trained.detector.kind
    detector = Detector.load(model, device="cpu")
    for batch, near in ((1, trained.near), (3, trained.near), (8, 0.0)):
        got = detector.predict(trained.samples, batch=batch)
        assert [p.score for p in got] == pytest.approx(scores.image.tolist(), rel=near, abs=0)
        for p, m in zip(got, scores.maps.numpy(), strict=True):
            np.testing.assert_allclose(p.map, m, rtol=near)
    limit = trained.detector.threshold
    assert [p.verdict == kind.verdicts[1] for p in got] == (scores.image > limit).tolist()
    assert {p.verdict for p in got} == set(kind.verdicts)
    assert {p.threshold for p in got} == {limit}
    assert detector.cut == got[0].pixel_threshold == trained.detector.calibration.pixel_threshold
    assert detector.manifest["about"] == {"image_set": "noise"}


def test_features_are_rounded_as_the_store_rounds_them(trained):
    samples, own = trained.samples[:1], trained.detector

    def features(dtype):
        spec = replace(own.spec, dtype=dtype)
        return Detector(own.backbone, own.head, spec, LAYERS, own.calibration).features(samples)

    exact = features("float32")
    assert list(exact) == [own.kind.key(name, LAYERS[0].name) for name in own.kind.images]
    for dtype in ("float16", "bfloat16"):
        for name, maps in features(dtype).items():
            assert torch.equal(maps, maps.to(getattr(torch, dtype)).float())
            assert not torch.equal(maps, exact[name])


def test_thresholds_override(trained, model):
    detector, samples = Detector.load(model), trained.samples
    calm, alarm = detector.kind.verdicts
    assert [p.verdict for p in detector.predict(samples, threshold=-1e9)] == [alarm] * 5
    assert [p.verdict for p in detector.predict(samples, threshold=1e9)] == [calm] * 5
    with pytest.raises(ModelError, match="no factors"):
        detector.predict(samples, alpha=0.5)


def test_factors_override_the_model_s_own(train, tmp_path):
    made = train("f2r", ratio=0.05, steps=2, select="fixed", beta=0.9)
    made.detector.save(tmp_path)
    detector = Detector.load(tmp_path, device="cpu")
    head, features = made.detector.head, made.detector.features(IMAGES)

    def expected(alpha, beta):
        head.prefer(alpha, beta)
        return head.score(features).image.tolist()

    def served(**factors):
        return [p.score for p in detector.predict(IMAGES, **factors)]

    own = made.scores.image.tolist()
    assert served() == own
    assert served(alpha=0.5) == expected(0.5, 0.9) != own
    assert served(alpha=0.5, beta=0.0) == expected(0.5, 0.0)
    assert served(beta=0.3) == expected(1.0, 0.3)
    assert served() == own


def test_wrong_arrays_and_samples_of_the_other_kind_are_refused(trained):
    detector, paired = trained.detector, trained.detector.kind.paired
    for bad in (
        np.zeros((9, 9), np.uint8),
        np.zeros((9, 9, 3), np.float32),
        np.zeros((9, 9, 4), np.uint8),
    ):
        with pytest.raises(ShapeError, match=r"expected: uint8 \[H, W, 3\]"):
            detector.predict([(IMAGES[0], bad) if paired else bad])
    said = "pair_flow compares pairs of images" if paired else "patchcore looks at single images"
    with pytest.raises(ModelError, match=said):
        detector.predict(IMAGES if paired else PAIRS)
    assert detector.predict([]) == []
    # One array of all will do.
    whole = np.stack([np.stack([IMAGES[0]] * 2) if paired else IMAGES[0]] * 2)
    assert len(detector.predict(whole)) == 2


def test_a_model_that_is_nowhere(tmp_path):
    with pytest.raises(ModelError, match="no model"):
        Detector.load(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="without a registry"):
        Detector.load("models:/bottles.patchcore/1")


def test_factors_are_refused_where_the_model_has_no_net(train, tmp_path):
    made = train("f2r", ratio=0.05)
    made.detector.save(tmp_path)
    detector = Detector.load(tmp_path, device="cpu")
    own = made.scores.image.tolist()
    assert [p.score for p in detector.predict(IMAGES)] == own
    assert [p.score for p in detector.predict(IMAGES, alpha=1.0, beta=1.0)] == own
    for factors in ({"alpha": 0.5}, {"beta": 0.9}):
        with pytest.raises(ModelError, match="without the net") as refused:
            detector.predict(IMAGES, **factors)
        assert "f2r.factorize=always" in refused.value.remedy
