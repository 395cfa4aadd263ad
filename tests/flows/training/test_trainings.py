"""What a flow is asked, and what trainings come of it."""

import dataclasses
import json

import pytest

from flows.extraction.backbone import BackboneRef
from flows.extraction.pair_list import Version
from flows.extraction.plan import HeadPlan, JobPlan, configured, plan_job, ready, training_key
from flows.runtime.home import Home
from flows.runtime.settings import Settings
from flows.training.trainings import Request
from headwater.errors import ConfigError
from headwater.spec import ExtractorSpec, LayerSpec, ViewSpec
from tests.flows.setkit import SmallSet

SPEC = ExtractorSpec("net", "0" * 64, (("img_size", [64, 64]), ("pad_type", "same")), crop=(32, 48))
LAYERS = (LayerSpec.parse("layer2+layer3@0.5~mean3"), LayerSpec.parse("blocks.6~norm"))
PLANS = (
    HeadPlan("patchcore", "small", {"nodes": ("a",), "ratio": 0.1}, SPEC, LAYERS),
    HeadPlan("f2r", "small", {}, SPEC, LAYERS, dataclasses.replace(SPEC, views=ViewSpec(2))),
)


def asked(folder, at=None, **settings):
    given = {"image_set": "s", "images": folder, "heads": {"f2r": {"steps": 2}}, **settings}
    backbone = BackboneRef("net", "net.safetensors", (("mean", [0.1, 0.2, 0.3]),))
    plan = JobPlan(PLANS, backbone)
    return Request(Settings.model_validate(given), Home(folder, "s3://b/f"), plan, at, 5)


def test_a_request_survives_json(tmp_path):
    request = asked(tmp_path, Version(("x", "y"), "list"))
    back = Request.from_json(json.loads(json.dumps(request.to_json())))
    assert dataclasses.replace(back, plan=request.plan) == request
    assert back.plan.backbone == request.plan.backbone
    for one, other in zip(request.plan.heads, back.plan.heads, strict=True):
        assert (one.spec, one.layers, one.view_spec) == (other.spec, other.layers, other.view_spec)
        assert training_key(one, "images", {}) == training_key(other, "images", {})


def test_a_tenth_of_images_is_held_out_and_a_fifth_of_pairs(tmp_path):
    for at, share in ((Version(("x",)), 0.1), (Version(("x", "y"), "list"), 0.2)):
        assert {t.options.held_out for t in asked(tmp_path).trainings(at)} == {share}
    given = asked(tmp_path, training={"held_out": 0.3})
    assert {t.options.held_out for t in given.trainings(Version(("x",)))} == {0.3}


def test_each_seed_is_a_training_as_if_it_had_been_asked_for_alone(tmp_path):
    def trainings(**training):
        small = SmallSet(tmp_path)
        small.draw(0)
        small.heads = {"patchcore": {}, "f2r": {"factorize": "always"}}
        given = small.settings().model_dump() | {"training": {"preset": "small", **training}}
        settings = ready(Settings.model_validate(given), small.home)
        plan = plan_job(settings, small.home, 3)
        return Request(settings, small.home, plan).trainings(Version(("x",)))

    several = trainings(seeds="0,1")
    assert [one.called for one in several] == [
        "patchcore seed 0", "f2r seed 0", "patchcore seed 1", "f2r seed 1",
    ]  # fmt: skip
    single = [one for seed in (0, 1) for one in trainings(seed=seed)]
    assert [one.called for one in single] == ["patchcore", "f2r"] * 2
    assert [one.key("") for one in several] == [one.key("") for one in single]
    assert len({one.key("") for one in single}) == 4
    for wrong in ("0,0", "a", "1.5", [True]):
        with pytest.raises(ValueError, match=r"seed|whole numbers"):
            trainings(seeds=wrong)
    with pytest.raises(ConfigError, match=r"patchcore\.seed with --seeds"):
        configured(
            Settings.model_validate(
                {"heads": {"patchcore": {"seed": 2}}, "training": {"seeds": [0, 1]}}
            ),
            0,
        )
