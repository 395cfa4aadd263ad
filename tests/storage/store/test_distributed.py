"""Many writers, one committer: tickets, lost workers, commits of others in between."""

from __future__ import annotations

import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest

from headwater.errors import FeatureRangeError
from storage.store.distributed import commit_blocks, write_block
from storage.upkeep.verify import verify
from tests.storage.storekit import (
    LAYERS,
    SPEC,
    allot,
    contents,
    expected,
    extract,
    image,
    maps_of,
    work,
)


def test_workers_in_other_processes(store):
    images = [image(i) for i in range(100)]
    extract(store, images[:7], block=7)
    tickets = allot(store, images[7:])
    assert len(tickets) == 3
    assert len(contents(store)) == 7  # reserved rows are seen by nobody
    assert verify(store).ok
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        done = list(pool.map(work, tickets))
    assert max(len(pickle.dumps(d)) for d in done) < 100_000
    for block in done:
        commit_blocks(store, [block], images)
    assert contents(store) == expected(images)
    assert verify(store).ok


def test_a_lost_ticket_is_done_again_and_twice_is_once(store):
    images = [image(i) for i in range(70)]
    tickets = allot(store, images)
    work(tickets[1])  # its worker dies before the result is home
    first = [work(tickets[0])]
    report = commit_blocks(store, first, images)
    assert report.rows == len(tickets[0].keys)
    done = [work(t) for t in tickets[1:]]
    assert commit_blocks(store, first + done, images).rows == 70 - report.rows
    assert commit_blocks(store, done, images).snapshot == store.snapshot
    assert contents(store) == expected(images)
    assert verify(store).ok


def test_others_commit_in_between(store):
    images = [image(i) for i in range(60)]
    tickets = allot(store, images)
    done = [work(t) for t in tickets]
    # Another process stores some of the same images, and some of its own, in between.
    extract(store, [*images[10:20], *(image(i) for i in range(90, 95))], complete=False)
    report = commit_blocks(store, done, images)
    assert (report.rows, report.known) == (50, 10)
    assert contents(store) == expected([*images, *(image(i) for i in range(90, 95))])
    assert verify(store).ok


def test_a_layer_is_filled_in_and_chunks_are_not_shared(store):
    images = [image(i) for i in range(40)]
    extract(store, images, LAYERS[:1], block=40)
    tickets = allot(store, images, [LAYERS[1].name])
    chunks = [set((t.rows // 32).tolist()) for t in tickets]
    assert len(chunks) == 2
    assert not chunks[0] & chunks[1]
    done = [work(t) for t in tickets]
    # Somebody fills part of the same chunk first: the worker's chunk must not undo it.
    extract(store, images[3:6], LAYERS[1:], complete=False)
    report = commit_blocks(store, done, images)
    assert report.maps == {LAYERS[1].name: 37}
    assert contents(store) == expected(images)
    assert verify(store).ok


def test_a_worker_names_bad_maps_and_may_leave_images_out(store):
    images = [image(i) for i in range(8)]
    names = {i.sha256: i.path for i in images}
    (ticket,) = allot(store, images, names=names)
    maps = maps_of(ticket.keys)
    maps["layer2"][3] = np.inf
    with pytest.raises(FeatureRangeError, match=r"train/good/3\.png"):
        write_block(ticket, ticket.keys, maps)
    rest = [k for i, k in enumerate(ticket.keys) if i != 3]
    commit_blocks(store, [write_block(ticket, rest, maps_of(rest))], images)
    assert contents(store) == expected([i for n, i in enumerate(images) if n != 3])
    assert store.plan(SPEC, LAYERS, ticket.keys).todo == 1
    assert verify(store).ok
