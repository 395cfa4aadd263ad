"""Seconds per training image and step, and peak memory, of every head at its paper's shapes.

    python -m benchmarks.head_steps [--head NAME ...] [--precision float32,bfloat16] \
        [--batch 8] [--steps 3] [--turns 1] [--profile] [--against TREE] [--out FILE]

The head's own `fit` trains on made-up maps in memory, so that all that a training does is in the
figure: reading the batch, forward, backward, clipping, the watch for divergence, the optimiser. The
first step is left out. Each measurement is a process of its own, for its peak memory. Galleries
take no steps: theirs is the whole fit over the images.

`--against` is another checkout of this project: both are measured turn by turn in one call
(`tree` in the line says which), which is how a change is judged. `--profile` adds the share of the
operators' own time by kind.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import resource
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from benchmarks.machine import machine, run_apart, tell
from benchmarks.waiting import TimedSource
from heads.catalogue import all_heads, get_head, make_config
from heads.contract import FeatureSource, Reference, TrainOptions
from heads.pairs.source import Pair, PairSource
from heads.training.sources import TensorSource

# By the names of torch's operators; what is in none of them is "other".
KINDS = {
    "convolutions and products": ("conv", "addmm", "aten::mm", "bmm", "linear", "attention"),
    "optimiser and clipping": ("adam", "foreach", "norm", "add_", "mul_", "addcdiv", "addcmul"),
    "copies and casts": ("copy_", "aten::to", "contiguous", "clone", "cat", "index", "fill_"),
}


class _EnoughError(Exception):
    """All steps asked for are done."""


class StepClock:
    """A `Progress` that notes when each step ended, and stops the training after `steps`."""

    def __init__(self, steps: int) -> None:
        self.steps, self.ends = steps, [time.perf_counter()]
        self.profiler: Any = None

    def metric(self, name: str, value: float, epoch: int) -> None:
        """Drop it."""

    def step(self, done: int, total: int, text: str) -> None:
        """Note the time; leave the training after the last step."""
        self.ends.append(time.perf_counter())
        if self.profiler is not None and len(self.ends) == 2:
            self.profiler.start()
        if len(self.ends) > self.steps + 1:
            raise _EnoughError


def references() -> dict[str, Reference]:
    """Return what each head is measured at, by name; plug-ins may say nothing of it."""
    return {n: cls.reference for n, cls in all_heads().items() if cls.reference is not None}


def by_steps(name: str) -> bool:
    """Whether a head learns by steps."""
    return hasattr(get_head(name).Config(), "epochs")


def made_up(name: str, rows: int) -> FeatureSource:
    """Return positive maps of the head's paper's shapes (pairs where it reads pairs)."""
    generator = torch.Generator().manual_seed(0)
    at = references()[name]
    shapes, pixels = at.shapes, at.pixels

    def side(label: str) -> TensorSource:
        maps = {
            k: torch.randn(rows, *s, generator=generator).abs().half() for k, s in shapes.items()
        }
        return TensorSource(maps, [f"{label}{i}" for i in range(rows)])

    if not get_head(name).pairs:
        return side("image ")
    masks = (torch.rand(rows, pixels, pixels, generator=generator) > 0.9).float()
    keyed = [Pair(str(i), f"c{i}", f"h{i}") for i in range(rows)]
    labelled = name == "pair_diff"
    return PairSource(side("c"), side("h"), keyed, masks if labelled else None)


def measure(name: str, precision: str, batch: int, steps: int, profile: bool) -> dict[str, Any]:
    """Return seconds per image and step and the peak memory of this process, in MB."""
    case = references()[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    settings = dict(case.settings)
    if by_steps(name):
        settings["batch_size"] = batch
        settings["lr"] = 1e-6  # at the papers' rates some heads diverge on noise, in two steps
    if name == "f2r":
        settings["views"] = 0
    config = make_config(name, settings)
    # All steps of pairs are in one epoch: between two there would be the held-out pairs.
    pairs = get_head(name).pairs
    source = made_up(name, batch * (steps + 2) if pairs else batch)
    head = get_head(name)(
        config, {k: (s[0], s[1], s[2]) for k, s in case.shapes.items()}, (case.pixels, case.pixels)
    )
    options = TrainOptions(epochs=steps + 2, precision=precision)  # type: ignore[arg-type]
    held = source.subset([0] if pairs else [])  # type: ignore[attr-defined]
    about = {"head": name, "precision": precision, "batch": batch}
    if not by_steps(name):
        began = time.perf_counter()
        head.fit(source, held, options, StepClock(10**9))
        found: dict[str, Any] = {"s_per_image": (time.perf_counter() - began) / batch}
    else:
        # Pair heads want the very class.
        timed = source if pairs else TimedSource(source)
        found = _timed(head, timed, held, options, steps, batch, profile)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {**about, **found, "peak_mb": round(peak), "peak_before_mb": round(before)}


def _timed(
    head: Any, source: Any, held: FeatureSource, options: TrainOptions, steps: int, batch: int,
    profile: bool,
) -> dict[str, Any]:  # fmt: skip
    clock, optimiser = StepClock(steps), [0.0, 0.0]
    waited: list[float] = []

    def begin(*_: Any) -> None:
        optimiser[1] = time.perf_counter()
        waited.append(getattr(source, "waited", 0.0))

    def end(*_: Any) -> None:
        if len(clock.ends) > 1:  # the first step also makes the optimiser's state
            optimiser[0] += time.perf_counter() - optimiser[1]

    hooks = [register_optimizer_step_pre_hook(begin), register_optimizer_step_post_hook(end)]
    if profile:
        clock.profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
    try:
        head.fit(source, held, options, clock)
    except _EnoughError:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    ends = clock.ends[1:]
    times = sorted(b - a for a, b in itertools.pairwise(ends))
    total = ends[-1] - ends[0]
    found = {
        "s_per_image_step": round(times[len(times) // 2] / batch, 4),
        "s_per_step": [round(t, 3) for t in times],
        "share_optimiser": round(optimiser[0] / total, 3),
        "share_waiting": round((waited[-1] - waited[0]) / total, 3)
        if isinstance(source, TimedSource)
        else None,
    }
    if profile:
        clock.profiler.stop()
        found |= shares(clock.profiler.key_averages())
    return found


def shares(events: Iterable[Any]) -> dict[str, Any]:
    """Return the share of the operators' own time by kind, and the ten longest operators."""
    own = sorted(((e.self_cpu_time_total, e.key, e.count) for e in events), reverse=True)
    total = sum(t for t, _, _ in own)
    kinds = dict.fromkeys([*KINDS, "other"], 0.0)
    for t, key, _ in own:
        kind = next((k for k, parts in KINDS.items() if any(p in key for p in parts)), "other")
        kinds[kind] += t / total
    longest = [f"{key} {t / total:.1%} ({count})" for t, key, count in own[:14]]
    return {"shares": {k: round(v, 3) for k, v in kinds.items()}, "longest": longest}


def main() -> None:
    """Measure each head and precision, one JSON line each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--head", nargs="+", default=list(references()))
    parser.add_argument("--precision", default="float32,bfloat16")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--against", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.one:
        found = measure(a.head[0], a.precision, a.batch, a.steps, a.profile)
        gc.collect()
        print(json.dumps({**found, "threads": torch.get_num_threads()}), flush=True)
        return
    here, about = Path(__file__).resolve().parents[1], machine()
    command = [sys.executable, "-m", "benchmarks.head_steps", "--one"]
    trees = [("this", here)] + ([("against", a.against.resolve())] if a.against else [])
    for name in a.head:
        for precision in a.precision.split(",") if by_steps(name) else ["float32"]:
            arguments = ["--head", name, "--precision", precision, "--batch", str(a.batch)]
            arguments += ["--steps", str(a.steps)] + (["--profile"] if a.profile else [])
            for turn in range(a.turns):
                for tree, place in trees if turn % 2 == 0 else trees[::-1]:
                    row = run_apart([*command, *arguments], place)
                    base = {"head": name, "precision": precision, "batch": a.batch, "tree": tree}
                    tell({**base, **row, **about}, a.out)


if __name__ == "__main__":
    main()
