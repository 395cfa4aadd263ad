"""The ASGI application of `headwater serve --http`: routes, limits, and what a mistake is told."""

from __future__ import annotations

import asyncio
import contextlib
import math
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from flows.runtime.sections import ServeSettings
from flows.serving.asking import Refused, asked_of, body_of, json_of, media_type, parts_of
from flows.serving.feedback import Feedback
from flows.serving.seat import Answer, Seat
from headwater.errors import DataError, HeadwaterError, ImageError, StoreError
from headwater.listening import on_loopback
from headwater.text import one_of, shown
from headwater.version import __version__
from storage.serving.encoding import encode_map

#: Pictures that are decoded at a time.
_DECODERS = 4
_MAPS = ("none", "png", "npy")


class Desk:
    """Where requests come in: which sets there are, how many of each are in hand.

    Parameters
    ----------
    seats
        By set.
    settings
        Limits.
    tell
        Called with a line for the log.
    """

    def __init__(
        self, seats: Mapping[str, Seat], settings: ServeSettings, tell: Callable[[str], None]
    ) -> None:
        self.seats, self.settings, self.tell = dict(seats), settings, tell
        self.in_hand = dict.fromkeys(seats, 0)
        self.ending = False
        self.pool = ThreadPoolExecutor(_DECODERS, thread_name_prefix="decodes")
        # Decoded pictures are large: so many of a set at a time.
        self._decoded = {name: asyncio.Semaphore(2 * settings.batch) for name in seats}

    def seat(self, request: Request) -> Seat:
        """Return the seat of the set that a request names."""
        name = request.path_params["image_set"]
        if name not in self.seats:
            raise Refused(404, f"set {name[:100]!r}", one_of(list(self.seats)), "GET /sets")
        return self.seats[name]

    async def predict(self, request: Request) -> Response:
        """Answer about a picture."""
        seat = self.seat(request)
        maps = request.query_params.get("map", "none")
        if maps not in _MAPS:
            raise Refused(400, f"map {maps[:50]!r}", f"one of {', '.join(_MAPS)}")
        with self._in_hand(seat):
            try:
                async with asyncio.timeout(self.settings.timeout):
                    answer = await self._answered(seat, request)
            except TimeoutError:
                seconds = f"{self.settings.timeout:g} s"
                raise Refused(
                    504, f"no answer within {seconds}", remedy="ask again, or fewer at a time"
                ) from None
        told = answer.told.to_json(seat.image_set) | {"id": answer.number}
        if maps != "none":
            heat = answer.told.got.map
            told |= {"map": encode_map(heat, maps)}
            told |= {"map_low": float(heat.min()), "map_high": float(heat.max())}
        return _json(told | {"name": shown(told["name"])})

    async def feedback(self, request: Request) -> Response:
        """Take what somebody says of a picture."""
        seat = self.seat(request)
        if media_type(request) != "application/json":
            raise Refused(
                415,
                f"a body of type {media_type(request)[:100] or 'none'}",
                'application/json with {"image": ID OR DIGEST, "answer": ANSWER, "by": NAME}',
            )
        with self._in_hand(seat):
            given = json_of(await self._within(body_of(request, 100_000)))
            wrong = sorted(given.keys() - {"image", "answer", "by", "take_back"})
            if wrong or "image" not in given:
                raise Refused(
                    400,
                    f"JSON with {', '.join(wrong)}"[:200] if wrong else "JSON without image",
                    "image, and answer or take_back, and by",
                )
            desk = Feedback(seat.home, seat.image_set, seat.kept)
            image = str(given["image"])[:200]
            # Of what may be tens of megabytes: not in the loop that all requests are in.
            done = await asyncio.to_thread(
                desk.say,
                image,
                str(given.get("answer") or ""),
                by=str(given.get("by") or "http")[:200],
                take_back=given.get("take_back") is True,
            )
        return _json(done.to_json())

    async def about(self, request: Request) -> Response:
        """Tell what is in service for a set."""
        seat = self.seat(request)
        return _json(await asyncio.to_thread(seat.to_json) | self._load(seat.image_set))

    async def sets(self, request: Request) -> Response:
        """Tell which sets there are."""
        return _json({"sets": sorted(self.seats)})

    async def health(self, request: Request) -> Response:
        """Tell that the process lives, and what is wrong with it."""
        return _json(await self._state())

    async def ready(self, request: Request) -> Response:
        """Tell whether requests are answered: 200, also where something is wrong; else 503."""
        dead = [name for name, seat in self.seats.items() if not seat.lives]
        state = await self._state()
        answers = not self.ending and not dead
        return _json(state | {"ready": answers}, 200 if answers else 503)

    async def _state(self) -> dict[str, Any]:
        found = await asyncio.to_thread(self._found)
        wrong = any(one["problems"] for one in found.values())
        status = "ending" if self.ending else "something is wrong" if wrong else "ok"
        return {"status": status, "headwater": __version__, "sets": found}

    def _found(self) -> dict[str, dict[str, Any]]:
        return {
            name: {
                "service_version": str(seat.version.row["service_version"]),
                "problems": seat.problems,
                **self._load(name),
            }
            for name, seat in self.seats.items()
        }

    def _load(self, image_set: str) -> dict[str, Any]:
        return {"in_hand": self.in_hand[image_set], "most_in_hand": self.settings.waiting}

    @contextlib.contextmanager
    def _in_hand(self, seat: Seat) -> Any:
        """Count a request while it is in hand; turn it away where there are too many."""
        name = seat.image_set
        if self.ending:
            raise Refused(
                503, "the server is ending", remedy="ask again", headers={"retry-after": "5"}
            )
        if self.in_hand[name] >= self.settings.waiting:
            wait = math.ceil(self.in_hand[name] / seat.pace) if seat.pace else 1
            raise Refused(
                503,
                f"{self.in_hand[name]} requests of {name} are in hand",
                f"at most {self.settings.waiting}",
                "ask again later, as Retry-After says",
                {"retry-after": str(max(1, min(wait, 60)))},
            )
        self.in_hand[name] += 1
        try:
            yield
        finally:
            self.in_hand[name] -= 1

    async def _within(self, work: Awaitable[Any]) -> Any:
        try:
            async with asyncio.timeout(self.settings.timeout):
                return await work
        except TimeoutError:
            seconds = f"{self.settings.timeout:g} s"
            raise Refused(408, f"the request did not come whole within {seconds}") from None

    async def _answered(self, seat: Seat, request: Request) -> Answer:
        body = await body_of(request, int(self.settings.max_mb * 1e6))
        try:
            content, roi, name = parts_of(request, body)
        except ImageError as error:
            raise Refused(400, error.culprit, error.expected, error.remedy) from None
        del body
        loop = asyncio.get_running_loop()
        async with self._decoded[seat.image_set]:
            asked = await loop.run_in_executor(self.pool, asked_of, content, roi, name)
            try:
                return await asyncio.wrap_future(seat.ask(asked))
            except HeadwaterError as error:
                raise Refused(422, error.culprit, error.expected, error.remedy) from None


def application(
    seats: Mapping[str, Seat],
    settings: ServeSettings,
    *,
    local: bool = True,
    metrics: ASGIApp | None = None,
    ready: Callable[[], None] = lambda: None,
    tell: Callable[[str], None] = lambda line: None,
) -> Starlette:
    """Return the application.

    Parameters
    ----------
    seats
        By set; they are started and ended with it.
    settings
        Limits.
    local
        Whether it answers on this machine alone: then it must be asked by a name of this machine,
        so that no page in a browser reaches it by a name of its own.
    metrics
        Mounted at ``/metrics``.
    ready
        Called when it answers.
    tell
        Called with a line for the log.
    """
    desk = Desk(seats, settings, tell)

    @contextlib.asynccontextmanager
    async def lives(_: Starlette) -> AsyncIterator[None]:
        for seat in seats.values():
            seat.start()
        ready()
        try:
            yield
        finally:
            desk.ending = True
            for seat in seats.values():
                await asyncio.to_thread(seat.end)
            desk.pool.shutdown(wait=False, cancel_futures=True)

    def guarded(
        handler: Callable[[Request], Awaitable[Response]],
    ) -> Callable[[Request], Awaitable[Response]]:
        async def run(request: Request) -> Response:
            _check_caller(request, local)
            return await handler(request)

        return run

    routes: list[BaseRoute] = [
        Route("/health", guarded(desk.health)),
        Route("/ready", guarded(desk.ready)),
        Route("/sets", guarded(desk.sets)),
        Route("/sets/{image_set}", guarded(desk.about)),
        Route("/sets/{image_set}/predict", guarded(desk.predict), methods=["POST"]),
        Route("/sets/{image_set}/feedback", guarded(desk.feedback), methods=["POST"]),
    ]
    if metrics is not None:
        # A route and no mount, which would send whoever asks on to "/metrics/".
        routes.append(Route("/metrics", metrics))

    async def refused(request: Request, error: Any) -> Response:
        return _json(error.to_json(), error.status, error.headers)

    async def mistaken(request: Request, error: Any) -> Response:
        status = 500
        if isinstance(error, DataError | ValueError | LookupError):
            status = 400
        if isinstance(error, StoreError):
            status = 503
        told = Refused(status, error.culprit, error.expected, error.remedy)
        return _json(told.to_json(), status)

    async def unknown(request: Request, error: Any) -> Response:
        expected = "POST /sets/SET/predict, POST /sets/SET/feedback, GET /sets/SET, /sets, "
        culprit = f"{request.method[:20]} {request.url.path[:200]}"
        told = Refused(error.status_code, culprit, expected + "/health, /ready, /metrics")
        return _json(told.to_json(), error.status_code, dict(error.headers or {}))

    async def broken(request: Request, error: Exception) -> Response:
        tell("".join(traceback.format_exception(error)).rstrip())
        told = Refused(
            500, f"a fault of Headwater's own: {type(error).__name__}", "", "see its log"
        )
        return _json(told.to_json(), 500)

    handlers: dict[Any, Any] = {
        Refused: refused,
        HeadwaterError: mistaken,
        HTTPException: unknown,
        Exception: broken,
    }
    return Starlette(routes=routes, lifespan=lives, exception_handlers=handlers)


def _check_caller(request: Request, local: bool) -> None:
    """Refuse what a page in a browser asks for: it is no caller of this server.

    A page of another site that is open on this machine could ask by this machine's address, or by a
    name of its own that leads here.
    """
    host = request.headers.get("host", "")
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    if local and not on_loopback(name.strip("[]").lower()):
        raise Refused(
            403,
            f"a request for host {host[:100]!r}",
            "127.0.0.1 or localhost: this server answers to this machine alone",
            "headwater serve --http --host ADDRESS answers to others, or set the Host of a proxy",
        )
    origin = request.headers.get("origin", "")
    if origin and origin.partition("://")[2] != host:
        raise Refused(403, f"a request from a page of {origin[:100]!r}", "a program")


def _json(
    data: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    return JSONResponse(dict(data), status, dict(headers or {}))
