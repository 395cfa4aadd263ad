"""Which weight files are read, which are refused, and where they are looked for."""

from __future__ import annotations

import socket
import tempfile
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from features.backbones.backbone import load_backbone
from features.backbones.weights import find_weights
from headwater.errors import WeightsError
from tests.features.nets import NET, layers, state_of


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


@pytest.mark.parametrize(
    "prefix", ["backbone.", "encoder.", "model.", "module.", "teacher.backbone.", "0.auto_model."]
)
def test_a_net_saved_as_a_part_of_another_is_found(tmp_path, prefix):
    file, state = tmp_path / "part.safetensors", state_of()
    more = {"head.mlp.0.weight": torch.zeros(3, 3)}
    save_file({f"{prefix}{k}": v for k, v in state.items()} | more, file)
    net = load_backbone(NET, file)
    net.check_weights(layers("layer4"))
    assert all(torch.equal(net._net.state_dict()[k], v) for k, v in state.items())
    twice = {f"{p}{k}": v.clone() for k, v in state.items() for p in ("student.", prefix)}
    save_file(twice, file)
    with pytest.raises(WeightsError, match=r"hold the net twice: below .*student\."):
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


def test_find_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("features.backbones.weights._answers", lambda url: False)
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
    with pytest.raises(
        WeightsError, match=r"no file in[\s\S]*it has files for: --backbone resnet18"
    ):
        find_weights("resnet50", tmp_path)
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
