"""A card tells what was recorded of a model in service, and what was not."""

import json
import re

import pytest

import headwater
from flows.retraining.locked import locked_images
from flows.use.models.card import CARD, card_of, keep_card
from headwater.errors import ModelError
from storage.registry.registry import Registry
from storage.registry.service.in_service import InService
from tests.flows.commandkit import run_here


@pytest.fixture
def card(home):
    """The card of the set, as rows: ``{first cell: the other cells}``, and its text."""
    text = card_of(home, "s", locked_images(home, "s"))
    cells = [re.split(r"&emsp; ?\| ?|\| ", line)[1:-1] for line in text.splitlines() if "|" in line]
    return {row[0].replace("&emsp;", "").strip(): row[1:] for row in cells if row}, text


def test_it_tells_what_was_recorded(home, card):
    rows, text = card
    registry = Registry(home.root)
    row = InService(registry, "s").champion()
    run = registry.find_run(row["run_id"])
    assert text.startswith("# s: s.patchcore version 1\n")
    assert rows["images, by what they were to it"][0].strip() == "7 test, 14 train"
    assert rows["snapshot"][0].strip() == row["snapshot"]
    assert rows["digest of images and labels"][0].strip() == run.data.tags["data_digest"]
    assert rows["weights, SHA-256"][0].strip() == row["weights"]
    assert rows["licence of the weights"][0].strip() == "not recorded"
    assert rows["seed"][0].strip() == "0"
    promised = run.data.metrics["promised_false_positive_rate"]
    assert rows["false-positive rate promised"][0].strip() == f"{promised:.2%}"
    threshold = rows["threshold"][0].replace("&#95;", "_").strip()
    assert float(threshold) == run.data.metrics["threshold"]
    # Exact intervals, by hand: all of 3 found is (0.05 / 2) ** (1 / 3) to 1.
    assert [cell.strip() for cell in rows["found, of x"]] == ["3 of 3", "29.2% to 100.0%"]
    assert rows["false alarms, of normals"][0].strip().endswith("of 4")
    assert "- the first model: not asked" in text
    assert "Only 3 of the kind x judge it" in text
    assert "It has learnt from 14 normals" in text
    assert row["run_id"] in text


def test_a_promotion_keeps_it_and_the_command_prints_it(home, monkeypatch, capsys, tmp_path):
    registry = Registry(home.root)
    row = InService(registry, "s").champion()
    kept = registry.artifact(row["run_id"], CARD).read_text()
    assert kept == card_of(home, "s", locked_images(home, "s"))

    def here(*words, status=0):
        return run_here(monkeypatch, capsys, *words, "--home", home.root, status=status)

    assert here("card", "s").strip() == kept.strip()
    here("card", "s", "--out", tmp_path / "made" / "card.md")
    assert (tmp_path / "made" / "card.md").read_text() == kept + "\n"
    assert "nothing is in service for t" in here("card", "t", status=2)
    # By hand, over another one: the card says by whom, and that no gate was asked.
    client = registry.client
    client.delete_registered_model("s")
    here("promote", "s", "patchcore", "--by", "Ada|<b>", "--why", "it [looks](x) better")
    text = here("card", "s")
    assert "Ada&#124;&#60;b&#62;" in text
    assert "it &#91;looks&#93;(x) better" in text
    assert "none are recorded; it was put there by hand" in text


def test_changes_by_hand_tell_the_hooks(home, monkeypatch, capsys, tmp_path):
    said = tmp_path / "said"
    command = ["sh", "-c", f'(echo "$HOOK_EVENT"; cat; echo) >> {said}']
    monkeypatch.setenv("HEADWATER_HOOKS__COMMAND", json.dumps(command))
    registry = Registry(home.root)
    service = InService(registry, "s")
    row = service.champion()
    second = service._copy(row, "1", "", "")
    registry.client.set_registered_model_alias("s", "champion", str(second.version))
    run_here(monkeypatch, capsys, "rollback", "s", "--by", "Ada", "--home", home.root)
    events = said.read_text().split("\n")[:-1]
    told = json.loads(events[1])
    assert (events[0], told["from"], told["to"], told["who"]) == ("rollback", "2", "1", "Ada")
    # In Python, and a hook that fails: it is said, and the change is made.
    registry.client.delete_registered_model("s")
    monkeypatch.setenv("HEADWATER_HOOKS__COMMAND", "/no/such/command")
    opened = headwater.open(home.root).service("s")
    assert opened.promote("patchcore", by="Ada")["changed"]
    assert "hook command was not told of promoted" in capsys.readouterr().err
    assert opened.card().startswith("# s: s.patchcore version 1")
    assert not opened.promote("patchcore")["changed"]
    assert capsys.readouterr().err == "", "nothing was changed: nobody is told"


def test_what_is_missing_is_said_to_be(home):
    registry = Registry(home.root)
    row = InService(registry, "s").champion()
    text = card_of(home, "s", None)
    assert "No locked test is known: not recorded." in text
    assert "No known defect judges it" in text
    # Images that were locked after its training.
    locked = dict(locked_images(home, "s")) | {"f" * 64: "y"}
    assert "Figures of 7 of 8 locked images" in card_of(home, "s", locked)
    registry.client.delete_run(row["run_id"])
    assert "patchcore version 1" in card_of(home, "s", locked)


def test_a_card_that_cannot_be_made_is_told(home):
    lines = []
    InService(Registry(home.root), "s").drop()
    with pytest.raises(ModelError, match="nothing is in service"):
        card_of(home, "s")
    keep_card(home, "s", None, lines.append)
    assert lines == [], "nothing is in service: nothing to keep"
