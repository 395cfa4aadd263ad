"""What people say of pictures in service, and what comes of it: never a defect that trains."""

import hashlib
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from flows.extraction.samples import HELD
from flows.retraining import run as running
from flows.retraining.locked import locked_test
from flows.runtime.home import Home
from flows.runtime.sections import KeepSettings
from flows.serving.feedback import Feedback
from flows.serving.intake import place_of
from flows.serving.kept import Kept, New
from flows.serving.realised import realised
from headwater.errors import DataError, ImageError
from tests.flows.retraining.kit import Retrained
from tests.flows.serving.kit import SET, home_in, serving


def picture(number, kind="PNG"):
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 255, (48, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def new(content, gap=1.0, version="2"):
    return New(
        hashlib.sha256(content).hexdigest(), "../../\x1b[31mx.png", 2.0 + gap, 0.1, 2.0, gap,
        "anomalous" if gap > 0 else "normal", (), "tiles.patchcore", "1", version, 0.01, content,
    )  # fmt: skip


class Line:
    """A set in folders, and what its model said of pictures."""

    def __init__(self, root, image_set="bolts", **rule):
        self.images, self.home = root / "images", Home.at(root / "home")
        (self.images / "train/good").mkdir(parents=True)
        (self.images / "test/dent").mkdir(parents=True)
        for number in range(3):
            (self.images / f"train/good/{number}.png").write_bytes(picture(number))
        self.home.write_card(image_set, {"images": str(self.images), "root": str(self.images)})
        rule = KeepSettings(**{"pictures": "all", **rule})
        self.kept = Kept(self.home, image_set, rule)
        self.desk = Feedback(self.home, image_set, self.kept)

    def served(self, content, gap=1.0):
        """Have the model say something of a picture; return its digest."""
        self.kept.add([new(content, gap)])
        return hashlib.sha256(content).hexdigest()

    @property
    def files(self):
        """What is there beside the first images."""
        every = (p.relative_to(self.images).as_posix() for p in self.images.rglob("*.*"))
        return {p for p in every if p not in {f"train/good/{n}.png" for n in range(3)}}


@pytest.fixture
def line(tmp_path):
    return Line(tmp_path)


def test_a_false_alarm_waits_among_the_normals_and_is_taken_back(line):
    sha = line.served(picture(9))
    done = line.desk.say(sha[:8], "ok", by="ann")
    assert (done.put, done.waits, done.notes) == (f"train/good/{sha}.png", True, [])
    assert (line.images / done.put).read_bytes() == picture(9)
    (said,) = line.home.reviews("bolts").values()
    assert (said["said"], said["path"]) == (HELD, done.put)
    assert said["why"].endswith("calls it anomalous in service, ann says it is ok")
    # Twice is once.
    assert line.desk.say(sha, "ok", by="ann").put == done.put
    assert line.files == {done.put}
    done = line.desk.say("1", take_back=True)
    assert (done.put, done.answers[0].answer, done.notes) == ("", "", [])
    assert line.files == set()
    assert line.home.reviews("bolts") == {}


def test_what_was_passed_and_is_ok_teaches_nothing(line):
    done = line.desk.say(line.served(picture(9), gap=-0.5), "ok")
    assert (done.put, done.answers[0].answer) == ("", "ok")
    assert line.files == set()


@pytest.mark.parametrize(("share", "split"), [(0, "val"), (1, "test")])
@pytest.mark.parametrize("gap", [1.0, -0.5])
def test_a_defect_chooses_or_tests_and_never_trains(tmp_path, share, split, gap):
    line = Line(tmp_path, test_share=share)
    sha = line.served(picture(9, "BMP"), gap)
    assert line.desk.say(sha, "defect:dent").put == f"{split}/dent/{sha}.bmp"
    assert line.desk.say(sha, "defect").put == f"{split}/defective/{sha}.bmp"
    assert line.desk.say(sha, "unsure").put == ""
    assert line.files == set()
    assert line.home.reviews("bolts") == {}


def test_another_answer_takes_back_what_came_of_the_first(line):
    sha = line.served(picture(9))
    line.desk.say(sha, "ok")
    done = line.desk.say(sha, "defect:dent")
    assert line.files == {done.put}
    assert done.put.split("/")[0] in ("val", "test")
    assert line.home.reviews("bolts") == {}, "a defect waits for no review"
    assert line.desk.say(sha, "ok").waits


def test_a_picture_that_was_not_kept_needs_its_file(tmp_path):
    line = Line(tmp_path, pictures="none", share=0)
    sha = line.served(picture(9))
    done = line.desk.say(sha, "defect:dent")
    assert (done.put, done.answers[0].answer) == ("", "defect:dent")
    assert "was not kept; headwater feedback bolts FILE defect:dent" in done.notes[0]
    assert line.desk.say("", "defect:dent", content=picture(9)).put.endswith(f"/dent/{sha}.png")


def test_what_is_there_already_is_not_put_there_and_not_taken_out(line):
    content = picture(9)
    (line.images / "test/dent/mine.png").write_bytes(content)
    sha = line.served(content)
    done = line.desk.say(sha, "defect:dent")
    assert (done.put, done.notes) == (
        "", ["it is among the set's images already: test/dent/mine.png"],
    )  # fmt: skip
    # As the contrary of what is said.
    done = line.desk.say(sha, "ok")
    assert (done.put, done.answers[0].answer) == ("", "ok")
    assert "test/dent/mine.png has the same bytes, and counts as dent" in done.notes[0]
    done = line.desk.say(line.served(picture(1)), "defect")
    assert "headwater remove bolts" in done.notes[0]
    line.desk.say(sha, take_back=True)
    assert line.files == {"test/dent/mine.png"}


@pytest.mark.parametrize(
    "answer",
    ["defect:", "defect:..", "defect:../../etc", "defect:a/b", "defect:.hidden", "defect:a\nb",
     "defect:\x1b[31m", "defect:" + "x" * 99, "defect:good", "defect:OK", "defect:ground_truth",
     "defect:@eaDir", "fine", "OK"],
)  # fmt: skip
def test_what_is_no_answer_is_refused_and_nothing_is_written(line, answer):
    sha = line.served(picture(9))
    with pytest.raises(DataError):
        line.desk.say(sha, answer)
    assert line.kept.find(sha)[0].answer == ""
    assert line.files == set()


def test_what_the_model_was_never_asked_about_is_refused(line):
    with pytest.raises(DataError, match=r"(?s)was not asked.*predict bolts IMAGE --keep"):
        line.desk.say("", "ok", content=picture(77))
    sha = line.served(picture(9))
    with pytest.raises(DataError, match="nobody has said anything"):
        line.desk.say(sha, take_back=True)


def test_a_set_that_is_laid_out_otherwise_keeps_the_answer_and_says_what_to_do(line, tmp_path):
    flat = tmp_path / "flat"
    shutil.copytree(line.images / "train/good", flat)
    sha = line.served(picture(9))
    for card, said in (
        ({"images": str(flat)}, "is laid out as normal"),
        ({"normal": str(flat)}, "given as plain folders"),
        ({"pairs": str(flat)}, "a set of pairs"),
    ):
        line.home.write_card("bolts", card)
        done = line.desk.say(sha, "ok")
        assert said in done.notes[0]
        assert "put the picture where it belongs yourself" in done.notes[0]
        assert done.answers[0].answer == "ok"
    assert len(list(flat.iterdir())) == 3


def test_taking_in_what_is_no_image(line):
    for content in (b"", b"MZ" + b"\0" * 99, picture(1)[:-30], b"#!/bin/sh\n"):
        with pytest.raises(ImageError):
            place_of(line.home, "bolts", content, "train")
    for split, kind in (("train", "dent"), ("val", "good")):
        with pytest.raises(DataError):
            place_of(line.home, "bolts", picture(9), split, kind)
    assert line.files == set()
    # A link that leads elsewhere is the owner's; a duplicate is the first one's.
    assert (
        place_of(line.home, "bolts", picture(2), "train").path == line.images / "train/good/2.png"
    )


def test_rates_are_of_all_that_was_asked_not_of_what_was_looked_at(tmp_path):
    home = home_in(tmp_path)
    kept = Kept(home, SET)
    for number in range(30):
        kept.add([new(bytes([number, 1]), 1.0 if number < 10 else -1.0)])
    kept.add([new(b"of another version", 1.0, version="1")])
    shas = [new(bytes([n, 1])).sha256 for n in range(30)]
    for number in range(4):
        kept.answer(shas[number], "ok" if number < 2 else "defect:x", "ann")
    found = realised(home, SET)
    assert found["flagged"] == {"pictures": 10, "ok": 2, "defect": 2, "unsure": 0}
    assert found["false_positive_rate"]["rate"] is None
    assert found["note"] == "nobody has said of any passed picture what it is"
    for number in range(10, 20):
        kept.answer(shas[number], "ok", "ann")
    found = realised(home, SET)
    # 5 of 10 flagged ones are good, as far as is known, and all of the 20 others.
    assert (found["asked"], found["service_version"]) == (30, "2")
    rate, recall = found["false_positive_rate"], found["recall"]
    assert rate["rate"] == pytest.approx(5 / 25)
    assert 0 < rate["low"] < rate["rate"] < rate["high"] < 0.5
    assert recall["rate"] == 1.0
    assert 0 < recall["low"] < recall["high"] == 1.0


def test_feedback_over_http_and_by_the_command_come_to_review_and_lock(tmp_path, monkeypatch, here):
    home = home_in(tmp_path)
    images = tmp_path / "images/tiles"
    monkeypatch.setenv("HEADWATER_HOME", str(home.root))
    contents = [picture(number) for number in range(4)]
    with serving(home, KeepSettings(pictures="all", test_share=1)) as asking:
        told = [asking.said(content, "?name=%1b[31mx") for content in contents]
        body = json.dumps({"image": told[0]["id"], "answer": "defect:dent", "by": "ann"})
        status, _, heard = asking(
            "POST", f"/sets/{SET}/feedback", body, content_type="application/json"
        )
    assert status == 200
    assert heard["put"] == f"test/dent/{told[0]['sha256']}.png"
    listed = json.loads(here("review", SET, "--json"))["served"]
    assert {row["sha256"] for row in listed} == {one["sha256"] for one in told[1:]}
    assert "served" in here("review", SET)
    here("feedback", SET, told[1]["sha256"][:10], "ok", "--by", "bob")
    assert told[1]["verdict"] == "anomalous"
    # The normal waits, the defect is in the lock when it is renewed, and stays there.
    rows = json.loads(here("review", SET, "--json"))["normals"]
    assert (rows[0]["said"], rows[0]["sha256"]) == (HELD, told[1]["sha256"])
    here("review", SET, "--page", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert f"headwater feedback {SET} {told[2]['sha256'][:12]} defect:KIND" in page
    weights = ("--weights", tmp_path / "weights.safetensors", "--precision", "float32")
    here("extract", SET, "--images", images, *weights, "--heads", "patchcore",
         "--set", 'patchcore.nodes=["layer1"]')  # fmt: skip
    here("lock", SET)
    assert locked_test(home, SET).images[told[0]["sha256"]] == "dent"
    said = here("feedback", SET, told[0]["id"], "--take-back", status=3)
    assert "it is in the locked test" in said
    assert (images / heard["put"]).exists()
    here("feedback", SET, told[1]["id"], "--take-back")
    assert not list((images / "train/good").glob(f"{told[1]['sha256']}*"))
    assert [row for row in json.loads(here("review", SET, "--json"))["normals"]
            if row["sha256"] == told[1]["sha256"]] == []  # fmt: skip


def test_predict_keeps_what_the_champion_says_when_it_is_told_to(tmp_path, monkeypatch, here):
    home = home_in(tmp_path)
    monkeypatch.setenv("HEADWATER_HOME", str(home.root))
    file = tmp_path / "one.png"
    file.write_bytes(picture(5))
    here("predict", SET, file)
    assert Kept(home, SET).rows() == []
    (row,) = json.loads(here("predict", SET, file, "--keep", "--json"))
    (kept,) = Kept(home, SET).rows()
    assert (kept.score, kept.service_version) == (row["score"], "2")
    assert kept.sha256 == hashlib.sha256(picture(5)).hexdigest()
    assert "of its own" in here("predict", SET, file, "--keep", "--head", "padim", status=2)


@pytest.mark.slow
def test_what_a_model_learnt_from_is_not_taken_out_by_taking_back(
    tmp_path, resnet_weights, monkeypatch, here
):
    made = Retrained(tmp_path, resnet_weights).fill()
    monkeypatch.setattr(running, "on_prefect", made.flow)
    monkeypatch.setenv("HEADWATER_HOME", str(made.home.root))
    made.retrain()
    odd = tmp_path / "odd.png"
    odd.write_bytes(picture(99))
    shutil.copy(odd, tmp_path / "again.png")
    Image.fromarray(np.full((48, 48, 3), [255, 40, 9], np.uint8)).save(odd)
    here("predict", "s", odd, "--keep")
    done = here("feedback", "s", odd, "ok")
    assert "it trains when headwater review s accepts it" in done
    held = made.retrain()
    assert [name.split("/")[-1] for name in held.guarded.waiting]
    assert len(made.trained) == 1, "what waits trains nothing"
    here("review", "s", "--accept", hashlib.sha256(odd.read_bytes()).hexdigest()[:12])
    made.retrain()
    assert len(made.trained) == 2
    said = here("feedback", "s", odd, "--take-back", status=3)
    assert "has learnt from it; headwater remove s" in said
