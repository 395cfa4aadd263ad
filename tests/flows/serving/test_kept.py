"""What the model in service said, kept: what of it stays, and what goes."""

import dataclasses
import hashlib
import multiprocessing

import pytest

from flows.runtime.home import Home
from flows.runtime.sections import KeepSettings
from flows.serving.kept import Kept, New
from headwater.errors import DataError, StoreError


def new(number, gap=-0.9, size=96, name=""):
    content = hashlib.sha256(str(number).encode()).digest() * (size // 32)
    return New(
        hashlib.sha256(content).hexdigest(), name or f"{number}.png", 2.0 + gap, 0.5, 2.0, gap,
        "anomalous" if gap > 0 else "normal", ({"x": 1},), "s.padim", "1", "3", 0.01, content,
    )  # fmt: skip


@pytest.fixture
def home(tmp_path):
    return Home.at(tmp_path / "home")


def test_what_was_said_comes_back_newest_first(home):
    kept = Kept(home, "s")
    assert kept.rows() == []
    assert not kept.file.exists()
    first, second = kept.add([new(1), new(2, 0.5, name="\x1b\udcff")])
    rows = Kept(home, "s").rows()
    assert [row.id for row in rows] == [second, first]
    assert (rows[0].flagged, rows[0].regions, rows[0].name) == (True, ({"x": 1},), "\x1b\udcff")
    assert kept.rows(since=rows[1].when, limit=1) == rows[:1]
    assert kept.rows(until=rows[1].when) == kept.rows(since="2100-01-01") == []
    assert kept.counts() == {
        "asked": 2, "flagged": 1, "pictures": 2, "answered": 0, "answers": {},
    }  # fmt: skip
    # The home's own rights, to the last file.
    assert {path.stat().st_mode & 0o077 for path in (home.root / "served").rglob("*")} == {0}


def test_an_answer_is_of_the_picture_and_can_be_taken_back(home):
    kept = Kept(home, "s")
    kept.add([new(1), new(1), new(2)])
    sha = new(1).sha256
    kept.answer(sha, "defect:dent", "ann", "val/dent/x.png")
    assert [row.answer for row in kept.find(sha[:8])] == ["defect:dent", "defect:dent"]
    assert len(kept.rows(answered=True)) == 2
    assert kept.counts()["answers"] == {"defect:dent": 1}
    kept.answer(sha, "", "bob")
    (row, _) = kept.find("1")
    assert (row.answer, row.answered_by, row.put) == ("", "bob", "")
    assert kept.find("99") == kept.find("abcdefab") == []


def test_a_digest_that_two_pictures_begin_with_is_refused(home):
    kept = Kept(home, "s")
    kept.add([dataclasses.replace(new(1), sha256="0" * 8 + c * 56, content=None) for c in "ab"])
    with pytest.raises(DataError, match="several pictures"):
        kept.find("00000000")
    assert len(kept.find("00000000a")) == 1


@pytest.mark.parametrize(
    ("rule", "stays"),
    [
        ({"pictures": "all"}, {1, 2, 3}),
        ({"pictures": "near", "near": 0.25}, {1, 2}),
        ({"pictures": "flagged"}, {1}),
        ({"pictures": "none"}, set()),
        ({"pictures": "none", "share": 1}, {1, 2, 3}),
    ],
)
def test_which_pictures_are_kept_is_a_rule(home, rule, stays):
    kept = Kept(home, "s", KeepSettings(**{"share": 0, **rule}))
    asked = {1: new(1, 3.0), 2: new(2, -0.2), 3: new(3, -0.9)}
    kept.add(list(asked.values()))
    assert {i for i, one in asked.items() if kept.picture(one.sha256) == one.content} == stays
    assert len(kept.rows()) == 3


def test_beyond_the_size_the_oldest_go_that_nobody_answered(home):
    kept = Kept(home, "s", KeepSettings(pictures="all", max_mb=1))
    for number in range(5):
        kept.add([new(number, size=320_000)])
        if number == 0:
            kept.answer(new(0, size=320_000).sha256, "ok", "ann")
    there = [kept.picture(new(n, size=320_000).sha256) is not None for n in range(5)]
    assert there == [True, False, False, True, True]
    assert len(list(kept.folder.iterdir())) == 3
    assert len(kept.rows()) == 5


def test_a_damaged_picture_is_none(home):
    kept = Kept(home, "s", KeepSettings(pictures="all"))
    kept.add([new(1)])
    (kept.folder / kept.rows()[0].picture).write_bytes(b"")
    assert kept.picture(new(1).sha256) is None


def _add(root, start):
    with Kept(Home.at(root), "s", KeepSettings(pictures="all")) as kept:
        for number in range(start, start + 25):
            kept.add([new(number)])


def test_several_processes_lose_nothing(home):
    started = multiprocessing.get_context("spawn")
    others = [started.Process(target=_add, args=(home.root, start)) for start in (0, 20, 40)]
    for one in others:
        one.start()
    for one in others:
        one.join()
    kept = Kept(home, "s")
    assert [one.exitcode for one in others] == [0, 0, 0]
    assert len({row.id for row in kept.rows()}) == 75
    assert kept.counts()["pictures"] == 65
    assert all(kept.picture(row.sha256) for row in kept.rows())


def test_a_damaged_file_is_named_with_the_way_out(home):
    kept = Kept(home, "s")
    kept.file.parent.mkdir()
    kept.file.write_bytes(b"no database" * 1000)
    with pytest.raises(StoreError, match="damaged") as told:
        kept.add([new(1)])
    assert "move it away" in told.value.remedy
