"""How a store is laid out."""

from __future__ import annotations

from storage.store.layout import chunk_rows


def test_chunk_sizes_follow_from_bytes():
    assert chunk_rows(512 * 28 * 28 * 2) == 4
    assert chunk_rows(304 * 6 * 6 * 2) == 256
    assert chunk_rows(100 * 1024 * 1024) == 1
    for size in (10, 999, 54_321, 1_000_000):
        assert chunk_rows(size).bit_count() == 1
