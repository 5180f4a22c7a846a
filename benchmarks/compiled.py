"""The compiler's output for the kernels of a decode step: registers, shared memory and instructions of each.

`python benchmarks/compiled.py` compiles them anew for sm_80 and sm_90, which needs Triton but no GPU, and writes compiled.json;
card_model.py reads that, without Triton or torch. A program's code depends on its tile, the bits of its weights and whether it
norms; of products that norm `gate_up` at 13B stands for all, of others `linear_add`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from baize_engine.kernels import settings
from baize_engine.kernels.settings import ProductSettings

FILE = Path(__file__).with_name("compiled.json")
TARGETS = (80, 90)
GATE = Path(__file__).resolve().parents[1] / "tests" / "kernels" / "gate"  # the compile gate and its cases
HIDDEN = 5120  # of 13B, K of both products
OTHERS = ("rms_norm fp16 5120", "advance", "embed fp16 5120")


@dataclass(frozen=True)
class Loop:
    """One run through a loop, of one warp: its instructions, and how many of them are tensor instructions and barriers."""

    instructions: int
    tensor: int = 0
    barriers: int = 0


@dataclass(frozen=True)
class Code:
    """A compiled kernel. `instructions` are all that stand in it, `loops` those that it runs through again, in their order."""

    registers: int  # of a thread
    shared: int  # bytes of a program
    instructions: int
    loops: tuple[Loop, ...] = ()

    @property
    def products(self) -> Loop:
        """The loop over K."""
        return next(loop for loop in self.loops if loop.tensor)

    @property
    def straight(self) -> int:
        """Instructions outside of loops."""
        return self.instructions - sum(loop.instructions for loop in self.loops)


def product_name(how: ProductSettings, bits: int, rows: int, norm: bool) -> str:
    """The name of a product's code."""
    tile = f"{how.block_n}x{how.block_k}x{how.block_t(rows)}"
    return f"product {'norm ' if norm else ''}{bits} bits {tile} {how.num_warps} warps {how.num_stages} stages"


@cache
def read() -> dict[tuple[str, int], Code]:
    """The table: {(name, target): code}."""
    found = {}
    for row in json.loads(FILE.read_text())["rows"]:
        loops = tuple(Loop(*loop) for loop in row["loops"])
        found[row["name"], row["sm"]] = Code(row["registers"], row["shared"], row["instructions"], loops)
    return found


@cache
def constant(name: str) -> int:
    """A constant of the kernels that no setting changes, as it was when they were compiled."""
    return int(json.loads(FILE.read_text())["constants"][name])


def code(name: str, capability: tuple[int, int]) -> Code:
    """The code of that name on a card; Ada's and the smaller Amperes' is taken to be A100's."""
    target = 90 if capability >= (9, 0) else 80
    try:
        return read()[name, target]
    except KeyError:
        raise ValueError(
            f"{FILE.name} has no {name!r} for sm_{target}; `python benchmarks/compiled.py` makes it anew"
        ) from None


def loops(sass: str) -> tuple[Loop, tuple[Loop, ...]]:
    """A disassembly's instructions in all, and those of its innermost loops: from a label to a jump back to it."""
    lines: list[str] = []
    labels: dict[str, int] = {}
    spans: list[tuple[int, int]] = []
    for line in sass.splitlines():
        if label := re.match(r"\s*(\.L_\w+):", line):
            labels[label.group(1)] = len(lines)
        elif instruction := re.match(r"\s*/\*[0-9a-f]+\*/\s*(.*?);", line):
            lines.append(instruction.group(1))
            jump = re.search(r"\bBRA\b.*`\((\.L_\w+)\)", lines[-1])
            begin = labels.get(jump.group(1)) if jump else None
            if begin is not None and len(lines) - begin > 1:  # behind its end a kernel jumps to where it stands
                spans.append((begin, len(lines)))
    inner = [span for span in spans if not any(span[0] <= a and b <= span[1] for a, b in spans if (a, b) != span)]
    return _counted(lines), tuple(_counted(lines[begin:end]) for begin, end in sorted(inner))


def _counted(lines: list[str]) -> Loop:
    return Loop(len(lines), sum("MMA" in line for line in lines), sum("BAR.SYNC" in line for line in lines))


def of_one_tile(whole: Loop, found: tuple[Loop, ...], tiles: int) -> tuple[Loop, tuple[Loop, ...]]:
    """The same of a product whose loop over K, `tiles` long, the compiler may have unrolled to its end: as if it had not."""
    if any(loop.tensor for loop in found):
        return whole, found
    one = Loop(whole.instructions // tiles, whole.tensor // tiles, whole.barriers // tiles)
    return replace(whole, instructions=whole.instructions - (tiles - 1) * one.instructions), (*found, one)


def products() -> Iterator[tuple[str, str, str, int, ProductSettings]]:
    """(name, op, kind, rows, settings) of each product's code that the rules or the tuner's choices launch, once."""
    seen = set()
    for (kind, bits), rows, op in product(
        (("fp16", 16), ("int8", 8), ("int4", 4)), settings.TUNED_ROWS, settings.PRODUCTS
    ):
        rule = settings.product(op, bits, rows)
        tiles = dict(settings.product_choices(op, bits, rows)).get("tile", ())
        norms = {False, rule.fuse_norm, op in settings.WITH_NORM and rows <= 2 * settings.FUSED_NORM_ROWS}
        for tile, norm in product(({}, *tiles), sorted(norms)):
            how = replace(rule, **tile, fuse_norm=norm)
            name = product_name(how, bits, rows, norm)
            if name not in seen:
                seen.add(name)
                yield name, "gate_up" if norm else "linear_add o", kind, rows, how


def name_of(op: str, how: Any) -> str:
    """The name of the code of "attention" or "sample" so launched, by its settings; the trigger makes no difference."""
    return " ".join([op, *(f"{key}={value}" for key, value in asdict(how).items() if key != "trigger")])


def choices(rule: Any, aspects: settings.Choices) -> list[Any]:
    """A rule and the tuner's choices that differ from it in their code, each alone."""
    return [rule, *(replace(rule, **one) for _, many in aspects for one in many if "trigger" not in one)]


def _cases(target: int) -> Iterator[tuple[str, Any, int]]:
    """(name, the gate's case, the length of a product's loop over K or 0)."""
    import gate_cases
    from attention_cases import attention_case
    from product_cases import product_case
    from sample_cases import sample_case

    for name, op, kind, rows, how in products():
        yield name, product_case("13b", op, kind, rows, target >= 90, how), -(-HIDDEN // how.block_k)
    for how in choices(settings.attention(2), settings.attention_choices()):
        yield name_of("attention", how), attention_case("decode", 40, 1, "fp16", how, target >= 90), 0
    yield "join", attention_case("join", 40, 1, "fp16", settings.attention(2), target >= 90), 0
    for how in choices(settings.sample(), settings.sample_choices()):
        yield name_of("sample", how), sample_case(how, "early" if target >= 90 else None), 0
    suffix = " pdl" if target >= 90 else ""
    for case in gate_cases.cases():
        name = re.sub(r" pdl( early)?$", "", case.name)
        if case.name in (f"{name}{suffix}", f"{name}{suffix} early") and name in OTHERS:
            yield name, case, 0


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--out", type=Path, default=FILE, metavar="FILE")
    chosen = options.parse_args()
    sys.path.append(str(GATE))
    import triton
    from compile_gate import compile_case

    from baize_engine.kernels import attention, norm

    rows = []
    for target in TARGETS:
        for name, case, tiles in _cases(target):
            made = compile_case(case, target)
            whole, found = loops(made.sass)
            if tiles:
                whole, found = of_one_tile(whole, found, tiles)
            row = {"name": name, "sm": target, "registers": made.registers, "shared": made.shared}
            row |= {"instructions": whole.instructions, "loops": [list(asdict(loop).values()) for loop in found]}
            rows.append(row)
            print(row, flush=True)
    constants = {"SPLIT": attention.SPLITS[2], "JOINED": attention.JOINED, "LANES": norm.LANES}
    head = {"date": date.today().isoformat(), "triton": triton.__version__, "constants": constants}
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    chosen.out.write_text(json.dumps(head)[:-1] + f', "rows": [\n{lines}\n]}}\n')
    return 0


if __name__ == "__main__":
    sys.exit(main())
