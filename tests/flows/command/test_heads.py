"""`headwater heads`: complete, and readable in 80 columns."""

import dataclasses
import json
import sys

import pytest

from flows.command.heads import WIDTH, describe_heads, lines
from flows.command.main import main
from heads.catalogue import all_heads
from heads.contract import Head, HeadConfig, register
from headwater.errors import ConfigError


def test_every_head_says_what_it_is_reads_and_holds() -> None:
    rows = {row["head"]: row for row in describe_heads()}
    assert set(rows) == set(all_heads())
    for name, row in rows.items():
        cls = all_heads()[name]
        assert row["summary"], name
        assert row["paper"], name
        assert row["reads"], name
        assert row["reference"]["shapes"], name
        assert "small" in row["presets"], name
        assert set(row["settings"]) == {f.name for f in dataclasses.fields(cls.Config)}
        # the optimizer's settings speak for themselves
        plain = {"epochs", "batch_size", "lr", "betas", "eps", "weight_decay", "clip_norm"}
        plain |= {"heads", "mlp", "embedding", "dropout"}
        assert set(row["settings"]) - set(row["about"]) <= plain, name
        json.dumps(row)
    assert rows["cs_flow"]["parameters"] == 275_227_288
    assert rows["patchcore"]["parameters"] == 0
    assert rows["f2r"]["about"]["select"].startswith("``fixed`` takes 1")


def test_no_line_is_longer_than_a_terminal(monkeypatch, capsys) -> None:
    rows = describe_heads()
    assert max(map(len, lines(rows))) <= WIDTH == 80
    text = " ".join(" ".join(lines(rows)).split())
    for row in rows:
        assert row["head"] in text
        for key in row["settings"]:
            assert f"{key}=" in text
    monkeypatch.setattr(sys, "argv", ["headwater", "heads", "--json"])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(rows))


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ConfigError, match="another name"):
        register(type("Other", (Head,), {"name": "patchcore", "Config": HeadConfig}))
    with pytest.raises(ConfigError, match="head name"):
        register(type("Odd", (Head,), {"name": "a/b", "Config": HeadConfig}))
