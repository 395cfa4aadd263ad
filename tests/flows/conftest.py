"""Sets that several tests of flows look at."""

import functools
import shutil

import pytest

from tests.flows.commandkit import run_here
from tests.flows.setkit import SmallSet, make_pairs, make_tiles


@pytest.fixture(scope="module")
def tiles(tmp_path_factory, resnet_weights):
    """A folder with a small image set and a weight file."""
    folder = tmp_path_factory.mktemp("job")
    make_tiles(folder)
    shutil.copy(resnet_weights, folder)
    return folder


@pytest.fixture(scope="module")
def boards(tmp_path_factory, resnet_weights):
    """A folder of pairs and a weight file; ``08.png`` is on both sides."""
    folder = tmp_path_factory.mktemp("pairs")
    make_pairs(folder / "boards", "train", range(14), {2, 3, 4, 5, 6, 7})
    make_pairs(folder / "boards", "test", range(20, 24), {21, 22, 23})
    shutil.copy(folder / "boards/train/current/08.png", folder / "boards/train/history/09.png")
    shutil.copy(resnet_weights, folder)
    return folder


@pytest.fixture
def here(monkeypatch, capsys):
    """The command in this process: see `run_here`."""
    return functools.partial(run_here, monkeypatch, capsys)


@pytest.fixture
def small(tmp_path):
    """A set of 10 normal images, and 2 good and 1 defective to test; nothing is extracted."""
    made = SmallSet(tmp_path)
    for part, numbers in (("train/good", range(10)), ("test/good", (20, 21)), ("test/x", (30,))):
        for number in numbers:
            made.draw(number, part)
    return made
