"""An inbox loses nothing, believes nothing, and takes what has settled, once."""

import hashlib
import os
import stat
from pathlib import Path

import pytest

from flows.scheduling.inbox import REFUSED, Inbox
from headwater.errors import DataError, ImageError


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Images:
    """The set's folder: an image begins with "image" here."""

    def __init__(self, folder):
        self.folder, self.order, self.full = folder, [], False
        folder.mkdir()

    def put(self, content, first):
        if self.full:
            raise OSError(28, "No space left on device")
        if not content.startswith(b"image"):
            raise ImageError("not an image")
        path = self.folder / hashlib.sha256(content).hexdigest()
        new = not path.exists()
        path.write_bytes(content)
        self.order.append((first, content))
        return path, new


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def images(tmp_path):
    return Images(tmp_path / "images")


@pytest.fixture
def inbox(tmp_path, images, clock):
    made = Inbox(tmp_path / "inbox", images.put, settle=10, max_mb=0.001, clock=clock)
    clock.now = 100.0
    return made


def settled(inbox, clock):
    inbox.look()
    clock.now += 10
    return inbox.look()


def test_a_file_is_taken_when_it_looked_the_same_for_long_enough(inbox, images, clock):
    file = inbox.folder / "a.png"
    file.write_bytes(b"image")
    os.utime(file, (0, 0))  # its times say nothing: a camera's clock, one that was set back
    assert inbox.look().waiting == 1
    clock.now += 9
    assert inbox.look().new == []
    with file.open("ab") as more:  # still being written
        more.write(b", whole")
    clock.now += 9
    assert inbox.look().new == []
    clock.now += 10
    (path,) = inbox.look().new
    assert path.read_bytes() == b"image, whole"
    assert not file.exists()


def test_the_same_bytes_are_known_and_names_keep_the_order_of_arrival(inbox, images, clock):
    for number, name in enumerate(["z.png", "sub/b.JPG", "a.png"]):
        file = inbox.folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"image %d" % number)
        os.utime(file, (number, number))
    (inbox.folder / "again.png").write_bytes(b"image 0")
    found = settled(inbox, clock)
    assert (len(found.new), found.known) == (3, 1)
    assert [content for _, content in sorted(images.order)] == [
        b"image 0", b"image 1", b"image 2", b"image 0",
    ]  # fmt: skip


def test_what_cannot_be_taken_is_put_by_with_the_reason(inbox, images, clock, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"image of somebody else")
    (inbox.folder / "link.png").symlink_to(secret)
    os.mkfifo(inbox.folder / "pipe.png")
    (inbox.folder / "huge.png").write_bytes(b"image" * 1000)
    (inbox.folder / "empty.png").touch()
    (inbox.folder / "broken\x1b[31m\n.png").write_bytes(b"nothing")
    (inbox.folder / "notes.txt").write_text("hello")
    found = settled(inbox, clock)
    assert found.new == []
    assert images.order == []
    reasons = dict(found.refused)
    assert reasons["link.png"] == "a link"
    assert reasons["pipe.png"] == "no regular file"
    assert "schedule.max_mb" in reasons["huge.png"]
    assert reasons["empty.png"] == "empty"
    assert reasons["broken\x1b[31m\n.png"] == "not an image"
    assert "type" in reasons["notes.txt"]
    by = inbox.folder / REFUSED
    assert (by / "link.png").is_symlink()
    assert stat.S_ISFIFO((by / "pipe.png").stat().st_mode)
    assert (by / "huge.png").read_bytes() == b"image" * 1000
    told = (by / "why.txt").read_text()
    assert len(told.splitlines()) == 6
    assert "\x1b" not in told
    # The next one of that name does not take its place, and what was refused is not looked at.
    (inbox.folder / "empty.png").touch()
    assert settled(inbox, clock).refused == [("empty.png", "empty")]
    assert (by / "2-empty.png").exists()
    assert settled(inbox, clock).refused == []
    assert secret.exists()


def test_what_is_hidden_or_not_finished_stays(inbox, clock):
    for name in (".hidden.png", "b.png.part", "c.png.tmp", "._a.png"):
        (inbox.folder / name).write_bytes(b"image")
    found = settled(inbox, clock)
    assert (found.new, found.refused, found.waiting) == ([], [], 0)
    assert len(list(inbox.folder.iterdir())) == 4


def test_a_full_disk_loses_nothing(inbox, images, clock):
    (inbox.folder / "a.png").write_bytes(b"image")
    images.full = True
    found = settled(inbox, clock)
    assert found.trouble == [("a.png", "No space left on device")]
    assert (inbox.folder / "a.png").exists()
    images.full = False
    assert len(inbox.look().new) == 1


def test_killed_after_the_image_was_put_it_is_known_the_next_time(
    inbox, images, clock, monkeypatch
):
    (inbox.folder / "a.png").write_bytes(b"image")

    def killed(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "unlink", killed)
        settled(inbox, clock)
    assert (inbox.folder / "a.png").exists()
    found = inbox.look()
    assert (found.new, found.known) == ([], 1)
    assert not (inbox.folder / "a.png").exists()


def test_a_file_in_place_of_the_folder_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="inbox"):
        Inbox(tmp_path / "file", lambda *a: None, settle=1, max_mb=1)
