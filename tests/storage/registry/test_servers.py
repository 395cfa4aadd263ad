"""Servers are asked as whoever the address names; what is missing or silent is told in seconds."""

import base64
import json
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from headwater.errors import ConfigError, StoreError
from storage.registry.registry import Registry


class Server:
    """A stand-in for MLflow's server that lets one user in; it has no models."""

    def __init__(self, user="", password="", refused=401):
        wanted = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        self.heard = heard = []

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self):
                sent = self.headers.get("Authorization")
                heard.append((self.path.partition("?")[0], sent))
                free = self.path == "/health" or not user or sent == wanted
                self.send_response(200 if free else refused)
                self.end_headers()
                self.wfile.write(json.dumps({} if free else "You are not authenticated").encode())

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.place = f"127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def serve(monkeypatch):
    # Set where an address has a user; taken back after the test.
    monkeypatch.setenv("MLFLOW_TRACKING_AUTH", "headwater")
    made = []

    def start(*who):
        made.append(Server(*who))
        return made[-1]

    yield start
    for one in made:
        one.server.shutdown()
        one.server.server_close()


def test_the_user_of_an_address_goes_to_that_server_alone(serve, tmp_path):
    locked, free = serve("me", "p@ss/word"), serve()
    registry = Registry(tmp_path, f"http://me:p%40ss%2Fword@{locked.place}")
    assert registry.leaderboard("bottles") == []
    assert registry.uri == registry.place == f"http://{locked.place}"
    assert "p%40ss" not in repr(vars(registry))
    assert Registry(tmp_path, f"http://{free.place}").leaderboard("bottles") == []
    assert [sent for path, sent in free.heard] == [None, None]
    assert ("/health", None) in locked.heard


def test_a_wrong_password_is_told_without_it(serve, tmp_path):
    locked = serve("me", "right-password")
    with pytest.raises(StoreError, match="401") as error:
        Registry(tmp_path, f"http://me:wrong-password@{locked.place}").leaderboard("bottles")
    assert "wrong-password" not in str(error.value)


def test_a_user_without_the_right_is_told_where_rights_are_given(serve, tmp_path):
    locked = serve("admin", "password", 403)
    with pytest.raises(StoreError, match=r"(?s)403.*a user who may do that.*operations\.md"):
        Registry(tmp_path, f"http://anna:password@{locked.place}").leaderboard("bottles")


def test_mlflows_own_variables_hold_where_the_address_has_no_user(serve, tmp_path, monkeypatch):
    locked = serve("you", "from-the-environment")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "you")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "from-the-environment")
    assert Registry(tmp_path, f"http://{locked.place}").leaderboard("bottles") == []


@pytest.mark.parametrize(
    ("address", "missing", "remedy"),
    [
        ("postgresql+psycopg2://me:hunter22@db/x", "psycopg2", r"headwater\[postgres\]"),
        ("postgresql://me:hunter22@db/x", "psycopg2", r"headwater\[postgres\]"),
        ("postgresql+psycopg://me:hunter22@db/x", "psycopg", r"write it as postgresql\+psycopg2"),
        ("mysql+pymysql://me:hunter22@db/x", "pymysql", r"headwater\[mysql\]"),
        ("mysql://me:hunter22@db/x", "MySQLdb", r"write it as mysql\+pymysql"),
        ("postgresql+pg8000://me:hunter22@db/x", "pg8000", "install pg8000"),
    ],
)
def test_a_driver_that_is_missing_is_told_with_what_to_install(
    address, missing, remedy, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError, match=rf"(?s)the driver \w+ of .*{remedy}") as error:
        Registry(tmp_path, address).leaderboard("bottles")
    assert "hunter22" not in str(error.value)


def test_what_is_no_address_of_a_database_is_told(tmp_path):
    for address in ("postgresql+nothing://me:hunter22@db/x", "postgresql://me:hunter22@db:x/x"):
        with pytest.raises(ConfigError, match="MLflow tracking URL") as error:
            Registry(tmp_path, address).leaderboard("bottles")
        assert "hunter22" not in str(error.value)


def test_a_database_that_does_not_answer_is_told_at_once(tmp_path):
    pytest.importorskip("psycopg2")
    with pytest.raises(
        StoreError, match=r"(?s)postgresql\+psycopg2://127.0.0.1:1/x cannot be used.*refused"
    ):
        Registry(tmp_path, "postgresql+psycopg2://me:hunter22@127.0.0.1:1/x").leaderboard("bottles")


def test_a_database_that_takes_the_connection_and_says_nothing_is_told(tmp_path, monkeypatch):
    pytest.importorskip("psycopg2")
    monkeypatch.setattr("storage.registry.servers.PATIENCE", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"postgresql+psycopg2://127.0.0.1:{silent.getsockname()[1]}/x"
        with pytest.raises(StoreError, match="no answer within"):
            Registry(tmp_path, address).leaderboard("bottles")
