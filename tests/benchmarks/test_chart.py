"""The README's chart: the committed files are those that the script makes, and show what was measured."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import chart
import pytest
from assets import REPO

IMAGES = REPO / "docs" / "images"
SVG = "{http://www.w3.org/2000/svg}"
THEMES = pytest.mark.parametrize("theme", chart.THEMES)


def drawn(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def texts(svg: str) -> list[str]:
    return [str(each.text) for each in drawn(svg).iter(f"{SVG}text")]


def bars(svg: str, colour: str) -> list[float]:
    """The lengths of the bars of a colour; the key has a square of its own."""
    rects = [each.attrib for each in drawn(svg).iter(f"{SVG}rect") if each.attrib["fill"] == colour]
    return [float(each["width"]) for each in rects if float(each["width"]) != float(each["height"])]


def test_the_script_makes_the_committed_files(tmp_path: Path) -> None:
    subprocess.run([sys.executable, REPO / "benchmarks" / "chart.py", "--out", tmp_path], check=True)
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == {
        each.name: each.read_bytes() for each in IMAGES.glob("speed-*.svg")
    }
    assert len(list(tmp_path.iterdir())) == len(chart.THEMES)


@THEMES
def test_every_figure_is_one_that_was_measured(theme: str) -> None:
    def rows(name: str, part: str) -> list[dict]:
        return json.loads((REPO / "benchmarks" / "results" / f"{name}.json").read_text())[part]

    methods = {each["method"]: each["wall_s"] for each in rows("zen5-2core-recover", "methods")}
    measured = [f"{methods[name]:#.3g} s" for name in ("recover", "plain copy", "reference")]
    for batch in (1, 8):
        for ours, theirs in (("float16", "F16"), ("int8", "Q8_0"), ("int4", "Q4_0")):
            found = {
                each["engine"]: each for each in rows(f"zen5-2core-decode-1b-{ours}", "rows") if each["batch"] == batch
            }
            measured += [
                f"{found[name]['tok/s']:#.3g}".rstrip(".") for name in (f"baize {ours}", f"llama.cpp {theirs}")
            ]
    svg = (IMAGES / f"speed-{theme}.svg").read_text()
    assert [each for each in texts(svg) if re.fullmatch(r"[\d.]+( s)?", each)] == measured
    described = str(drawn(svg).findtext(f"{SVG}desc"))
    assert all(
        re.search(rf"(?<![\d.]){re.escape(each.removesuffix(' s'))}(?![\d]|\.\d)", described) for each in measured
    )


@THEMES
def test_bars_are_as_long_as_their_figures(theme: str) -> None:
    shown, colours = chart.figures(), chart.THEMES[theme]
    svg = (IMAGES / f"speed-{theme}.svg").read_text()
    ours, others = bars(svg, colours.ours), bars(svg, colours.others)
    seconds, pairs = list(shown.seconds.values()), list(shown.tokens.values())
    recovery = chart.RECOVERY_BARS / max(seconds)
    decoding = chart.DECODING_BARS / max(max(pair) for pair in pairs)
    assert ours == pytest.approx([seconds[0] * recovery, *(pair[0] * decoding for pair in pairs)], abs=0.05)
    assert others == pytest.approx(
        [*(each * recovery for each in seconds[1:]), *(pair[1] * decoding for pair in pairs)], abs=0.05
    )


@THEMES
def test_it_says_where_it_was_measured(theme: str) -> None:
    caption = " ".join(texts((IMAGES / f"speed-{theme}.svg").read_text())[-3:])
    for name in ("zen5-2core-recover", "zen5-2core-decode-1b-int8"):
        report = json.loads((REPO / "benchmarks" / "results" / f"{name}.json").read_text())
        assert report["commit"][:7] in caption
        assert report["device"] in caption


def test_other_results_are_drawn_as_they_are(tmp_path: Path) -> None:
    for name in (chart.RECOVERY, *chart.DECODING.values()):
        shutil.copy(REPO / "benchmarks" / "results" / f"{name}.json", tmp_path)
    path = tmp_path / f"{chart.RECOVERY}.json"
    report = json.loads(path.read_text())
    (reference,) = (each for each in report["methods"] if each["method"] == "reference")
    reference["wall_s"] = 123.4
    path.write_text(json.dumps(report))
    svg = chart.chart(chart.figures(tmp_path), chart.THEMES["light"])
    assert "123 s" in texts(svg)
    assert "46.9 s" not in texts(svg)


@THEMES
def test_nothing_is_drawn_beyond_the_edges(theme: str) -> None:
    """Widths of texts are guessed at 0.6 of their size a character, more than any of the fonts takes on the average."""
    svg = drawn((IMAGES / f"speed-{theme}.svg").read_text())
    left, top, width, height = map(float, svg.attrib["viewBox"].split())
    for each in svg.iter(f"{SVG}text"):
        x, y, size = (float(each.attrib[name]) for name in ("x", "y", "font-size"))
        ends = x if each.attrib.get("text-anchor") == "end" else x + 0.6 * size * len(str(each.text))
        assert left <= x
        assert ends <= left + width
        assert top <= y - size
        assert y + 0.3 * size <= top + height
    for each in svg.iter(f"{SVG}rect"):
        assert float(each.attrib["x"]) + float(each.attrib["width"]) <= left + width
