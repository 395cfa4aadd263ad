"""Memory of batches that is used again."""

from __future__ import annotations

from storage.store.buffers import BufferPool


def test_memory_of_batches_returns_only_when_nobody_looks():
    pool = BufferPool()
    first = pool.take((300, 1000))
    view, where = first[5:7], first.data_ptr()
    del first
    other = pool.take((300, 1000))
    assert other.data_ptr() != where  # `view` still lives there
    del view
    assert pool.take((300, 1000)).data_ptr() == where
