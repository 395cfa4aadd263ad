"""`headwater store ...` as a data engineer types it, on a small set with a weight file."""

import datetime as dt
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from storage.store.feature_store import FeatureStore
from storage.upkeep.collect import gc
from storage.upkeep.contents import inspect
from storage.upkeep.history import log
from storage.upkeep.purge import purge
from storage.upkeep.verify import verify
from tests.flows.commandkit import features, same
from tests.storage.storekit import LAYERS, OPTIONS, SPEC, contents, expected, extract, image


def test_looking_neither_makes_a_home_nor_needs_to_write_in_one(desk, tmp_path):
    nowhere = tmp_path / "nowhere"
    assert "no image sets" in desk("store", "ls", "--home", nowhere)
    assert "does not exist" in desk("store", "inspect", "s", "--home", nowhere, status=2)
    assert not nowhere.exists()
    seal = tmp_path / "sealed"
    seal.mkdir()
    for flags in (["--bind", desk.home, seal], ["-o", "remount,ro,bind", seal]):
        done = subprocess.run(["mount", *map(str, flags)], capture_output=True, check=False)
        if done.returncode:
            pytest.skip("nothing can be mounted read-only here")
    try:
        for command in ("ls", "log s", "inspect s", "verify s", f"diff s {desk.store.snapshot}"):
            name, *more = command.split()
            desk("store", name, *more, "--home", seal)
        desk("store", "export", "s", tmp_path / "copy", "--home", seal)
        assert "Read-only file system" in desk("store", "tag", "s", "a", "--home", seal, status=2)
        assert "Read-only file system" in desk("store", "gc", "s", "--home", seal, status=2)
    finally:
        subprocess.run(["umount", str(seal)], check=False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("inspect", "nope"), "'nope'"),
        (("inspect", "a.b"), "image set name 'a.b'"),
        (("diff", "s", "nope"), "snapshot 'nope' does not exist"),
        (("verify", "s", "--snapshot", "nope"), "snapshot 'nope' does not exist"),
        (("tag", "s", "a/b"), "tag 'a/b'"),
        (("tag", "s", "nope", "--delete"), "tag 'nope'"),
        (("gc", "s", "--older-than", "soon"), "age 'soon'"),
        (("gc", "s", "--older-than", "30"), "age '30'"),
        (("gc", "s", "--older-than", "-3d"), "age '-3d'"),
        (("export", "s", "."), "export target . exists"),
        (("drift", "s", "--since", "nope"), "snapshot 'nope' does not exist"),
    ],
)
def test_mistakes_are_explained(desk, arguments, said):
    assert said in desk("store", *arguments, status=2)


@pytest.mark.parametrize(
    "command",
    ["log", "inspect", "diff A", "verify", "tag a", "gc", "export out", "drift --since a"],
)
def test_a_set_that_is_not_there_is_answered_with_those_that_are(desk, command):
    name, *more = command.split()
    said = desk("store", name, "nope", *more, status=2)
    assert "image set 'nope'" in said
    assert "expected: one of s\n" in said


def test_purging_gives_up_removed_images_and_nothing_that_is_referred_to(desk):
    before = features(desk.store)
    desk("store", "tag", "s", "audit")
    for i in (0, 1, 2):
        (desk.images / "train/good" / f"{i}.png").unlink()
    desk.extract()
    now = features(desk.store)
    assert len(now) == 7
    gc = ("store", "gc", "s", "--older-than", "0", "--grace", "0", "--purge-removed")
    said = desk(*gc)
    assert "would give up 3 maps of 3 removed images" in said
    assert log(desk.store)[0].message.startswith("sync")
    assert "gave up 3 maps" in desk(*gc, "--delete")
    store = desk.store
    assert same(features(store), now)
    assert verify(store).ok
    assert verify(store).rows == 7
    assert verify(store, "audit").rows == 10
    assert verify(store, "audit").ok
    # A second time there is nothing to do, and an image that comes back is computed again.
    at = store.snapshot
    assert "gave up 0 maps" in desk(*gc, "--delete")
    assert desk.store.snapshot == at
    desk.draw(1)
    assert desk.extract()["computed"] == 1
    back = features(desk.store)
    assert len(back) == 8
    assert all(np.array_equal(before[k], v) for k, v in back.items())


def test_purging_frees_the_chunks_that_hold_nothing_else(tmp_path):
    store = FeatureStore.open(tmp_path, "bolts", options=OPTIONS)
    images = [image(i) for i in range(16)]
    extract(store, images, block=16)
    size = store.extractor(SPEC).maps("layer2").rows
    assert size == 4
    extract(store, images[6:])
    folder = tmp_path / "bolts" / "chunks"
    purged = purge(store, older_than=dt.timedelta(0), dry_run=False)
    rows = store.extractor(SPEC).maps("layer2").row_bytes
    small = store.extractor(SPEC).maps(LAYERS[1].name)
    # Rows 0..3 are a chunk of layer2; 4 and 5 share one; the small layer has one chunk for all.
    assert purged.images == 6
    assert (purged.maps, purged.bytes) == (12, 4 * rows)
    assert purged.shared_bytes == 2 * rows + 6 * small.row_bytes
    before = sum(p.stat().st_size for p in folder.iterdir())
    gc(store, older_than=dt.timedelta(0), grace=dt.timedelta(0), dry_run=False)
    assert before - sum(p.stat().st_size for p in folder.iterdir()) >= 4 * rows
    assert contents(store) == expected(images[6:])
    assert verify(store).ok
    found = inspect(store)["extractors"][0]["layers"]
    assert {x["rows"] for x in found} == {10}
    # Images not removed for long keep their features, whoever asks.
    extract(store, images[8:])
    assert purge(store, older_than=dt.timedelta(days=1), dry_run=False).maps == 0


def test_a_narrow_terminal_shows_every_id_whole(desk):
    pytest.importorskip("pty")
    code = (
        "import fcntl,os,pty,struct,sys,termios\n"
        "pid, fd = pty.fork()\n"
        "command = [sys.executable, '-m', 'flows.command.main', *sys.argv[1:]]\n"
        "if pid == 0: os.execv(sys.executable, command)\n"
        "fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack('HHHH', 40, 80, 0, 0))\n"
        "try:\n"
        "    while data := os.read(fd, 65536): os.write(1, data)\n"
        "except OSError: pass\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    snapshot = desk.store.snapshot
    for command in (["ls"], ["log", "s"], ["inspect", "s"]):
        done = subprocess.run(
            [sys.executable, "-c", code, "store", *command],
            env=env, capture_output=True, text=True, check=True, timeout=280,
        )  # fmt: skip
        assert snapshot in done.stdout
        assert "\N{HORIZONTAL ELLIPSIS}" not in done.stdout
        plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", done.stdout)
        assert max(map(len, plain.splitlines())) <= 80


def test_ctrl_c_keeps_what_was_committed_and_says_so(desk):
    for i in range(10, 90):
        desk.draw(i)
    settings = desk.folder / "small.yaml"
    settings.write_text("extraction: {block_mb: 1, batch: 1}\n")
    command = ("extract", "s", "--images", desk.images, "--size", "224", "--config", settings)
    env = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).resolve().parents[3]),
        "OMP_NUM_THREADS": "1",
    }
    # Where the tests run in a shell's background, Ctrl-C would be ignored by inheritance.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from flows.command.main import main; main()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, command), "--heads", "patchcore"],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    # Counting files is cheap: on a busy machine the signal must not come after the end.
    commits = desk.home / "store" / "s" / "snapshots"
    before, deadline = len(list(commits.iterdir())), time.monotonic() + 200
    while len(list(commits.iterdir())) < before + 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    said, _ = child.communicate(timeout=90)
    assert child.returncode == 130, said
    assert "stopped; what was committed is kept" in said
    assert "Traceback" not in said
    assert verify(desk.store).ok
    assert len(desk.store.extractors()) == 2
