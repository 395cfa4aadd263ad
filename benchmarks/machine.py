"""What machine a measurement was made on, how results are told, the median of repeats."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch


def machine() -> dict[str, Any]:
    """Return processor, cores, memory, versions and the load before the measurement."""
    names = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
        "date": time.strftime("%Y-%m-%d"),
    }


def tell(row: Mapping[str, Any], out: Path | None) -> None:
    """Print a result as a line of JSON, and append it to a file where one is given."""
    line = json.dumps(row)
    print(line, flush=True)
    if out:
        with out.open("a") as file:
            file.write(line + "\n")


def median_seconds(work: Callable[[], Any], repeats: int = 3) -> float:
    """Return the median wall-clock time of `work` over `repeats` calls."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def run_apart(command: list[str], tree: Path, **environment: str) -> dict[str, Any]:
    """Run a command on the sources of `tree`; return its last line as JSON, or how it failed."""
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree), **environment},
    )  # fmt: skip
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["nothing was said"]
        return {"failed": f"exit {done.returncode}: {said[-1]}"}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found
