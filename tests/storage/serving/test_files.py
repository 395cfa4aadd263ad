"""A model is plain files, and tells when they were changed."""

import json
import shutil

import pytest

from headwater.errors import ModelError
from storage.serving.detector import Detector
from storage.serving.manifest import BACKBONE_FILE, HEAD_FILE, MANIFEST


def test_a_model_is_plain_files_and_tells_when_they_were_changed(trained, tmp_path):
    files = tmp_path / "files"
    trained.detector.save(files)
    assert sorted(p.name for p in files.iterdir()) == [BACKBONE_FILE, HEAD_FILE, MANIFEST]
    assert Detector.load(files).calibration == trained.detector.calibration
    # only what the layer needs of the backbone travels
    assert (files / BACKBONE_FILE).stat().st_size < 1_500_000
    for name in (HEAD_FILE, BACKBONE_FILE):
        copy = tmp_path / f"bad-{name}"
        shutil.copytree(files, copy)
        data = bytearray((copy / name).read_bytes())
        data[-1] ^= 1
        (copy / name).write_bytes(data)
        with pytest.raises(ModelError, match="changed"):
            Detector.load(copy)
    manifest = json.loads((files / MANIFEST).read_text())
    for key, value, said in (("format_version", 99, "newer"), ("format", "zip", "no manifest")):
        (files / MANIFEST).write_text(json.dumps({**manifest, key: value}))
        with pytest.raises(ModelError, match=said):
            Detector.load(files)
