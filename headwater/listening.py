"""What a server of ours listens on: this machine alone, unless somebody says otherwise."""

from __future__ import annotations

import ipaddress
import socket

from headwater.errors import ConfigError

#: This machine alone.
LOOPBACK = "127.0.0.1"


def listen(port: int, host: str = LOOPBACK, *, command: str) -> socket.socket:
    """Return a socket that is bound to `port`, or to a free one for 0.

    Parameters
    ----------
    port, host
        An address or a name of this machine.
    command
        Whose server it is, for the message.

    Raises
    ------
    ConfigError
        Where the port is taken, or the host is none of this machine.
    """
    try:
        kind, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(kind)
    except OSError as error:
        raise ConfigError(
            f"--host {host}: {error.strerror}", expected="an address of this machine"
        ) from error
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(place)
    except OSError as error:
        made.close()
        raise ConfigError(
            f"port {port} of {host} cannot be used: {error.strerror}",
            expected="a port that no other program listens on; perhaps a "
            f"`{command.partition(' --')[0]}` is open",
            remedy=f"{command} --port {port + 1}, or end what listens there",
        ) from error
    return made


def on_loopback(host: str) -> bool:
    """Return whether an address is of this machine alone.

    Examples
    --------
    >>> [on_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "line-2")]
    [True, True, True, False, False]
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
