"""notebooks/drawings: each SVG is what its script draws, and can be read anywhere."""

import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tools import draw

SVGS = sorted(draw.DRAWINGS.glob("*.svg"))
SVG = "{http://www.w3.org/2000/svg}"
README = (draw.DRAWINGS / "README.md").read_text(encoding="utf-8")


def brightness(colour):
    """Relative luminance of #rgb or #rrggbb, as WCAG 2 defines it."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    red, green, blue = (
        p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_svgs_and_scripts_agree():
    assert SVGS and draw.parted(draw.draw()) == []


def test_a_changed_and_a_stray_svg_are_told(tmp_path, monkeypatch, capsys):
    (tmp_path / "pen.py").write_text(Path(draw.DRAWINGS / "pen.py").read_text())
    script = "from pen import Pen\ndrawing = Pen(9, 9, 'A dot.')\n"
    (tmp_path / "dot.py").write_text(script)
    monkeypatch.setattr(draw, "DRAWINGS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["draw.py"])
    draw.main()
    monkeypatch.setattr(sys, "argv", ["draw.py", "--check"])
    draw.main()
    (tmp_path / "stray.svg").write_text("<svg/>")
    (tmp_path / "dot.svg").write_text("<svg/>")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        draw.main()
    told = capsys.readouterr().err
    assert "dot.svg" in told and "stray.svg" in told
    assert (tmp_path / "dot.svg").read_text() == "<svg/>"


def test_the_loop_that_is_drawn_is_the_loop_that_runs():
    text = (draw.DRAWINGS.parent / "text" / "07_training.py").read_text("utf-8")
    drawn = ET.parse(draw.DRAWINGS / "training.svg").iter(f"{SVG}text")
    code = [t.text for t in drawn if "Mono" in t.get("font-family", "")]
    lines = [line for row in code for line in row.split("; ")]
    loop = text[text.index("def bare_loop(") :]
    places = [loop.index(f"        {line}") for line in lines]
    assert len(lines) == 8 and places == sorted(places)


@pytest.mark.parametrize("path", SVGS, ids=lambda path: path.stem)
def test_svg_stands_alone_on_any_page(path):
    svg = path.read_text(encoding="utf-8")
    root = ET.fromstring(svg)
    width, height = float(root.get("width")), float(root.get("height"))
    assert width <= 780 and root.get("viewBox") == f"0 0 {width:g} {height:g}"
    title = root.find(f"{SVG}title").text
    assert len(title.split()) > 10 and root.get("role") == "img"
    assert title in README and f"`{path.name}`" in README

    # Nothing from elsewhere: no link, script, style, image, font or entity.
    allowed = "svg title text rect circle line path polygon g".split()
    assert {e.tag for e in root.iter()} <= {SVG + tag for tag in allowed}
    assert not re.search(r"href|url\(|<!|@import|\bon\w+=", svg)
    assert re.findall(r"https?://[^\"]*", svg) == ["http://www.w3.org/2000/svg"]

    for text in root.iter(f"{SVG}text"):
        size, x, y = (float(text.get(name)) for name in ("font-size", "x", "y"))
        assert size >= 14, text.text
        # 0.62 em is a wide letter's mean advance, bold and monospaced ones included.
        breadth = 0.62 * size * len(text.text or "")
        left = (
            x - {"start": 0, "middle": 0.5, "end": 1}[text.get("text-anchor")] * breadth
        )
        assert left >= 0 and left + breadth <= width and size <= y <= height, text.text
        # Stands out at 3:1 (WCAG 2, graphics) or more from white and from #111.
        # White text is for solid cells alone, which are such a colour themselves.
        if text.get("fill") != "#fff":
            light = brightness(text.get("fill")) + 0.05
            assert 1.05 / light > 3 and light / (brightness("#111") + 0.05) > 3
