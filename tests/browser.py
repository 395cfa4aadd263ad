"""A headless Chromium for tests, driven over its own debugging protocol: nothing is downloaded."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_OPTIONS = (
    "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run "
    "--disable-background-networking --disable-component-update --remote-debugging-port=0"
)


class Browser:
    """A page of a Chromium that listens on `port`.

    Attributes
    ----------
    heard
        The events that came while something was asked, of the domains that were enabled.
    """

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._asked = socket, 0
        self.heard: list[dict[str, Any]] = []

    def ask(self, method: str, **named: Any) -> dict[str, Any]:
        """Call a method of the protocol; return its result."""
        self._asked += 1
        self._socket.send(json.dumps({"id": self._asked, "method": method, "params": named}))
        while True:
            answer = json.loads(self._socket.recv(timeout=60))
            if answer.get("id") == self._asked:
                assert "error" not in answer, answer
                return answer["result"]
            if "method" in answer:
                self.heard.append(answer)

    def open(self, address: str) -> None:
        """Load an address, even where it differs from the last one by its route alone."""
        self.ask("Page.navigate", url="about:blank")
        self.ask("Page.navigate", url=address)

    def run(self, code: str) -> Any:
        """Return the value of a line of JavaScript on the page."""
        made = self.ask("Runtime.evaluate", expression=code, returnByValue=True)
        return made["result"].get("value")

    def until(self, code: str, seconds: float = 120) -> Any:
        """Return the value of a line of JavaScript once it is true; fail with what is visible."""
        end = time.monotonic() + seconds
        while not (found := self.run(code)):
            assert time.monotonic() < end, f"never: {code}\n{self.text}"
            time.sleep(0.3)
        return found

    def sees(self, *texts: str, seconds: float = 120) -> str:
        """Wait until all of `texts` are visible; return all that is."""
        for text in texts:
            self.until(f"document.body.innerText.includes({json.dumps(text)})", seconds)
        return self.text

    @property
    def text(self) -> str:
        """The text that is visible on the page."""
        return self.run("document.body.innerText") or ""

    def click(self, text: str) -> None:
        """Click on the link, button or tab of this text, once it is there."""
        found = "[...document.querySelectorAll('a, button, [role=tab]')]"
        mine = f"{found}.filter(e => e.innerText.trim() === {json.dumps(text)}).at(-1)"
        self.until(f"(e => e && (e.click(), true))({mine})")

    def follow(self, text: str) -> None:
        """Open the address of the link of this text, which may be meant for another tab."""
        links = "[...document.querySelectorAll('a[href]')]"
        mine = f"{links}.filter(e => e.innerText.trim() === {json.dumps(text)})[0]?.href"
        self.open(self.until(mine))

    def picture(self, path: Path) -> None:
        """Save what is visible as a PNG."""
        shot = self.ask("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(shot))


@contextlib.contextmanager
def chromium(folder: Path, width: int = 1600, height: int = 1000) -> Iterator[Browser]:
    """Yield a browser with a profile in `folder`; skip the test where no Chromium is installed."""
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        pytest.skip("needs Chromium to look at pages: apt-get install chromium")
    profile = ["--user-data-dir=" + str(folder), f"--window-size={width},{height}", "about:blank"]
    process = subprocess.Popen(
        [program, *_OPTIONS.split(), *profile],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        place, end = folder / "DevToolsActivePort", time.monotonic() + 90
        while not (place.exists() and len(place.read_text().split()) > 1):
            assert process.poll() is None, "Chromium ended"
            assert time.monotonic() < end, "Chromium does not listen"
            time.sleep(0.1)
        port = place.read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=20) as answer:
            pages = json.load(answer)
        page = next(p for p in pages if p["type"] == "page")
        with connect(page["webSocketDebuggerUrl"], max_size=None) as socket:
            browser = Browser(socket)
            browser.ask(
                "Emulation.setDeviceMetricsOverride",
                width=width, height=height, deviceScaleFactor=1, mobile=False,
            )  # fmt: skip
            yield browser
    finally:
        process.terminate()
        process.wait(30)
