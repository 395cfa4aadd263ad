"""The page about a set's models: it says what the figures say, and moves as one drags."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from flows.extraction.plan import plan_job, ready
from flows.runtime.home import Home
from flows.training.small_maps import FILE
from flows.training.train import train_head
from flows.training.trainings import Request
from flows.use.compare import compare_models
from flows.use.report.gather import report_data
from flows.use.report.models import opened
from flows.use.report.write import ARTIFACT, write_report, write_review
from flows.use.review import odd_normals, settle
from headwater.errors import ConfigError, DataError, ModelError
from headwater.spec import digest
from storage.registry.registry import Registry
from tests.browser import chromium
from tests.flows.setkit import QUIET, SmallSet, save
from tests.golden.home import unpack

#: Names that a page, a terminal, a shell or a program of tables could take for something else.
EVIL = (
    "=cmd|calc.png",
    "<img src=x onerror=alert(1)>.png",
    "two\nlines\x1b[31m.png",
    "$(ls) '.png",
)


def draw(small, part, name, seed, square=0):
    pixels = np.random.default_rng(seed).integers(90, 130, (48, 48, 3), dtype=np.uint8)
    pixels[20 : 20 + square, 20 : 20 + square] = 160
    save(pixels, small.images / part / name)
    if square:
        mask = np.zeros((48, 48), np.uint8)
        mask[20 : 20 + square, 20 : 20 + square] = 255
        save(mask, small.images / f"ground_truth/x/{name.removesuffix('.png')}_mask.png")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A set with two models; some names are evil, one normal is odd."""
    made = SmallSet(tmp_path_factory.mktemp("set"))
    names = [f"{n}.png" for n in range(12)]
    for seed, name in enumerate([*names, EVIL[3]]):
        draw(made, "train/good", name, seed, square=0)
    odd = np.full((48, 48, 3), [255, 40, 0], np.uint8)
    save(odd, made.images / "train/good/odd.png")
    for seed, name in enumerate([*EVIL[:3], *names[:7]], 20):
        draw(made, "test/good", name, seed)
    for seed, name in enumerate(names, 40):
        draw(made, "test/x", name, seed, square=2 + seed % 4)
    made.heads = {"patchcore": {"nodes": ["layer1"]}, "padim": {"nodes": ["layer1"]}}
    at = made.run().version
    settings = ready(made.settings(), made.home, images=False)
    plan = plan_job(settings, made.home, 3)
    registry = Registry(made.home.root)
    with registry.parent("s", at.snapshots[0]) as made.command:
        for one in Request(settings, made.home, plan, at).trainings(at):
            train_head(replace(one, parent_run=made.command))
    return made


@pytest.fixture(scope="module")
def written(small):
    rows, _ = odd_normals(small.home, "s")
    settle(small.home, "s", rows, accept=["odd.png"], who="Ada </script>")
    return write_report(small.home, "s", QUIET, file=small.folder / "page.html")


@pytest.fixture(scope="module")
def data(small, written):
    return report_data(small.home, "s", QUIET)


def counted(data, head, threshold):
    """Return the four counts of a head at a threshold, plainly."""
    called = [s["scores"][head] > threshold for s in data["samples"]]
    pairs = list(zip(called, (s["bad"] for s in data["samples"]), strict=True))
    return {
        "tp": pairs.count((True, True)),
        "fn": pairs.count((False, True)),
        "fp": pairs.count((True, False)),
        "tn": pairs.count((False, False)),
    }


def test_the_page_holds_the_figures_of_compare_and_what_runs_tell(small, data):
    rows = compare_models(Registry(small.home.root), "s")
    (board,) = data["boards"]
    for shown, row in zip(board["rows"], rows, strict=True):
        assert {k: shown[k] for k in ("metrics", "intervals", "behind")} == {
            k: row[k] for k in ("metrics", "intervals", "behind")
        }
    assert len(data["samples"]) == 22
    for i, (head, row) in enumerate(zip(data["heads"], rows, strict=True)):
        found = counted(data, i, head["threshold"])
        assert found["tp"] / 12 == pytest.approx(row["metrics"]["recall"])
        assert found["fp"] / 10 == pytest.approx(row["metrics"]["false_positive_rate"])
        assert len(head["normals"]) == 14
        assert "14 normals" in head["promise"][0]
        parts = data["origin"][i]["parts"]
        assert parts["Data and net"]["layers"].startswith("layer1")
        assert parts["Settings of the training"]["calibrate"] == "folds"
        assert parts["Data and net"]["snapshot of the store"] == row["snapshot"]
        assert "torch" in parts["Versions"]
    names = {s["name"] for s in data["samples"]}
    assert "test/good/two\\nlines\\x1b[31m.png" in names
    assert all(len(s["pictures"]) == 1 and len(s["maps"]) == 2 for s in data["samples"])
    assert all(bool(s["mask"]) == s["bad"] for s in data["samples"])
    assert data["odd"]["rows"][-1]["said"][:2] == ["accepted", "Ada </script>"]
    for row in data["odd"]["rows"]:
        assert row["reject"].startswith("headwater review s --reject ")
        assert row["reject"].rpartition(" ")[2].isalnum()


def test_mlflow_keeps_the_page_with_the_run_of_the_command(small, written):
    assert written.run_id == small.command
    kept = Registry(small.home.root).artifact(small.command, ARTIFACT)
    assert kept.read_text() == written.file.read_text()


def test_maps_of_models_from_before_are_made_anew_and_are_the_same(small, tmp_path):
    home = Home.at(shutil.copytree(small.home.root, tmp_path / "home"))
    registry = Registry(home.root)
    rows = compare_models(registry, "s")
    kept, _ = opened(home, registry, "s", rows, QUIET)
    for row in rows:
        registry.artifact(row["run_id"], FILE).unlink()
    anew, notes = opened(home, registry, "s", rows, QUIET)
    assert not notes
    for one, other in zip(kept, anew, strict=True):
        assert one.maps.keys() == other.maps.keys()
        for name, small_map in one.maps.items():
            apart = small_map.values.astype(int) - other.maps[name].values
            assert np.abs(apart).max() <= 1
    # Without features there are no maps, and the page says so.
    shutil.rmtree(home.root / "store")
    bare, notes = opened(home, registry, "s", rows, QUIET)
    assert [bool(m.maps) for m in bare] == [False, False]
    assert "no heat maps" in notes[0]
    page = report_data(home, "s", QUIET)
    assert not any(s["pictures"] for s in page["samples"])


def test_fewer_pictures_are_the_worst_and_named_models_alone_are_shown(small, data):
    few = report_data(small.home, "s", QUIET, models=["padim@1"], most=3)
    assert [h["name"] for h in few["heads"]] == ["padim v1"]
    assert [r["full"] for r in few["boards"][0]["rows"]].count(True) == 1
    assert len(few["samples"]) == 22
    assert [s["pictures"] is not None for s in few["samples"]] == [True] * 3 + [False] * 19
    wrong = counted(few, 0, few["heads"][0]["threshold"])
    if wrong["fp"] + wrong["fn"]:
        limit, first = few["heads"][0]["threshold"], few["samples"][0]
        assert (first["scores"][0] > limit) != first["bad"]
    with pytest.raises(ConfigError, match="padim@"):
        report_data(small.home, "s", QUIET, models=["padim@"])
    with pytest.raises(ModelError, match="no version '9'"):
        report_data(small.home, "s", QUIET, models=["padim@9"])
    with pytest.raises(DataError, match="no models of image set 'none'"):
        report_data(small.home, "none", QUIET)
    with pytest.raises(ConfigError, match="a file to write"):
        write_report(small.home, "s", QUIET, file=small.folder)


def test_models_of_an_old_home_and_of_pairs_have_a_page(tmp_path):
    home = Home.at(unpack(tmp_path) / "home")
    # The list of pairs is named by its content, which unpacking has changed.
    (file,) = [f for f in (home.root / "pairs/boards").iterdir() if f.name != "versions.json"]
    name = digest(json.loads(file.read_text()))
    file.rename(file.with_name(f"{name}.json"))
    registry = Registry(home.root)
    for row in registry.leaderboard("boards"):
        registry.client.set_tag(row["run_id"], "pairs", name)
    for image_set in ("tiles", "boards"):
        page = report_data(home, image_set, QUIET)
        assert page["heads"]
        assert not page["notes"]
        for sample in page["samples"]:
            assert len(sample["pictures"]) == (1 if image_set == "tiles" else 2)
            assert all(sample["maps"])
    assert page["kind"]["name"] == "pair"
    assert page["boards"][0]["rows"][0]["intervals"] == {}
    json.dumps(page, allow_nan=False)


def test_the_commands_write_pages(small, here, tmp_path):
    told = here("report", "s", "--home", small.home.root, "--out", tmp_path / "a.html")
    assert "page: " in told
    told = json.loads(
        here("review", "s", "--home", small.home.root, "--page", tmp_path / "b.html", "--json")
    )
    assert told["page"] == str(tmp_path / "b.html")
    for name in ("a", "b"):
        assert (tmp_path / f"{name}.html").read_text().startswith("<!doctype html>")
    assert "one of" in here(
        "report", "s", "x@1", "--home", small.home.root, status=2
    )  # what there is


# --- in a browser --------------------------------------------------------------------------------

#: What is called on the page by a test.
HELPERS = """
window.tiles = n => Object.fromEntries([...document.querySelectorAll(
  `#panel-${n} [data-count]`)].map(e => [e.dataset.count, Number(e.textContent)]));
window.names = () => [...document.querySelectorAll(
  '#pictures .sample:not([hidden]) .open')].map(e => e.textContent);
window.verdicts = n => [...document.querySelectorAll('#pictures .sample')].map(
  e => e.querySelectorAll('.verdict')[n].textContent);
window.choose = (box, value, ...kinds) => {
  box.value = value;
  kinds.forEach(kind => box.dispatchEvent(new Event(kind)));
};
window.pick = (label, value) => choose([...document.querySelectorAll('.field')].find(
  e => e.firstChild.textContent === label).querySelector('select'), value, 'change');
window.slide = (n, value, ...kinds) => choose(
  document.querySelector(`#panel-${n} input[type=range]`), value, 'input', ...kinds);
window.back = n => document.querySelector(`#panel-${n} .controls button`).click();
window.field = n => Number(document.querySelector(`#panel-${n} input[type=number]`).value);
window.ground = () => getComputedStyle(document.body).backgroundColor;
window.theme = value => choose(document.getElementById('theme'), value, 'change');
"""


@pytest.fixture(scope="module")
def seen(written, tmp_path_factory):
    """The page in a browser, 1200 pixels wide."""
    with chromium(tmp_path_factory.mktemp("profile"), 1200, 900) as browser:
        for domain in ("Runtime", "Log", "Network", "Page"):
            browser.ask(f"{domain}.enable")
        browser.open(written.file.as_uri())
        browser.until("document.documentElement.dataset.ready === 'yes'", 30)
        browser.run(HELPERS)
        yield browser


def drawn(browser):
    """Let a frame pass: what was moved is drawn."""
    code = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))"
    browser.ask("Runtime.evaluate", expression=code, awaitPromise=True)


def test_counts_follow_the_slider_to_the_exact_value(seen, data):
    for number, head in enumerate(data["heads"]):
        own = counted(data, number, head["threshold"])
        assert seen.run(f"tiles({number})") == own
        for position in (0, 250, 333, 500, 999, 1000):
            seen.run(f"slide({number}, {position})")
            drawn(seen)
            now = seen.run(f"field({number})")
            # The field shows six digits; the page itself counts with all of them.
            close = [s for s in data["samples"] if abs(s["scores"][number] / now - 1) < 1e-5]
            assert close or seen.run(f"tiles({number})") == counted(data, number, now)
            assert seen.run(f"!document.querySelector('#panel-{number} .moved').hidden")
        assert seen.run(f"tiles({number})") == {"tp": 0, "fn": 12, "fp": 0, "tn": 10}
        assert set(seen.run(f"verdicts({number})")) == {"✕ missed", "✓ passed"}
        seen.run(f"back({number})")
        drawn(seen)
        assert seen.run(f"tiles({number})") == own


def test_pictures_are_sorted_and_filtered(seen, data):
    scores = {s["name"]: s["scores"] for s in data["samples"]}
    limits = [h["threshold"] for h in data["heads"]]
    seen.run("pick('Seen by', '1'); pick('Sort by', 'high')")
    found = seen.run("names()")
    assert [scores[n][1] for n in found] == sorted((s[1] for s in scores.values()), reverse=True)
    seen.run("pick('Sort by', 'mistake')")
    wrong = {s["name"]: (s["scores"][1] > limits[1]) != s["bad"] for s in data["samples"]}
    assert [wrong[n] for n in seen.run("names()")] == sorted(wrong.values(), reverse=True)
    seen.run("pick('Sort by', 'disagreement')")
    differ = {n: (s[0] > limits[0]) != (s[1] > limits[1]) for n, s in scores.items()}
    assert [differ[n] for n in seen.run("names()")] == sorted(differ.values(), reverse=True)
    seen.run("pick('Verdict', 'missed')")
    missed = {s["name"] for s in data["samples"] if s["bad"] and s["scores"][1] <= limits[1]}
    assert set(seen.run("names()")) == missed
    seen.run("pick('Verdict', ''); pick('Kind', 'x')")
    assert len(seen.run("names()")) == 12
    # What one looks for moves with the threshold, when it rests.
    seen.run("pick('Verdict', 'missed'); slide(1, 1000)")
    drawn(seen)
    assert set(seen.run("names()")) == missed
    seen.run("slide(1, 1000, 'change')")
    assert len(seen.run("names()")) == 12
    seen.run("back(1)")
    drawn(seen)
    assert set(seen.run("names()")) == missed
    seen.run("for (const label of ['Seen by', 'Kind', 'Verdict']) pick(label, '')")


def test_names_are_text_and_pictures_come_when_looked_at(seen, data):
    assert seen.run("document.querySelectorAll('img[src=x]').length") == 0
    text = seen.run("document.querySelector('main').textContent")
    for name in ("<img src=x onerror=alert(1)>", "two\\nlines\\x1b[31m.png", "Ada </script>"):
        assert name in text
    assert "[object" not in text
    assert all(value in text for part in data["origin"][1]["parts"].values() for value in part)
    images = "[...document.querySelectorAll('#pictures .frame img')]"
    seen.run("document.querySelector('#pictures').scrollIntoView()")
    seen.until(f"{images}.filter(i => i.naturalWidth).length > 5", 20)


def test_a_sample_is_enlarged_and_left_by_keys(seen):
    seen.run("document.querySelector('#pictures .sample:not([hidden]) .open').click()")
    seen.until("document.querySelector('dialog').open", 5)
    title = "document.querySelector('dialog h3').textContent"
    first = seen.run(title)
    for key, code in (("ArrowRight", 39), ("ArrowLeft", 37), ("Escape", 27)):
        for kind in ("keyDown", "keyUp"):
            seen.ask("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code)
        assert (seen.run(title) == first) == (key != "ArrowRight")
    assert not seen.run("document.querySelector('dialog').open")


def test_it_fits_a_phone_and_is_dark_where_that_is_wished(seen):
    light = seen.run("ground()")
    wish = [{"name": "prefers-color-scheme", "value": "dark"}]
    seen.ask("Emulation.setEmulatedMedia", features=wish)
    dark = seen.run("ground()")
    assert light != dark
    seen.run("theme('light')")
    assert seen.run("ground()") == light
    seen.run("theme('dark')")
    seen.ask("Emulation.setEmulatedMedia", features=[])
    assert seen.run("ground()") == dark
    seen.run("theme('')")
    phone = {"width": 360, "height": 780, "deviceScaleFactor": 2, "mobile": True}
    seen.ask("Emulation.setDeviceMetricsOverride", **phone)
    drawn(seen)
    assert seen.run("document.documentElement.scrollWidth") <= 360
    assert seen.run("visualViewport.scale") == 1


def test_nothing_went_wrong_and_nothing_was_asked_for(seen):
    """Last: of all that was done to the page above."""
    drawn(seen)
    named = {"Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"}
    assert not [event for event in seen.heard if event["method"] in named]
    sent = [e["params"] for e in seen.heard if e["method"] == "Network.requestWillBeSent"]
    asked = {one["request"]["url"] for one in sent}
    assert {url for url in asked if not url.startswith("data:")} <= {
        "about:blank",
        seen.run("location.href"),
    }


def test_a_page_of_odd_normals_alone(small, written, seen, tmp_path):
    served = {
        "name": "\x1b[31m</script>", "sha256": "ab" * 32, "picture": str(small.draw(1)),
        "verdict": "anomalous", "score": 3.0, "threshold": 2.0, "why": "near the threshold",
    }  # fmt: skip
    made = write_review(
        small.home, "s", QUIET, tmp_path / "odd.html", head="padim", served=[served]
    )
    seen.open(made.file.as_uri())
    seen.until("document.documentElement.dataset.ready === 'yes'", 30)
    assert "Odd normals" in seen.text
    assert "headwater review s --reject" in seen.text
    assert "headwater feedback s abababababab defect:KIND" in seen.text
    assert r"\x1b[31m</script>" in seen.text
    assert "✓ accepted by Ada </script>" in seen.text
    assert seen.run("document.querySelectorAll('main > section:not([hidden])').length") == 1
