"""Figures of docs/performance.md: decoding, prompts and the start, beside other engines."""

from __future__ import annotations

from collections.abc import Iterator

from figures.results import commit, note, report, row
from figures.written import cells, percent, three

KINDS = {"float16": "F16", "int8": "Q8_0", "int4": "Q4_0"}  # ours: llama.cpp's
ZEN5, XEON, AVX2 = "zen5-2core", "xeon-amx-2core", "amd-epyc-2core"


def decoded(machine: str, kind: str, batch: int, engine: str = "baize") -> dict:
    name = f"{engine} {kind if engine == 'baize' else KINDS[kind]}" if " " not in engine else engine
    return row(f"{machine}-decode-1b-{kind}", engine=name, batch=batch)


def prompt(machine: str, kind: str, tokens: int, engine: str = "baize", form: str = "") -> dict:
    name = f"{engine} {kind if engine == 'baize' else KINDS[kind]}" if " " not in engine else engine
    return row(f"{machine}-prefill-1b-{kind}{form}", engine=name, tokens=tokens)


def ratio(ours: dict, theirs: dict) -> float:
    return ours["tok/s"] / theirs["tok/s"]


def triple(ours: dict, theirs: dict) -> list[str]:
    return [three(ours["tok/s"]), three(theirs["tok/s"]), f"{ratio(ours, theirs):.2f}"]


def decode_table(machine: str, batches: tuple[int, ...]) -> Iterator[str]:
    """Rows by kind: tok/s of ours and of llama.cpp and their ratio for each batch; the share of the read speed at batch 1."""
    for kind, theirs in KINDS.items():
        values = [f"{kind} ({theirs})", percent(decoded(machine, kind, 1)["share"])]
        for batch in batches:
            values += triple(decoded(machine, kind, batch), decoded(machine, kind, batch, "llama.cpp"))
        yield cells(*values)


def prompt_table(machine: str, lengths: tuple[int, ...]) -> Iterator[str]:
    for kind, theirs in KINDS.items():
        values = [f"{kind} ({theirs})"]
        for tokens in lengths:
            values += triple(prompt(machine, kind, tokens), prompt(machine, kind, tokens, "llama.cpp"))
        yield cells(*values)


def physics() -> Iterator[str]:
    for kind in KINDS:
        ours = decoded(ZEN5, kind, 1)
        size = ours["GB/s"] / ours["tok/s"]
        yield cells(
            kind,
            f"{size:.2f} GB",
            f"{ours['read_GB/s']:.1f} GB/s",
            three(ours["read_GB/s"] / size),
            three(ours["tok/s"]),
            percent(ours["share"]),
        )
    one, eight = decoded(ZEN5, "float16", 1), decoded(ZEN5, "float16", 8)
    yield f"float16 makes {three(eight['tok/s'])} tokens a second, {eight['tok/s'] / one['tok/s']:.1f} times as many"
    reads = [decoded(machine, kind, batch)["read_GB/s"] for machine in (AVX2,) for kind in KINDS for batch in (1, 8)]
    yield f"{min(reads):.0f} and {max(reads):.0f} GB/s on the EPYC with AVX2"
    values = note("performance", "read speed")["values"]
    yield (
        f"{values['turns_low']} to {values['turns_high']} GB/s in most turns of the first table of decoding, and "
        f"{values['other_low']} to {values['other_high']} GB/s in other hours"
    )


def zen5() -> Iterator[str]:
    yield from decode_table(ZEN5, (1, 8, 32))
    yield from prompt_table(ZEN5, (128, 512))
    assert {commit(f"{ZEN5}-{what}-1b-{kind}") for what in ("decode", "prefill") for kind in KINDS} == {"61c267a"}
    ct2 = [prompt(ZEN5, "int8", tokens, "ctranslate2 int8") for tokens in (128, 512)]
    ours = [prompt(ZEN5, "int8", tokens) for tokens in (128, 512)]
    steps = [decoded(ZEN5, "int8", batch, "ctranslate2 int8") for batch in (1, 8, 32)]
    yield cells(
        "ctranslate2, int8",
        *(f"{three(each['tok/s'])} ({ratio(decoded(ZEN5, 'int8', each['batch']), each):.2f})" for each in steps),
        *(f"{three(theirs['tok/s'])} ({ratio(mine, theirs):.2f})" for mine, theirs in zip(ours, ct2, strict=True)),
    )
    name = "ik_llama.cpp Q4_0 repacked"
    yield cells(
        "ik_llama.cpp, repacked Q4_0",
        *(
            f"{three(decoded(ZEN5, 'int4', batch, name)['tok/s'])} "
            f"({ratio(decoded(ZEN5, 'int4', batch), decoded(ZEN5, 'int4', batch, name)):.2f})"
            for batch in (1, 8, 32)
        ),
        *(
            f"{three(prompt(ZEN5, 'int4', tokens, name)['tok/s'])} "
            f"({ratio(prompt(ZEN5, 'int4', tokens), prompt(ZEN5, 'int4', tokens, name)):.2f})"
            for tokens in (128, 512)
        ),
    )
    alone = note("performance", "int4 alone")["values"]
    yield (
        f"int4 made {alone['int4']:.1f} tok/s at batch 1 where llama.cpp made {alone['llama']:.1f} ({alone['ratio']:.2f}), and "
        f"float16 {alone['float16']:.1f} where it made {alone['float16_llama']:.1f} ({alone['float16_ratio']:.2f})"
    )
    yield f"the memory gave {alone['read_GB_s']} GB/s"


def xeon() -> Iterator[str]:
    yield from decode_table(XEON, (1, 8, 32))
    for kind, theirs in KINDS.items():
        without = "-without-amx" if kind != "float16" else ""
        yield cells(
            f"{kind} ({theirs})",
            three(prompt(XEON, kind, 512)["tok/s"]),
            three(prompt(XEON, kind, 512, form=without)["tok/s"]),
            *triple(prompt(XEON, kind, 512), prompt(XEON, kind, 512, "llama.cpp"))[1:],
            *first_tokens(XEON, kind),
        )
    files = [f"{XEON}-{what}-1b-{kind}" for what in ("decode", "prefill") for kind in KINDS] + [f"{XEON}-start-1b"]
    assert {commit(each) for each in files} == {"54092e8"}
    theirs = prompt(XEON, "int8", 512, "ctranslate2 int8")
    faster = ratio(prompt(XEON, "int8", 512), theirs)
    yield f"ctranslate2's int8 read that prompt at {three(theirs['tok/s'])} tok/s (ratio {faster:.2f})"
    theirs = prompt(XEON, "float16", 512, "ctranslate2 float32")
    slower = ratio(prompt(XEON, "float16", 512), theirs)
    yield f"its float32 at {three(theirs['tok/s'])} (our float16: {slower:.2f})"
    yield f"{note('performance', 'earlier float16 batch 8')['values']['ratio']:.2f} in an earlier run"


def avx2() -> Iterator[str]:
    yield from decode_table(AVX2, (1, 8))
    for kind, theirs in KINDS.items():
        yield cells(
            f"{kind} ({theirs})",
            *triple(prompt(AVX2, kind, 512), prompt(AVX2, kind, 512, "llama.cpp")),
            *first_tokens(AVX2, kind),
        )
    assert {commit(f"{AVX2}-decode-1b-{kind}") for kind in KINDS} == {"f8c0113"}
    assert {commit(f"{AVX2}-prefill-1b-{kind}") for kind in KINDS} == {"f8c0113", "5776c31"}
    values = note("performance", "float16 prompt, four runs")["values"]
    yield f"{values['low']:.2f} to {values['high']:.2f} times as fast as llama.cpp's in four runs of one day"
    theirs = prompt(AVX2, "int8", 512, "ctranslate2 int8")
    level = ratio(prompt(AVX2, "int8", 512), theirs)
    yield f"ctranslate2's int8 read the prompt at {three(theirs['tok/s'])} tok/s in the same run (ratio {level:.2f})"


def started(machine: str, engine: str) -> dict:
    return row(f"{machine}-start-1b", engine=engine)


def first_tokens(machine: str, kind: str) -> list[str]:
    names = f"baize {kind}", f"llama.cpp {KINDS[kind]}"
    return [f"{started(machine, name)['to_first_token_s']:.2f} s" for name in names]


def start() -> Iterator[str]:
    values = note("performance", "start")["values"]
    for kind in KINDS:
        yield cells(
            kind,
            f"{values[kind]:.2f} s",
            f"{values[f'{kind}_before']:.2f} s",
            f"{values[f'whole_{kind}']:.2f} s",
            f"{values[f'whole_{kind}_before']:.2f} s",
        )
    yield f"{values['python']:.2f} s (before: {values['python_before']:.2f} s)"
    yield f"torch's own import, {values['torch']:.2f} s"
    imports = {each: [started(each, f"baize {kind}")["start_and_imports_s"] for kind in KINDS] for each in (XEON, AVX2)}
    yield f"took {max(imports[XEON]):.1f} s on the Xeon"
    saved = [
        each["start_and_imports_s"] for each in report(f"{AVX2}-start-1b")["rows"] if each["engine"].startswith("baize")
    ]
    yield f"and {min(saved):.1f} to {max(saved):.1f} s on the EPYC"
    theirs = {each: started(each, "llama.cpp F16")["start_and_imports_s"] for each in (XEON, AVX2)}
    yield f"llama.cpp's {theirs[XEON]:.1f} and {theirs[AVX2]:.1f} s"
    loads = {
        kind: [started(each, f"baize {kind} at load")["to_first_token_s"] for each in (XEON, AVX2)]
        for kind in ("int8", "int4")
    }
    yield (
        f"{loads['int8'][0]:.1f} s on the Xeon and {loads['int8'][1]:.1f} s on the EPYC for int8, "
        f"{loads['int4'][0]:.1f} and {loads['int4'][1]:.1f} s for int4"
    )


def claims() -> Iterator[str]:
    yield from physics()
    yield from zen5()
    yield from xeon()
    yield from avx2()
    yield from start()
