"""F²R: the paper's claims and sizes; the general promises are in the contract tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from heads.catalogue import make_config
from heads.contract import Batch, NullProgress
from heads.gallery.f2r import F2R, F2RConfig
from heads.gallery.f2r_grid import grid
from heads.gallery.f2r_loss import Factorization
from heads.gallery.patchcore import PatchCore, PatchCoreConfig
from heads.parts.vector import vector_glow
from heads.training.sources import TensorSource
from headwater.errors import ModelError
from headwater.spec import BackboneInfo
from tests.heads.gallery.tiny import CPU, LAYER, SHAPES, TINY, fit_f2r, textures


def test_at_one_one_it_is_the_plain_gallery(fitted: F2R) -> None:
    plain = PatchCore(PatchCoreConfig(ratio=0.5, reweight=False), SHAPES, (16, 20))
    plain.fit(TensorSource({LAYER: textures(12, 0)}), fitted_source(), CPU, NullProgress())
    batch = {LAYER: textures(5, 2)}
    ours, theirs = fitted.score(batch), plain.score(batch)
    assert torch.equal(ours.image, theirs.image)
    assert torch.equal(ours.maps, theirs.maps)
    # the short cut is right: through the trained net, which does something, and back is the same
    vectors = batch[LAYER].permute(0, 2, 3, 1).reshape(-1, 8)
    z = fitted.latents(vectors)
    assert not torch.allclose(z, vectors, atol=0.5)
    torch.testing.assert_close(fitted.reversed_latents(z, 1.0, 1.0), vectors, rtol=1e-4, atol=1e-4)


def test_by_default_nothing_is_trained_that_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_training(*args: object, **kwargs: object) -> None:
        raise AssertionError("a training step")

    monkeypatch.setattr("heads.gallery.f2r.train_module", no_training)
    head, figures = fit_f2r(factorize="as_needed")
    assert F2RConfig().factorize == "as_needed"
    assert head.glow is None
    assert head.parameters_count() == 0
    assert (figures["alpha"], figures["beta"]) == (1, 1)
    assert "epochs" not in figures
    plain = PatchCore(PatchCoreConfig(ratio=0.5, reweight=False), SHAPES, (16, 20))
    plain.fit(TensorSource({LAYER: textures(12, 0)}), fitted_source(), CPU, NullProgress())
    batch = {LAYER: textures(5, 2)}
    ours, theirs = head.score(batch), plain.score(batch)
    assert torch.equal(ours.image, theirs.image)
    assert torch.equal(ours.maps, theirs.maps)
    # nor are views asked for that only the training reads
    net = BackboneInfo("net", ("a", "b"), (8, 16), (8, 16))
    assert F2R.needs(F2RConfig(), net, (64, 64)).views is None
    # what needs the net says how to come by it, and the head stays what it was
    for ask in (
        lambda: head.prefer(0.5, 1.0),
        lambda: head.latents(textures(1, 0)[0].flatten(1).T),
        lambda: grid(head, TensorSource(batch), [True, False, True, False, True], [None] * 5),
    ):
        with pytest.raises(ModelError, match=r"without the net[\s\S]*f2r\.factorize=always"):
            ask()
    head.prefer(1.0, 1.0)
    assert torch.equal(head.score(batch).image, theirs.image)


@pytest.mark.parametrize(
    ("settings", "trained"),
    [
        ({}, False),
        ({"alpha": 1.0, "beta": 1}, False),
        ({"alpha": 1.0}, False),
        ({"alpha": 0.9}, True),
        ({"alpha": 0.5, "beta": 0.5}, True),
        ({"select": "synthetic"}, True),
        ({"select": "synthetic", "alpha": 1.0, "beta": 1.0}, False),
        ({"factorize": "always"}, True),
    ],
)
def test_the_net_is_there_where_it_is_needed(settings: dict[str, Any], trained: bool) -> None:
    config = F2RConfig(**settings)
    assert config.factorizes == trained
    assert (F2R(config, SHAPES, (16, 20)).glow is not None) == trained


def test_a_state_with_its_net_keeps_it(fitted: F2R) -> None:
    """As all were saved before there was a choice, whose configuration says nothing of it."""
    config = dataclasses.asdict(fitted.config)
    del config["factorize"]
    old = F2R(make_config("f2r", config), SHAPES, (16, 20))
    assert old.glow is None
    old.load_state_dict(fitted.state_dict())
    old.eval().prefer(0.5, 1.2)
    again = F2R(fitted.config, SHAPES, (16, 20))
    again.load_state_dict(fitted.state_dict())
    again.eval().prefer(0.5, 1.2)
    batch = {LAYER: textures(3, 4)}
    assert torch.equal(old.score(batch).maps, again.score(batch).maps)
    assert not torch.equal(old.score(batch).maps, fitted.score(batch).maps)
    with pytest.raises(RuntimeError, match="Missing key"):  # a net that was asked for must be there
        again.load_state_dict(fit_f2r(factorize="as_needed")[0].state_dict())


def fitted_source() -> TensorSource:
    return TensorSource({LAYER: textures(4, 1)})


def test_scaling_acts_on_the_halves_of_the_latent(fitted: F2R) -> None:
    vectors = textures(2, 3).permute(0, 2, 3, 1).reshape(-1, 8)
    with torch.no_grad():
        z, _ = fitted.glow(vectors)
        turned, _ = fitted.glow(fitted.reversed_features(vectors, 0.5, 1.2))
    torch.testing.assert_close(turned[:, :4], 0.5 * z[:, :4], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(turned[:, 4:], 1.2 * z[:, 4:], rtol=1e-3, atol=1e-3)


def test_training_factorizes() -> None:
    class Seen(NullProgress):
        curves: dict[str, list[float]] = {}

        def metric(self, name: str, value: float, epoch: int) -> None:
            self.curves.setdefault(name, []).append(value)

    head = F2R(make_config("f2r", {**TINY, "epochs": 60}), SHAPES, (16, 20))
    head.fit(TensorSource({LAYER: textures(12, 0)}), fitted_source(), CPU, Seen())
    first, last = ({k: v[i] for k, v in Seen.curves.items()} for i in (0, -1))
    assert last["held_out_position"] < first["held_out_position"] - 0.05  # z_g knows its place
    assert last["train_local"] < first["train_local"] - 0.02  # z_l resembles f
    assert all("_net" not in k for k in head.state_dict()), "the perceptrons are dropped"


def test_regression_and_positions_are_other_trainings(fitted: F2R) -> None:
    for settings in ({"implementation": "reg"}, {"positions": 7}, {"gamma": 0.1}):
        other = fit_f2r(**{**settings, "epochs": 3})[0]
        same = fit_f2r(epochs=3)[0]
        assert not torch.equal(other.glow(torch.ones(2, 8))[0], same.glow(torch.ones(2, 8))[0])


def test_coreset_per_point_is_chosen_in_the_scaled_space() -> None:
    once = fit_f2r(alpha=0.2, beta=1.1, epochs=3)[0]
    anew = fit_f2r(alpha=0.2, beta=1.1, epochs=3, coreset="per_point")[0]
    assert once.members.shape == anew.members.shape
    assert not torch.equal(once.members, anew.members)
    turned = anew.reversed_features(anew.members, 0.2, 1.1)
    torch.testing.assert_close(anew.gallery.vectors, turned, rtol=1e-4, atol=1e-4)


def test_paper_sizes() -> None:
    wide = BackboneInfo(
        "wide_resnet50_2", ("layer1", "layer2", "layer3"), (256, 512, 1024), (4, 8, 16)
    )
    needs = F2R.needs(F2RConfig(factorize="always"), wide, (512, 512))
    assert (needs.resize, needs.crop, needs.layers[0].name) == ((256, 256), (224, 224), LAYER)
    assert needs.views is not None
    assert (needs.views.count, needs.views.rotation) == (4, 30.0)
    config = F2RConfig()
    glow = vector_glow(64, config.steps, round(config.width * 64), config.clamp, 0)
    count = sum(p.numel() for p in glow.parameters())
    assert count == _parameters(64, config)
    backbone = 24.9e6
    assert backbone + _parameters(1536, config) == pytest.approx(80.7e6, rel=0.03)


def _parameters(c: int, config: F2RConfig) -> int:
    h = round(config.width * c)
    coupling = (c // 2 * h + h) + (h * h + h) + (h * c + c)
    return config.steps * (2 * c + (c * c + c) + coupling)


def test_epochs_count_images_wherever_they_are_given() -> None:
    """Five rows an image: five epochs of images are one pass over the rows."""
    maps = textures(4, 0).repeat_interleave(5, 0)
    ids = [str(i) for i in range(4) for _ in range(5)]
    source = TensorSource({LAYER: maps}, ids, [0, 1, 2, 3, 4] * 4)
    steps = []
    for settings, asked in (({"epochs": 10}, None), ({"epochs": 99}, 10)):
        head = F2R(make_config("f2r", {**TINY, **settings}), SHAPES, (16, 20))
        options = dataclasses.replace(CPU, epochs=asked)
        steps.append(head.fit(source, source.subset([]), options, NullProgress())["epochs"])
    assert steps == [2, 2]


def test_features_are_collected_after_the_trainings_copy_is_let_go() -> None:
    """Both at once are what took 8.6 GB on maps of 1,536 channels."""
    seen: list[str] = []

    class Watched(TensorSource):
        def batches(self, *args: Any, **kwargs: Any) -> Iterator[Batch]:
            seen.append("batches")
            return super().batches(*args, **kwargs)

        def release(self) -> None:
            seen.append("release")

        def read(self, start: int, stop: int) -> Batch:
            seen.append("read")
            return super().read(start, stop)

    head = F2R(make_config("f2r", {**TINY, "epochs": 2}), SHAPES, (16, 20))
    head.fit(Watched({LAYER: textures(12, 0)}), fitted_source(), CPU, NullProgress())
    after = seen[len(seen) - seen[::-1].index("batches") :]
    assert after[0] == "release"
    assert "read" in after


def test_the_squared_error_is_a_vectors() -> None:
    """Eq. 5's second term, ‖f − MLP(z_l)‖², beside losses that are per vector, too."""
    module = _factorization("reg").eval()
    maps = textures(2, 0)
    with torch.no_grad():
        f = maps.flatten(2).transpose(1, 2).reshape(-1, 8)
        guess = module.local_net(module.glow(f)[0][:, :4])
        found = module(maps)["local"]
    torch.testing.assert_close(found, ((f - guess) ** 2).sum(1).mean())


def _factorization(implementation: str) -> Factorization:
    glow, squared = vector_glow(8, 2, 9, 1.9, 0), implementation == "reg"
    return Factorization(glow, 8, 20, gamma=0.001, positions=0, squared=squared)
