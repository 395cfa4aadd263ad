import socket
import tempfile
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from features import precision as precision_module
from features.backbones import (
    best_precision,
    find_weights,
    load_backbone,
    restore_backbone,
)
from headwater.errors import ConfigError, LayerError, WeightsError
from headwater.spec import LayerSpec

NET = "resnet10t"


def layers(*names: str) -> tuple[LayerSpec, ...]:
    return tuple(LayerSpec.parse(n) for n in names)


def state_of(name: str = NET, **options: object) -> dict[str, torch.Tensor]:
    import timm

    torch.manual_seed(1)
    net = timm.create_model(name, pretrained=False, **options)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            # Away from the initial values, so that forgetting one shows.
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    return {k: v.contiguous() for k, v in net.state_dict().items()}


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / f"{NET}.whole.safetensors"
    save_file(state_of(), path)
    return path


@pytest.fixture(scope="module")
def backbone(weights):
    return load_backbone(NET, weights)


def plain_stages(x: torch.Tensor, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    import timm

    net = timm.create_model(NET, pretrained=False).eval()
    net.load_state_dict(state)
    found = {}
    with torch.no_grad():
        x = net.maxpool(net.act1(net.bn1(net.conv1(x))))
        for name in ("layer1", "layer2", "layer3", "layer4"):
            found[name] = x = getattr(net, name)(x)
    return found


@pytest.fixture(scope="module")
def batch() -> torch.Tensor:
    return torch.randn(5, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def test_maps_are_the_modules_outputs(backbone, batch):
    want = plain_stages(batch, state_of())
    got = backbone.maps(batch, layers("layer1", "layer3"))
    for name in ("layer1", "layer3"):
        assert got[name].dtype == torch.float32
        assert torch.allclose(got[name], want[name], atol=1e-4, rtol=1e-4)
    shapes = backbone.shapes(layers("layer1", "layer3"), (64, 96))
    assert shapes == {k: tuple(v.shape[1:]) for k, v in got.items()}


def test_scale_pooling_and_fusion_are_as_the_specification_says(backbone, batch):
    names = [
        "layer1~avg3s2",
        "layer2~mean3",
        "layer2+layer3~mean3",
        "layer3@0.5",
        "layer3+layer3~sum",
    ]
    got = backbone.maps(batch, layers(*names))
    want = plain_stages(batch, state_of())
    half = F.interpolate(batch, size=(32, 48), mode="bilinear", antialias=True)

    def mean3(x: torch.Tensor) -> torch.Tensor:
        ones = F.conv2d(torch.ones_like(x[:1, :1]), torch.ones(1, 1, 3, 3), padding=1)
        kernel = torch.ones(x.shape[1], 1, 3, 3)
        return F.conv2d(x, kernel, padding=1, groups=x.shape[1]) / ones

    deep = F.interpolate(mean3(want["layer3"]), size=want["layer2"].shape[2:], mode="bilinear")
    expected = {
        names[0]: F.avg_pool2d(want["layer1"], 3, 2, 1),
        names[1]: mean3(want["layer2"]),
        names[2]: torch.cat([mean3(want["layer2"]), deep], dim=1),
        names[3]: plain_stages(half, state_of())["layer3"],
        names[4]: 2 * want["layer3"],
    }
    assert list(got) == names
    for name in names:
        assert torch.allclose(got[name], expected[name], atol=1e-4, rtol=1e-4), name


def test_one_forward_a_scale_and_nothing_behind_the_last_node(backbone, batch):
    backbone.check_weights(layers("layer1", "layer2"))  # looks the net over once
    ran = []
    net = backbone._net
    handles = [
        m.register_forward_hook(lambda m, a, o, k=k: ran.append(k)) for k, m in net.named_modules()
    ]
    calls = backbone.calls
    try:
        backbone.maps(batch[:2], layers("layer1", "layer2", "layer2~mean3"))
        assert backbone.calls == calls + 1
        assert ran.count("conv1.0") == 1
        assert not [k for k in ran if k.startswith(("layer3", "layer4", "fc", "global_pool"))]
        backbone.maps(batch[:2], layers("layer1", "layer1@0.5", "layer2@0.5"))
        assert backbone.calls == calls + 3
        assert ran.count("conv1.0") == 3
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_maps_do_not_depend_on_the_company_or_the_threads(backbone, precision):
    images = torch.randn(11, 3, 64, 64)
    wanted = layers("layer2", "layer3@0.5")
    whole = backbone.maps(images, wanted, precision)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        turned = backbone.maps(images.flip(0), wanted, precision)
        torch.set_num_threads(1)
        single = backbone.maps(images[3:4], wanted, precision)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    for name, maps in whole.items():
        assert torch.equal(maps, turned[name].flip(0))
        assert torch.equal(maps[3:4], single[name])


def test_an_output_is_not_overwritten_by_what_follows(backbone, batch):
    # The block adds its shortcut in place to what bn2 gave, and activates in place.
    alone = backbone.maps(batch, layers("layer1.0.bn2"))
    together = backbone.maps(batch, layers("layer1.0.bn2", "layer1", "layer2"))
    assert torch.equal(alone["layer1.0.bn2"], together["layer1.0.bn2"])
    assert alone["layer1.0.bn2"].min() < 0


def test_bfloat16_stays_close(backbone, batch):
    exact = backbone.maps(batch, layers("layer3"))["layer3"]
    rough = backbone.maps(batch, layers("layer3"), "bfloat16")["layer3"]
    assert not torch.equal(exact, rough)
    assert F.cosine_similarity(exact.flatten(1), rough.flatten(1)).min() > 0.999


def test_missing_nodes_are_named_with_their_neighbours(backbone):
    with pytest.raises(LayerError, match=r"no node 'layer9'[\s\S]*layer1, layer2, layer3, layer4"):
        backbone.check_weights(layers("layer9"))
    with pytest.raises(LayerError, match=r"near it:.*layer3\.0\.conv1"):
        backbone.maps(torch.zeros(1, 3, 64, 64), layers("layer3.0.conv9"))
    with pytest.raises(LayerError, match="no map"):
        backbone.shapes(layers("fc"), (64, 64))
    with pytest.raises(LayerError, match="cannot be summed"):
        backbone.shapes(layers("layer2+layer3~sum"), (64, 64))
    with pytest.raises(LayerError, match="no final norm"):
        backbone.shapes(layers("layer3~norm"), (64, 64))
    with pytest.raises(ConfigError, match="odd"):
        backbone.shapes(layers("layer3~mean2"), (64, 64))


def without(state: dict[str, torch.Tensor], *prefixes: str) -> dict[str, torch.Tensor]:
    return {k: v for k, v in state.items() if not k.startswith(prefixes)}


def test_what_lies_behind_the_layers_may_be_missing(tmp_path):
    file = tmp_path / "cut.safetensors"
    save_file(without(state_of(), "layer3", "layer4", "fc"), file)
    cut = load_backbone(NET, file)
    assert cut.info.stages == ("act1", "layer1", "layer2")
    assert cut.info.channels == (64, 64, 128)
    assert cut.info.strides == (2, 4, 8)
    cut.check_weights(layers("layer2~mean3", "layer1@0.5"))
    with pytest.raises(WeightsError, match=r"lack \d+ tensors.*layer3") as error:
        cut.check_weights(layers("layer2", "layer3"))
    assert "act1, layer1, layer2" in str(error.value)
    x = torch.randn(2, 3, 64, 64)
    assert cut.maps(x, layers("layer2"))["layer2"].isfinite().all()
    # Unchecked, what is missing cannot pass for a feature.
    assert cut.maps(x, layers("layer3"))["layer3"].isnan().all()


@pytest.mark.parametrize(
    "key",
    ["conv1.0.weight", "layer1.0.bn2.running_var", "layer2.0.conv2.weight", "layer2.0.bn1.bias"],
)
def test_any_single_missing_tensor_that_matters_is_noticed(tmp_path, key):
    file = tmp_path / "hole.safetensors"
    save_file({k: v for k, v in state_of().items() if k != key}, file)
    holed = load_backbone(NET, file)
    with pytest.raises(WeightsError, match=rf"lack 1 tensors.*{key}"):
        holed.check_weights(layers("layer2"))
    if key.startswith("layer2"):
        holed.check_weights(layers("layer1"))


def test_a_file_of_another_net_is_refused(tmp_path):
    file = tmp_path / "a.safetensors"
    state = state_of()
    save_file({**state, "layer1.1.conv1.weight": torch.zeros(64, 64, 3, 3)}, file)
    with pytest.raises(WeightsError, match=r"of another net.*layer1\.1\.conv1\.weight"):
        load_backbone(NET, file).check_weights(layers("layer2"))
    save_file({**state, "projection.weight": torch.zeros(3), "fc.more": torch.zeros(3)}, file)
    load_backbone(NET, file).check_weights(layers("layer2"))
    save_file({**state, "fc.weight": torch.zeros(7, 512)}, file)
    with pytest.raises(
        WeightsError, match=r"fc\.weight: file \(7, 512\), net \(1000, 512\)[\s\S]*num_classes"
    ):
        load_backbone(NET, file)
    load_backbone(NET, file, options={"num_classes": 0}).check_weights(layers("layer2"))
    save_file({"encoder.weight": torch.zeros(3)}, file)
    with pytest.raises(WeightsError, match=r"no tensor of resnet10t.*encoder\.weight"):
        load_backbone(NET, file)
    save_file({**state, "bn1.weight": torch.full((64,), float("nan"))}, file)
    with pytest.raises(WeightsError, match=r"NaN.*bn1\.weight"):
        load_backbone(NET, file)


MARK = Path(tempfile.gettempdir()) / "headwater-test-unpickled"


class Evil:
    def __reduce__(self):
        return Path.touch, (MARK,)


def test_files_of_torch_are_read_without_running_them(tmp_path):
    file = tmp_path / "w.pth"
    state = {f"module.{k}": v.half() for k, v in state_of().items()}
    torch.save({"epoch": 3, "state_dict": state}, file)
    loaded = load_backbone(NET, file)
    loaded.check_weights(layers("layer4"))
    assert loaded._net.conv1[0].weight.dtype == torch.float32
    torch.save({"state_dict": state, "x": Evil()}, file)
    with pytest.raises(WeightsError, match="neither safetensors nor"):
        load_backbone(NET, file)
    assert not MARK.exists()
    file.write_bytes(b"rubbish")
    with pytest.raises(WeightsError, match="neither safetensors nor"):
        load_backbone(NET, file)


def test_identity_follows_bytes_options_and_seed(weights, tmp_path):
    first = load_backbone(NET, weights).default_spec((64, 64), precision="float32")
    assert first.input_size == (64, 64)
    other = tmp_path / "other.safetensors"
    state = state_of()
    state["fc.bias"][0] += 1
    save_file(state, other)
    others = [
        load_backbone(NET, other),
        load_backbone(NET, untrained_seed=1),
        load_backbone(NET, weights, options={"mean": [0.5] * 3}),
        load_backbone(NET, weights, options={"drop_rate": 0.1}),
    ]
    ids = {first.id, *(b.default_spec((64, 64), precision="float32").id for b in others)}
    assert len(ids) == 5
    again = load_backbone(NET, weights).default_spec(64, precision="float32")
    assert again == first


def test_untrained_weights_come_from_their_seed_only():
    a, b, c = (load_backbone(NET, untrained_seed=s) for s in (3, 3, 4))
    x = torch.randn(1, 3, 64, 64)
    first, second, third = (n.maps(x, layers("layer2"))["layer2"] for n in (a, b, c))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert a.weights_id == "untrained:3"
    a.check_weights(layers("layer4"))


def test_the_exported_state_gives_the_same_maps(backbone, batch):
    wanted = layers("layer2", "layer1@0.5")
    state = backbone.export_state(wanted)
    assert not [k for k in state if k.startswith(("layer3", "fc"))]
    copy = restore_backbone(NET, state, weights_id=backbone.weights_id)
    copy.check_weights(wanted)
    mine, its = backbone.maps(batch, wanted), copy.maps(batch, wanted)
    assert all(torch.equal(mine[k], its[k]) for k in mine)
    assert copy.default_spec(64, precision="float32") == backbone.default_spec(
        64, precision="float32"
    )


def test_unknown_models_and_options_are_errors():
    with pytest.raises(ConfigError, match=r"'resnet81' is unknown.*resnet"):
        load_backbone("resnet81", untrained_seed=0)
    with pytest.raises(ConfigError, match="colour"):
        load_backbone(NET, untrained_seed=0, options={"colour": "red"})
    with pytest.raises(ConfigError, match="checkpoint_path"):
        load_backbone(NET, untrained_seed=0, options={"checkpoint_path": "x"})
    with pytest.raises(ConfigError, match="three numbers"):
        load_backbone(NET, untrained_seed=0, options={"std": [1, 2]})
    with pytest.raises(ConfigError, match="bottleneck"):
        load_backbone(NET, untrained_seed=0, options={"stride_in_1x1": True})


def test_the_stride_moves_into_the_first_convolution():
    net = load_backbone("resnet26", untrained_seed=0, options={"stride_in_1x1": True})._net
    for stage in (net.layer2, net.layer3, net.layer4):
        assert stage[0].conv1.stride == (2, 2)
        assert stage[0].conv2.stride == (1, 1)
    assert net.layer1[0].conv1.stride == (1, 1)


def test_a_vision_transformer_gives_maps_of_its_patches():
    vit = load_backbone("vit_tiny_patch16_224", untrained_seed=0, options={"depth": 3})
    assert vit.info.tokens
    assert vit.info.depth == 3
    assert vit.info.stages == ("blocks.0", "blocks.1", "blocks.2")
    assert set(vit.info.strides) == {16}
    x = torch.randn(1, 3, 64, 96)
    wanted = layers("blocks.1", "blocks.0+blocks.2~norm~sum", "patch_embed")
    got = vit.maps(x, wanted)
    net = vit._net
    with torch.no_grad():
        tokens = [net._pos_embed(net.patch_embed(x))]
        for block in net.blocks:
            tokens.append(block(tokens[-1]))
    grid = lambda t: t[:, 1:].transpose(1, 2).reshape(1, 192, 4, 6)  # noqa: E731
    assert torch.allclose(got["blocks.1"], grid(tokens[2]), atol=1e-4)
    both = grid(tokens[1]) + grid(net.norm(tokens[3]).detach())
    assert torch.allclose(got["blocks.0+blocks.2~norm~sum"], both, atol=1e-4)
    assert got["patch_embed"].shape == (1, 192, 4, 6)
    with pytest.raises(ConfigError, match=r"60x60 px[\s\S]*224x224"):
        vit.shapes(wanted, (60, 60))
    state = vit.export_state(layers("blocks.1"))
    assert {"pos_embed", "cls_token", "patch_embed.proj.weight"} <= set(state)
    assert "norm.weight" not in state
    assert "norm.weight" in vit.export_state(layers("blocks.1~norm"))


def test_nets_with_channels_last():
    swin = load_backbone(
        "swin_tiny_patch4_window7_224", untrained_seed=0, options={"depths": [1, 1, 1, 1]}
    )
    assert swin.info.channels == (96, 192, 384, 768)
    assert swin.info.strides == (4, 8, 16, 32)
    shapes = swin.shapes(layers("layers.1", "patch_embed.proj"), (224, 224))
    assert shapes == {"layers.1": (192, 28, 28), "patch_embed.proj": (96, 56, 56)}


def test_find_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("features.weights._answers", lambda url: False)
    monkeypatch.delenv("HEADWATER_WEIGHTS", raising=False)
    with pytest.raises(WeightsError, match=r"HEADWATER_WEIGHTS is not set[\s\S]*--weights"):
        find_weights("resnet18")
    for name in ("resnet18.a.safetensors", "resnet180.safetensors", "resnet18.txt"):
        (tmp_path / name).write_bytes(b"")
    found = tmp_path / "resnet18.a.safetensors"
    assert find_weights("resnet18", tmp_path) == found
    assert find_weights("resnet18", found) == found
    monkeypatch.setenv("HEADWATER_WEIGHTS", str(tmp_path))
    assert find_weights("resnet18") == found
    with pytest.raises(WeightsError, match="none in HEADWATER_WEIGHTS"):
        find_weights("resnet50")
    monkeypatch.setenv("HEADWATER_WEIGHTS", str(found))
    assert find_weights("resnet18") == found
    with pytest.raises(WeightsError, match="does not exist"):
        find_weights("resnet18", tmp_path / "absent")
    (tmp_path / "resnet18.b.pth").write_bytes(b"")
    with pytest.raises(WeightsError, match="2 files"):
        find_weights("resnet18", tmp_path)


def test_a_hub_that_does_not_answer_is_given_up_within_seconds(tmp_path, monkeypatch):
    from huggingface_hub import constants

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.delenv("HEADWATER_WEIGHTS", raising=False)
        start = time.perf_counter()
        with pytest.raises(WeightsError, match="does not answer"):
            find_weights("resnet18.gluon_in1k")
        assert time.perf_counter() - start < 10


def test_the_precision_is_what_the_hardware_and_a_measurement_say(backbone, monkeypatch):
    monkeypatch.setattr(precision_module, "_BEST", {})
    monkeypatch.setattr(precision_module, "_cpu_has_bfloat16", lambda: False)
    calls = backbone.calls
    assert best_precision(backbone) == "float32"
    monkeypatch.setattr(precision_module, "_cpu_has_bfloat16", lambda: True)
    assert best_precision(backbone) == "float32", "remembered for the process"
    for slower in ("float32", "bfloat16"):
        monkeypatch.setattr(precision_module, "_BEST", {})
        maps = type(backbone).maps

        def slow(self, batch, wanted, precision, slower=slower, maps=maps):
            if precision == slower:
                time.sleep(0.2)
            return maps(self, batch[:1, :, :32, :32], wanted, precision)

        with monkeypatch.context() as patch:
            patch.setattr(type(backbone), "maps", slow)
            assert best_precision(backbone) == ({"float32", "bfloat16"} - {slower}).pop()
    assert backbone.calls == calls


def test_threads_share_a_backbone(backbone):
    x = torch.randn(4, 3, 64, 64)
    want = {n: backbone.maps(x, layers(n))[n] for n in ("layer1", "layer2", "layer3")}
    wrong = []

    def work(name: str) -> None:
        for _ in range(5):
            if not torch.equal(backbone.maps(x, layers(name))[name], want[name]):
                wrong.append(name)

    threads = [threading.Thread(target=work, args=(n,)) for n in want]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


REAL = {
    "resnet18": ({}, "layer2+layer3~mean3", 0.99),
    "resnet50": ({"stride_in_1x1": True}, "layer2+layer3~mean3", 0.99),
    "densenet169": ({}, "features.denseblock2~mean3", 0.95),
    "mobilenetv2_100": (
        {
            "num_classes": 1001,
            "pad_type": "same",
            "bn_eps": 1e-3,
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
        },
        "blocks.2+blocks.4~mean3",
        0.99,
    ),
    "vit_tiny_patch16_224": ({"num_classes": 200}, "blocks.5+blocks.9~mean3", 0.99),
}


def leather_auroc(backbone, layer: LayerSpec, data: Path) -> float:
    """Image AUROC of nearest-neighbour distances to the patches of four normal images."""
    from features.extract import Job, extract
    from features.images import scan_mvtec

    records = scan_mvtec(data / "images/mvtec_leather_sample").records
    spec = backbone.default_spec((256, 256), precision="float32")
    jobs = [Job(r.sha256, r.path) for r in records]
    blocks = extract(jobs, backbone, spec, (layer,))
    maps = torch.cat([torch.from_numpy(b.maps[layer.name]).float() for b in blocks])
    patches = maps.flatten(2).transpose(1, 2)
    bank = patches[: sum(r.split == "train" for r in records)].flatten(0, 1)
    bank = bank[torch.randperm(len(bank), generator=torch.Generator().manual_seed(0))[:1500]]
    scores = torch.stack([torch.cdist(p, bank).min(dim=1).values.max() for p in patches])
    test = [
        (float(s), r.is_normal) for s, r in zip(scores, records, strict=True) if r.split == "test"
    ]
    pairs = [(a, b) for a, bad in test if not bad for b, good in test if good]
    return sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)


@pytest.mark.real
@pytest.mark.parametrize("name", REAL)
def test_real_weights_give_features_that_find_defects(shared_data, name):
    options, layer, least = REAL[name]
    backbone = load_backbone(name, shared_data / "weights", options=options)
    wanted = layers(layer)
    backbone.check_weights(wanted)
    assert leather_auroc(backbone, wanted[0], shared_data) >= least


@pytest.mark.real
def test_the_measure_tells_an_untrained_net(shared_data):
    untrained = load_backbone("resnet18", untrained_seed=0)
    assert leather_auroc(untrained, layers("layer2+layer3~mean3")[0], shared_data) < 0.95
