"""The examples in the docstrings of features: in a folder with `leather` and the pairs `boards`."""

from __future__ import annotations

import pytest

from tests.examples import modules_with_examples, run_examples
from tests.features.imagekit import save_pairs


@pytest.mark.parametrize("module", modules_with_examples("features"))
def test_examples_are_true(module, tiny_set, tmp_path, monkeypatch):
    tiny_set.rename(tmp_path / "leather")
    save_pairs(tmp_path / "boards")
    monkeypatch.chdir(tmp_path)
    run_examples(module)
