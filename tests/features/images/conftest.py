"""A folder of pairs, for all who read one."""

from __future__ import annotations

import pytest

from tests.features.imagekit import save_pairs


@pytest.fixture
def pair_folder(tmp_path):
    return save_pairs(tmp_path)
