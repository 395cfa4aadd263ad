"""Days in service are in MLflow once each, beside the trainings and not among them."""

from flows.watching.served import Day, Service
from flows.watching.status import SetStatus, Status
from flows.watching.study import LAST, log_days
from storage.registry.registry import Registry


def test_each_day_that_is_over_is_logged_once(home):
    registry = Registry(home.root)
    trained = registry.leaderboard("s")
    days = [Day(f"2026-11-{n}", 20, n - 25, 0.5, (0.1, 0.2, 0.3, 0.4, 0.5)) for n in (28, 27, 26)]

    def log(when):
        one = SetStatus("s", service=Service(0.05, 60, 6, days=days))
        return log_days(home, Status("", when, [one, SetStatus("never asked")], []))

    assert log("2026-11-28T09:00:00+00:00") == {"s": 2}
    assert log("2026-11-28T10:00:00+00:00") == {"s": 0}
    assert log("2026-11-29T10:00:00+00:00") == {"s": 1}
    run = registry.watched("s")
    history = registry.client.get_metric_history(run.run_id, "flagged_share")
    assert [m.value for m in sorted(history, key=lambda m: m.step)] == [0.05, 0.1, 0.15]
    steps = sorted(m.step for m in history)
    assert steps == list(range(steps[0], steps[0] + 3))
    assert registry.find_run(run.run_id).data.tags[LAST] == "2026-11-28"
    assert registry.find_run(run.run_id).data.metrics["score_q05"] == 0.1
    # Trainings, studies and sets are what they were.
    assert registry.leaderboard("s") == trained
    assert registry.studies("s") == []
    assert list(registry.experiments()) == ["s"]
