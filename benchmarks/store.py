"""The store against the bare disk: ``python -m benchmarks.store [--mb N] [--json FILE]``.

Everything is a ratio of two measurements taken in turns within one run; medians are printed.
A memmap of the same bytes is the yardstick for throughput. The yardstick of reading gives the
same float32 tensors as the store does; the share against a memmap that only copies the stored bytes
is printed too.
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
import torch

from benchmarks.machine import machine
from headwater.spec import ExtractorSpec, LayerSpec
from storage.maintenance import diff
from storage.store import FeatureStore
from storage.table import ImageRow, Selection

SHAPES: dict[str, dict[str, tuple[int, int, int]]] = {
    "512x28x28": {"layer2": (512, 28, 28)},
    "304x(24+12+6)^2": {
        "layer2": (304, 24, 24),
        "layer2@0.5": (304, 12, 12),
        "layer2@0.25": (304, 6, 6),
    },
    "64x56x56": {"layer1": (64, 56, 56)},
}
BATCH = 32
SPEC = ExtractorSpec("resnet18", "benchmark")


def images(n: int, start: int = 0) -> list[ImageRow]:
    return [
        ImageRow(hashlib.sha256(b"%d" % i).hexdigest(), f"set/train/good/{i:07d}.png")
        for i in range(start, start + n)
    ]


def timed(work: Callable[[], object]) -> float:
    gc.collect()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def throughput(folder: Path, name: str, megabytes: int, rounds: int) -> dict[str, float]:
    shapes = SHAPES[name]
    row = sum(int(np.prod(s)) * 2 for s in shapes.values())
    n = max(BATCH * 2, megabytes * 2**20 // row // 256 * 256)
    rng = np.random.default_rng(0)
    maps = {
        k: rng.standard_normal((n, *s), dtype=np.float32).astype(np.float16)
        for k, s in shapes.items()
    }
    size = sum(v.nbytes for v in maps.values()) / 1e6
    rows = images(n)
    keys = [(r.sha256, 0) for r in rows]
    layers = tuple(LayerSpec.parse(k) for k in shapes)
    found: dict[str, list[float]] = {}
    files = {k: folder / f"{i}.raw" for i, k in enumerate(shapes)}

    def note(what: str, seconds: float) -> None:
        found.setdefault(what, []).append(size / seconds)

    block = max(64, 64 * 2**20 // row // 256 * 256)
    for turn in range(rounds):

        def raw(flush: bool) -> None:
            for k, v in maps.items():
                files[k].unlink(missing_ok=True)
                out = np.memmap(files[k], np.float16, "w+", shape=v.shape)
                out[:] = v
                if flush:
                    out.flush()

        store = FeatureStore.open(folder / f"store{turn}", "set")

        def write(store: FeatureStore = store) -> None:
            for a in range(0, n, block):
                part = {k: v[a : a + block] for k, v in maps.items()}
                store.write(SPEC, keys[a : a + block], part, rows[a : a + block])

        note("write memmap", timed(lambda: raw(False)))
        note("write memmap, flushed", timed(lambda: raw(True)))
        note("write store", timed(write))
    mapped = {k: np.memmap(files[k], np.float16, "r", shape=v.shape) for k, v in maps.items()}
    maps.clear()

    def memmap_epoch(order: np.ndarray | None, convert: bool) -> None:
        for a in range(0, n, BATCH):
            for v in mapped.values():
                got = np.array(v[a : a + BATCH]) if order is None else v[order[a : a + BATCH]]
                if convert:
                    torch.from_numpy(got).float()

    # One reader for all epochs, as a training has; it may not keep the features resident.
    reader = store.reader(SPEC, layers, memory=0)

    def store_epoch(seed: int | None) -> None:
        assert sum(len(b["_rows"]) for b in reader.batches(BATCH, seed=seed)) == n

    order = np.random.default_rng(1).permutation(n)
    for turn in range(rounds + 1):  # the first warms the page cache for both
        times = {
            "sequential memmap": timed(lambda: memmap_epoch(None, True)),
            "sequential memmap, bytes only": timed(lambda: memmap_epoch(None, False)),
            "sequential store": timed(lambda: store_epoch(None)),
            "shuffled memmap": timed(lambda: memmap_epoch(order, True)),
            "shuffled memmap, bytes only": timed(lambda: memmap_epoch(order, False)),
            "shuffled store": timed(lambda seed=turn: store_epoch(seed)),  # type: ignore[misc]
        }
        for what, seconds in times.items():
            if turn:
                note(what, seconds)
    resident = store.reader(SPEC, layers, memory=2**40)
    next(resident.batches(BATCH))
    for turn in range(rounds):
        again = timed(lambda seed=turn: sum(1 for _ in resident.batches(BATCH, seed=seed)))  # type: ignore[misc]
        note("shuffled resident", again)
    mid = {k: statistics.median(v) for k, v in found.items()}
    return {
        "MB": round(size),
        **{f"{k} MB/s": round(v) for k, v in mid.items()},
        "write / memmap": mid["write store"] / mid["write memmap"],
        "write / memmap flushed": mid["write store"] / mid["write memmap, flushed"],
        "sequential / memmap": mid["sequential store"] / mid["sequential memmap"],
        "sequential / bytes only": mid["sequential store"] / mid["sequential memmap, bytes only"],
        "shuffled / memmap": mid["shuffled store"] / mid["shuffled memmap"],
        "shuffled / bytes only": mid["shuffled store"] / mid["shuffled memmap, bytes only"],
        "resident / memmap": mid["shuffled resident"] / mid["shuffled memmap"],
    }


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
    before = peak()

    def once() -> None:
        store = FeatureStore.open(location, f"set{n}")
        report = store.sync(rows)
        plan = store.plan(SPEC, layers, [(r.sha256, 0) for r in rows])
        assert (report.unchanged, plan.todo) == (n, 0)

    seconds = statistics.median(timed(once) for _ in range(3))
    return {"seconds": seconds, "MB more": peak() - before}


def million(location: str, n: int) -> dict[str, float]:
    """Views and a diff of a table of `n` rows, in a process of its own."""
    store = FeatureStore.open(location, f"set{n}")
    old, new = (store.repository.lookup_tag(t) for t in ("before", "after"))
    out: dict[str, float] = {}
    start = peak()
    moment = int(store.table(old).added_at[n // 2])

    def view() -> None:
        fresh = FeatureStore.open(location, f"set{n}")
        chosen = Selection(split="train", normal=True, known_by=moment)
        reader = fresh.reader(SPEC, (LayerSpec.parse("layer2"),), chosen, new)
        out["rows of the view"] = len(reader)

    out["view seconds"] = statistics.median(timed(view) for _ in range(3))
    out["view MB"] = peak() - start

    def compare() -> None:
        found = diff(FeatureStore.open(location, f"set{n}"), old, new)
        assert (len(found.added), len(found.removed), len(found.renamed)) == (1000, 1000, 1000)

    out["diff seconds"] = statistics.median(timed(compare) for _ in range(3))
    out["diff and view MB"] = peak() - start
    one = images(1, 10 * n)
    maps = {"layer2": np.random.default_rng(0).standard_normal((1, 1, 2, 2)).astype(np.float16)}
    out["commit seconds"] = timed(lambda: store.write(SPEC, [(one[0].sha256, 0)], maps, one))
    return out


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
        "import json, sys; from benchmarks import store as m; "
        f"print(json.dumps(m.{function}(sys.argv[1], {n})))"
    )
    command = [sys.executable, "-c", code, str(location)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=512, help="megabytes per shape")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the synthetic index")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--folder", type=Path, help="where to write (a fast disk, /dev/shm)")
    parser.add_argument("--only", choices=("throughput", "scale"))
    options = parser.parse_args()
    result: dict[str, dict[str, Any]] = {"machine": machine()}
    if options.only != "scale":
        for name in SHAPES:
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                result[name] = throughput(Path(folder), name, options.mb, options.rounds)
    if options.only != "throughput":
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            for n in (10_000, 100_000):
                fill(FeatureStore.open(folder, f"set{n}"), n)
                result[f"nothing to do, {n} images"] = apart("nothing_to_do", Path(folder), n)
            prepare_million(Path(folder), options.rows)
            result[f"index of {options.rows} rows"] = apart("million", Path(folder), options.rows)
    for name, figures in result.items():
        print(f"\n{name}")
        for key, value in figures.items():
            print(f"  {key:38} {value:.4g}" if isinstance(value, float) else f"  {key:38} {value}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
