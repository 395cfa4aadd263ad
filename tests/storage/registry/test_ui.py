"""MLflow's pages: their first page, their port, and the route to a set."""

import asyncio
import json
import re

import pytest

from headwater.errors import DataError
from storage.registry.registry import Registry
from storage.registry.ui import ModelPages, start_page
from tests.storage.registry.conftest import train


def ask(app, path, **headers):
    """Return what an ASGI application answers: status, headers, body."""
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    named = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
    scope = {"type": "http", "method": "GET", "path": path, "headers": named}
    asyncio.run(app(scope, receive, send))
    body = b"".join(m.get("body", b"") for m in sent)
    return sent[0]["status"], dict(sent[0]["headers"]), body.decode()


async def pages(scope, receive, send):
    """A server with one page, which a browser may keep."""
    kept = any(name == b"if-none-match" for name, _ in scope["headers"])
    page = b"" if kept else b"<html><head><script src='main.js'></script></head></html>"
    size = [(b"content-length", str(len(page)).encode()), (b"etag", b"x")]
    begin = {"type": "http.response.start", "status": 304 if kept else 200, "headers": size}
    await send(begin)
    await send({"type": "http.response.body", "body": page})


def test_the_start_page_puts_defaults_into_the_browsers_memory():
    known = {"mode": '"</script> models"'}
    app = ModelPages(pages, lambda: known)
    status, headers, body = ask(app, "/", if_none_match="x")
    assert status == 200, "a page that was kept has the defaults of its day"
    assert int(headers[b"content-length"]) == len(body)
    assert headers[b"cache-control"] == b"no-store"
    assert body.index("setItem") < body.index("main.js")
    (told,) = re.findall(r"Object.entries\((.*)\)\) {", body)
    assert json.loads(told) == known
    assert body.count("</script>") == 2, "a value cannot end the script"
    assert ask(app, "/other", if_none_match="x")[0] == 304


def test_the_way_to_a_set(registry, saved, tmp_path):
    mode = "?workflowType=machine_learning"
    assert start_page(Registry(tmp_path / "empty")) == f"#/experiments{mode}"
    train(registry, saved("a"))
    alone = start_page(registry)
    place = registry.client.get_experiment_by_name("bottles").experiment_id
    assert alone == f"#/experiments/{place}/runs{mode}"
    train(registry, saved("b"), image_set="caps")
    assert start_page(registry) == f"#/experiments{mode}"
    assert start_page(registry, "bottles") == alone
    with pytest.raises(DataError, match=r"(?s)'cups'.*caps, bottles"):
        start_page(registry, "cups")
