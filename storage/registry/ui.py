"""MLflow's pages, as `headwater ui` serves them: on this machine alone, and about models.

MLflow 3 opens in a mode for language-model agents, in which models are "agent versions" and runs
"traces". Which mode a page is in stands behind its route (``?workflowType=machine_learning``) or,
where a link has no such thing, in the browser's memory; no tag of an experiment decides it. So
addresses that are printed carry it, and the start page that is served here makes it the default,
and the columns with the figures that of the tables of runs.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import warnings
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

import uvicorn
from mlflow.server.constants import (
    ARTIFACT_ROOT_ENV_VAR,
    BACKEND_STORE_URI_ENV_VAR,
    SERVE_ARTIFACTS_ENV_VAR,
)
from mlflow.telemetry.utils import is_telemetry_disabled

from headwater.errors import DataError
from headwater.text import one_of
from storage.registry.describe import MODE, route
from storage.registry.read import RegistryReader
from storage.registry.views import state

#: The browser's memory: what is not there yet is put there before MLflow's own script runs.
_REMEMBER = """<script>
for (const [key, value] of Object.entries(%s)) {
  try { if (localStorage.getItem(key) === null) localStorage.setItem(key, value) } catch {}
}
</script>"""
#: Keys of MLflow 3.17's pages. What they do not know they pass over.
_DEFAULTS = {
    "mlflow.workflowType_v1": json.dumps(MODE["workflowType"]),
    # An assistant that opens at the first visit, and asks for a language model.
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
    # Cards of the home page, all about language models.
    "mlflow.home.getting-started.collapsed_v1": "true",
    # A window before the models that praises aliases.
    "_mlflow_model_registry_promo_modal_dismissed_v1": "true",
}
#: Of an experiment: the state of its page of runs, and whether nested runs are shown.
_COLUMNS = 'MLflowLocalStorage-1.1-ExperimentPage-["{0}"]-ReactComponentState'
_UNFOLD = "MLflowLocalStorage-1.1-ExperimentView-{0}-expandRows"
#: A bar that says that usage is collected.
_COLLECTED = "mlflow.telemetry.info.alert.dismissed_v1"


Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Application(Protocol):
    """What a web server calls (ASGI)."""

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""


class ModelPages:
    """MLflow's server, whose start page puts some defaults into the browser's memory.

    Parameters
    ----------
    server
        MLflow's.
    defaults
        Called for every start page: keys of the browser's memory and their values.
    """

    def __init__(self, server: Application, defaults: Callable[[], dict[str, str]]) -> None:
        self._server, self._defaults = server, defaults

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["method"] != "GET" or scope["path"] != "/":
            return await self._server(scope, receive, send)
        # A page that the browser kept has the defaults of its day.
        kept = (b"if-none-match", b"if-modified-since")
        scope["headers"] = [(k, v) for k, v in scope["headers"] if k.lower() not in kept]
        begun: list[Message] = []
        body = bytearray()

        async def hold(message: Message) -> None:
            if message["type"] == "http.response.start":
                begun.append(message)
            elif message["type"] == "http.response.body":
                body.extend(message.get("body", b""))

        await self._server(scope, receive, hold)
        if begun and begun[0]["status"] == 200:
            text = json.dumps(await asyncio.to_thread(self._defaults)).replace("<", "\\u003c")
            page = body.decode().replace("<head>", "<head>" + _REMEMBER % text, 1)
            body = bytearray(page.encode())
            fixed = (b"content-length", b"etag", b"last-modified", b"cache-control")
            headers = [(k, v) for k, v in begun[0]["headers"] if k.lower() not in fixed]
            size = str(len(body)).encode()
            begun[0]["headers"] = [
                *headers,
                (b"content-length", size),
                (b"cache-control", b"no-store"),
            ]
        for message in begun:
            await send(message)
        await send({"type": "http.response.body", "body": bytes(body)})


class _Server(uvicorn.Server):
    """Uvicorn's server, which tells when it answers."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer."""
        await super().startup(sockets)
        self._ready()


def start_page(registry: RegistryReader, image_set: str | None = None) -> str:
    """Return the route to a set's trainings, or to the list of all sets.

    Without a name it is the only set that there is, where there is one alone.

    Raises
    ------
    DataError
        Where nothing was trained on a set of this name.
    """
    found = registry.experiments()
    if image_set is None and len(found) == 1:
        (image_set,) = found
    if image_set is None:
        return route("experiments")
    if image_set not in found:
        raise DataError(
            f"no results of image set {image_set!r} in {registry.place}",
            expected=one_of(list(found), image_set) or "a set that was trained on",
            remedy=f"headwater run {image_set} --images DIR",
        )
    return route(f"experiments/{found[image_set]}/runs")


def serve(registry: RegistryReader, where: socket.socket, ready: Callable[[], None]) -> None:
    """Serve MLflow's pages on the results until a signal ends it.

    Parameters
    ----------
    registry
        Whose; of a home or a database.
    where
        From `headwater.listening.listen`.
    ready
        Called when the pages can be opened.
    """
    os.environ[BACKEND_STORE_URI_ENV_VAR] = registry.ready()
    os.environ[ARTIFACT_ROOT_ENV_VAR] = registry.artifacts
    os.environ[SERVE_ARTIFACTS_ENV_VAR] = "true"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what MLflow is built on
        # It reads the environment when it is imported, which takes seconds.
        from mlflow.server.fastapi_app import app  # late: see above
    known = dict(_DEFAULTS)
    if is_telemetry_disabled():
        known[_COLLECTED] = "true"

    def defaults() -> dict[str, str]:
        places = registry.experiments().values()
        columns = {_COLUMNS.format(place): json.dumps(state()) for place in places}
        # Trainings of before are nested below the run of their command.
        return known | columns | {_UNFOLD.format(place): "true" for place in places}

    config = uvicorn.Config(
        ModelPages(app, defaults),
        log_level="warning",
        # An open page asks all the time: nobody waits for its last answers.
        timeout_graceful_shutdown=1,
    )
    _Server(config, ready).run(sockets=[where])
