"""The README's chart, drawn from benchmarks/results/: recovery against a plain copy and the reference script, and decoding
against llama.cpp, as one SVG file for light pages and one for dark.

    python benchmarks/chart.py
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from shapes import PRESETS

REPO = Path(__file__).resolve().parents[1]
MACHINE, CORES = "zen5-2core", "Zen 5"  # whose results; what its name of the device leaves out
RECOVERY = f"{MACHINE}-recover"
KINDS = {"float16": "F16", "int8": "Q8_0", "int4": "Q4_0"}  # ours: llama.cpp's
DECODING = {kind: f"{MACHINE}-decode-1b-{kind}" for kind in KINDS}
METHODS = {
    "recover": "baize recover",
    "plain copy": "plain copy of the same bytes",
    "reference": "reference script (transformers)",
}
BATCHES = {1: "One answer at a time", 8: "Eight answers at a time"}

WIDTH, HEIGHT = 816, 398
FONTS = "-apple-system, BlinkMacSystemFont, 'Segoe UI', 'Noto Sans', Helvetica, Arial, sans-serif"
RECOVERY_LEFT, RECOVERY_BARS = 0, 216  # where a panel's bars begin, and how long its longest is
DECODING_LEFT, DECODING_BARS = 388, 364


@dataclass(frozen=True)
class Theme:
    """Colours of one of GitHub's themes; bars of baize differ from the others in lightness too."""

    text: str
    muted: str
    ours: str
    others: str
    line: str


THEMES = {
    "light": Theme(text="#1f2328", muted="#59636e", ours="#0550ae", others="#b1bac4", line="#d1d9e0"),
    "dark": Theme(text="#f0f6fc", muted="#9198a1", ours="#58a6ff", others="#545d68", line="#3d444d"),
}


@dataclass(frozen=True)
class Figures:
    """What the chart shows: seconds by method, tokens a second by (batch, kind) for baize and for llama.cpp."""

    seconds: dict[str, float]
    tokens: dict[tuple[int, str], tuple[float, float]]
    caption: tuple[str, ...]


def figures(results: Path = REPO / "benchmarks" / "results") -> Figures:
    """The figures of the reports in a folder."""

    def report(name: str) -> dict[str, Any]:
        return json.loads((results / f"{name}.json").read_text())

    recovery = report(RECOVERY)
    decoding = {kind: report(name) for kind, name in DECODING.items()}
    methods = {each["method"]: each for each in recovery["methods"]}
    speeds = {(row["engine"], row["batch"]): row["tok/s"] for each in decoding.values() for row in each["rows"]}
    tokens = {
        (batch, kind): (speeds[f"baize {kind}", batch], speeds[f"llama.cpp {theirs}", batch])
        for batch in BATCHES
        for kind, theirs in KINDS.items()
    }
    (device,) = {each["device"] for each in [recovery, *decoding.values()]}
    (preset,) = {each["preset"] for each in [recovery, *decoding.values()]}
    (commit,) = {each["commit"] for each in decoding.values()}
    (peer,) = {each["versions"]["llama_cpp_python"] for each in decoding.values()}
    (context,) = {row["context"] for each in decoding.values() for row in each["rows"]}
    moved = methods["recover"]["GB/s"] * methods["recover"]["wall_s"]
    runs, reference_runs = methods["recover"]["runs"], methods["reference"]["runs"]
    return Figures(
        {name: methods[name]["wall_s"] for name in METHODS},
        tokens,
        (
            f"Machine: {device} ({CORES}). Model: {PRESETS[preset].parameters / 1e9:.2f}B parameters. Medians.",
            f"Recovery: {moved:.1f} GB read and written, {recovery['cache']} cache, {runs} runs (script: {reference_runs}), "
            f"commit {recovery['commit'][:7]}.",
            f"Decoding: after {context} tokens; llama.cpp with F16, Q8_0 and Q4_0 weights, by llama-cpp-python {peer}; "
            f"commit {commit[:7]}.",
        ),
    )


def three_digits(value: float) -> str:
    """A figure as the pages write it: 3.04, 46.9, 203."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def description(shown: Figures) -> str:
    """The chart in words, for those who hear it."""
    seconds = "; ".join(f"{METHODS[name]} {three_digits(value)}" for name, value in shown.seconds.items())
    tokens = "; ".join(
        f"{kind} at batch {batch}: {three_digits(ours)} against {three_digits(theirs)}"
        for (batch, kind), (ours, theirs) in shown.tokens.items()
    )
    return (
        f"Seconds to recover: {seconds}. Tokens a second, baize against llama.cpp: {tokens}. {' '.join(shown.caption)}"
    )


def text(x: float, y: float, content: str, colour: str, size: float = 13, **more: str) -> str:
    attributes = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in more.items())
    return f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{colour}"{attributes}>{escape(content)}</text>'


def bar(x: float, y: float, length: float, height: float, colour: str) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{length:.1f}" height="{height:g}" rx="1.5" fill="{colour}"/>'


def recovery_panel(shown: Figures, theme: Theme) -> list[str]:
    left, unit = RECOVERY_LEFT, RECOVERY_BARS / max(shown.seconds.values())
    lines = [
        text(left, 18, "Recovering a model", theme.text, 17, font_weight="600"),
        text(left, 38, "seconds, shorter is better", theme.muted),
    ]
    for place, (name, value) in enumerate(shown.seconds.items()):
        top, ours = 68 + 98 * place, name == "recover"
        length, weight = value * unit, "600" if ours else "400"
        lines += [
            text(left, top + 8, METHODS[name], theme.text, font_weight=weight),
            bar(left, top + 16, length, 33, theme.ours if ours else theme.others),
            text(left + length + 8, top + 37, f"{three_digits(value)} s", theme.text, font_weight=weight),
        ]
    return lines


def decoding_panel(shown: Figures, theme: Theme) -> list[str]:
    left, unit = DECODING_LEFT, DECODING_BARS / max(speed for pair in shown.tokens.values() for speed in pair)
    names = left - 58
    lines = [
        text(names, 18, "Decoding", theme.text, 17, font_weight="600"),
        text(names, 38, "tokens a second, longer is better", theme.muted),
        bar(left + 230, 28, 12, 12, theme.ours),
        text(left + 248, 38, "baize", theme.text, font_weight="600"),
        bar(left + 300, 28, 12, 12, theme.others),
        text(left + 318, 38, "llama.cpp", theme.text),
    ]
    for block, (batch, heading) in enumerate(BATCHES.items()):
        top = 68 + 132 * block
        lines.append(text(names, top + 8, heading, theme.text, font_weight="600"))
        for place, kind in enumerate(KINDS):
            y = top + 18 + 34 * place
            lines.append(text(left - 10, y + 18, kind, theme.text, text_anchor="end"))
            ours, theirs = shown.tokens[batch, kind]
            for at, speed, colour, weight in ((y, ours, theme.ours, "600"), (y + 14, theirs, theme.others, "400")):
                length = speed * unit
                lines += [
                    bar(left, at, length, 13, colour),
                    text(left + length + 6, at + 11, three_digits(speed), theme.text, 12, font_weight=weight),
                ]
    return lines


def chart(shown: Figures, theme: Theme) -> str:
    """The chart as the text of an SVG file."""
    middle = DECODING_LEFT - 58 - 36
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-8 -6 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" aria-labelledby="title desc" font-family="{FONTS}">',
        '<title id="title">How long recovery takes, and how fast decoding is</title>',
        f'<desc id="desc">{escape(description(shown))}</desc>',
        f'<line x1="{middle}" y1="6" x2="{middle}" y2="318" stroke="{theme.line}"/>',
        *recovery_panel(shown, theme),
        *decoding_panel(shown, theme),
        *(text(0, HEIGHT - 52 + 16 * place, line, theme.muted, 11) for place, line in enumerate(shown.caption)),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=REPO / "docs" / "images", help="folder of the two files")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    shown = figures()
    for name, theme in THEMES.items():
        (out / f"speed-{name}.svg").write_text(chart(shown, theme))


if __name__ == "__main__":
    main()
