"""The examples of the docstrings."""

import doctest

import pytest

from headwater import samples
from storage.registry import facts, read, registry, runs
from storage.serving import encoding

MODULES = [samples, facts, read, registry, runs, encoding]


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_examples(module):
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed
