"""The champion over HTTP: what it answers, what it refuses, and that a change drops nothing."""

import base64
import dataclasses
import hashlib
import io
import json
import math
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from features.images.pixels import read_image
from flows.runtime.home import Home
from flows.runtime.sections import KeepSettings, ServeSettings
from flows.serving.kept import Kept
from flows.serving.seat import Seat
from flows.serving.version import OpenVersion
from flows.use.models.service import service_of
from headwater.errors import ModelError
from storage.registry.registry import Registry
from storage.serving.encoding import decode_map
from tests.flows.commandkit import HEADWATER, environment
from tests.flows.serving.kit import HEADS, SET, Asking, change, home_in, serving, until


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return home_in(tmp_path_factory.mktemp("serving"))


@pytest.fixture(scope="module")
def asking(home):
    with serving(home) as made:
        yield made


@pytest.fixture(scope="module")
def pictures(home):
    files = sorted((home.root.parent / "images/tiles").rglob("test/*/*.png"))
    return [file.read_bytes() for file in files]


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_an_answer_is_what_predict_says_and_is_kept(home, asking, pictures):
    registry = Registry(home.root)
    row = service_of(home, SET).champion()
    (file, *_) = sorted((home.root.parent / "images/tiles").rglob("test/*/*.png"))
    version = OpenVersion(row, registry)
    (want,) = version.detector.predict([read_image(file)])
    got = asking.said(pictures[0], "?name=line%0a2%1b[31m&map=npy")
    assert (got["score"], got["verdict"], got["threshold"]) == (
        want.score, want.verdict, want.threshold,
    )  # fmt: skip
    assert got["regions"] == [region.to_json() for region in want.regions]
    assert np.array_equal(decode_map(got), want.map)
    assert (got["model"], got["service_version"]) == (f"{SET}.{HEADS[0]}", "2")
    assert got["name"] == r"line\n2\x1b[31m"
    (kept,) = asking.seat.kept.find(str(got["id"]))
    assert (kept.sha256, kept.score) == (hashlib.sha256(pictures[0]).hexdigest(), want.score)
    # The same in JSON.
    coded = {"image": base64.b64encode(pictures[0]).decode(), "name": "x"}
    status, _, told = asking.predict(json.dumps(coded), content_type="application/json")
    assert (status, told["score"]) == (200, want.score)


def test_many_at_once_are_answered_as_one_alone_is(asking, pictures):
    alone = [asking.said(one)["score"] for one in pictures]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(asking.said, pictures * 4))
    assert [one["score"] for one in together] == alone * 4
    assert len({one["id"] for one in together}) == len(together)


def test_what_is_in_service_is_told(asking):
    status, _, told = asking("GET", f"/sets/{SET}")
    assert status == 200
    assert (told["model"], told["service_version"], told["problems"]) == (
        f"{SET}.{HEADS[0]}", "2", [],
    )  # fmt: skip
    assert asking("GET", "/ready")[2]["ready"] is True
    assert asking("GET", "/health")[2]["status"] == "ok"


HUGE = b"P5 60000 60000 255\n" + b"\0" * 100


@pytest.mark.parametrize(
    ("status", "path", "body", "headers", "said"),
    [
        (400, f"/sets/{SET}/predict", b"no image", {}, "not an image"),
        (400, f"/sets/{SET}/predict", b"", {}, "an empty request"),
        (400, f"/sets/{SET}/predict", HUGE, {}, "too many pixels"),
        (400, f"/sets/{SET}/predict", b"\x89PNG\r\n\x1a\n" + b"\0" * 50, {}, "the picture"),
        (400, f"/sets/{SET}/predict?map=tiff", b"x", {}, "map 'tiff'"),
        (404, "/sets/\x1b[31m/predict".replace("\x1b", "%1b"), b"x", {}, r"\x1b[31m"),
        (404, "/sets/..%2f..%2fetc/predict", b"x", {}, "/sets/"),
        (415, f"/sets/{SET}/predict", b"x", {"content_type": "multipart/form-data"}, "multipart"),
        (400, f"/sets/{SET}/predict", b"{", {"content_type": "application/json"}, "JSON"),
        (400, f"/sets/{SET}/predict", b"[" * 99999, {"content_type": "application/json"}, "JSON"),
        (400, f"/sets/{SET}/predict", b'{"image": "?"}', {"content_type": "application/json"},
         "image"),
        (400, f"/sets/{SET}/predict", b'{"path": "/etc/passwd"}',
         {"content_type": "application/json"}, "JSON with path"),
        (403, f"/sets/{SET}/predict", b"x", {"host": "headwater.example"}, "host"),
        (403, f"/sets/{SET}/predict", b"x", {"origin": "http://other.example"}, "a page"),
        (415, f"/sets/{SET}/feedback", b"{}", {"content_type": "text/plain"}, "text/plain"),
        (400, f"/sets/{SET}/feedback", b'{"image": "99999", "answer": "ok"}',
         {"content_type": "application/json"}, "was not asked"),
        (400, f"/sets/{SET}/feedback", b'{"image": "1", "answer": "fine"}',
         {"content_type": "application/json"}, "answer 'fine'"),
        (400, f"/sets/{SET}/feedback", b'{"image": "1", "answer": "defect:../../x"}',
         {"content_type": "application/json"}, "kind of defect"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_with_what_would_be_right(
    asking, status, path, body, headers, said
):
    got, _, told = asking("POST", path, body, **headers)
    assert got == status, told
    assert said in told["error"]["culprit"]
    assert asking.seat.lives


def test_a_region_for_a_model_that_has_none_and_one_that_does_not_fit(asking, pictures):
    image = base64.b64encode(pictures[0]).decode()
    for roi, said in (((9, 90), "roi has 9x90 pixels"), (None, "a region of interest for")):
        shape = roi or Image.open(io.BytesIO(pictures[0])).size[::-1]
        mask = base64.b64encode(png(np.full(shape, 255, np.uint8))).decode()
        body = json.dumps({"image": image, "roi": mask})
        status, _, told = asking.predict(body, content_type="application/json")
        assert status == 422
        assert said in told["error"]["culprit"]


def test_one_bad_picture_does_not_harm_those_beside_it(asking, pictures):
    deep = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).random((48, 48), np.float32)).save(deep, "TIFF")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(asking.predict, [pictures[0], deep.getvalue()] * 6))
    assert [status for status, _, _ in found] == [200, 422] * 6


def test_a_body_that_is_too_large_is_refused(home, pictures):
    with serving(home, max_mb=0.01) as small:
        status, _, told = small.predict(b"\0" * 2_000_000)
        assert (status, told["error"]["culprit"]) == (413, "a request of more than 0.01 MB")
        # Also where nobody says how large it will be.
        status, _, _ = small.predict(iter([b"\0" * 9000] * 5))
        assert status == 413
        assert small.said(pictures[0])["verdict"]


def test_too_many_at_once_are_turned_away_and_the_others_answered(home, pictures, monkeypatch):
    slow = OpenVersion.answer

    def answer(self, asked):
        time.sleep(0.5)
        return slow(self, asked)

    with serving(home, waiting=2, batch=1) as busy:
        monkeypatch.setattr(OpenVersion, "answer", answer)
        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(busy.predict, pictures[:1] * 6))
        assert sorted({status for status, _, _ in found}) == [200, 503]
        late = [headers for status, headers, _ in found if status == 503]
        assert all(int(headers["retry-after"]) >= 1 for headers in late)
        monkeypatch.undo()
        assert busy.said(pictures[0])


def test_what_takes_too_long_is_given_up(home, pictures, monkeypatch):
    slow = OpenVersion.answer
    with serving(home, timeout=0.5) as late:
        monkeypatch.setattr(OpenVersion, "answer", lambda s, a: time.sleep(1.5) or slow(s, a))
        status, _, told = late.predict(pictures[0])
        assert (status, told["error"]["culprit"]) == (504, "no answer within 0.5 s")
        monkeypatch.undo()
        # Who sends half a request and waits holds nobody up.
        with socket.create_connection(("127.0.0.1", late.port)) as half:
            half.sendall(b"POST /sets/tiles/predict HTTP/1.1\r\nHost: localhost\r\n")
            half.sendall(b"Content-Length: 1000\r\n\r\nabc")
            until(lambda: late.predict(pictures[0])[0] == 200)
            assert b"504" in half.recv(1000)


def test_a_change_of_the_champion_drops_nothing_and_every_answer_is_of_one_version(home, pictures):
    with serving(home) as busy:
        found, ending = [], threading.Event()

        def ask_on():
            while not ending.is_set():
                found.append(busy.predict(pictures[0]))

        threads = [threading.Thread(target=ask_on) for _ in range(4)]
        for thread in threads:
            thread.start()
        numbers = []
        for _ in range(4):
            numbers.append(change(home))
            until(lambda: busy.seat.version.row["service_version"] == numbers[-1])
            more = len(found) + 8
            until(lambda more=more: len(found) > more)
        ending.set()
        for thread in threads:
            thread.join()
    assert {status for status, _, _ in found} == {200}
    by_version = defaultdict(set)
    for _, _, told in found:
        whole = told["model"], told["threshold"], told["score"], told["verdict"]
        by_version[told["service_version"]].add(whole)
    assert len(by_version) >= 2
    assert all(len(answers) == 1 for answers in by_version.values()), by_version
    assert len({model for ((model, *_),) in by_version.values()}) == 2


def test_where_the_champion_is_gone_the_open_one_answers_and_says_so(tmp_path, pictures):
    home = home_in(tmp_path)
    service = service_of(home, SET)
    with serving(home) as asking:
        first = asking.said(pictures[0])
        # Another that cannot be opened.
        files = Registry(home.root).download(f"models:/{SET}.{HEADS[1]}/1")
        state = next(files.rglob("head.safetensors"))
        whole = state.read_bytes()
        state.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        change(home)
        until(lambda: asking.seat.problems)
        assert asking.said(pictures[0])["service_version"] == first["service_version"]
        status, _, told = asking("GET", "/ready")
        (problem,) = told["sets"][SET]["problems"]
        assert status == 200
        assert "head.safetensors is missing or was changed" in problem
        assert "answers on" in problem
        with pytest.raises(ModelError, match=r"(?s)cannot be opened.*rollback.*promote"):
            Seat(home, SET, ServeSettings(), KeepSettings())
        # Its version deleted.
        number = service.version()
        service.registry.client.delete_model_version(SET, number)
        until(lambda: "was deleted" in "".join(asking.seat.problems))
        assert asking.said(pictures[0])["score"] == first["score"]
        with pytest.raises(ModelError, match=r"(?s)was deleted.*promote"):
            Seat(home, SET, ServeSettings(), KeepSettings())
        # As it should be again.
        service.rollback(to=first["service_version"])
        until(lambda: not asking.seat.problems)
        # The files of what is open.
        mine = Registry(home.root).download(asking.seat.version.row["uri"])
        shutil.move(mine, tmp_path / "away")
        assert "was changed or is gone" in "".join(asking.seat.problems)
        assert asking.said(pictures[0])["score"] == first["score"]


def test_where_it_cannot_be_kept_it_is_answered_all_the_same(tmp_path, pictures):
    home = home_in(tmp_path)
    with serving(home) as asking:
        asking.said(pictures[0])
        asking.seat.kept.close()
        asking.seat.kept.file.write_bytes(b"no database" * 1000)
        told = asking.said(pictures[0])
        assert told["id"] is None
        assert "is not kept" in "".join(asking("GET", "/health")[2]["sets"][SET]["problems"])


def test_a_set_of_pairs_and_one_with_nothing_in_service_are_refused(home, tmp_path):
    with pytest.raises(ModelError, match="boards is a set of pairs"):
        Seat(home, "boards", ServeSettings(), KeepSettings())
    with pytest.raises(ModelError, match=r"(?s)nothing is in service.*promote none HEAD"):
        Seat(Home.at(tmp_path), "none", ServeSettings(), KeepSettings())


def test_a_score_that_is_no_number_is_no_answer(home, pictures, monkeypatch):
    with serving(home) as asking:
        right = asking.seat.version.detector.predict
        wrong = dataclasses.replace(right([np.zeros((32, 32, 3), np.uint8)])[0], score=math.nan)
        monkeypatch.setattr(
            asking.seat.version.detector, "predict", lambda x, **_: [wrong] * len(x)
        )
        status, _, told = asking.predict(pictures[0])
        assert (status, "score nan" in told["error"]["culprit"]) == (422, True)
        monkeypatch.undo()
        assert asking.said(pictures[0])["id"]


def test_what_the_command_cannot_do_is_said(home, monkeypatch, here):
    monkeypatch.setenv("HEADWATER_HOME", str(home.root))
    assert "headwater serve --http SET" in here("serve", SET, status=2)
    assert "one SET or more" in here("serve", "--http", status=2)
    assert "image set name '../x'" in here("serve", "--http", "../x", status=2)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = here("serve", "--http", SET, "--port", port, status=2)
        assert f"headwater serve --http --port {port + 1}" in said
    assert "boards is a set of pairs" in here(
        "serve", "--http", SET, "boards", "--port", 0, status=2
    )


@pytest.mark.slow
def test_the_command_answers_until_it_is_told_to_end_and_drops_nothing(home, pictures):
    work = home.root.parent
    command = [*HEADWATER, "serve", "--http", SET, "--port", "0"]
    with subprocess.Popen(
        command, cwd=work, env=environment(work), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    ) as server:  # fmt: skip
        port = int(server.stdout.readline().split()[1].rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), 60) as mine:
            content = pictures[0]
            mine.sendall(b"POST /sets/tiles/predict HTTP/1.1\r\nHost: localhost\r\n")
            mine.sendall(f"Content-Length: {len(content)}\r\n\r\n".encode() + content[:50])
            until(lambda: Asking(port, None, [])("GET", f"/sets/{SET}")[2]["in_hand"] == 1)
            server.send_signal(signal.SIGTERM)
            time.sleep(1)
            begin = time.monotonic()
            mine.sendall(content[50:])
            answer = mine.recv(100)
        err = server.communicate(timeout=30)[1]
    assert server.returncode == 0, err
    assert time.monotonic() - begin < 10
    assert answer.startswith(b"HTTP/1.1 200")
    assert len(Kept(home, SET).rows(limit=1)) == 1
    assert err.strip() == "ended; what was in hand was answered"
