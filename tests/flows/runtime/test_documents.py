"""Settings that are too many, too deep or multiply themselves are told at once, by the line."""

import time

import pytest

from flows.runtime.documents import MOST_BYTES, MOST_DEPTH, MOST_VALUES, read_document
from headwater.errors import ConfigError

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)
BEYOND = {
    "laughs": (LAUGHS, "line 5: too many values, aliases counted out"),
    "itself": ("training:\n  seed: 1\nheads: &a\n  f2r: {more: *a}\n", r"line 4: \*a holds itself"),
    "its own key": ("a: &a\n  b: &b [1, *a]\n", r"line 2: \*a holds itself"),
    "flow depth": ("x: " + "[" * 100_000, "line 1: nested too deep"),
    "block depth": ("".join(f"{' ' * n}k:\n" for n in range(500)), "line 21: nested too deep"),
    "size": ("# much\n" * (50 * 10**6 // 7), r"line 142858: the file goes on"),
    "values": ("".join(f"k{n}: 1\n" for n in range(MOST_VALUES)), "line 25000: too many values"),
}


@pytest.mark.parametrize("name", BEYOND)
def test_what_is_beyond_the_limits_is_told_fast_with_its_line(name, tmp_path):
    text, said = BEYOND[name]
    (tmp_path / "s.yaml").write_text(text)
    began = time.process_time()
    with pytest.raises(ConfigError, match=said) as error:
        read_document(tmp_path / "s.yaml", "settings")
    assert time.process_time() - began < 3
    assert len(str(error.value)) < 400


def test_what_is_within_them_is_read(tmp_path):
    path = tmp_path / "s.yaml"
    deep = "x: " + "[" * (MOST_DEPTH - 1) + "]" * (MOST_DEPTH - 1)
    path.write_text(f"base: &b {{seed: 3}}\ntraining: {{<<: *b, epochs: 2}}\n{deep}\n")
    data, root = read_document(path, "settings")
    assert data["training"] == {"seed": 3, "epochs": 2}
    assert root is not None
    assert [key.start_mark.line for key, _ in root.value] == [0, 1, 2]
    path.write_text("# x\n" * (MOST_BYTES // 4))
    assert read_document(path, "settings") == (None, None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"a: [1,\n", "line 2, column 1: "),
        (b"a: 1\nb: !!python/object/apply:os.system [x]\n", "line 2.*could not determine a con"),
        (b"day: 2026-13-45\n", "month must be in 1..12"),
        (b"a: \xff\n", "not a text file"),
    ],
)
def test_what_is_no_settings_is_told(tmp_path, text, said):
    (tmp_path / "s.yaml").write_bytes(text)
    with pytest.raises(ConfigError, match=said):
        read_document(tmp_path / "s.yaml", "settings")
