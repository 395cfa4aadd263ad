"""Models beside each other: what is equal up to chance, what differs, and where."""

import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from flows.extraction.plan import plan_job, ready
from flows.training.train import train_head
from flows.training.trainings import Request
from flows.use.compare import compare_models, compare_two, ranked_apart
from flows.use.models.standing import over_seeds, unlike, weaker
from heads.judging.resampling import Resamples
from headwater.errors import ConfigError, ModelError
from headwater.prices import Prices
from storage.registry.registry import Registry
from tests.flows.setkit import SmallSet, save


def draw(small, part, number, square=0):
    """Make a grey image; of a defect with a square of that side."""
    pixels = np.random.default_rng(number).integers(90, 130, (48, 48, 3), dtype=np.uint8)
    pixels[20 : 20 + square, 20 : 20 + square] = 160
    save(pixels, small.images / part / f"{number}.png")
    if square:
        mask = np.zeros((48, 48), np.uint8)
        mask[20 : 20 + square, 20 : 20 + square] = 255
        save(mask, small.images / f"ground_truth/x/{number}_mask.png")


def train(small, **head):
    small.heads = {"patchcore": {"nodes": ["layer1"], "ratio": 0.2, **head}}
    settings = ready(small.settings(), small.home, images=False)
    plan = plan_job(settings, small.home, 3)
    return train_head(Request(settings, small.home, plan, small.at).trainings(small.at)[0])


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A set with three models: two that differ by a seed, one tested on an image less."""
    made = SmallSet(tmp_path_factory.mktemp("set"))
    for number in range(12):
        draw(made, "train/good", number)
    for number in range(20, 30):
        draw(made, "test/good", number)
    for number in range(40, 52):
        draw(made, "test/x", number, square=2 + number % 4)
    made.heads = {"patchcore": {"nodes": ["layer1"]}}
    made.at = made.run().version
    train(made, seed=0)
    train(made, seed=1, ratio=0.02)
    (made.images / "test/x/51.png").unlink()
    made.at = made.run().version
    train(made, seed=0)
    return made


def test_models_of_one_test_set_stand_together_and_chance_is_told(small):
    registry = Registry(small.home.root)
    rows = compare_models(registry, "s")
    groups = ranked_apart(rows)
    assert [[r["test"]["images"] for r in g] for g in groups] == [[22, 22], [21]]
    best, other = groups[0]
    assert best["behind"] is None
    gap = other["metrics"]["image_auroc"] - best["metrics"]["image_auroc"]
    assert gap <= 0
    assert other["behind"]["difference"] == pytest.approx(gap)
    assert other["behind"]["level"] == (other["behind"]["p"] >= 0.05)
    assert groups[1][0]["behind"] is None  # of other images: with nobody to be behind of
    for row in rows:
        for name in ("image_auroc", "aupro", "recall", "pixel_auroc"):
            low, high = row["intervals"][name]
            assert low <= row["metrics"][name] <= high
        assert (row["input_size"], row["seed"] in "01") == ("48x48", True)
        assert row["kinds"]["x"]["image_recall"] == row["metrics"]["recall"]
        assert row["kinds"]["x"]["image_auroc"] == pytest.approx(row["metrics"]["image_auroc"])
        # The only kind there is: its pixels are the set's.
        for name in ("aupro", "pixel_ap"):
            assert row["kinds"]["x"][name] == pytest.approx(row["metrics"][name], abs=1e-12)
        assert not row["run_deleted"]
    json.dumps(rows)  # as the command gives them


def test_two_models_differ_by_what_was_changed_and_nothing_else(small):
    registry = Registry(small.home.root)
    found = compare_two(registry, "s", "patchcore@1", "patchcore@2")
    assert found["data"] == {}
    assert found["settings"]["config.ratio"] == ["0.2", "0.02"]
    assert found["settings"]["seed"] == ["0", "1"]
    assert found["settings"].keys() == {"config.ratio", "seed"}
    assert found["same_test"]
    one, other, gap, (low, high) = found["figures"]["image_auroc"]
    assert low <= gap <= high
    assert gap == pytest.approx(other - one)
    tables = [
        json.loads(registry.artifact(row["run_id"], "tables/images.json").read_text())
        for row in found["models"]
    ]
    for table, figure in zip(tables, (one, other), strict=True):
        auroc = roc_auc_score([r["kind"] != "good" for r in table], [r["score"] for r in table])
        assert auroc == pytest.approx(figure)
    verdicts = [{r["path"]: r["verdict"] for r in table} for table in tables]
    changed = {k for k in verdicts[0] if verdicts[0][k] != verdicts[1][k]}
    assert {r["image"] for r in found["changed"]} == changed
    apart = compare_two(registry, "s", "patchcore@1", "patchcore@3")
    assert not apart["same_test"]
    assert apart["data"]["test images"] == ["22", "21"]
    assert apart["data"].keys() == {"test images", "snapshot", "data digest"}
    assert apart["p"] is None
    assert all(values[3] is None for values in apart["figures"].values())


def test_mistakes_have_prices(small):
    registry = Registry(small.home.root)
    rows = ranked_apart(compare_models(registry, "s", Prices(100, 3)))[0]
    for row in rows:
        table = json.loads(registry.artifact(row["run_id"], "tables/images.json").read_text())
        wrong = [r["kind"] != "good" for r in table if not r["correct"]]
        cost = row["cost"]
        assert (cost["misses"], cost["false_alarms"]) == (sum(wrong), len(wrong) - sum(wrong))
        price = 100 * sum(wrong) + 3 * (len(wrong) - sum(wrong))
        assert cost["an_image"] == pytest.approx(price / len(table))
        assert cost["interval"][0] <= cost["an_image"] <= cost["interval"][1]
    assert rows[0]["cost"]["an_image"] <= rows[1]["cost"]["an_image"]
    for text in ("1", "a:b", "0:0", "-1:2", "nan:1", "1:2:3"):
        with pytest.raises(ConfigError, match="prices"):
            Prices.of(text)


def test_a_version_whose_run_was_deleted_is_marked(small, here):
    registry = Registry(small.home.root)
    run_id = registry.get_model("s", "patchcore", 3)["run_id"]
    registry.client.delete_run(run_id)
    try:
        marked = {r["version"]: r["run_deleted"] for r in compare_models(registry, "s")}
        assert marked == {"1": False, "2": False, "3": True}
        assert "(run deleted)" in " ".join(here("compare", "s", "--home", small.home.root).split())
    finally:
        registry.client.restore_run(run_id)


def model(version, auroc, recall, seed="0", head="padim"):
    metrics = {"image_auroc": auroc, "recall": recall}
    return {"head": head, "version": version, "metrics": metrics, "seed": seed}


def test_a_better_auroc_with_a_worse_recall_is_said():
    new, old = model("2", 0.854, 0.2), model("1", 0.77, 0.675)
    (said,) = weaker([new, old], [None, None])
    assert "padim v2 is above padim v1" in said
    assert "image recall 0.200, not 0.675" in said
    assert "false alarms" not in said  # they are not known
    for row, alarms in ((new, 0.01), (old, 0.3)):
        row["metrics"]["false_positive_rate"] = alarms
    assert "(false alarms 0.010, not 0.300)" in weaker([new, old], [None, None])[0]
    assert weaker([new, model("1", 0.77, 0.25)], [None, None]) == []  # may be chance
    assert weaker([model("2", 0.9, 0.8), old], [None, None]) == []
    # With draws of the same test images, chance is told from more.
    spread = np.linspace(-0.3, 0.3, 100)
    draws = [Resamples(0, {"recall": 0.2 + spread}), Resamples(0, {"recall": 0.675 - spread})]
    assert weaker([new, old], draws) == []
    sure = [Resamples(0, {"recall": 0.2 + spread / 9}), Resamples(0, {"recall": 0.3 + spread / 9})]
    assert len(weaker([new, model("1", 0.77, 0.3)], sure)) == 1
    # Said of the best, and of versions of one head.
    first, third = model("5", 0.99, 0.9, head="f2r"), model("4", 0.7, 0.9, head="cs_flow")
    assert weaker([first, new, third], [None] * 3) == []


def test_models_of_unlike_thresholds_or_crops_are_marked(small):
    def row(version, calibrate, crop):
        return {**model(version, 0.9, 0.5), "calibrate": calibrate, "crop": crop}

    alike = [row("1", "folds", "none"), row("2", "folds", "none"), row("3", "", "")]
    assert unlike(alike) == []
    quick, crop = unlike([*alike, row("4", "quick", "none"), row("5", "folds", "224x224")])
    assert "of padim v1, padim v2, padim v5 by out-of-fold scores" in quick
    assert "of padim v4 by a few held-out normals (quick)" in quick
    assert "padim v5 its middle, 224x224" in crop
    rate = {"aim": "a false-positive rate of 0.05"}
    (aims,) = unlike([alike[0] | rate, alike[1] | {"aim": "the least cost at 5:1"}, alike[2]])
    assert "those of padim v2 at the least cost at 5:1" in aims
    (first, *_) = compare_models(Registry(small.home.root), "s")
    assert (first["calibrate"], first["crop"]) == ("folds", "none")
    assert first["aim"] == "a false-positive rate of 0.05"


def test_seeds_are_told_by_mean_and_spread():
    rows = [model("1", 0.8, 0.5), model("2", 0.9, 0.7, "1"), model("3", 0.7, 0.6, "2")]
    rows += [model("4", 0.6, 0.6, "2"), model("5", 0.1, 0.1, "0")]
    facts = [({"seed": r["seed"], "epochs": "3", "config.a": "1"}, {"snapshot": "S"}) for r in rows]
    facts[1][0]["epochs"] = "2"  # stopped early
    facts[4][0]["config.a"] = "2"  # another setting: alone
    (found,) = over_seeds(rows, facts)
    assert (found["head"], found["seeds"]) == ("padim", ["0", "1", "2"])
    assert found["versions"] == ["1", "2", "4"]
    figure = found["figures"]["image_auroc"]
    assert figure["mean"] == pytest.approx(np.mean([0.8, 0.9, 0.6]))
    assert figure["sd"] == pytest.approx(np.std([0.8, 0.9, 0.6], ddof=1))
    assert (figure["low"], figure["high"]) == (0.6, 0.9)


def test_the_command_says_it_and_tells_mistakes(small, here):
    told = here("compare", "s", "--home", small.home.root)
    assert "s: registered models on 22 test images" in told
    assert "s: registered models on 21 test images" in told
    assert " to " in told
    assert "x (12)" in told
    every = json.loads(here("compare", "--home", small.home.root, "--json"))
    assert len(every) == 3
    assert all({"image_recall", "pixel_auroc"} < row["metrics"].keys() for row in every)
    assert not [row for row in every if "recall" in {**row["metrics"], **row["intervals"]}]
    assert "registered models of all sets" in here("compare", "--home", small.home.root)
    assert "prices" in here("compare", "s", "--costs", "1", "--home", small.home.root, status=2)
    two = here("compare", "s", "patchcore@1", "patchcore@2", "--home", small.home.root)
    assert "config.ratio" in two
    assert "with another verdict" in two
    # As other commands call a model; one alone, one of another set, and one for a set are told.
    same = here("compare", "s", "s.patchcore/1", "s.patchcore/2", "--home", small.home.root)
    assert same == two
    for words, culprit, remedy in (
        (("s", "s.patchcore/1"), "compare s s.patchcore/1: 1 model", "headwater lineage s."),
        (("s", "patchcore@1", "t.padim/2"), "'t.padim/2' is of the set t", "headwater compare t"),
        (("s.patchcore/1", "patchcore@2"), "s.patchcore/1 is a model, no set", "compare s patch"),
        (("S",), "no models of image set 'S'", "run S --images"),
    ):
        said = here("compare", *words, "--home", small.home.root, status=2)
        assert culprit in said
        assert remedy in said.partition("remedy: ")[2]
    assert "expected: one of s" in here("compare", "S", "--home", small.home.root, status=2)
    registry = Registry(small.home.root)
    with pytest.raises(ConfigError, match="patchcore@"):
        compare_two(registry, "s", "patchcore@", "patchcore@2")
    with pytest.raises(ModelError, match="no version '9'"):
        compare_two(registry, "s", "patchcore@1", "patchcore@9")
