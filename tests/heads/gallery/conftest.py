"""Fixtures of the gallery's tests."""

import pytest

from heads.gallery.f2r import F2R
from tests.heads.gallery.tiny import fit_f2r


@pytest.fixture(scope="module")
def fitted() -> F2R:
    return fit_f2r()[0]
