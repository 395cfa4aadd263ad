"""Commits and tags."""

from __future__ import annotations

import pytest

from headwater.errors import ConfigError, SnapshotError
from storage.upkeep.history import log, tag, tags, untag
from tests.storage.storekit import contents, expected, extract, image


def test_log_tags_and_the_past(store):
    extract(store, [image(i) for i in range(4)])
    old = tag(store, "first")
    assert tag(store, "first", old) == old
    extract(store, [image(i) for i in range(1, 9)])
    with pytest.raises(ConfigError, match="is taken by"):
        tag(store, "first")
    entries = log(store)
    assert next(e for e in entries if e.snapshot == old).tags == ("first",)
    assert any("sync: 1 removed" in e.message for e in entries)
    assert contents(store, snapshot="first") == expected([image(i) for i in range(4)])
    untag(store, "first")
    assert tags(store) == {}
    with pytest.raises(SnapshotError, match="first"):
        untag(store, "first")
