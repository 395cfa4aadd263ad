"""Predictions over HTTP: latency and throughput of our server, and of MLflow's with the same model.

    python -m benchmarks.http --home HOME --set SET --heads patchcore,padim --image FILE \
        [--callers 1,4,16] [--seconds 8] [--repeats 3] [--out results.jsonl]

HOME has the set with models of both heads; the first one is put in service. Each caller keeps one
connection and asks again as soon as it is answered, in threads of this process; servers are
processes of their own, one at a time. Last, our server alone is asked while the champion changes
between the two heads. A row has the medians of the repeats, and processor seconds a picture of the
server's processes: on a machine that others use they say more than the clock.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.machine import machine, tell
from flows.runtime.home import Home
from flows.serving.kept import Kept
from flows.use.models.service import promote
from storage.registry.registry import Registry

#: What a caller sends: path, body, headers.
Request = tuple[str, bytes, dict[str, str]]


def cpu_seconds(pid: int) -> float:
    """Return the processor seconds of a process and those below it."""
    total = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                used = process.cpu_times()
                total += used.user + used.system
    return total


def call(port: int, request: Request, until: float, found: list[tuple[float, int]]) -> None:
    """Ask again and again until a time; note seconds and status of each answer, 0 for none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    path, body, headers = request
    while time.perf_counter() < until:
        began = time.perf_counter()
        try:
            connection.request("POST", path, body, headers)
            got = connection.getresponse()
            got.read()
            found.append((time.perf_counter() - began, got.status))
        except (OSError, http.client.HTTPException):
            found.append((time.perf_counter() - began, 0))
            connection.close()
    connection.close()


def measure(pid: int, port: int, request: Request, callers: int, seconds: float) -> dict[str, Any]:
    """Return one repeat: percentiles in milliseconds, pictures a second, processor time."""
    found: list[tuple[float, int]] = []
    before, began = cpu_seconds(pid), time.perf_counter()
    threads = [
        threading.Thread(target=call, args=(port, request, began + seconds, found))
        for _ in range(callers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    times = np.array([one for one, _ in found]) * 1e3
    return {
        **{f"p{q}_ms": float(np.percentile(times, q)) for q in (50, 95, 99)},
        "a_second": len(found) / took,
        "cpu_ms": (cpu_seconds(pid) - before) / len(found) * 1e3,
        "answers": len(found),
        "failed": sum(status != 200 for _, status in found),
    }


def middle(repeats: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the median of each figure; answers and failures are those of all repeats."""
    made = {
        key: round(statistics.median(row[key] for row in repeats), 1)
        for key in repeats[0]
        if key not in ("answers", "failed")
    }
    return made | {key: sum(row[key] for row in repeats) for key in ("answers", "failed")}


@contextlib.contextmanager
def started(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Run a server while the block runs."""
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, **environment},
    )  # fmt: skip
    try:
        yield server
    finally:
        server.terminate()
        server.wait(60)


@contextlib.contextmanager
def ours(home: Home, image_set: str, image: bytes) -> Iterator[tuple[int, int, Request]]:
    """Run our server; yield its process, its port and what to ask it."""
    command = [sys.executable, "-m", "flows.command.main", "serve", "--http", image_set]
    with started([*command, "--port", "0"], {"HEADWATER_HOME": str(home.root)}) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline().split()[1].rpartition(":")[2])
        request = f"/sets/{image_set}/predict", image, {"Content-Type": "image/png"}
        yield server.pid, port, request


@contextlib.contextmanager
def mlflows(home: Home, model: str, image: bytes) -> Iterator[tuple[int, int, Request]]:
    """Run MLflow's server of the same model, as docs/ml-leads.md does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    binary = Path(sys.executable).with_name("mlflow")
    command = [str(binary), "models", "serve", "-m", f"models:/{model}", "--env-manager", "local"]
    # It starts a server that it looks for by its name.
    places = f"{binary.parent}{os.pathsep}{os.environ['PATH']}"
    environment = {"MLFLOW_TRACKING_URI": Registry(home.root).ready(), "PATH": places}
    with started([*command, "--port", str(port)], environment) as server:
        rows = {"columns": ["image"], "data": [[base64.b64encode(image).decode()]]}
        body = json.dumps({"dataframe_split": rows, "params": {"map": "none"}}).encode()
        request = "/invocations", body, {"Content-Type": "application/json"}
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if server.poll() is not None:
                raise SystemExit(f"{' '.join(command)} ended with status {server.returncode}")
            time.sleep(0.5)
        yield server.pid, port, request


def changing(home: Home, image_set: str, heads: list[str], ending: threading.Event) -> list[float]:
    """Change the champion every five seconds until it is to end; return when it was changed."""
    made = []
    while not ending.wait(5):
        promote(home, image_set, heads[(len(made) + 1) % 2], why="a benchmark")
        made.append(time.perf_counter())
    return made


def main() -> None:
    """Measure and print a JSON line for each server and number of callers."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--set", required=True)
    parser.add_argument("--heads", default="patchcore,padim")
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--callers", default="1,4,16")
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    home, heads, image = Home.at(a.home), a.heads.split(","), a.image.read_bytes()
    home.prepare_environment()
    promote(home, a.set, heads[0], why="a benchmark")
    row = Registry(home.root).get_model(a.set, heads[0])
    model = f"{row['model']}/{row['version']}"
    tell({"machine": machine(), "model": model, "image_bytes": len(image)}, a.out)
    servers = {
        "headwater": lambda: ours(home, a.set, image),
        "mlflow": lambda: mlflows(home, model, image),
    }
    for name, server in servers.items():
        with server() as (pid, port, request):
            measure(pid, port, request, 1, 3)  # it warms up
            for callers in map(int, a.callers.split(",")):
                found = [measure(pid, port, request, callers, a.seconds) for _ in range(a.repeats)]
                tell({"server": name, "callers": callers, **middle(found)}, a.out)
    with ours(home, a.set, image) as (pid, port, request):
        ending = threading.Event()
        made: list[float] = []
        other = threading.Thread(
            target=lambda: made.extend(changing(home, a.set, heads, ending)), daemon=True
        )
        other.start()
        found = [measure(pid, port, request, 4, 3 * a.seconds) for _ in range(a.repeats)]
        ending.set()
        other.join()
        told = {"server": "headwater", "callers": 4, "changes": len(made), **middle(found)}
        tell(told | {"versions": versions(home, a.set, told["answers"])}, a.out)


def versions(home: Home, image_set: str, answers: int) -> int:
    """Return how many versions gave the last answers."""
    rows = Kept(home, image_set).rows(limit=answers)
    return len(Counter(row.service_version for row in rows))


if __name__ == "__main__":
    main()
