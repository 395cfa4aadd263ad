"""What the terminal shows of work under way."""

import io

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
