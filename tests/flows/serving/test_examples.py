"""The examples in the docstrings of flows/serving."""

import pytest

from tests.examples import modules_with_examples, run_examples


@pytest.mark.parametrize("module", modules_with_examples("flows.serving"))
def test_examples_are_true(module):
    run_examples(module)
