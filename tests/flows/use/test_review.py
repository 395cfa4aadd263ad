"""Normals that do not look normal are found, settled by people, and trained on accordingly."""

import getpass
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows.extraction.plan import plan_job, ready
from flows.training.data import TrainingData
from flows.training.train import train_head
from flows.training.trainings import Request
from flows.use.forecast import forecast
from flows.use.review import odd_normals, settle
from headwater.errors import DataError, ModelError
from tests.flows.setkit import QUIET, SmallSet

SOILED = "train/good/77.png"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A set with one soiled image among 15 normals, and a model that has learnt from it."""
    made = SmallSet(tmp_path_factory.mktemp("set"))
    for part, numbers in (("train/good", range(14)), ("test/good", (20, 21)), ("test/x", (30,))):
        for number in numbers:
            made.draw(number, part)
    Image.fromarray(np.full((48, 48, 3), [255, 40, 0], np.uint8)).save(made.draw(77))
    made.at = made.run().version
    with pytest.raises(ModelError, match="no models of image set 's'"):
        odd_normals(made.home, "s")
    train_head(training_of(made))
    return made


def training_of(small):
    settings = ready(small.settings(), small.home, images=False)
    plan = plan_job(settings, small.home, 3)
    return Request(settings, small.home, plan, small.at).trainings(small.at)[0]


def test_a_soiled_normal_is_found_first_rejected_and_learnt_no_more(small, here):
    rows, (sheet,) = odd_normals(small.home, "s")
    assert rows[0]["path"] == SOILED
    assert rows[0]["stands_out"]
    assert rows[0]["p_value"] == pytest.approx(1 / 15)
    assert [r["p_value"] for r in rows] == sorted(r["p_value"] for r in rows)
    with Image.open(sheet) as drawn:
        assert drawn.width > 300
    before = TrainingData(training_of(small)).key()

    told = here("review", "s", "--home", small.home.root, "--reject", "77.png", "--by", "Ada")
    assert SOILED in told
    assert "rejected Ada 20" in " ".join(told.split())
    data = TrainingData(training_of(small))
    assert data.key() != before
    assert SOILED not in {s.key for s in data.learnt}
    assert len(data.normals()) == 14
    ahead = forecast(
        ready(small.settings(), small.home), small.home,
        plan_job(ready(small.settings(), small.home), small.home, 3), QUIET,
    )  # fmt: skip
    assert not ahead.trainings[0].model  # the training that is to come is another one
    outcome = train_head(training_of(small))
    assert "1 normal(s) that were rejected are left out" in outcome.notes
    # It is no normal any more, and still there to be taken back.
    rows, _ = odd_normals(small.home, "s")
    assert not any(r["stands_out"] for r in rows)
    assert (rows[-1]["path"], rows[-1]["said"], rows[-1]["who"]) == (SOILED, "rejected", "Ada")
    told = json.loads(here("review", "s", "--home", small.home.root, "--json"))
    assert len(told["normals"]) == 15

    # Accepted, it counts for the threshold however odd it is.
    settle(small.home, "s", rows, accept=[rows[-1]["sha256"][:12]])
    assert small.home.reviews("s")[rows[-1]["sha256"]]["who"] == getpass.getuser()
    outcome = train_head(training_of(small))
    assert not any("far above" in note for note in outcome.notes)
    assert not any("rejected" in note for note in outcome.notes)


def test_a_name_that_says_nothing_clear_is_refused(small):
    rows, _ = odd_normals(small.home, "s")
    for names, said in ((["nowhere.png"], "0 of the normals"), (["7.png", "7.png"], None)):
        if said:
            with pytest.raises(DataError, match=said):
                settle(small.home, "s", rows, reject=names)
    with pytest.raises(DataError, match="accepted and rejected"):
        settle(small.home, "s", rows, accept=["3.png"], reject=["good/3.png"])
    twice = [*rows, {**rows[0], "path": str(Path("other") / rows[0]["path"]), "sha256": "f" * 64}]
    with pytest.raises(DataError, match="2 of the normals"):
        settle(small.home, "s", twice, reject=[Path(rows[0]["path"]).name])
