"""The examples in the docstrings of the heads' modules give what they say."""

import doctest
import importlib
import pkgutil

import pytest

import heads

NAMES = [found.name for found in pkgutil.walk_packages(heads.__path__, "heads.")]
EXAMPLES = {
    test.name: test
    for name in NAMES
    for test in doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(name))
    if test.examples
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_gives_what_it_says(name: str) -> None:
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    runner.run(EXAMPLES[name], out=said.append)
    assert not runner.failures, "".join(said)
