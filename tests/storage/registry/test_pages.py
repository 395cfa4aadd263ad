"""What MLflow's pages say: descriptions that are right, in time, short enough, and the user's."""

import json
import re

import pytest

from storage.registry.describe import MODEL_LIMIT, NOTE, plain, training
from storage.registry.pages import show_sets
from storage.registry.read import COMMANDS
from tests.storage.registry.conftest import TAGS, train


@pytest.fixture
def two(registry, saved, tmp_path):
    """Two trainings of one command; the second is the better one, and has a picture."""
    picture = tmp_path / "heat-maps.png"
    picture.write_bytes(b"png")
    images = [{"split": "train", "kind": "good"}] * 3 + [{"split": "test", "kind": "crack"}]
    with registry.parent("bottles", "SNAP1") as command:
        train(registry, saved("a"), "padim", "k1", auroc=0.7, parent_run=command, images=images)
        with registry.start(
            "bottles", "f2r", "k2",
            params={"backbone": "resnet18", "held_out_images": 2},
            tags=TAGS, images=images, parent_run=command, summary="Finds <b>things</b>.",
        ) as run:  # fmt: skip
            run.finish({"image_auroc": 0.91234, "recall": 0.5}, seconds=1.0)
            run.tell(["2 held-out | few"], threshold="1.5")
            run.log_file(picture, "figures")
            run.register(saved("b"))
    return registry, command, run


def test_descriptions_tell_the_figures_and_link(two):
    registry, command, run = two
    client = registry.client
    place = client.get_experiment_by_name("bottles").experiment_id
    version = client.get_model_version("bottles.f2r", "1")
    picture = f"](get-artifact?path=figures%2Fheat-maps.png&run_uuid={run.run_id})"
    page = f"#/experiments/{place}/runs/{run.run_id}"
    of_set = client.get_experiment(place).tags[NOTE]
    of_run = client.get_run(run.run_id).data.tags
    of_model = client.get_registered_model("bottles.f2r").description
    assert version.description.startswith("image AUROC 0.9123 · recall 0.5000")
    assert of_set.startswith("f2r v1 leads the newest of 2 heads: image AUROC 0.9123")
    assert "4 images at snapshot `SNAP1`: test/crack: 1, train/good: 3" in of_set
    assert of_set.index("#/models/bottles.f2r/versions/1") < of_set.index(
        "bottles.padim/versions/1"
    )
    assert "0.7000" in of_set
    for text in (version.description, of_run[NOTE]):
        assert picture in text
        assert "2 held-out &#124; few" in text
        assert "| threshold&emsp; | 1.5&emsp; |" in text
    assert picture in of_set
    assert of_run["headwater.notes"] == version.tags["notes"] == "2 held-out | few"
    assert f"({page}?" in version.description
    assert "(#/models/bottles.f2r/versions/1?" in of_run[NOTE]
    assert "challenger" in of_model
    assert "<b>" not in of_model
    every = re.findall(r"\]\(([^)]*)", of_set + of_model + of_run[NOTE])
    assert every
    assert all(to.startswith(("#/", "get-artifact?")) for to in every), "right at any address"
    # the command has a place of its own, and lists what it trained
    row = client.get_run(command)
    assert client.get_experiment(row.info.experiment_id).name == COMMANDS
    assert row.data.tags[NOTE].count(f"#/experiments/{place}/runs/") == 2
    found = client.search_runs([place])
    assert {r.info.run_name for r in found} == {"f2r resnet18 SNAP1", "padim resnet18 SNAP1"}
    assert set(registry.experiments()) == {"bottles"}


def test_what_a_user_wrote_stays_and_what_changed_is_told(two):
    registry, _, _ = two
    client = registry.client
    place = client.get_experiment_by_name("bottles").experiment_id
    before = client.get_experiment(place).tags[NOTE]
    client.set_experiment_tag(place, NOTE, before + "\n\nAda's line.")
    client.update_registered_model("bottles.padim", "Only Ada's words.")
    client.set_registered_model_alias("bottles.f2r", "champion", "1")
    show_sets(registry)
    text = client.get_experiment(place).tags[NOTE]
    assert "challenger, champion" in text or "champion, challenger" in text
    assert text.endswith("Ada's line.")
    model = client.get_registered_model("bottles.padim").description
    assert "0.7000" in model
    assert model.endswith("Only Ada's words.")
    show_sets(registry)
    assert client.get_experiment(place).tags[NOTE] == text


def test_saved_views_are_what_mlflow_reads(two):
    registry, _, _ = two
    place = registry.experiments()["bottles"]
    view = json.loads(
        registry.client.get_experiment(place).tags["mlflow.sharedViewState.headwater-figures"]
    )
    assert isinstance(view["name"], str)
    assert isinstance(view["createdAt"], int)
    page = json.loads(view["state"])
    assert {"metrics.`image_auroc`", "attributes.`Models`"} <= set(page["selectedColumns"])


def test_a_long_description_loses_notes_and_says_so():
    text = training(
        metrics={"aupro": 0.5}, facts={"layers": "a"}, notes=["n" * 900] * 20,
        pictures=["figures/heat-maps.png"], run_id="r", links={"the set": "#/x"}, limit=MODEL_LIMIT,
    )  # fmt: skip
    assert len(text) <= MODEL_LIMIT
    assert "there is more" in text
    assert "heat-maps" in text
    assert "| layers&emsp; |" in text
    assert plain("[x](javascript:y)\n<i>") == "&#91;x&#93;(javascript:y) &#60;i&#62;"
