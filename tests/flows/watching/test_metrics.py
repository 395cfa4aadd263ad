"""Figures for Prometheus, read back by its own client."""

import threading
from urllib.request import urlopen
from wsgiref.simple_server import make_server

import pytest
from prometheus_client.parser import text_string_to_metric_families

from flows.watching.metrics import metrics_app, registry_of, text_of
from flows.watching.served import Day, Service
from flows.watching.status import SetStatus, Status
from flows.watching.wrong import Wrong
from tests.flows.commandkit import run_here

NASTY = 'a"b\\c\n\x1b[31m{set="x"} 1'


def read(text):
    """Return the figures of a text: ``{(name, labels): value}``."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_what_is_written_is_read_back():
    day = Day("2026-11-28", 20, 3, 0.4, (0.0,) * 5)
    service = Service(0.05, 100, 7, 4, {"false_alarms": 2, "missed": 1}, [day])
    champion = {"model": f"{NASTY}.padim", "version": "4", "service_version": "3"}
    last = {"end": "2026-11-28T11:00:00+00:00", "seconds": 12.5, "cpu_seconds": 20.0}
    sets = [
        SetStatus(
            NASTY, champion, last, 2, service, [Wrong("drift", "x", ""), Wrong("drift", "", "")]
        ),
        SetStatus("plain", waiting=None),
    ]
    found = read(text_of(Status("/home", "2026-11-28T12:00:00+00:00", sets, [])))
    shown = 'a"b\\c\\n\\x1b[31m{set="x"} 1'
    mine = {
        n.removeprefix("headwater_set_"): v for (n, of), v in found.items() if ("set", shown) in of
    }
    assert mine == {
        "reviews_waiting": 2, "wrong": 2, "promised_false_positive_ratio": 0.05,
        "answers_week": 100, "flagged_week": 7, "false_alarms_week": 2, "missed_week": 1,
        "answers_day": 20, "flagged_day": 3, "retrain_age_seconds": 3600, "retrain_seconds": 12.5,
        "retrain_cpu_seconds": 20, "retrain_failed": 0, "champion_version": 3, "wrong_kinds": 2,
    }  # fmt: skip
    # What is not known is no figure, and never a 0.
    plain = {n for (n, labels) in found if ("set", "plain") in labels}
    assert plain == {"headwater_set_wrong"}
    assert found["headwater_home_wrong", ()] == 0
    ((_, labels),) = [key for key in found if key[0].endswith("champion_version")]
    assert dict(labels)["model_version"] == "4"


def test_the_command_writes_a_file_and_a_server_answers(home, monkeypatch, capsys, tmp_path):
    file = tmp_path / "node" / "headwater.prom"
    assert run_here(monkeypatch, capsys, "status", "--home", home.root, "--prometheus", file) == ""
    written = read(file.read_text())
    assert written["headwater_set_retrain_failed", (("set", "s"),)] == 0
    assert file.stat().st_mode & 0o777 == 0o644
    assert [p.name for p in file.parent.iterdir()] == [file.name]
    said = run_here(monkeypatch, capsys, "status", "--home", home.root, "--prometheus", "-")
    assert read(said).keys() == written.keys()
    server = make_server("127.0.0.1", 0, metrics_app(home))
    threading.Thread(target=server.handle_request, daemon=True).start()
    with urlopen(f"http://127.0.0.1:{server.server_address[1]}/metrics", timeout=60) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        assert read(answer.read().decode()).keys() == written.keys()
    server.server_close()
    (tmp_path / "wall").write_text("")
    said = run_here(
        monkeypatch, capsys, "status", "--home", home.root, "--prometheus", tmp_path / "wall" / "x",
        status=2,
    )  # fmt: skip
    assert "cannot be written" in said


def test_names_follow_the_conventions(home):
    for family in registry_of(home).collect():
        assert family.name.startswith("headwater_")
        assert family.documentation.endswith(".")
        assert not family.name.endswith(("_total", "_count", "_sum", "_bucket")), "it is a gauge"


def test_a_set_that_is_gone_is_an_error_of_the_reader(home):
    with pytest.raises(Exception, match="has no set"):
        list(registry_of(home, ["bolts"]).collect())
