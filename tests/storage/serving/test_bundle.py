"""A model as one file: the same to the bit, and nothing else is taken for it."""

import json
import zipfile

import numpy as np
import pytest
import torch

from headwater.errors import ModelError
from storage.serving.bundle import INDEX, read_bundle, read_index, write_bundle
from storage.serving.detector import Detector
from storage.serving.manifest import BACKBONE_FILE, HEAD_FILE, MANIFEST


@pytest.fixture
def files(every, tmp_path):
    """A model's folder, and its bundle."""
    folder = every["patchcore"][1]
    write_bundle(folder, tmp_path / "m.zip", {"model": "s.h", "version": "1"})
    return folder, tmp_path / "m.zip"


def change(path, target, **members):
    """Write a copy of a bundle with other members; None leaves one out."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            data = members.pop(info.filename, old.read(info))
            if data is not None:
                new.writestr(info.filename, data)
        for name, data in members.items():
            new.writestr(name, data)
    return target


def test_it_answers_as_the_model_does_and_is_the_same_bytes_each_time(files, tmp_path):
    folder, bundle = files
    image = np.random.default_rng(0).integers(0, 255, (40, 48, 3), dtype=np.uint8)
    (one,), (other,) = (Detector.load(p, device="cpu").predict([image]) for p in files)
    assert (one.score, one.threshold, one.verdict) == (other.score, other.threshold, other.verdict)
    assert np.array_equal(one.map, other.map)
    write_bundle(folder, tmp_path / "again.zip", {"model": "s.h", "version": "1"})
    assert (tmp_path / "again.zip").read_bytes() == bundle.read_bytes()
    assert read_index(bundle)["model"] == "s.h"
    manifest, head, _ = read_bundle(bundle)
    assert manifest["bundle"]["sha256"].keys() == {MANIFEST, HEAD_FILE, BACKBONE_FILE}
    assert all(isinstance(v, torch.Tensor) for v in head.values())


def test_what_was_changed_is_refused(files, tmp_path):
    _, bundle = files
    bad = tmp_path / "bad.zip"
    index = json.loads(zipfile.ZipFile(bundle).read(INDEX))
    manifest = json.loads(zipfile.ZipFile(bundle).read(MANIFEST))
    newer = json.dumps({**index, "format_version": 2, "headwater": "9.0"})
    for members, said in (
        ({HEAD_FILE: b"x"}, "head.safetensors was changed"),
        ({MANIFEST: json.dumps({**manifest, "calibration": {}})}, "manifest.json was changed"),
        ({BACKBONE_FILE: None}, "0 members are called backbone.safetensors"),
        ({INDEX: newer}, r"format version 2(.|\n)*with Headwater 9.0 or newer"),
        ({INDEX: "{}"}, "headwater-bundle"),
        ({INDEX: "["}, "no JSON"),
        ({INDEX: "[" * 100_000}, "no JSON"),
        ({INDEX: json.dumps({**index, "sha256": 3})}, "holds no hashes"),
    ):
        with pytest.raises(ModelError, match=said):
            Detector.load(change(bundle, bad, **members))
    bad.write_bytes(bundle.read_bytes()[:-100])
    with pytest.raises(ModelError, match="is no bundle"):
        Detector.load(bad)


def test_names_that_lead_elsewhere_and_members_that_blow_up_come_to_nothing(files, tmp_path):
    _, bundle = files
    odd = change(bundle, tmp_path / "odd.zip", **{"../../evil": b"x", "/tmp/evil": b"x"})
    before = set(tmp_path.rglob("*"))
    assert Detector.load(odd, device="cpu")
    assert set(tmp_path.rglob("*")) == before
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new:
        new.writestr(INDEX, b" " * 50_000_000)
    with pytest.raises(ModelError, match="is compressed"):
        Detector.load(bomb)
    with zipfile.ZipFile(bomb, "w") as new:
        new.writestr(INDEX, b"{}")
        with pytest.warns(UserWarning, match="Duplicate"):
            new.writestr(INDEX, b"{}")
    with pytest.raises(ModelError, match="2 members"):
        Detector.load(bomb)
