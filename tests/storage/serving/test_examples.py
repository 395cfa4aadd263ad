"""The examples of the docstrings."""

import doctest

import pytest

from headwater import samples
from storage.serving import encoding


@pytest.mark.parametrize("module", [samples, encoding], ids=lambda m: m.__name__)
def test_examples(module):
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed
