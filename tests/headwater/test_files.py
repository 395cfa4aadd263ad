"""Files replaced in one step and locks, with real processes that are killed in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from headwater.errors import StoreError
from headwater.files import locked, replacing, short_name, write_text

ROOT = Path(__file__).resolve().parents[2]


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Run code in a process of its own and wait for its first line."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"from headwater.files import *\nimport sys, time\n{code}"]
        + [str(a) for a in arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_the_new_file_takes_the_old_ones_place_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "card.json"
    write_text(path, "old")
    with replacing(path) as new:
        new.write_text("half")
        assert path.read_text() == "old"
        new.write_text("whole")
    assert path.read_text() == "whole"
    assert names(path.parent) == ["card.json"]
    # As any new file, for the eyes that the user lets see it.
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "card.json"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as new:
        new.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert names(tmp_path) == ["card.json"]
    with pytest.raises(FileNotFoundError), replacing(path):
        pass  # nothing was written
    assert path.read_text() == "old"


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "card.json"
    write_text(path, "old")
    writer = start(
        "with replacing(Path(sys.argv[1])) as new:\n"
        "    new.write_text('half'); print('here', flush=True); time.sleep(60)",
        path,
    )
    kill(writer)
    assert path.read_text() == "old"
    write_text(path, "next")  # what it left is in nobody's way
    assert path.read_text() == "next"
    assert [n for n in names(tmp_path) if not n.startswith(".")] == ["card.json"]


def test_two_processes_write_one_file_and_readers_see_whole_ones(tmp_path):
    path = tmp_path / "card.json"
    code = (
        "print('here', flush=True)\n"
        "for i in range(100): write_text(Path(sys.argv[1]), sys.argv[2] * 50_000)"
    )
    writers = [start(code, path, letter) for letter in "ab"]
    seen = set()
    while any(w.poll() is None for w in writers):
        if path.exists():
            seen.add(path.read_text())
    assert [w.wait() for w in writers] == [0, 0]
    assert seen <= {"a" * 50_000, "b" * 50_000}
    assert seen
    assert names(tmp_path) == ["card.json"]


def test_a_lock_goes_with_its_process(tmp_path):
    path = tmp_path / "set.lock"
    holder = start(
        "with locked(Path(sys.argv[1])):\n    print('here', flush=True); time.sleep(60)", path
    )
    with (
        pytest.raises(StoreError, match=r"commit lock .*set\.lock has been held.*\n.*its commit"),
        locked(path, 0.1, work="commit"),
    ):
        pass
    entered = threading.Event()

    def wait() -> None:
        with locked(path):
            entered.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert not entered.wait(0.2)
    kill(holder)
    waiting.join(10)
    assert entered.is_set()
    # The file stays, empty: who removed it could lock another than who waits for it.
    assert (names(tmp_path), path.stat().st_size) == (["set.lock"], 0)


def test_processes_and_threads_take_turns(tmp_path):
    path, count = tmp_path / "count.lock", tmp_path / "count"
    count.write_text("0")
    turn = (
        "def turn(lock, count):\n"
        "    with locked(Path(lock)):\n"
        "        n = int(Path(count).read_text()); time.sleep(0.002); "
        "Path(count).write_text(str(n + 1))\n"
    )
    code = turn + "print('here', flush=True)\nfor i in range(40): turn(*sys.argv[1:])"
    others = [start(code, path, count) for _ in range(2)]
    scope = {"locked": locked, "Path": Path, "time": __import__("time")}
    exec(turn, scope)
    threads = [
        threading.Thread(target=lambda: [scope["turn"](path, count) for _ in range(20)])
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [p.wait() for p in others] == [0, 0]
    assert count.read_text() == "120"


def test_a_lock_is_let_go_when_the_work_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "lock"):
        _ = 1 / 0
    with locked(tmp_path / "lock", 0):
        pass
    # A child that is forked under the lock does not keep it.
    with locked(tmp_path / "lock", 0):
        child = os.fork()
        if not child:
            signal.pause()
    try:
        with locked(tmp_path / "lock", 0):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_name_at_the_file_systems_limit_is_replaced_too(tmp_path):
    path = tmp_path / ("ä" * 125 + ".json")
    write_text(path, "{}")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    name = short_name("ä" * 200, "-1a.png")
    assert len(name.encode()) <= 255
    assert name.startswith("ää")
    assert name.endswith("ä-1a.png")
