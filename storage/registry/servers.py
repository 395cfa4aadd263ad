"""Servers that keep the results: MLflow's, or a database; whether they answer, and as whom we ask.

An address is shown bare (`headwater.addresses`). To an MLflow server go the user and password that
were given with its own address, and to no other; without any, MLFLOW_TRACKING_USERNAME and
MLFLOW_TRACKING_PASSWORD hold, as MLflow has it.
"""

from __future__ import annotations

import os
import socket
from typing import Any
from urllib.parse import urlsplit

from mlflow.tracking.request_auth.abstract_request_auth_provider import RequestAuthProvider
from mlflow.tracking.request_auth.registry import _request_auth_provider_registry
from requests.auth import AuthBase, HTTPBasicAuth

from headwater.addresses import PATIENCE, no_answer, user_and_password, whole
from headwater.errors import ConfigError, StoreError

_PORTS = {"postgresql": 5432, "mysql": 3306}
#: What brings the driver, by the name that SQLAlchemy has for it.
_DRIVERS = {
    "psycopg2": "pip install 'headwater[postgres]'",
    "psycopg": "pip install 'headwater[postgres]', and write it as postgresql+psycopg2://...",
    "pymysql": "pip install 'headwater[mysql]'",
    "mysqldb": "pip install 'headwater[mysql]', and write it as mysql+pymysql://...",
}
#: ``scheme://host:port`` of the servers whose addresses had a user: that bare address.
_ASKED: dict[str, str] = {}


class _AsGiven(AuthBase):
    """Adds the user and password that were given with a server's address to what goes there."""

    def __call__(self, request: Any) -> Any:
        found = _ASKED.get(_place(request.url))
        known = user_and_password(found) if found else None
        return HTTPBasicAuth(*known)(request) if known else request


class _Provider(RequestAuthProvider):
    def get_name(self) -> str:
        return "headwater"

    def get_auth(self) -> AuthBase:
        return _AsGiven()


_request_auth_provider_registry.register(_Provider)


def _place(address: str) -> str:
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def for_mlflow(uri: str) -> str:
    """Return the address that MLflow's client takes for a bare one, ready to be used.

    Raises
    ------
    ConfigError
        Where the driver of a database is missing.
    """
    if uri.startswith(("http://", "https://")):
        if user_and_password(uri) is not None:
            _ASKED[_place(uri)] = uri
            os.environ.setdefault("MLFLOW_TRACKING_AUTH", _Provider().get_name())
        return uri
    if not uri.startswith("sqlite"):
        check_driver(uri)
    return whole(uri)


def check_driver(uri: str) -> None:
    """Raise `ConfigError` where what SQLAlchemy needs for this database is not installed."""
    from sqlalchemy.engine import make_url  # SQLAlchemy comes with MLflow
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    try:
        url = make_url(whole(uri))
        kind = url.get_dialect()
    except (ArgumentError, NoSuchModuleError, ValueError):
        raise ConfigError(
            f"MLflow tracking URL {uri!r}",
            expected="postgresql+psycopg2://HOST/DATABASE or mysql+pymysql://HOST/DATABASE",
        ) from None
    try:
        kind.import_dbapi()
    except ImportError as error:
        driver = str(kind.driver)
        raise ConfigError(
            f"MLflow tracking URL {uri!r}: {error}",
            expected=f"the driver {driver} of {url.get_backend_name()}",
            remedy=_DRIVERS.get(driver, f"install {driver}"),
        ) from None


def ask(uri: str) -> None:
    """Raise `StoreError` unless the server or database of a bare address answers in seconds."""
    if not uri.startswith(("http://", "https://")):
        return _ask_database(uri)
    if (error := no_answer(uri)) is not None:
        raise StoreError(
            f"no MLflow server answers at {uri}: {error}",
            expected="a running `mlflow server`",
            remedy="start it, or leave the tracking URL out to use the home's own database",
        ) from error


def _ask_database(uri: str) -> None:
    from sqlalchemy import create_engine
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    url = make_url(whole(uri))
    engine = create_engine(url)
    try:
        if url.host and not url.host.startswith("/"):
            port = url.port or _PORTS.get(url.get_backend_name())
            # First, as no two drivers call their patience the same.
            socket.create_connection((url.host, port), PATIENCE).close()
        with engine.connect():
            pass
    except (OSError, SQLAlchemyError) as error:
        cause = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise StoreError(
            f"the database {uri} cannot be used: {cause}",
            expected="a running server that knows the user, and a database of that name",
            remedy="docs/operations.md says how user and password are given",
        ) from error
    finally:
        engine.dispose()
