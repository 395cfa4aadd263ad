"""The examples in the docstrings of headwater."""

from __future__ import annotations

import pytest

from tests.examples import modules_with_examples, run_examples


@pytest.mark.parametrize("module", modules_with_examples("headwater"))
def test_examples_are_true(module):
    run_examples(module)
