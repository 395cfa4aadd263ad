"""The Dask runtime: progress reaches the driver, a lost worker's work is done by another."""

import functools
import mmap
import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import psutil
import pytest
from distributed import Client, LocalCluster, Security

from flows.runtime.dask import (
    TOPIC,
    PeakMemory,
    WorkerProgress,
    _workers_watched,
    cores,
    dask_client,
    needs_gpu,
    own_device,
    training_workers,
)
from headwater.errors import ConfigError, HeadwaterError, TrainingError
from tests.flows.commandkit import HEADWATER, draw_image, environment


class Lines:
    """Stands for the reporter: keeps the lines."""

    def __init__(self, kept):
        self.line = kept.append


def die_once(folder: str) -> str:
    """Kill this worker the first time; the count is on disk, as memory dies with the process."""
    tries = len(list(Path(folder).iterdir()))
    (Path(folder) / str(tries)).touch()
    if tries == 0:
        os._exit(9)
    return f"done at try {tries + 1}"


def report_and_fail(name: str) -> None:
    progress = WorkerProgress(name, lambda *_: None)
    for done in range(3):
        progress.step(done, 3, "epoch")
        time.sleep(0.12)
    raise TrainingError("step 3: loss is nan", remedy="lower the learning rate")


def device_of_two_gpus() -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.cuda.is_available", lambda: True)
        patch.setattr("torch.cuda.device_count", lambda: 2)
        return own_device("auto")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def client(scratch):
    with dask_client(2, scratch=scratch) as one:
        yield one


def test_whoever_has_not_the_keys_is_not_let_in(client):
    address = client.scheduler_info()["address"]
    workers = list(client.scheduler_info()["workers"])
    assert all(one.startswith("tls://127.0.0.1:") for one in [address, *workers])
    for one in [address, *workers]:
        host, _, port = one.removeprefix("tls://").rpartition(":")
        for security, there in (
            (None, f"tcp://{host}:{port}"),  # without TLS
            (Security.temporary(), one),  # with keys of one's own
        ):
            with pytest.raises((OSError, TimeoutError)):
                Client(there, timeout="4s", set_as_default=False, security=security)
        # TLS without a certificate: the handshake may end well, but nothing is ever answered.
        loose = ssl.create_default_context()
        loose.check_hostname, loose.verify_mode = False, ssl.CERT_NONE
        with (
            pytest.raises((ssl.SSLError, ConnectionError)),
            socket.create_connection((host, int(port)), 10) as plain,
            loose.wrap_socket(plain) as talk,
        ):
            talk.sendall(b"x" * 100)
            if not talk.recv(100):
                raise ConnectionResetError
    assert client.submit(lambda: 5).result(timeout=60) == 5  # and who has them is


def test_the_keys_are_nowhere_to_be_read(client, scratch):
    key = client.security.tls_client_key.splitlines()[1]
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        assert key not in " ".join(process.cmdline())
    for path in scratch.rglob("*"):
        assert path.is_dir() or key.encode() not in path.read_bytes()
    places = set(client.run(lambda dask_worker: dask_worker.local_directory).values())
    assert all(place.startswith(str(scratch)) for place in places)
    assert not stat.S_IMODE(scratch.stat().st_mode) & 0o077


def test_the_schedulers_pages_show_nothing(client):
    link = client.scheduler_info()["services"]["dashboard"]
    for page in (
        "info/main/workers.html",
        "json/identity.json",
        "metrics",
        "status",
    ):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://127.0.0.1:{link}/{page}", timeout=10)


def test_a_lost_workers_task_is_done_again_by_another(client, tmp_path):
    future = client.submit(die_once, str(tmp_path), pure=False)
    assert future.result(timeout=60) == "done at try 2"


def test_progress_and_errors_reach_the_driver_whole(client):
    seen = []
    client.subscribe_topic(TOPIC, lambda event: seen.append(event[1]))
    future = client.submit(report_and_fail, "a-head", pure=False)
    with pytest.raises(TrainingError, match=r"(?s)step 3.*remedy: lower the learning rate"):
        future.result(timeout=60)
    deadline = time.monotonic() + 10
    while len(seen) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [m["done"] for m in seen] == [0, 1, 2]
    assert seen[0]["name"] == "a-head"


def test_workers_get_their_share_of_the_cores(client):
    threads = client.submit(lambda: os.environ["OMP_NUM_THREADS"]).result(timeout=60)
    assert int(threads) == max(1, cores() // 2)


def test_no_more_trainings_at_a_time_than_gpus(client, monkeypatch):
    assert training_workers(99, "cpu") == cores()
    assert (training_workers(2, "cpu", 5), training_workers(9, "cpu", 5)) == (2, 5)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for count in (1, 2):
        monkeypatch.setattr("torch.cuda.device_count", lambda n=count: n)
        assert training_workers(9, "auto", 5) == count
        assert training_workers(9, "cuda:0", 5) == 1
        assert training_workers(9, "cpu", 5) == 5
    assert own_device("auto") == "auto"  # outside a worker
    workers = client.scheduler_info()["workers"]
    asked = [client.submit(device_of_two_gpus, workers=w, pure=False) for w in workers]
    assert {f.result(timeout=60) for f in asked} == {"cuda:0", "cuda:1"}


def test_a_training_takes_a_gpu_of_a_cluster_that_offers_some(client):
    assert needs_gpu(client, "auto") == {}
    with (
        LocalCluster(
            n_workers=1, processes=False, resources={"GPU": 1}, dashboard_address=None
        ) as one,
        Client(one, set_as_default=False) as offering,
    ):
        assert needs_gpu(offering, "auto") == {"GPU": 1}
        assert needs_gpu(offering, "cpu") == {}


def test_a_scheduler_without_workers_is_told_and_so_is_the_first_one(monkeypatch):
    lines = []
    monkeypatch.setattr("flows.runtime.dask.reporter", lambda: Lines(lines))
    quick = functools.partial(_workers_watched, patience=0.3)
    monkeypatch.setattr("flows.runtime.dask._workers_watched", quick)
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address=None) as empty,
        dask_client(1, empty.scheduler_address) as one,
    ):
        future = one.submit(lambda: 5)
        deadline = time.monotonic() + 30
        while not lines and time.monotonic() < deadline:
            time.sleep(0.05)
        empty.scale(1)
        assert future.result(timeout=60) == 5
        while len(lines) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
    assert len(lines) == 2
    assert f"{empty.scheduler_address} has no workers" in lines[0]
    assert "the work goes on" in lines[1]


def test_no_scheduler_at_the_address_is_a_clear_error():
    with (
        pytest.raises(ConfigError, match="no Dask scheduler answers at tcp"),
        dask_client(1, "tcp://127.0.0.1:1"),
    ):
        pass


def test_peak_memory_sees_what_was_freed_again():
    # Pages asked of the system itself: an array may get memory that earlier tests freed and the
    # allocator kept, which is resident already.
    with PeakMemory() as memory, mmap.mmap(-1, 200_000_000) as pages:
        np.frombuffer(pages, np.uint8)[:] = 1
        time.sleep(0.15)
    assert 150 < memory.peak_mb - memory.base_mb < 400


def test_errors_survive_the_way_through_a_pickle():
    import pickle

    error = HeadwaterError("what", expected="else", remedy="do")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) == "what\n  expected: else\n  remedy: do"


def test_a_killed_run_leaves_no_server_behind(tmp_path):
    code = (
        "import time\n"
        "from flows.runtime.server import start_server\n"
        "server = start_server()\n"
        "print(server.process.pid, server._watch.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], env=environment(tmp_path), stdout=subprocess.PIPE, text=True
    )
    server, watch = (psutil.Process(int(n)) for n in child.stdout.readline().split())
    child.kill()
    child.wait()
    _, left = psutil.wait_procs([server, watch], timeout=30)
    for process in left:
        process.kill()
    assert not left


@pytest.mark.parametrize(
    ("sent", "status"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130)],
)
@pytest.mark.slow
def test_a_run_whose_whole_group_is_told_to_end_does_so_at_once_and_in_order(
    sent, status, tmp_path, resnet_weights
):
    # As a service manager ends a run, and a terminal at Ctrl-C: Prefect's temporary server and the
    # workers are told as well. That folds which go side by side tell how far they are is seen, too.
    for i in range(12):
        draw_image(tmp_path / "images", i)
    command = [*HEADWATER, "run", "s", "--images", tmp_path / "images", "--size", "64"]
    command += ["--weights", resnet_weights, "--heads", "ms_flow", "--epochs", "100000"]
    said = tmp_path / "said.txt"
    with said.open("w") as out:
        child = subprocess.Popen(
            [*map(str, command)], cwd=tmp_path, env=environment(tmp_path), stdout=out,
            stderr=subprocess.STDOUT, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 220  # on a busy machine
        while "ms_flow 1/5:" not in said.read_text() and time.monotonic() < deadline:
            assert child.poll() is None, said.read_text()
            time.sleep(0.1)
        assert time.monotonic() < deadline, said.read_text()
        os.killpg(child.pid, sent)
        # Prefect would ask its dead server for 62 s.
        assert child.wait(45) == status, said.read_text()
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
    assert "stopped; what was committed is kept" in said.read_text()
    assert "Traceback" not in said.read_text()


def test_an_end_leaves_no_scratch_behind(tmp_path):
    with dask_client(1, scratch=tmp_path / "tmp") as one:
        assert one.submit(lambda: 1).result(timeout=60) == 1
        assert list((tmp_path / "tmp").iterdir())
    assert not list((tmp_path / "tmp").iterdir())
