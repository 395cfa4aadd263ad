"""An empty store, for all who fill one."""

from __future__ import annotations

import pytest

from storage.store.feature_store import FeatureStore
from tests.storage.storekit import OPTIONS


@pytest.fixture
def store(tmp_path):
    return FeatureStore.open(tmp_path, "bolts", options=OPTIONS)
