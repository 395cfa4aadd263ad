"""The process that serves: ended, killed, started again, what came in ends up in service."""

import os
import signal
import subprocess
import time
from datetime import UTC, datetime, timedelta

import pytest

from flows.retraining import run as running
from flows.retraining.diary import entries
from flows.runtime.settings import Settings
from flows.runtime.sources import load_settings
from flows.scheduling import times
from flows.scheduling.plan import Scheduled, scheduled_sets
from headwater.errors import ConfigError
from tests.flows.commandkit import HEADWATER, environment
from tests.flows.retraining.kit import Retrained


class Serving:
    """`headwater serve` in a folder."""

    def __init__(self, folder):
        self.folder, self.log = folder, folder / "serve.log"
        self.env = {k: v for k, v in environment(folder).items() if k != "PREFECT_API_URL"}
        self.env["PREFECT_HOME"] = str(folder / "prefect")

    def start(self):
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*HEADWATER, "serve"], cwd=self.folder, env=self.env, stdout=log, stderr=log
            )
        self.wait_for("retrained ")

    def said(self):
        return self.log.read_text()

    def wait_for(self, text, seconds=240):
        self.until(lambda: text in self.said(), seconds)

    def until(self, holds, seconds=240):
        end = time.monotonic() + seconds
        while not holds():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < end, self.said()
            time.sleep(0.5)

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(60)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_came_into_the_inbox_ends_up_in_service(
    tmp_path, resnet_weights, monkeypatch, request
):
    made = Retrained(tmp_path, resnet_weights).fill()
    with monkeypatch.context() as patched:
        patched.setattr(running, "on_prefect", made.flow)
        made.retrain()
    inbox = tmp_path / "inbox"
    (tmp_path / "headwater.yaml").write_text(
        f"schedule: {{settle: 1, sets: {{s: {{inbox: {inbox}, cron: '0 3 1 1 *'}}}}}}\n"
    )
    one = Serving(tmp_path)
    request.addfinalizer(lambda: one.process.kill())
    one.start()
    one.until(inbox.is_dir)
    for number in (40, 41):
        made.draw(number).rename(inbox / f"{number}.png")
    (inbox / "half.png").write_bytes((made.images / "train/good/3.png").read_bytes()[:900])
    one.wait_for("took 2")
    # Told to end while it retrains, or is about to: that ends in order, too.
    one.wait_for("16 normal for training")
    assert one.end() == 143
    assert entries(made.home, "s")[0]["what"] == "stopped"
    assert "Traceback" not in one.said()
    assert "refused half.png" in one.said()
    assert [p.name for p in inbox.iterdir()] == ["refused"]
    taken = [p.name for p in (made.images / "train/good").iterdir() if "T" in p.name]
    assert len(taken) == 2
    assert made.service.champion()["service_version"] == "1"
    # Killed in the middle of what it takes up again, and once more.
    one.start()
    time.sleep(8)
    assert one.end(signal.SIGKILL) == -9
    one.start()
    one.until(lambda: made.service.champion()["service_version"] == "2")
    second = subprocess.run(
        [*HEADWATER, "serve"],
        cwd=tmp_path,
        env=one.env,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert second.returncode == 2
    assert "another `headwater serve`" in second.stderr
    one.until(lambda: not (made.home.root / "scheduled/s.due").exists())
    assert one.end(signal.SIGINT) == 130
    assert "Traceback" not in one.said()
    assert made.service.champion()["version"] == "2"


@pytest.fixture
def home(tmp_path):
    made = Retrained(tmp_path, None).home
    made.write_card("s", {"root": str(tmp_path / "images")})
    made.write_card("p", {"pairs": str(tmp_path / "pairs")})
    return made


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        ({}, "no set is scheduled"),
        ({"t": {}}, "the home has no set 't'"),
        ({"p": {}}, "set of pairs"),
        ({"s": {"cron": "at noon"}}, "cron 'at noon'"),
        ({"s": {"cron": "* * * * * *"}}, "five fields"),
        ({"s": {"timezone": "Europe/Berlin"}}, "a timezone without a time"),
        ({"s": {"cron": "0 2 * * *", "timezone": "Mars/Base"}}, "Mars/Base"),
        ({"s": {"inbox": "IMAGES/train/good"}}, "are not apart"),
        ({"s": {"inbox": "IMAGES/.."}}, "are not apart"),
    ],
)
def test_a_mistake_in_the_schedule_is_told_before_anything_runs(home, sets, said, tmp_path):
    place = os.path.realpath(tmp_path)
    known = {
        name: {k: v.replace("IMAGES", f"{place}/images") for k, v in one.items()}
        for name, one in sets.items()
    }
    with pytest.raises(ConfigError, match=said):
        scheduled_sets(Settings.model_validate({"schedule": {"sets": known}}), home)


def test_status_tells_the_next_time_and_that_nothing_serves_any_more(home):
    from flows.watching.status import status_of

    now = datetime.now(UTC)
    assert status_of(home, now=now).wrong == []
    times.tell(home, {"s": "2027-01-01T02:00:00+00:00", "p": ""})
    found = status_of(home, ["s"], now=now + timedelta(minutes=4))
    assert (found.sets[0].next, found.wrong) == ("2027-01-01T02:00:00+00:00", [])
    later = status_of(home, ["s"], now=now + timedelta(minutes=6))
    assert later.sets[0].next is None
    assert [one.what for one in later.wrong] == ["serve"]
    assert later.status == 3
    times.take_back(home)
    assert status_of(home, ["s"], now=now + timedelta(days=1)).wrong == []


def test_a_misspelt_key_of_a_set_is_told_with_its_line(tmp_path):
    file = tmp_path / "headwater.yaml"
    file.write_text("schedule:\n  sets:\n    bolts: {cronn: '0 2 * * *'}\n")
    with pytest.raises(ConfigError, match=r"line 3: unknown key .*cronn") as error:
        load_settings(file)
    assert "'cron'?" in error.value.expected


def test_a_time_that_passed_is_made_up_for_once():
    from flows.scheduling.dag import _times, missed

    one = Scheduled("s", cron="0 3 * * *", timezone="Europe/Berlin")
    last = datetime(2026, 6, 1, 2, 0, tzinfo=UTC)  # an hour past three, there
    assert _times(one, last) == [datetime(2026, 6, 2, 1, 0, tzinfo=UTC)]
    assert missed(one, last)
    assert not missed(one, datetime.now(UTC))
    assert not missed(Scheduled("s"), last)
    assert not missed(one, None)
