"""What the terminal shows of work under way."""

import io
import re
import time

from rich.console import Console

import flows.runtime.console as module
from flows.runtime.console import Reporter


def test_another_stage_of_the_same_work_begins_anew_under_its_own_label(monkeypatch):
    monkeypatch.setattr(module, "err", Console(file=io.StringIO(), force_terminal=True, width=120))
    reporter = Reporter()
    with reporter.live():
        for step in range(1, 11):
            reporter.update("f2r", step, 10, f"epoch {step}/10")
        (bar,) = reporter._bars.tasks
        assert bar.finished
        reporter.update("f2r", 1, 10, "picking alpha, beta: 0.7, 1")
        (bar,) = reporter._bars.tasks
        assert (bar.completed, bar.total, bar.finished) == (1, 10, False)
        assert bar.fields["text"].startswith("picking alpha, beta")
        assert not bar.speed  # none yet: that of the training says nothing of this


def test_a_row_is_one_line_in_a_pipe_however_long_its_paths(capsys):
    paths = ["/long" * 80, "/longer" * 80]
    module.out.print(module.table(["current", "history"], [paths]))
    assert any(line.split() == paths for line in capsys.readouterr().out.splitlines())


def test_text_in_a_table_is_no_markup_and_colours_nothing(capsys):
    module.out.print(module.table(["kind"], [["[red]dent[/oops]\x1b[31m"]], "of [bold]"))
    said = capsys.readouterr().out
    assert "of [bold]" in said
    assert "[red]dent[/oops]\\x1b[31m" in said


def test_without_a_terminal_progress_is_a_line_now_and_then(capfd):
    reporter = Reporter(every=0.05)
    with reporter.live() as same:
        assert module.reporter() is same is reporter
        for step in range(1, 9):
            reporter.update("f2r", step, 10, f"epoch {step}")
            time.sleep(0.02)
        reporter.line("a note")
    quiet = module.reporter()
    quiet.update("f2r", 1, 1)
    quiet.line("nothing")
    said = capfd.readouterr().err.splitlines()
    shown = [line for line in said if line.startswith("  f2r: ")]
    assert 1 <= len(shown) < 8
    assert re.fullmatch(r"  f2r:  \d\d %, about \d s left  epoch \d", shown[0])
    assert said[-1] == "a note"


def test_amounts_are_said_for_people():
    assert [module.size(n) for n in (0, 999, 3_249_000, 7e12)] == [
        "0 bytes", "999 bytes", "3.2 MB", "7.0 TB",
    ]  # fmt: skip
    assert [module.counted(n, "map") for n in (1, 2000)] == ["1 map", "2,000 maps"]


def test_no_line_of_a_pipe_ends_in_blanks_and_a_terminal_is_left_alone(capsys):
    rows = [["a", None, "longer"], ["b", 2, "c"], ["d", 3, ""]]
    made = module.table(["name", "number", "what"], rows, "a title that is long enough")
    module.out.print(made)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [line.rstrip() for line in lines]
    assert [line.split() for line in lines[2:]] == [
        ["a", "-", "longer"],
        ["b", "2", "c"],
        ["d", "3"],
    ]
    assert len({line.find("longer") for line in lines} | {line.find("what") for line in lines}) == 2
    shown = module.SafeConsole(file=io.StringIO(), force_terminal=True, width=60)
    shown.print(made)
    assert "c     " in shown.file.getvalue()
