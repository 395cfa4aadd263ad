"""Retraining takes in what is normal, holds what is odd, and never loses its champion."""

import json
from pathlib import Path

import pytest

from flows.extraction.samples import HELD
from flows.retraining import run as running
from flows.retraining.locked import locked_test
from headwater.errors import ConfigError, ModelError
from storage.registry.registry import Registry
from tests.flows.retraining.kit import Retrained


@pytest.fixture
def lines(tmp_path, resnet_weights, monkeypatch):
    """A set of 14 normals, and 4 good and 3 bad to test; trainings run in this process."""
    made = Retrained(tmp_path, resnet_weights).fill()
    monkeypatch.setattr(running, "on_prefect", made.flow)
    return made


def test_from_the_first_model_to_the_next_and_back(lines):
    first = lines.retrain()
    assert (first.what, first.status) == ("promoted", 0)
    assert first.champion == "s.patchcore version 1"
    assert locked_test(lines.home, "s").kinds == {"good": 4, "x": 3}
    # Nothing new: nothing is done.
    assert lines.retrain().what == "nothing new"
    assert len(lines.trained) == 1
    assert len(lines.service.history()) == 1
    # One odd image among new ones waits, and the others train.
    for number in range(40, 44):
        lines.draw(number)
    lines.spoil(77)
    second = lines.retrain()
    assert [Path(path).name for path in second.guarded.waiting] == ["77.png"]
    assert second.status == 3
    (said,) = lines.home.reviews("s").values()
    assert "calls it anomalous, p-value 0.0667" in said["why"]
    assert second.champion == "s.patchcore version 2"
    assert [c.passed for c in second.judged[0].checks] == [True] * 3
    registry = Registry(lines.home.root)
    samples = registry.artifact_json(lines.service.champion()["run_id"], "tables/samples.json")
    roles = {Path(row["path"]).name: (row["role"], row["why"]) for row in samples}
    assert roles["77.png"] == ("left out", HELD)
    assert roles["43.png"][0] == "train"
    # It still waits, and is no reason to train again.
    third = lines.retrain()
    assert (third.what, third.guarded.new, third.status) == ("nothing new", 0, 3)
    assert len(lines.trained) == 2
    # What people took out of service is not put there again.
    lines.service.rollback()
    assert lines.retrain().champion == "s.patchcore version 1"
    assert [e["what"] for e in lines.service.history()] == ["rollback", "promote", "promote"]


def test_a_challenger_that_is_worse_stays_out(lines, monkeypatch, here):
    lines.retrain()
    lines.draw(50)
    monkeypatch.setattr("flows.retraining.judging.Bench.answers", worse)
    kept = lines.retrain()
    assert (kept.what, kept.champion) == ("kept", "s.patchcore version 1")
    assert "recall of x: failed: 0 of 3 found against 3" in kept.why
    (event, _) = lines.service.history()
    assert (event["what"], event["to"], event["now"]) == ("keep", "1", True)
    assert "recall of x: failed" in event["why"]
    assert "keep" in here("history", "s", "--home", lines.home.root)
    # It was judged: once more it is not.
    assert lines.retrain().what == "nothing new"


def worse(self, row):
    """Answers as of a champion that finds all, and a challenger that finds nothing."""
    from flows.retraining.gate import Answer

    blind = int(row["version"]) > 1
    return {
        sha: Answer(kind, float(kind != "good"), kind != "good" and not blind)
        for sha, kind in self.locked.images.items()
    }


def test_a_batch_of_another_product_waits_whole_and_nothing_trains(lines):
    lines.retrain()
    for number in range(60, 68):
        lines.spoil(number)
    held = lines.retrain()
    assert (held.what, len(held.guarded.waiting), held.status) == ("held", 8, 3)
    assert "8 of 8 are called anomalous" in held.guarded.batch
    assert len(lines.trained) == 1
    assert held.champion == "s.patchcore version 1"
    assert {r["said"] for r in lines.home.reviews("s").values()} == {HELD}
    assert lines.retrain().what == "nothing new"


@pytest.mark.slow
def test_held_images_are_shown_first_and_train_once_accepted(lines, here):
    lines.retrain()
    for number in range(40, 44):
        lines.draw(number)
    lines.spoil(77)
    lines.retrain()
    place = ("--home", lines.home.root)
    rows = json.loads(here("review", "s", *place, "--json"))["normals"]
    assert (rows[0]["said"], Path(rows[0]["path"]).name) == ("held", "77.png")
    assert "calls it anomalous" in rows[0]["why"]
    here("review", "s", *place, "--accept", "77.png", "--by", "Ada")
    found = lines.retrain()
    assert found.judged
    assert len(lines.trained) == 3


def test_a_lost_champion_is_not_replaced_without_a_word(lines):
    lines.retrain()
    client = Registry(lines.home.root).client
    client.delete_model_version("s", "1")
    lines.draw(41)
    with pytest.raises(ModelError, match="headwater promote s HEAD"):
        lines.retrain()


@pytest.mark.slow
def test_a_renewed_lock_judges_anew_with_images_no_run_has_seen(lines, here):
    lines.retrain()
    lines.draw(50)
    lines.retrain()
    assert lines.retrain().what == "nothing new"
    lines.service.rollback()
    lines.draw(25, "test/good")
    lines.run(seed=None)
    told = here("lock", "s", "--home", lines.home.root, "--by", "Ada")
    assert "locked 8 test images: 5 good, 3 x; 1 new, 0 gone since" in told
    anew = lines.retrain()
    # Version 2 knows nothing of the new image: it is asked, as is the champion.
    assert anew.judged
    assert locked_test(lines.home, "s").who == "Ada"


@pytest.mark.slow
def test_python_and_the_command_ask_for_the_same(lines, monkeypatch, capsys):
    import headwater
    from tests.flows.commandkit import run_here

    lines.retrain()
    home = headwater.open(lines.home.root, quiet=True)
    found = home.service("s").retrain(auroc_margin=0.5, size=48)
    assert (found.what, found.champion) == ("nothing new", "s.patchcore version 1")
    with pytest.raises(ConfigError, match="auroc_margins"):
        home.service("s").retrain(auroc_margins=0.5)
    place = ("--home", lines.home.root)
    told = run_here(monkeypatch, capsys, "retrain", "s", *place)
    assert told.splitlines()[-1].endswith("; s.patchcore version 1 is in service")
    found = json.loads(run_here(monkeypatch, capsys, "retrain", "s", *place, "--json"))
    assert (found["what"], found["status"]) == ("nothing new", 0)
