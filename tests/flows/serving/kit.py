"""A home with two champions to change between, and a real server on a real port."""

import contextlib
import http.client
import json
import threading
import time

import uvicorn

from flows.runtime.home import Home
from flows.runtime.sections import KeepSettings, ServeSettings
from flows.serving.app import application
from flows.serving.seat import Seat
from flows.use.models.service import promote, service_of
from headwater.listening import listen
from tests.golden.home import unpack

#: The golden home's set, and two heads of it whose scores nobody can take for each other's.
SET, HEADS = "tiles", ("patchcore", "fast_flow")


def home_in(folder):
    """Return a home in which a model was in service as version 1 and another is, as version 2."""
    home = Home.at(unpack(folder) / "home")
    home.prepare_environment()
    for head in reversed(HEADS):
        promote(home, SET, head, why="a test")
    return home


def change(home):
    """Put the other one in service; return its number there."""
    now = service_of(home, SET).champion()["head"]
    return promote(home, SET, HEADS[HEADS.index(now) - 1], why="a test")["to"]


class Asking:
    """A server to ask.

    Attributes
    ----------
    lines
        What it told its log.
    """

    def __init__(self, port, seat, lines):
        self.port, self.seat, self.lines = port, seat, lines

    def __call__(self, method, path, body=None, **headers):
        """Return status, headers and JSON of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            got = connection.getresponse()
            text = got.read()
        assert b"\x1b" not in text
        return got.status, dict(got.headers), json.loads(text)

    def predict(self, content, query="", **headers):
        return self("POST", f"/sets/{SET}/predict{query}", content, **headers)

    def said(self, content, query=""):
        """Return the answer about a picture; it must be one."""
        status, _, told = self.predict(content, query)
        assert status == 200, told
        return told


@contextlib.contextmanager
def serving(home, keep=None, **settings):
    """Serve the set of a home while the block runs."""
    lines, how = [], ServeSettings(port=0, **{"look": 0.2, **settings})
    seat = Seat(home, SET, how, keep or KeepSettings(), lines.append)
    ready = threading.Event()
    app = application({SET: seat}, how, ready=ready.set, tell=lines.append)
    with listen(0, command="a test") as where:
        where.listen(128)
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [where]}, daemon=True)
        thread.start()
        assert ready.wait(30)
        try:
            yield Asking(where.getsockname()[1], seat, lines)
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


def until(true, seconds=20):
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)
