"""A home with a set in service, made once and copied for each test."""

import shutil

import pytest

from flows.retraining import run as running
from flows.runtime.home import Home
from tests.flows.retraining.kit import Retrained


@pytest.fixture(scope="session")
def in_service(tmp_path_factory, resnet_weights):
    """A folder with the images of the set ``s`` and a home in which a retraining promoted it."""
    made = Retrained(tmp_path_factory.mktemp("watched"), resnet_weights).fill()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "on_prefect", made.flow)
        assert made.retrain().what == "promoted"
    return made.folder


@pytest.fixture
def home(in_service, tmp_path):
    """A copy of the home, with the images beside it."""
    shutil.copytree(in_service, tmp_path / "copy")
    return Home.at(tmp_path / "copy" / "home")
