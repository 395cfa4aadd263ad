"""Settings are read in a folder without a `headwater.yaml`, and without variables of ours."""

import os

import pytest


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """Work in a folder of its own that is empty; return it."""
    for name in os.environ:
        if name.startswith("HEADWATER_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path
