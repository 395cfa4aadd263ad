"""AnoDFDNet: levels, transformer, decoder, ablations, labels, both encoders."""

import pickle

import pytest
import torch

from heads.catalogue import make_config
from heads.contract import NullProgress, TrainOptions
from heads.pairs.pair_diff import PairDiff, PairDiffConfig, flip_alike
from heads.pairs.source import Pair, PairSource
from heads.pairs.unet import PairEncoder
from heads.training.sources import TensorSource
from headwater.errors import ConfigError, DataError, FeatureRangeError, NotFittedError, ShapeError
from headwater.spec import BackboneInfo, Needs
from tests.heads.pairs.tiny import pair_source

SHAPES = {"one": (3, 8, 8), "two": (4, 4, 4)}
TINY = {
    "layers": 1, "heads": 2, "embedding": 8, "mlp": 8, "width": 4, "epochs": 3, "lr": 5e-3,
    "dropout": 0.0,
}  # fmt: skip
OPTIONS = TrainOptions(device="cpu", precision="float32", threads=1)
RESNET = BackboneInfo(
    "resnet18", ("act1", "layer1", "layer2", "layer3"), (64, 64, 128, 256), (2, 4, 8, 16)
)


def build(shapes=SHAPES, size=(16, 16), **settings):
    return PairDiff(make_config("pair_diff", {**TINY, **settings}), shapes, size)


def fit(head, rows=24, seed=0, options=OPTIONS, **settings):
    size = head.map_size
    train, held = (pair_source(head.shapes, n, s, size) for n, s in ((rows, seed), (8, seed + 1)))
    return head.fit(train, held, options, NullProgress())


def test_it_learns_to_find_the_changed_square():
    head = build(epochs=16)
    figures = fit(head)
    assert figures["held_out_loss"] < 0.25
    assert figures["held_out_f1"] > 0.8
    # The untrained network finds nothing of the kind.
    fresh = build()
    fresh.fitted.fill_(True)
    assert fresh._held_out_figures(pair_source(SHAPES, 8, 1)).get("held_out_f1", 0) < 0.6


def rare_changes(rows, seed):
    """Pairs of 64 px whose only lasting change is a square of 5 px, 0.6 % of the pixels.

    Besides the square, half of the positions differ by heavy-tailed noise at every level.
    """
    g = torch.Generator().manual_seed(seed)
    masks = torch.zeros(rows, 64, 64)
    for mask in masks:
        top, left = torch.randint(2, 57, (2,), generator=g).tolist()
        mask[top : top + 5, left : left + 5] = 1
    history, current = {}, {}
    for stride, channels in ((2, 8), (4, 8), (8, 12), (16, 16)):
        shape = (rows, channels, 64 // stride, 64 // stride)
        where = torch.nn.functional.adaptive_avg_pool2d(masks[:, None], shape[2:])
        way = torch.randn(1, channels, 1, 1, generator=torch.Generator().manual_seed(stride))
        noise = 0.1 * torch.randn(shape, generator=g) ** 3
        noise *= torch.rand(rows, 1, *shape[2:], generator=g) < 0.5
        name = f"stride{stride}"
        history[name] = torch.rand(shape, generator=g)
        current[name] = history[name] + noise + 2 * where * way
    ids = [[f"{side}{seed}-{i}" for i in range(rows)] for side in "ch"]
    pairs = [Pair(f"place {i}", a, b) for i, (a, b) in enumerate(zip(*ids, strict=True))]
    return PairSource(TensorSource(current, ids[0]), TensorSource(history, ids[1]), pairs, masks)


@pytest.mark.slow
def test_the_small_preset_learns_rare_changes():
    train, held = rare_changes(32, 0), rare_changes(8, 1)
    shapes = {k.removeprefix("current:"): v for k, v in train.shapes.items() if "current" in k}

    def learn(**settings):
        head = PairDiff(make_config("pair_diff", settings, "small"), shapes, (64, 64))
        return head.fit(train, held, OPTIONS, NullProgress())["held_out_iou"]

    assert learn() > 0.7
    # From one half everywhere the same 96 steps end with almost nothing found.
    assert learn(base_rate=False) < 0.1


def test_a_start_at_the_base_rate_is_just_that():
    head = build(base_rate=True, epochs=1, lr=1e-9)
    train = pair_source(SHAPES, 24, 0)
    head.fit(train, pair_source(SHAPES, 8, 1), OPTIONS, NullProgress())
    rate = float(torch.stack([train.mask(i).float().mean() for i in range(24)]).mean())
    bias = head.decoder.leave[-1].layer.bias.detach()
    assert float(torch.sigmoid(bias)) == pytest.approx(rate, abs=1e-4)
    assert head.decoder.start_at(0.0) is None
    assert torch.isfinite(bias).all()


def test_scores_are_symmetric_in_the_images():
    head = build()
    fit(head)
    batch = pair_source(SHAPES, 6, 5).read(0, 6)
    scores = head.score(batch)
    assert scores.maps.shape == (6, 16, 16)
    assert 0 < float(scores.maps.min()) < float(scores.maps.max()) < 1
    swapped = {
        ("history:" if k.startswith("cur") else "current:") + k.split(":")[1]: v
        for k, v in batch.items()
        if ":" in k
    }
    assert torch.equal(head.score(swapped).maps, scores.maps)  # |F_c - F_h|


def test_gradients_reach_every_parameter_of_both_encoders():
    for head in (
        build(),
        build({"image": (3, 32, 32)}, (32, 32), encoder="trained"),
        build(layers=0),
    ):
        source = pair_source(head.shapes, 4, 0, head.map_size)
        head.train()
        head.loss(source.read(0, 4))["loss"].mean().backward()
        dead = [k for k, p in head.named_parameters() if p.grad is None or not p.grad.any()]
        assert not dead


def test_layers_change_the_transformer_alone():
    none, one, three = (build(layers=n) for n in (0, 1, 3))

    def names(head, part):
        return {k for k in head.state_dict() if k.startswith(part)}

    assert not names(none, "transformer")
    assert names(three, "decoder") == names(one, "decoder") == names(none, "decoder")
    per_layer = {k.split(".")[2] for k in names(three, "transformer.layers")}
    assert per_layer == {"0", "1", "2"}
    # Without layers the deepest difference itself enters the decoder.
    x = torch.randn(2, 4, 4, 4)
    assert torch.equal(none.transformer(x), x)
    assert none.decoder.enter.layer[0].in_channels == 4
    assert one.decoder.enter.layer[0].in_channels == 8


def test_the_published_network_has_its_parameters():
    with torch.device("meta"):
        head = PairDiff(
            make_config("pair_diff", {}, "published"), {"image": (3, 256, 256)}, (256,) * 2
        )
    assert head.encoder.shapes((256, 256))[-1] == (1024, 16, 16)
    w, d = 64, 1024
    norm = 2 * (w + w + 2 * w + 4 * w + 8 * w)
    encoder = 16 * (3 * w + 2 * w * w + 8 * w * w + 32 * w * w) + 9 * (w * w + 8 * w * d) + norm
    layer = 4 * d * (d + 1) + 2 * 2 * d + 2 * d * 2048 + 2048 + d
    transformer = d * (d + 1) + 256 * d + 2 * layer + 2 * d
    # 3x3 in, then concatenated 4x4 steps 16->32->64->128, 3x3 at 128, 4x4 to one channel
    steps = 9 * d * 8 * w + 16 * (16 * w * 4 * w + 8 * w * 2 * w + 4 * w * w) + 9 * 2 * w * w
    decoder = steps + 2 * (8 * w + 4 * w + 2 * w + w + w) + 16 * 2 * w + 1
    assert head.parameters_count() == encoder + transformer + decoder == 35_928_065


def test_the_trained_encoder_learns_from_images():
    head = build({"image": (3, 32, 32)}, (32, 32), encoder="trained", epochs=15, lr=2e-3)
    assert PairDiff.reads_images(head.config)
    assert fit(head)["held_out_f1"] > 0.7
    grads = [p for p in head.encoder.parameters() if p.requires_grad]
    assert len(grads) == len(list(head.encoder.parameters()))
    with pytest.raises(ConfigError, match="100x100"):
        PairEncoder(4, 8).shapes((100, 100))


def test_flips_move_maps_and_mask_alike():
    rows = 40
    code = torch.arange(24.0).view(1, 1, 4, 6).repeat(rows, 1, 1, 1)
    batch = {"current:a": code, "history:a": -code, "_mask": code * 2, "_rows": torch.arange(rows)}
    torch.manual_seed(0)
    out = flip_alike(batch)
    kinds = {"plain": code[0], "across": code[0].flip(2), "down": code[0].flip(1)}
    kinds["half turn"] = torch.rot90(code[0], 2, (1, 2))
    seen = []
    for row in range(rows):
        x = out["current:a"][row]
        seen += [k for k, v in kinds.items() if torch.equal(v, x)]
        assert torch.equal(out["history:a"][row], -x)
        assert torch.equal(out["_mask"][row], 2 * x)
    assert set(seen) == set(kinds)
    assert len(seen) == rows
    assert torch.equal(out["_rows"], batch["_rows"])
    # In evaluation nothing is flipped.
    head, pairs = build().eval(), pair_source(SHAPES, 4, 0).read(0, 4)
    assert torch.equal(head.loss(pairs)["loss"], head.loss(pairs)["loss"])


def test_the_loss_is_binary_cross_entropy_with_both_terms_negated():
    head, batch = build().eval(), pair_source(SHAPES, 3, 0).read(0, 3)
    a, y = torch.sigmoid(head.logits(batch)), batch["_mask"]
    by_hand = -(y * a.log() + (1 - y) * (1 - a).log()).mean((1, 2, 3))
    assert torch.allclose(head.loss(batch)["loss"], by_hand, atol=1e-6)


def test_needs_follow_the_backbone():
    config = PairDiffConfig()
    needs = PairDiff.needs(config, RESNET, (300, 300))
    assert [x.name for x in needs.layers] == ["act1", "layer1", "layer2", "layer3"]
    assert needs.resize == (256, 256)
    small = make_config("pair_diff", {}, "small")
    assert PairDiff.needs(small, RESNET, (64, 64)) == Needs(needs.layers)  # at the run's own size
    vit = BackboneInfo("vit", (), (), (), tokens=True, depth=12)
    names = [x.name for x in PairDiff.needs(config, vit, (224, 224)).layers]
    assert names == ["blocks.2", "blocks.5", "blocks.8", "blocks.11"]
    trained = PairDiff.needs(PairDiffConfig(encoder="trained"), RESNET, (64, 64))
    assert [x.name for x in trained.layers] == ["image"]
    with pytest.raises(ConfigError, match="no stage of stride"):
        PairDiff.needs(config, BackboneInfo("odd", ("s",), (8,), (32,)), (256, 256))


def test_mistakes_end_in_clear_errors():
    head, pairs = build(), pair_source(SHAPES, 6, 0)
    with pytest.raises(NotFittedError):
        head.score(pairs.read(0, 2))
    unlabelled = pickle.loads(pickle.dumps(pairs))
    unlabelled._masks, unlabelled.labelled = None, False
    with pytest.raises(DataError, match="without change masks"):
        head.fit(unlabelled, pairs, OPTIONS, NullProgress())
    with pytest.raises(DataError, match="no changed pixel"):
        head.fit(pair_source(SHAPES, 6, 0, changed=False), pairs, OPTIONS, NullProgress())
    with pytest.raises(ShapeError, match=r"mask of pair place 0 is \(8, 8\)"):
        head.fit(pair_source(SHAPES, 6, 0, (8, 8)), pairs, OPTIONS, NullProgress())
    with pytest.raises(ShapeError, match="current:one"):
        head.fit(pair_source({**SHAPES, "one": (3, 8, 9)}, 6, 0), pairs, OPTIONS, NullProgress())
    fit(head)
    batch = pairs.read(0, 4)
    with pytest.raises(ShapeError, match="history:two"):
        head.score({k: v for k, v in batch.items() if k != "history:two"})
    batch["history:one"][2, 0, 0, 0] = float("nan")
    with pytest.raises(FeatureRangeError, match="row 2"):
        head.score(batch)
    for wrong in (
        {"encoder": "both"},
        {"layers": -1},
        {"image_size": "auto"},
        {"dropout": 1},
        {"schedule": "x"},
    ):
        with pytest.raises(ConfigError):
            make_config("pair_diff", wrong)
    with pytest.raises(ConfigError, match="one layer 'image'"):
        build(encoder="trained")
