"""What `predict` prints."""

from flows.command.report import show_predictions


def test_the_largest_regions_are_printed_and_the_others_counted(capsys):
    region = {"x": 1, "y": 2, "width": 3, "height": 4, "area": 1200, "peak_x": 5, "peak_y": 6}
    region["peak"] = 2.5
    fine = {"note": "", "error": ""}
    told = {"score": 1.5, "p_value": 0.01, "threshold": 1.0, "model": "s.padim", "version": "7"}
    rows = [
        {
            "image": "gone\n.png",
            **told,
            "verdict": "",
            "regions": [],
            "note": "",
            "error": "no image",
        },
        {"image": "a[b].png", **told, "verdict": "anomalous", "regions": [region] * 5, **fine},
        {"image": "c.png", **told, "verdict": "normal", "regions": [], **fine},
    ]
    show_predictions(rows)
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0] == "s.padim version 7"
    (first,) = (line.split() for line in lines if line.startswith("a[b].png "))
    assert first[1:] == ["1.500", "0.010", "1.000", "anomalous", "5"]
    own = [line for line in lines if line.startswith("  a[b].png: ")]
    place = "3x4 at (1, 2), area 1,200, peak 2.5 at (5, 6)"
    assert own == [f"  a[b].png: {place}"] * 3 + ["  a[b].png: and 2 more"]
    assert not [line for line in lines if line.startswith("  c.png")]
    assert said.err == "set aside gone\\n.png: no image\n"
    wide = {**rows[1], "note": "a region covers 62 % of the picture"}
    show_predictions([wide])
    assert "  a[b].png: a region covers 62 % of the picture" in capsys.readouterr().out.splitlines()
    show_predictions(rows[:1])
    assert capsys.readouterr().out == ""
