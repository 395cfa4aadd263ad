"""Hooks tell what happened, and whatever becomes of them changes nothing of it."""

import base64
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from flows.runtime.home import Home
from flows.runtime.sections import HookSettings
from flows.runtime.settings import Settings
from flows.use.models.hooks import fire, fired
from headwater.addresses import bare


class Server(BaseHTTPRequestHandler):
    """Keeps what is posted; its path says how it answers."""

    def do_POST(self):
        said = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.path, dict(self.headers), json.loads(said)))
        if self.path.startswith("/hang"):
            time.sleep(5)
        if self.path.startswith("/drip"):  # each byte in time, and never an answer
            for _ in range(50):
                self.wfile.write(b"H")
                time.sleep(0.1)
        status = {"/moved": 302, "/broken": 500}.get(self.path, 204)
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """A web server; its address is ``server.at``, what was posted ``server.got``."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    made = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    made.got, made.at = [], f"127.0.0.1:{made.server_address[1]}"
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()


@pytest.fixture
def tell(tmp_path):
    """Tell of an event by some hooks; return what became of each, and the lines that were said."""
    home = Home.at(tmp_path / "home")

    def told(event="promoted", **hooks):
        lines = []
        made = Settings.model_validate({"hooks": {"seconds": 1, **hooks}}).hooks
        return fire(home, "s", made, event, {"champion": "s.padim version 2"}, lines.append), lines

    told.home = home
    return told


def test_the_message_goes_to_the_command_and_the_address(tell, server, tmp_path):
    kept = tmp_path / "kept.json"
    made, lines = tell(
        command=["sh", "-c", '(echo "$HOOK_EVENT"; cat) > "$0"', str(kept)],
        url=f"http://me:pass%20word@{server.at}/a?token=t0ken",
    )
    assert [one.problem for one in made] == ["", ""]
    assert lines == []
    event, _, text = kept.read_text().partition("\n")
    (path, headers, posted) = server.got[0]
    assert event == "promoted"
    assert posted == json.loads(text)
    assert posted["image_set"] == "s"
    assert posted["champion"] == "s.padim version 2"
    assert path == "/a?token=t0ken"
    assert base64.b64decode(headers["Authorization"].split()[1]) == b"me:pass word"
    # Nothing of the secret is kept, and where it goes is told without what is behind the host.
    assert made[1].to == f"http://{server.at}/..."
    for file in (tell.home.root / "hooks").iterdir():
        assert not {"t0ken", "pass"} & set(file.read_text().replace("%", " ").split())
    assert fired(tell.home, "s") == made[::-1]


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("/moved", "it answered 302 Found, a redirect, which is not followed"),
        ("/broken", "it answered 500"),
        ("/hang", "no answer"),
        ("/drip", "no answer within 1 s"),
    ],
)
def test_an_address_that_does_not_take_it_is_said(tell, server, path, problem):
    began = time.monotonic()
    (one,), (line,) = tell(url=f"http://{server.at}{path}")
    assert one.problem.startswith(problem)
    assert problem in line
    assert time.monotonic() - began < 3
    assert [p for p, _, _ in server.got] == [path], "a redirect was followed"
    assert fired(tell.home, "s") == [one]


def test_nobody_at_an_address_is_said_without_its_secret(tell):
    (one,), (line,) = tell(url="http://127.0.0.1:9/T0/s3cret")
    assert "refused" in one.problem
    assert "s3cret" not in line


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (["/no/such/command"], "it cannot be started: No such file"),
        (["sh", "-c", "echo no mailbox >&2; exit 4"], "it ended with status 4: no mailbox"),
        # It hangs, and what it started holds its streams.
        ("sh -c 'sleep 30 & sleep 30'", "it took longer than 1 s and was ended"),
        # It reads nothing, and leaves something behind that does not end.
        (["sh", "-c", "exec <&-; sleep 4 & exit 0"], ""),
        # No shell: this is a file of that name.
        ("true;false", "it cannot be started"),
    ],
)
def test_a_command_that_fails_or_hangs_is_said(tell, command, problem):
    began = time.monotonic()
    (one,), lines = tell(command=command)
    assert one.problem.startswith(problem)
    assert bool(one.problem) == bool(problem)
    assert len(lines) == bool(problem)
    assert time.monotonic() - began < 3


def test_a_record_that_cannot_be_kept_is_said(tell):
    (tell.home.root / "hooks").write_text("a file where the folder should be")
    made, lines = tell(command=["true"])
    assert [one.problem for one in made] == [""]
    assert "cannot be kept" in lines[0]


def test_settings_of_hooks(tmp_path, monkeypatch):
    from flows.runtime.sources import load_settings
    from headwater.errors import ConfigError

    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_text("https://me:hush-hush@host/x\n")
    monkeypatch.setenv("HEADWATER_HOOKS__URL_FILE", str(tmp_path / "secret"))
    (tmp_path / "headwater.yaml").write_text("hooks:\n  command: [notify, --all sets]\n")
    made = load_settings().hooks
    assert made == HookSettings(command=("notify", "--all sets"), url="https://host/x")
    assert "hush" not in repr(made)
    assert bare("https://me:hush-hush@host/x") == made.url
    for wrong in ("ftp://host/x", "host/x", "https://"):
        monkeypatch.setenv("HEADWATER_HOOKS__URL_FILE", "")
        monkeypatch.setenv("HEADWATER_HOOKS__URL", wrong)
        with pytest.raises(ConfigError, match="an address as https"):
            load_settings()
