"""What is wrong with a machine is found at once, each thing with its remedy; nothing changes."""

import json
import time
from types import SimpleNamespace

import pytest

from flows.use import doctor
from flows.use.doctor import Finding

RESNET = ("--backbone", "resnet18", "--heads", "padim")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def by_topic(findings):
    return {one["topic"]: one for one in findings}


def test_a_machine_that_is_well(desk):
    before = sorted((p, p.stat().st_mtime_ns) for p in desk.home.rglob("*"))
    said = json.loads(desk("doctor", *RESNET, "--json"))
    found = by_topic(said["findings"])
    assert said["wrong"] == 0
    assert not [one for one in said["findings"] if one["state"] == "wrong"]
    assert "1 image set" in found["home"]["said"]
    assert found["weights"]["said"].startswith("resnet18: ")
    assert "1,000 images with padim: about" in found["first run"]["said"]
    assert sorted((p, p.stat().st_mtime_ns) for p in desk.home.rglob("*")) == before
    assert "is made by the first run" in desk("doctor", *RESNET, "--home", desk.folder / "none")
    assert not (desk.folder / "none").exists()


def test_all_that_is_wrong_is_told_at_once_with_the_remedies(desk, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10**6))
    desk.home.chmod(0o755)
    nowhere = ("--scheduler", "tcp://127.0.0.1:1", "--weights", desk.folder / "none.pth")
    secret = ("--tracking", "http://me:hunter22@127.0.0.1:1")
    text = desk("doctor", "--backbone", "resnet18", *nowhere, *secret, "--json", status=2)
    found = by_topic(json.loads(text[: text.rindex("}") + 1])["findings"])
    wrong = {topic for topic, one in found.items() if one["state"] == "wrong"}
    # What the home refers to cannot be looked up where MLflow does not answer.
    assert wrong == {"disk", "weights", "tracking", "models and stores", "dask", "first run"}
    assert all(found[topic]["remedy"] for topic in wrong)
    assert found["home"]["state"] == "note"
    assert "chmod -R o-rwx" in found["home"]["remedy"]
    assert "hunter22" not in text
    assert "device cuda: torch finds no GPUs" in desk("doctor", "--device", "cuda", status=2)


def test_what_does_not_answer_or_breaks_is_a_finding():
    (slow,) = doctor._within("store", lambda: time.sleep(5) or iter(()), 0.1)
    assert (slow.state, slow.said) == ("wrong", "no answer within 0 s")

    def broken():
        raise RuntimeError("driver\nlong text")

    assert doctor._within("x", broken, 60) == [Finding("x", "wrong", "RuntimeError: driver")]


def test_a_package_of_another_version_is_named(monkeypatch):
    real = doctor.metadata.version
    monkeypatch.setattr(
        doctor.metadata, "requires", lambda name: ["zarr>=3.1,<3.2", "boto3; extra == 's3'"]
    )
    monkeypatch.setattr(doctor.metadata, "version", lambda n: "2.0" if n == "zarr" else real(n))
    _, wrong = doctor._versions()
    assert wrong.said == "zarr is 2.0; headwater needs <3.2,>=3.1"
    assert "pip install 'zarr<3.2,>=3.1'" in wrong.remedy
