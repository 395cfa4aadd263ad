"""What a server of ours listens on."""

import socket

import pytest

from headwater.errors import ConfigError
from headwater.listening import LOOPBACK, listen


def test_a_port_that_is_taken_is_said():
    with listen(0, command="headwater ui") as mine:
        port = mine.getsockname()[1]
        mine.listen()
        with pytest.raises(ConfigError, match=rf"(?s)port {port} .*--port {port + 1}"):
            listen(port, command="headwater ui")
        with socket.create_connection((LOOPBACK, port), 5) as other:
            assert other.getpeername()[0] == "127.0.0.1"


def test_a_host_that_is_none_is_said():
    with pytest.raises(ConfigError, match=r"--host no\.such\.host\.invalid"):
        listen(0, "no.such.host.invalid", command="headwater serve --http")
