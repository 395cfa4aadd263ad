"""How quickly a report page of many images opens, moves and scrolls in a headless Chromium.

    python -m benchmarks.report_page [--images 500] [--heads 4] [--frames 120] [--out FILE]

The pictures are drawn noise, so nothing about them compresses well: a page of photographs is
smaller. Times are the browser's own: from the beginning of the navigation until the page is built;
between the frames of a drag of the threshold across the whole axis, a step a frame; and between
those of a scroll through all pictures, a window's height every fourth frame.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from benchmarks.machine import machine, tell
from flows.pictures.page.page import page
from flows.pictures.page.thumbs import edge_for, heat_address, outline_address, picture_address
from tests.browser import Browser, chromium

#: Calls `step(i)` once a frame; gives milliseconds between frames.
_FRAMES = """new Promise(done => {
  const at = [];
  const frame = now => {
    at.push(now);
    if (at.length > %d) return done(at.slice(1).map((t, i) => t - at[i]));
    (%s)(at.length - 1);
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
})"""


def drawn_page(images: int, heads: int) -> dict[str, Any]:
    """Return the data of a page with so many images and heads."""
    rng = np.random.default_rng(0)
    edge = edge_for(images)
    samples = []
    for i in range(images):
        bad = i % 2 == 1
        grey = ndimage.gaussian_filter(rng.normal(size=(edge, edge)), 1.5)
        pixels = np.repeat((127 + 300 * grey).clip(0, 255).astype(np.uint8)[..., None], 3, 2)
        mask = np.zeros((edge, edge), bool)
        row, column = rng.integers(10, edge - 60, 2)
        mask[row : row + 40, column : column + 40] = bad
        heat = ndimage.gaussian_filter(rng.random((64, 64)), 4)
        values = np.clip(255 * (heat - 0.47) / 0.06, 1, 255).astype(np.uint8)
        layer = {"at": [0, 0, 100, 100], "src": heat_address(values)}
        samples.append(
            {
                "name": f"test/{'crack' if bad else 'good'}/{i:04}.png",
                "kind": "crack" if bad else "good",
                "bad": bad,
                "scores": [float(s) for s in rng.normal(bad, 1, heads)],
                "pictures": [picture_address(pixels, edge)],
                "mask": outline_address(mask, edge, edge, edge),
                "aspect": 1,
                "maps": [layer] * heads,
            }
        )
    models = [
        {"name": f"head{i} v1", "head": f"head{i}", "version": "1", "threshold": 0.5,
         "promise": ["A benchmark."], "normals": [float(s) for s in rng.normal(0, 1, 300)]}
        for i in range(heads)
    ]  # fmt: skip
    return {
        "set": "benchmark", "made": "2026-01-01T00:00", "headwater": "", "notes": [],
        "kind": {"name": "image", "images": ["image"], "verdicts": ["normal", "anomalous"]},
        "heads": models, "samples": samples,
    }  # fmt: skip


def told(times: list[float]) -> dict[str, float]:
    """Return what is told of milliseconds between frames."""
    late = sum(t > 50 for t in times)
    return {
        "frames": len(times),
        "median_ms": round(statistics.median(times), 1),
        "p95_ms": round(float(np.quantile(times, 0.95)), 1),
        "worst_ms": round(max(times), 1),
        "over_50_ms": late,
    }


def measured(browser: Browser, step: str, frames: int) -> dict[str, float]:
    """Return the pace of so many frames, in each of which `step` is called."""
    asked = browser.ask(
        "Runtime.evaluate",
        expression=_FRAMES % (frames, step),
        awaitPromise=True,
        returnByValue=True,
    )
    return told(asked["result"]["value"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--frames", type=int, default=120)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    row: dict[str, Any] = {"benchmark": "report_page", **machine()}
    row |= {"images": asked.images, "heads": asked.heads}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        file = Path(folder) / "page.html"
        began = time.perf_counter()
        file.write_text(page(drawn_page(asked.images, asked.heads), "benchmark"))
        row["made_s"] = round(time.perf_counter() - began, 1)
        row["page_mb"] = round(file.stat().st_size / 1e6, 1)
        with chromium(Path(folder) / "profile", 1400, 1000) as browser:
            browser.open(file.as_uri())
            browser.until("document.documentElement.dataset.ready === 'yes'", 120)
            timing = "performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd"
            row["open_ms"] = round(browser.until(timing, 30))
            browser.run("window.box = document.querySelector('#panel-0 input[type=range]')")
            drag = f"i => {{ box.value = 1000 * i / {asked.frames}; "
            drag += "box.dispatchEvent(new Event('input')); }"
            row["drag"] = measured(browser, drag, asked.frames)
            row["rest_ms"] = browser.run(
                "(() => { const t = performance.now(); box.dispatchEvent(new Event('change')); "
                "document.body.offsetHeight; return Math.round(performance.now() - t); })()"
            )
            browser.run("document.querySelector('#pictures').scrollIntoView()")
            scroll = "i => { if (i % 4 === 0) scrollBy(0, innerHeight); }"
            row["scroll"] = measured(browser, scroll, asked.frames)
            size = "performance.memory.usedJSHeapSize"
            row["script_mb"] = round(browser.run(size) / 1e6, 1)
    tell(row, asked.out)


if __name__ == "__main__":
    main()
