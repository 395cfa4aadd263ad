"""Addresses of servers, and the user names and passwords in them, which nobody is shown.

An address is kept bare: settings, runs, databases and messages hold no secret. What was taken out
is remembered by this process alone; `whole` puts it back for the library that connects.
"""

from __future__ import annotations

import os
import re
from urllib.parse import parse_qsl, unquote, urlencode

HIDDEN = "***"
#: Seconds in which a server must have answered. The clients of Prefect and MLflow try for minutes.
PATIENCE = 10.0
#: Bare address: the address as it was given. The last one given holds.
_GIVEN: dict[str, str] = {}
#: Parameters of an address that are for the server alone.
_SECRET = {"user", "username", "password", "passwd", "pwd", "token", "secret", "sslpassword"}
_ADDRESS = re.compile(r"\b[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>`|]+")
#: A shorter password is looked for in addresses only: it may be a word of any message.
_LONG_ENOUGH = 6


def bare(address: str) -> str:
    """Return an address without user, password and secret parameters; they are remembered.

    Examples
    --------
    >>> bare("postgresql://me:word@db:5432/mlflow?sslmode=require&password=x")
    'postgresql://db:5432/mlflow?sslmode=require'
    >>> bare("s3://bucket/a@b")
    's3://bucket/a@b'
    """
    found = _parts(address)
    if found is None:
        return address
    scheme, _, rest = found
    plain, question, query = rest.partition("?")
    kept = [(k, v) for k, v in parse_qsl(query, keep_blank_values=True) if k.lower() not in _SECRET]
    # As it was, to the letter, where nothing is taken out of it.
    if len(kept) < len(parse_qsl(query, keep_blank_values=True)):
        query, question = urlencode(kept, safe="/:"), "?" if kept else ""
    shown = f"{scheme}://{plain}{question}{query}"
    if shown != address:
        _GIVEN[shown] = address
    return shown


def whole(address: str) -> str:
    """Return a bare address as it was given to this process, for whoever connects to it.

    A process that was not given it, as a Dask worker of a cluster of yours, may have it in its
    environment, as HEADWATER_TRACKING.
    """
    if address not in _GIVEN and (known := os.environ.get("HEADWATER_TRACKING")):
        bare(known)
    return _GIVEN.get(address, address)


def user_and_password(address: str) -> tuple[str, str] | None:
    """Return user and password of a bare address as it was given, decoded; None without.

    Examples
    --------
    >>> user_and_password(bare("http://me:p%40ss@host:5000"))
    ('me', 'p@ss')
    """
    found = _parts(whole(address))
    if found is None or not found[1]:
        return None
    user, _, password = found[1].partition(":")
    return unquote(user), unquote(password)


def no_answer(address: str) -> Exception | None:
    """Return why nothing answers at a server's bare address within `PATIENCE`; None if it does.

    Whether it is the server that was meant, the first call of its client will tell.
    """
    import urllib.request  # late: every command imports this module, few ask a server
    from urllib.error import HTTPError

    try:
        with urllib.request.urlopen(f"{address.rstrip('/')}/health", timeout=PATIENCE) as answer:
            answer.read(64)
    except HTTPError:
        return None
    except (OSError, ValueError) as error:
        return error
    return None


def hidden(text: str) -> str:
    """Return a text in which no address shows a user or password, and no known password stands.

    Examples
    --------
    >>> hidden("no answer from http://me:word@host:5000/api?token=abc (tried twice)")
    'no answer from http://***@host:5000/api?token=*** (tried twice)'
    """
    text = _ADDRESS.sub(lambda match: _shown(match[0]), text)
    for address in list(_GIVEN.values()):
        found = _parts(address)
        secret = found[1].partition(":")[2] if found else ""
        for word in {secret, unquote(secret)}:
            if len(word) >= _LONG_ENOUGH:
                text = text.replace(word, HIDDEN)
    return text


def _shown(address: str) -> str:
    found = _parts(address)
    if found is None:
        return address
    scheme, secret, rest = found
    names = "|".join(_SECRET)
    rest = re.sub(rf"(?i)([?&](?:{names})=)[^&]*", rf"\1{HIDDEN}", rest)
    return f"{scheme}://{HIDDEN}@{rest}" if secret else f"{scheme}://{rest}"


def _parts(address: str) -> tuple[str, str, str] | None:
    """Return scheme, ``user:password`` and the rest of an address; None where it is none."""
    match = re.fullmatch(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", address, re.DOTALL)
    if match is None:
        return None
    scheme, rest = match.groups()
    place = re.match(r"[^/?#]*", rest)
    assert place is not None
    end = place[0].rfind("@")
    port = place[0].rpartition(":")[2]
    if end < 0 and ":" in place[0] and not re.fullmatch(r"\d*|\d*\]", port):
        # A password with one of / ? # in it, as it should not be, is still one.
        end = rest.find("@")
    return (scheme, "", rest) if end < 0 else (scheme, rest[:end], rest[end + 1 :])
