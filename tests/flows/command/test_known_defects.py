"""Known and made defects as a user meets them: run, compare, lineage, made."""

import json
import shutil

import pytest

from flows.use.models.standing import best_known
from tests.flows.commandkit import run_command

RUN = ("--weights", "resnet18.safetensors", "--backbone", "resnet18", "--size", 64)
TRAIN = ("--preset", "small", "--precision", "float32")


@pytest.fixture(scope="module")
def chosen(tiles):
    """A set with six known defects beside it, run with a wish for recall; and what was said."""
    for kind, count in (("patch", 4), ("scratch", 2)):
        place = tiles / "known" / kind
        place.mkdir(parents=True)
        for path in sorted((tiles / "made/test" / kind).iterdir())[:count]:
            shutil.copy(path, place)
    said = run_command(
        tiles, "run", "tiles", "--images", "images", "--validation", "known", *RUN, *TRAIN,
        "--heads", "patchcore,padim", "--set", "patchcore.score=validation",
        "--target-recall", 0.8, "--calibrate", "quick",
    )  # fmt: skip
    return tiles, "".join(said)


@pytest.mark.slow
def test_a_run_that_known_defects_choose_for_says_so_wherever_one_looks(chosen, here):
    tiles, said = chosen
    flat = " ".join(said.split())
    assert "26 images (12 normal for training, 6 known defects)" in flat
    assert "val AUROC" in flat
    assert "chosen by 6 known defects, to find 80.0% of them: it finds 5" in flat
    assert "6 known defects can promise 85.7% at best" not in flat  # .8 is less than that
    home = ("--home", tiles / "home")
    told = " ".join(here("lineage", "tiles.patchcore", *home).split())
    assert "4 patch, 2 scratch" in told
    assert "chose score:" in told
    assert "the threshold by recall 0.8" in told
    found = json.loads(here("lineage", "tiles.padim", *home, "--images", "--json"))
    assert found["validation"]["chose"].keys() == {"threshold"}
    assert found["settings"]["target_recall"] == "0.8"
    roles = {s["path"].split("/")[-2]: s["role"] for s in found["samples"]}
    assert roles == {"good": "test", "blob": "test", "patch": "validation",
                     "scratch": "validation"} | {"good": roles["good"]}  # fmt: skip
    known = next((tiles / "known/patch").iterdir())
    assert "known defects" in here("lineage", "tiles.padim", *home, "--has", known)
    rows = json.loads(here("compare", "tiles", *home, "--json"))
    assert not [s for row in rows for s in row["says"] if "defects best" in s]  # one is left
    assert all(row["metrics"]["val_images"] == 6 for row in rows)
    assert all(row["test"]["images"] == 8 for row in rows)


def test_known_defects_rank_the_models_whose_rule_they_did_not_choose():
    def row(head, auroc):
        return {"head": head, "version": 1, "metrics": {"val_image_auroc": auroc, "val_images": 6}}

    rows = [row("patchcore", 1.0), row("padim", 0.9), row("fast_flow", 0.8)]
    params = [{"validation_digest": "d", "score_chosen": "max"}, *[{"validation_digest": "d"}] * 2]
    (said,) = best_known(rows, [(p, {}) for p in params])
    assert "of 2 models padim v1 ranks the 6 known defects best" in said
    assert "0.900" in said
    other = [params[0], params[1], {"validation_digest": "e"}]
    assert best_known(rows, [(p, {}) for p in other]) == []  # by other defects


@pytest.mark.slow
def test_a_model_has_one_threshold(chosen, here):
    tiles, _ = chosen
    both = ("--target-recall", 0.8, "--costs", "5:1", "--home", tiles / "home")
    said = here("train", "tiles", *TRAIN, "--heads", "padim", *both, status=2)
    assert "one of them: a model has one threshold" in said
    assert 'in quotes, as "100:1"' in here("train", "tiles", "--costs", "many", status=2)


@pytest.mark.slow
def test_made_defects_are_counted_and_written(chosen, here):
    tiles, _ = chosen
    home = ("--home", tiles / "home")
    made = ("made", "tiles.padim/1", *home, "--count", 6, "--seed", 3)
    found = json.loads(here(*made, "--out", tiles / "pictures", "--json"))
    assert found["made"] == 6
    assert found["found"] == sum(kind["found"] for kind in found["kinds"].values())
    names = sorted(p.name for p in (tiles / "pictures").iterdir())
    assert len(names) == 12
    assert sum("found" in name and "mask" not in name for name in names) == found["found"]
    assert found == json.loads(here(*made, "--json"))
    assert "6 pictures without them" in " ".join(here(*made).split())
