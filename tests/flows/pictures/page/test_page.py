"""A page holds all it needs, asks for nothing, and what is put into it stays text."""

import base64
import hashlib
import json
import re
import tomllib
from fnmatch import fnmatch
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from flows.pictures.page import page as module
from flows.pictures.page.page import page
from flows.pictures.page.thumbs import heat_address, outline_address, picture_address

EVIL = "</script><!-- <script>\u2028\x1b[31m\n=cmd|' /C calc'!A0 @@style@@ & \"x\" \\u003c"


class Parsed(HTMLParser):
    """The elements of a page, and what stands in its scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.title, self._in = [], [], "", None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._in = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._in = None

    def handle_data(self, data):
        if self._in == "script":
            self.scripts[-1] += data
        if self._in == "title":
            self.title += data


def test_names_stay_text_whatever_they_are_made_of():
    parsed = Parsed(page({"set": EVIL, "rows": [EVIL]}, EVIL))
    data, script = parsed.scripts
    assert json.loads(data) == {"set": EVIL, "rows": [EVIL]}
    assert not set("<>&") & set(data)
    assert script.startswith("(() => {")
    assert [tag for tag, _ in parsed.tags].count("script") == 2
    assert "</script>" in parsed.title
    assert "\x1b" not in parsed.title


def test_nothing_is_fetched_and_only_our_script_runs():
    text = page({}, "bolts")
    assert "http" not in re.sub(r"http://www\.w3\.org/2000/svg|http-equiv", "", text)
    parsed = Parsed(text)
    named = [attrs.get(key) for _, attrs in parsed.tags for key in ("src", "href") if key in attrs]
    assert set(named) == {"data:,", "#main"}
    policy = next(a["content"] for t, a in parsed.tags if a.get("http-equiv"))
    own = base64.b64encode(hashlib.sha256(parsed.scripts[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{own}'" in policy
    assert "default-src 'none'" in policy


def test_an_installed_package_has_the_files_of_the_page():
    root = Path(__file__).resolve().parents[4]
    named = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = named["package-data"]["flows.pictures.page"]
    files = [f for f in Path(module.__file__).parent.iterdir() if f.is_file()]
    rest = [
        f.name for f in files if f.suffix != ".py" and not any(fnmatch(f.name, p) for p in patterns)
    ]
    assert not rest
    assert {f.name for f in files if f.suffix == ".js"} == set(module._SCRIPTS)


def test_layers_are_small_and_empty_ones_are_left_out():
    assert heat_address(np.ones((64, 64), np.uint8)) is None
    hot = np.ones((64, 64), np.uint8)
    hot[10:20, 10:20] = 255
    assert heat_address(hot).startswith("data:image/webp;base64,")
    assert len(heat_address(hot)) < 2500
    assert heat_address(np.zeros((4, 4), np.uint8))  # not looked at: a veil
    assert outline_address(np.zeros((300, 400), bool), 300, 400, 200) is None
    # A scratch of one pixel is there in a picture a tenth as wide.
    thin = np.zeros((3000, 4000), bool)
    thin[1500, 1000:3000] = True
    assert outline_address(thin, 3000, 4000, 400)
    assert len(picture_address(np.zeros((3000, 4000, 3), np.uint8), 320)) < 1000
