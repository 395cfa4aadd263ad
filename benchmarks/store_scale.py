"""The store's index work at scale: ``python -m benchmarks.store_scale [--rows N]``.

Nothing to do over 10,000 and 100,000 images, and a view and a diff of a table of a million rows.
Each size runs in a fresh process, for its peak of resident memory. Preparing the sets takes
minutes: ``--folder DIR --prepare`` does that alone, and a later call with the folder measures.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.machine import machine
from features.images.scan import ScanOptions, scan_mvtec
from flows.extraction.find import image_rows
from headwater.spec import ExtractorSpec, LayerSpec
from storage.store.feature_store import FeatureStore
from storage.store.table import ImageRow, Selection
from storage.upkeep.contents import diff

SPEC = ExtractorSpec("resnet18", "benchmark")


def images(n: int, start: int = 0) -> list[ImageRow]:
    return [
        ImageRow(hashlib.sha256(b"%d" % i).hexdigest(), f"set/train/good/{i:07d}.png")
        for i in range(start, start + n)
    ]


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds of wall clock and of processor time that some work takes."""
    gc.collect()
    start, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - cpu


def show(result: dict[str, dict[str, Any]], file: Path | None) -> None:
    """Print figures, and write them where asked."""
    for name, figures in result.items():
        print(f"\n{name}")
        for key, value in figures.items():
            print(f"  {key:38} {value:.4g}" if isinstance(value, float) else f"  {key:38} {value}")
    if file:
        file.write_text(json.dumps(result, indent=1) + "\n")


def fill(store: FeatureStore, n: int) -> None:
    """Fill a store with `n` images of tiny maps."""
    for a in range(0, n, 50_000):
        rows = images(min(50_000, n - a), a)
        values = np.random.default_rng(a).standard_normal((len(rows), 1, 2, 2))
        maps = {"layer2": values.astype(np.float16)}
        store.write(SPEC, [(r.sha256, 0) for r in rows], maps, rows)


def peak() -> float:
    """Return this process's peak memory in MB (getrusage would count the parent's too)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def nothing_to_do(location: str, n: int) -> dict[str, float]:
    """Sync and plan where all is there, in a process of its own: seconds and memory."""
    rows = images(n)
    layers = (LayerSpec.parse("layer2"),)
    keys = [(r.sha256, 0) for r in rows]
    store = FeatureStore.open(location, "set10000")
    store.plan(SPEC, layers, [])  # what the store's libraries take is not counted
    before = peak()

    def once() -> None:
        store = FeatureStore.open(location, f"set{n}")
        report = store.sync(rows)
        plan = store.plan(SPEC, layers, keys)
        assert (report.unchanged, plan.todo) == (n, 0)

    seconds = statistics.median(timed(once)[0] for _ in range(3))
    return {"seconds": seconds, "peak MB": peak(), "of these the store's": peak() - before}


def stand_ins(location: str, n: int) -> None:
    """Write `n` small distinct PNG files, scan them once, and fill a store with them."""
    root = Path(location) / f"files{n}"
    folder = root / "train" / "good"
    folder.mkdir(parents=True)
    for i in range(n):
        pixels = np.random.default_rng(i).integers(0, 255, (16, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:07d}.png", compress_level=0)
    scanned = scan_mvtec(root, ScanOptions(cache=root / "cache.sqlite"))
    found = image_rows(scanned.records, scanned.root)
    assert len(found) == n
    store = FeatureStore.open(location, f"files{n}-set")
    for a in range(0, n, 50_000):
        rows = found[a : a + 50_000]
        values = np.random.default_rng(a).standard_normal((len(rows), 1, 2, 2))
        keys = [(r.sha256, 0) for r in rows]
        store.write(SPEC, keys, {"layer2": values.astype(np.float16)}, rows)


def nothing_to_do_with_files(location: str, n: int) -> dict[str, float]:
    """The same from the files on: scan (nothing read), sync, plan."""
    root, start = Path(location) / f"files{n}", peak()

    def once() -> None:
        found = scan_mvtec(root, ScanOptions(cache=root / "cache.sqlite"))
        rows = image_rows(found.records, found.root)
        store = FeatureStore.open(location, f"files{n}-set")
        report = store.sync(rows)
        plan = store.plan(SPEC, (LayerSpec.parse("layer2"),), [(r.sha256, 0) for r in rows])
        assert (found.hashed, report.unchanged, plan.todo) == (0, n, 0)

    seconds = timed(once)[0]
    return {"seconds": seconds, "peak MB": peak(), "MB more than the imports": peak() - start}


def view(location: str, n: int) -> dict[str, float]:
    """Open a view of half the table, in a process of its own."""
    store = FeatureStore.open(location, f"set{n}")
    new = store.repository.lookup_tag("after")
    moment = int(np.asarray(store.table(new).array("added_at")[n // 2]))
    start, out = peak(), {}

    def once() -> None:
        fresh = FeatureStore.open(location, f"set{n}")
        chosen = Selection(split="train", normal=True, known_by=moment)
        reader = fresh.reader(SPEC, (LayerSpec.parse("layer2"),), chosen, new)
        out["rows"] = len(reader)

    out["seconds"] = statistics.median(timed(once)[0] for _ in range(3))
    return {**out, "peak MB": peak(), "of these the view's": peak() - start}


def compared(location: str, n: int) -> dict[str, float]:
    """Compare two snapshots, in a process of its own."""
    store = FeatureStore.open(location, f"set{n}")
    old, new = (store.repository.lookup_tag(t) for t in ("before", "after"))
    start = peak()

    def once() -> None:
        found = diff(FeatureStore.open(location, f"set{n}"), old, new)
        assert (len(found.added), len(found.removed), len(found.renamed)) == (1000, 1000, 1000)

    seconds = statistics.median(timed(once)[0] for _ in range(3))
    return {"seconds": seconds, "peak MB": peak(), "of these the diff's": peak() - start}


def prepare_million(location: Path, n: int) -> None:
    store = FeatureStore.open(location, f"set{n}")
    fill(store, n)
    store.repository.create_tag("before", store.snapshot)
    rows = images(n)[1000:]
    rows[:1000] = [ImageRow(r.sha256, "moved/" + r.path) for r in rows[:1000]]
    store.sync(rows)
    fresh = images(1000, n)
    values = np.random.default_rng(1).standard_normal((1000, 1, 2, 2)).astype(np.float16)
    store.write(SPEC, [(r.sha256, 0) for r in fresh], {"layer2": values}, fresh)
    store.repository.create_tag("after", store.snapshot)


def apart(function: str, location: Path, n: int) -> dict[str, float]:
    """Run a function of this module in a process of its own, for its memory."""
    code = (
        "import json, sys; from benchmarks import store_scale as m; "
        f"print(json.dumps(m.{function}(sys.argv[1], {n})))"
    )
    command = [sys.executable, "-c", code, str(location)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def prepare(folder: Path, n: int) -> None:
    """Make the sets of the scale part that are not there yet."""
    for size in (10_000, 100_000):
        if not (folder / f"set{size}").exists():
            fill(FeatureStore.open(folder, f"set{size}"), size)
        if not (folder / f"files{size}-set").exists():
            stand_ins(str(folder), size)
    if not (folder / f"set{n}").exists():
        prepare_million(folder, n)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the synthetic index")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--folder", type=Path, help="where the sets are made and kept")
    parser.add_argument("--prepare", action="store_true", help="only make the sets")
    options = parser.parse_args()
    result: dict[str, dict[str, Any]] = {"machine": machine()}
    with tempfile.TemporaryDirectory() as scratch:
        base = options.folder or Path(scratch)
        prepare(base, options.rows)
        if options.prepare:
            return
        for n in (10_000, 100_000):
            result[f"nothing to do, {n} images"] = apart("nothing_to_do", base, n)
            files = apart("nothing_to_do_with_files", base, n)
            result[f"nothing to do, {n} images, with the files"] = files
        result[f"view of {options.rows} rows"] = apart("view", base, options.rows)
        result[f"diff at {options.rows} rows"] = apart("compared", base, options.rows)
    show(result, options.json)


if __name__ == "__main__":
    main()
