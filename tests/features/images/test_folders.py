"""Walking folders: nothing outside of them is read."""

from __future__ import annotations

import pytest

from features.images.folders import inside
from features.images.scan import scan_mvtec
from headwater.errors import DataError
from tests.features.imagekit import noise, save


def test_nothing_outside_the_folder_is_read(tiny_set, tmp_path):
    outside = tmp_path / "outside"
    save(outside / "secret.png", noise(5))
    (tiny_set / "train/good/link.png").symlink_to(outside / "secret.png")
    (tiny_set / "test/kind").symlink_to(outside)
    (tiny_set / "train/good/loop").symlink_to(tiny_set)
    (tiny_set / "train/good/near.png").symlink_to(tiny_set / "train/good/000.png")
    result = scan_mvtec(tiny_set)
    assert len(result.records) == 13
    assert len(result.duplicates) == 1  # the link inside is followed
    (told, other) = result.problems
    assert "2 link(s) out of the folder are not followed" in told
    assert "--links anywhere" in told
    assert "1 link(s) to folders" in other
    assert inside(tiny_set, "train/good/000.png") == tiny_set / "train/good/000.png"
    for path in ("../outside/secret.png", "train/good/link.png", "/etc/passwd"):
        with pytest.raises(DataError, match="leads to"):
            inside(tiny_set, path)
