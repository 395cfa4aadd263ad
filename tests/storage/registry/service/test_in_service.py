"""One model in service, whatever happens: promote, rollback, what breaks off, what is deleted."""

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

from headwater.errors import ModelError
from storage.registry.client import MlflowException
from storage.registry.registry import Registry
from storage.registry.service.in_service import InService
from tests.storage.registry.conftest import train


@pytest.fixture
def service(registry, saved):
    for n, head in enumerate(("patchcore", "patchcore", "padim")):
        train(registry, saved(f"m{n}"), head, key=f"k{n}", auroc=0.9 + n / 100)
    return InService(registry, "bottles")


def put(service, head, version, **more):
    return service.promote(service.registry.get_model("bottles", head, version), **more)


def answers(service):
    row = service.champion()
    return row and (row["service_version"], row["head"], row["version"])


def test_nothing_is_in_service_until_it_is_put_there(service):
    assert service.champion() is None
    assert service.history() == []
    with pytest.raises(ModelError, match="no model of bottles was in service before"):
        service.rollback()


def test_promote_and_rollback_walk_one_chain(service):
    done = put(service, "patchcore", 1, why="first", who="ann")
    assert (done["to"], done["from"], done["changed"]) == ("1", "", True)
    put(service, "padim", 1)
    put(service, "patchcore", 2)
    assert answers(service) == ("3", "patchcore", "2")
    assert service.rollback(why="false alarms")["to"] == "2"
    assert answers(service) == ("2", "padim", "1")
    assert service.previous()["head"] == "patchcore"
    assert service.rollback()["to"] == "1"
    assert answers(service) == ("1", "patchcore", "1")
    with pytest.raises(ModelError, match="in service before"):
        service.rollback()
    assert service.rollback(to="v3")["to"] == "3"
    told = [(e["what"], e["to"], e["who"], e["why"], e["now"]) for e in service.history()]
    assert [t[:2] for t in told] == [
        ("rollback", "3"), ("rollback", "1"), ("rollback", "2"),
        ("promote", "3"), ("promote", "2"), ("promote", "1"),
    ]  # fmt: skip
    assert [t[4] for t in told] == [True, False, False, False, False, False]
    assert told[5][2:4] == ("ann", "first")
    assert told[2][3] == "false alarms"
    assert service.history()[0]["metrics"]["image_auroc"] == 0.91


def test_the_copy_has_the_files_and_the_run_of_the_heads_version(service):
    put(service, "patchcore", 2)
    row = service.champion()
    old = service.registry.get_model("bottles", "patchcore", 2)
    assert {k: row[k] for k in ("model", "run_id", "snapshot", "metrics")} == {
        k: old[k] for k in ("model", "run_id", "snapshot", "metrics")
    }
    assert (service.registry.download("models:/bottles/1") / "state.bin").read_bytes() == b"state"
    # It is no head's model: the leaderboard is as it was.
    assert {r["model"] for r in service.registry.leaderboard("bottles")} == {
        "bottles.patchcore", "bottles.padim"
    }  # fmt: skip


def test_what_is_in_service_already_is_not_put_there_again(service):
    put(service, "padim", 1)
    again = put(service, "padim", 1)
    assert (again["changed"], again["to"]) == (False, "1")
    assert len(service.history()) == 1


def test_a_change_that_broke_off_is_taken_up_and_nothing_else_answers(service, monkeypatch):
    put(service, "patchcore", 1)
    plain = InService._alias

    def dies(self, alias, version):
        raise KeyboardInterrupt

    for broken_at in (dies, lambda s, a, v: plain(s, a, v) if a == "previous" else dies(s, a, v)):
        monkeypatch.setattr(InService, "_alias", broken_at)
        with pytest.raises(KeyboardInterrupt):
            put(service, "padim", 1)
        monkeypatch.setattr(InService, "_alias", plain)
        assert answers(service) == ("1", "patchcore", "1")
        assert [e["to"] for e in service.history()] == ["1"]
    assert put(service, "padim", 1)["to"] == "2"  # no third version was made
    # Killed after the change and before its record: who did it is on the version itself.
    monkeypatch.setattr(InService, "_keep", dies)
    with pytest.raises((TypeError, KeyboardInterrupt)):
        put(service, "patchcore", 2, who="bob")
    monkeypatch.undo()
    assert answers(service) == ("3", "patchcore", "2")
    newest = service.history()[0]
    assert (newest["what"], newest["who"], newest["now"]) == ("set without a record", "bob", True)
    assert service.rollback()["to"] == "2"


def test_a_champion_that_was_deleted_is_missed_and_both_ways_out_work(service):
    for head, version in (("patchcore", 1), ("padim", 1), ("patchcore", 2)):
        put(service, head, version)
    client = service.registry.client
    client.delete_model_version("bottles", "3")
    with pytest.raises(ModelError, match="version 3, was deleted") as lost:
        service.champion()
    assert "rollback bottles goes back to version 2" in str(lost.value)
    client.delete_model_version("bottles", "2")
    assert service.rollback()["to"] == "1"
    assert answers(service) == ("1", "patchcore", "1")
    client.delete_model_version("bottles", "1")
    with pytest.raises(ModelError, match="headwater promote bottles HEAD"):
        service.champion()
    with pytest.raises(ModelError, match="still there: 1, 2, 3 deleted"):
        service.rollback()
    # What was done is told all the same, with the figures of then.
    told = service.history()
    assert [(e["to"], e["deleted"], e["now"]) for e in told[:2]] == [
        ("1", True, False), ("3", True, False)
    ]  # fmt: skip
    assert told[1]["metrics"]["image_auroc"] == 0.91
    put(service, "padim", 1)
    assert answers(service)[1:] == ("padim", "1")


def test_an_alias_that_was_set_by_hand_counts_and_is_told(service):
    put(service, "patchcore", 1)
    put(service, "padim", 1)
    service.registry.client.set_registered_model_alias("bottles", "champion", "1")
    assert answers(service)[0] == "1"
    assert service.history()[0]["what"] == "set without a record"


def test_many_at_once_leave_one_champion_and_a_whole_history(service):
    together = threading.Barrier(4)

    def change(n):
        own = InService(Registry(service.registry.home), "bottles")
        together.wait(30)
        for _ in range(2):
            put(own, *(("patchcore", 1), ("patchcore", 2), ("padim", 1), ("patchcore", 1))[n])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(change, range(4)))
    done = service.history()
    assert done[0]["now"]
    assert done[0]["to"] == service.champion()["service_version"]
    # Each event takes up where the one before it ended.
    for newer, older in pairwise(done):
        assert newer["from"] == older["to"]


def test_what_goes_takes_its_copy_along_and_is_missed(service):
    put(service, "padim", 1)
    put(service, "patchcore", 2)
    assert service.held() == {
        ("bottles.padim", "1"): "previous", ("bottles.patchcore", "2"): "champion"
    }  # fmt: skip
    service.forget({"model": "bottles.patchcore", "version": "2"})
    with pytest.raises(ModelError, match="rollback bottles goes back to version 1"):
        service.champion()
    service.drop()
    assert service.champion() is None
    with pytest.raises(MlflowException):
        service.registry.client.get_registered_model("bottles")
