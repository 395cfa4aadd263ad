"""F²R: the paper's claims and sizes; the general promises are in the contract tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from heads.catalogue import make_config
from heads.contract import Batch, NullProgress, TrainOptions
from heads.gallery.f2r import F2R, F2RConfig, _Factorization
from heads.gallery.f2r_grid import POINTS, VALUES, GridResult, grid, partial_spearman
from heads.gallery.f2r_select import _Trial, least_altered, not_worse, select_synthetic
from heads.gallery.patchcore import PatchCore, PatchCoreConfig
from heads.gallery.synthetic import KINDS, blob, synthetic_defects
from heads.judging.metrics import auroc
from heads.parts.vector import InvertibleLinear, vector_glow
from heads.training.sources import TensorSource
from headwater.errors import ConfigError
from headwater.spec import BackboneInfo

LAYER = "layer2+layer3~avg3s1"
CPU = TrainOptions(device="cpu", precision="float32", threads=1)
SHAPES = {LAYER: (8, 4, 5)}
TINY = {"epochs": 30, "views": 0, "batch_size": 4, "lr": 3e-3, "ratio": 0.5, "steps": 3}
TINY |= {"select": "fixed"}


def _maps(count: int, seed: int) -> Tensor:
    """Texture in the first channels, position in the last ones: something to factorize."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(count, 8, 4, 5, generator=generator)
    maps[:, 4] += torch.linspace(-2, 2, 5)
    maps[:, 5] += torch.linspace(-2, 2, 4)[:, None]
    return maps + 3


def _fitted(**settings: object) -> tuple[F2R, dict[str, float]]:
    head = F2R(make_config("f2r", {**TINY, **settings}), SHAPES, (16, 20))  # type: ignore[arg-type]
    source, held = TensorSource({LAYER: _maps(12, 0)}), TensorSource({LAYER: _maps(4, 1)})
    return head, head.fit(source, held, CPU, NullProgress())


@pytest.fixture(scope="module")
def fitted() -> F2R:
    return _fitted()[0]


def test_at_one_one_it_is_the_plain_gallery(fitted: F2R) -> None:
    plain = PatchCore(PatchCoreConfig(ratio=0.5, reweight=False), SHAPES, (16, 20))
    plain.fit(TensorSource({LAYER: _maps(12, 0)}), fitted_source(), CPU, NullProgress())
    batch = {LAYER: _maps(5, 2)}
    ours, theirs = fitted.score(batch), plain.score(batch)
    assert torch.equal(ours.image, theirs.image)
    assert torch.equal(ours.maps, theirs.maps)
    # the short cut is right: through the trained net, which does something, and back is the same
    vectors = batch[LAYER].permute(0, 2, 3, 1).reshape(-1, 8)
    z = fitted.latents(vectors)
    assert not torch.allclose(z, vectors, atol=0.5)
    torch.testing.assert_close(fitted.reversed_latents(z, 1.0, 1.0), vectors, rtol=1e-4, atol=1e-4)


def fitted_source() -> TensorSource:
    return TensorSource({LAYER: _maps(4, 1)})


def test_scaling_acts_on_the_halves_of_the_latent(fitted: F2R) -> None:
    vectors = _maps(2, 3).permute(0, 2, 3, 1).reshape(-1, 8)
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
    head.fit(TensorSource({LAYER: _maps(12, 0)}), fitted_source(), CPU, Seen())
    first, last = ({k: v[i] for k, v in Seen.curves.items()} for i in (0, -1))
    assert last["held_out_position"] < first["held_out_position"] - 0.05  # z_g knows its place
    assert last["train_local"] < first["train_local"] - 0.02  # z_l resembles f
    assert all("_net" not in k for k in head.state_dict()), "the perceptrons are dropped"


def test_regression_and_positions_are_other_trainings(fitted: F2R) -> None:
    for settings in ({"implementation": "reg"}, {"positions": 7}, {"gamma": 0.1}):
        other = _fitted(**{**settings, "epochs": 3})[0]
        same = _fitted(epochs=3)[0]
        assert not torch.equal(other.glow(torch.ones(2, 8))[0], same.glow(torch.ones(2, 8))[0])


def test_coreset_per_point_is_chosen_in_the_scaled_space() -> None:
    once = _fitted(alpha=0.2, beta=1.1, epochs=3)[0]
    anew = _fitted(alpha=0.2, beta=1.1, epochs=3, coreset="per_point")[0]
    assert once.members.shape == anew.members.shape
    assert not torch.equal(once.members, anew.members)
    turned = anew.reversed_features(anew.members, 0.2, 1.1)
    torch.testing.assert_close(anew.gallery.vectors, turned, rtol=1e-4, atol=1e-4)


def test_paper_sizes() -> None:
    wide = BackboneInfo(
        "wide_resnet50_2", ("layer1", "layer2", "layer3"), (256, 512, 1024), (4, 8, 16)
    )
    needs = F2R.needs(F2RConfig(), wide, (512, 512))
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


def test_linear_map_keeps_its_inverse_until_it_changes() -> None:
    part = InvertibleLinear([(6,)], seed=1).eval()
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))

    def back() -> Tensor:
        with torch.no_grad():
            return part(part((x,))[0], rev=True)[0][0]

    torch.testing.assert_close(back(), x)
    with torch.no_grad():
        part.log_s.add_(0.5)
        part.packed.add_(0.3)
    torch.testing.assert_close(back(), x)
    part.load_state_dict(InvertibleLinear([(6,)], seed=2).state_dict())
    torch.testing.assert_close(back(), x)


def test_a_step_moves_the_linear_map_by_what_it_moves_the_parameters() -> None:
    """Adam's first step moves every entry by the rate; a badly conditioned map moves far more."""
    part, rate = InvertibleLinear([(256,)], seed=0).eval(), 2e-4
    step = rate * torch.randn(256, 256, generator=torch.Generator().manual_seed(1)).sign()
    with torch.no_grad():
        before = part.weight(torch.float32).clone()
        part.packed.add_(step)
        moved = torch.linalg.matrix_norm(part.weight(torch.float32) - before, 2)
    assert moved < 1.2 * torch.linalg.matrix_norm(step, 2)


def test_a_channel_that_is_dead_in_training_is_not_blown_up_after_it() -> None:
    glow = vector_glow(8, 1, 9, 1.9, 0)
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    x[:, 3] = 0
    glow.train()(x)
    alive = x.clone()
    alive[:, 3] = 1
    z, _ = glow.eval()(alive)
    assert float(z.detach().abs().max()) < 50
    torch.testing.assert_close(glow(z, rev=True)[0], alive, rtol=1e-4, atol=1e-4)


def test_epochs_count_images_wherever_they_are_given() -> None:
    """Five rows an image: five epochs of images are one pass over the rows."""
    maps = _maps(4, 0).repeat_interleave(5, 0)
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
    head.fit(Watched({LAYER: _maps(12, 0)}), fitted_source(), CPU, NullProgress())
    after = seen[len(seen) - seen[::-1].index("batches") :]
    assert after[0] == "release"
    assert "read" in after


def test_the_squared_error_is_a_vectors() -> None:
    """Eq. 5's second term, ‖f − MLP(z_l)‖², beside losses that are per vector, too."""
    module = _factorization("reg").eval()
    maps = _maps(2, 0)
    with torch.no_grad():
        f = maps.flatten(2).transpose(1, 2).reshape(-1, 8)
        guess = module.local_net(module.glow(f)[0][:, :4])
        found = module(maps)["local"]
    torch.testing.assert_close(found, ((f - guess) ** 2).sum(1).mean())


def _factorization(implementation: str) -> _Factorization:
    config = make_config("f2r", {**TINY, "implementation": implementation})
    return _Factorization(vector_glow(8, 2, 9, 1.9, 0), 8, 20, config)  # type: ignore[arg-type]


def test_with_one_held_out_image_nothing_is_picked(fitted: F2R) -> None:
    one = TensorSource({LAYER: _maps(1, 7)})
    assert select_synthetic(fitted, one, 0, NullProgress()) == (1.0, 1.0)


# --- the grid -----------------------------------------------------------------------------------


def test_grid_tables_every_point_and_puts_the_head_back(fitted: F2R) -> None:
    normal, before = _maps(3, 5), fitted.gallery.vectors.clone()
    made = synthetic_defects(normal, seed=0)
    labels = made.masks.flatten(1).any(1)
    large = made.masks.repeat_interleave(4, 1).repeat_interleave(4, 2).numpy()
    points = [(0.0, 1.0), (1.0, 0.0), (1.0, 1.0)]
    told: list[dict[str, float]] = []
    args = (fitted, TensorSource({LAYER: made.maps}), labels.numpy(), list(large))
    result = grid(*args, points=points, told=told.append)
    assert [(r["alpha"], r["beta"]) for r in result.table] == points
    assert result.chosen_on == "oracle"
    assert len({r["pixel_auroc"] for r in result.table}) == 3
    assert torch.equal(fitted.gallery.vectors, before)
    # the grid's short cut scores as the head does
    try:
        fitted.prefer(0.0, 1.0)
        scores = fitted.score({LAYER: made.maps})
    finally:
        fitted.prefer(1.0, 1.0)
    row = result.table[0]
    assert row["image_auroc"] == pytest.approx(auroc(scores.image, labels))
    # in other batches the last digits differ, and with them the order of a pixel or two
    pixels = auroc(scores.maps.flatten(), large.ravel())
    assert row["pixel_auroc"] == pytest.approx(pixels, abs=1e-5)
    assert result.heat_map("pixel_auroc").shape == (2, 2)
    # a broken grid goes on: points that are there are not scored again
    again: list[dict[str, float]] = []
    resumed = grid(*args, points=points, done=told[:2], told=again.append)
    assert again == [told[2]]
    assert resumed.table == result.table


def test_the_papers_grid_has_169_points() -> None:
    assert len(POINTS) == 169
    assert {(0.0, 0.0), (1.2, 1.2), (0.7, 0.3)} <= set(POINTS)


def test_best_prefers_what_alters_least_among_equals() -> None:
    rows = tuple(
        {"alpha": a, "beta": b, "image_auroc": 0.9, "pixel_auroc": v}
        for a, b, v in [(0.0, 0.0, 0.8), (0.9, 1.0, 0.8), (1.2, 0.5, 0.8), (0.5, 0.5, 0.7)]
    )
    assert GridResult(rows, "synthetic").best() == (0.9, 1.0)


def test_correlations_are_spearmans() -> None:
    rng = np.random.default_rng(0)
    x, y, g = rng.random(40), rng.random(40), rng.integers(0, 5, 40)
    got, want = partial_spearman(x, y), stats.spearmanr(x, y)
    assert got.rho == pytest.approx(want.statistic)
    assert got.p_value == pytest.approx(want.pvalue)
    rxy, rxg, ryg = (stats.spearmanr(a, b).statistic for a, b in ((x, y), (x, g), (y, g)))
    formula = (rxy - rxg * ryg) / np.sqrt((1 - rxg**2) * (1 - ryg**2))
    assert partial_spearman(x, y, g).rho == pytest.approx(formula)
    assert partial_spearman(np.ones(40), y).rho == 0.0


def test_table_5_reads_a_preference_for_local_information() -> None:
    rows = tuple(
        {"alpha": a, "beta": b, "pixel_auroc": a - 0.3 * b + 0.01 * a * b} for a, b in POINTS
    )
    found = GridResult(rows, "oracle").correlations()
    assert found["alpha"].rho > 0.9
    assert found["beta"].rho < -0.8
    assert found["alpha"].p_value < 1e-20


# --- synthetic defects --------------------------------------------------------------------------


def test_synthetic_defects_alter_their_mask_and_nothing_else() -> None:
    normal = _maps(4, 7)
    made = synthetic_defects(normal, seed=1)
    assert len(made.maps) == 4 * (1 + len(KINDS))
    assert made.masks.flatten(1).any(1).tolist() == [False] * 4 + [True] * 12
    for k, (copy, mask) in enumerate(zip(made.maps[4:], made.masks[4:], strict=True)):
        source = normal[k // len(KINDS)]
        assert mask.any()
        assert torch.equal(copy[:, ~mask], source[:, ~mask])
        assert not torch.equal(copy[:, mask], source[:, mask])
    assert torch.equal(made.maps, synthetic_defects(normal, seed=1).maps)


def test_regions_stay_small_whatever_the_map() -> None:
    generator = torch.Generator().manual_seed(0)
    for size in ((1, 2), (3, 3), (32, 20)):
        for _ in range(20):
            share = blob(*size, generator).float().mean()
            assert 0 < share < 1
            assert share <= 0.13 or size != (32, 20)


def test_selecting_on_synthetic_defects_uses_held_out_normals_alone() -> None:
    assert F2RConfig().select == make_config("f2r", {}, "small").select == "fixed"  # type: ignore[attr-defined]
    head, figures = _fitted(select="synthetic", epochs=3)
    assert (round(figures["alpha"], 1), round(figures["beta"], 1)) in POINTS
    assert head.preference.tolist() == pytest.approx([figures["alpha"], figures["beta"]])
    fresh = F2R(head.config, SHAPES, (16, 20))
    fresh.load_state_dict(head.state_dict())
    batch = {LAYER: _maps(2, 9)}
    assert torch.equal(fresh.score(batch).maps, head.score(batch).maps)


def test_a_given_factor_is_kept_and_the_other_one_picked() -> None:
    _, figures = _fitted(select="synthetic", epochs=3, alpha=0.35)
    assert figures["alpha"] == 0.35
    assert figures["beta"] in VALUES
    _, figures = _fitted(select="synthetic", epochs=3, alpha=0.35, beta=1.5)
    assert (figures["alpha"], figures["beta"]) == (0.35, 1.5)
    _, figures = _fitted(epochs=3, beta=0.9)
    assert (figures["alpha"], figures["beta"]) == (1.0, 0.9)
    with pytest.raises(ConfigError, match="alpha 'big'"):
        F2RConfig(alpha="big")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="head f2r: alpha 'big'"):  # among several heads
        make_config("f2r", {"alpha": "big"})


def test_the_short_way_of_picking_gives_the_scores_of_the_long_one(fitted: F2R) -> None:
    normal = _maps(4, 11)
    trial = _Trial(fitted, normal, seed=3)
    made = synthetic_defects(normal, seed=3)
    for alpha, beta in ((1.0, 1.0), (0.2, 1.1)):
        got = trial.figures(alpha, beta)
        gallery = fitted.reversed_features(fitted.members, alpha, beta)
        vectors = made.maps.permute(0, 2, 3, 1).reshape(-1, 8)
        far = torch.cdist(fitted.reversed_features(vectors, alpha, beta), gallery).amin(1)
        # what a defect leaves alone ties with its normal, but for rounding
        far = far.reshape(len(made.maps), -1).mul(1e3).round()
        for k in range(len(KINDS)):
            rows = torch.tensor([*range(4), *range(4 + k, len(far), len(KINDS))])
            # 4 normal and 4 altered images: a pair that ties but for rounding is worth 1 / 32
            altered = made.masks[rows].flatten(1)
            image = auroc(far[rows].amax(1), altered.any(1))
            assert got[k, 0] == pytest.approx(image, abs=0.032)
            pixels = torch.cat([far[:4].flatten(), far[rows][altered]])
            pixel = auroc(pixels, torch.arange(len(pixels)) >= 80)
            assert got[k, 1] == pytest.approx(pixel, abs=5e-3)


def test_a_point_is_taken_only_where_it_loses_on_no_kind_that_can_be_told() -> None:
    plain, chance = (1.0, 1.0), [0.45, 0.46, 0.44]
    base = np.array([chance, [0.8, 0.79, 0.81]])
    noisy = np.array([[0.60, 0.6, 0.6], [0.77, 0.76, 0.78]])  # better at what nobody can tell
    better = np.array([[0.40, 0.4, 0.4], [0.85, 0.84, 0.86]])
    kept = not_worse({plain: base, (0.3, 0.9): noisy, (0.9, 0.3): better}, plain)
    assert set(kept) == {plain, (0.9, 0.3)}
    assert kept[plain].tolist() == [0.8, 0.79, 0.81]  # the first kind does not count
    told = noisy + np.array([[0.1], [0.0]])  # now it is a kind that can be told
    kept = not_worse({plain: base, (0.3, 0.9): told, (0.9, 0.3): better}, plain)
    assert set(kept) == {plain}  # each loses on one
    assert set(not_worse({plain: base - 0.3, (0.9, 0.3): better - 0.3}, plain)) == {plain}


def test_picking_keeps_the_plain_gallery_unless_another_point_is_surely_better() -> None:
    plain, far = np.array([0.9, 0.89, 0.91, 0.9]), np.array([0.91, 0.86, 0.95, 0.92])
    assert least_altered({(1.0, 1.0): plain, (0.3, 0.3): far}) == (1.0, 1.0)  # better by chance
    assert least_altered({(1.0, 1.0): plain, (0.3, 0.3): plain + 0.06}) == (0.3, 0.3)
    near = plain + np.array([0.055, 0.06, 0.06, 0.04])
    table = {(1.0, 1.0): plain, (0.3, 0.3): plain + 0.06, (0.9, 1.0): near}
    assert least_altered(table) == (0.9, 1.0)
    one = {(1.0, 1.0): np.array([0.9]), (0.6, 1.0): np.array([0.96])}  # a single image: no error
    assert least_altered(one) == (0.6, 1.0)
    small = {(1.0, 1.0): plain, (0.0, 0.9): plain + 0.04}  # sure, and not worth it
    assert least_altered(small) == (1.0, 1.0)
