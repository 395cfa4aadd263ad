"""The examples in the docstrings of storage; in those of the stores `store` has ten images."""

from __future__ import annotations

from dataclasses import replace

import pytest

from storage.upkeep.history import tag
from tests.examples import modules_with_examples, run_examples
from tests.storage.storekit import extract, image


@pytest.mark.parametrize("module", modules_with_examples("storage.store", "storage.upkeep"))
def test_examples_of_stores_are_true(module, store, tmp_path, monkeypatch):
    images = [image(i) for i in range(8)]
    extract(store, images)
    tag(store, "before")
    images += [
        replace(image(i), path=f"test/dent/{i}.png", split="test", kind="dent") for i in (8, 9)
    ]
    extract(store, images)
    monkeypatch.chdir(tmp_path)
    run_examples(module, store=store)


@pytest.mark.parametrize("module", modules_with_examples("storage.registry", "storage.serving"))
def test_examples_of_models_are_true(module):
    run_examples(module)
