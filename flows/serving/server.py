"""The server of `headwater serve --http`: from a home and its sets to answers, until the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import uvicorn
from starlette.types import ASGIApp

from flows.runtime.home import Home
from flows.runtime.settings import Settings
from flows.serving.app import application
from flows.serving.seat import Seat
from headwater.listening import listen, on_loopback

#: Seconds that requests in hand may take once it is told to end.
_GRACE = 8


def serve_http(
    home: Home,
    image_sets: Sequence[str],
    settings: Settings,
    *,
    ready: Callable[[str], None],
    tell: Callable[[str], None],
    metrics: ASGIApp | None = None,
) -> None:
    """Answer about pictures of sets with their champions until Ctrl-C or SIGTERM.

    What is in hand then is answered.

    Parameters
    ----------
    home, image_sets
        Whose champions.
    settings
        The sections ``serve`` and ``keep``.
    ready
        Called with the address when it answers.
    tell
        Called with a line for the log.
    metrics
        Mounted at ``/metrics``.

    Raises
    ------
    ConfigError
        Where the port is taken.
    ModelError
        Where a set has no champion, or one that cannot be opened.
    """
    how = settings.serve
    where = listen(how.port, how.host, command="headwater serve --http")
    with where:
        seats = {
            name: Seat(home, name, how, settings.keep, tell) for name in dict.fromkeys(image_sets)
        }
        host, port = where.getsockname()[:2]
        # Who comes while it starts waits for it.
        where.listen(128)
        named = f"[{host}]" if ":" in host else host
        app = application(
            seats,
            how,
            local=on_loopback(str(host)),
            metrics=metrics,
            ready=lambda: ready(f"http://{named}:{port}"),
            tell=tell,
        )
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_GRACE,
            # A connection that is kept open is not closed as its owner asks again.
            timeout_keep_alive=60,
            ws="none",
        )
        uvicorn.Server(config).run(sockets=[where])
