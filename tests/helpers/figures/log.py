"""Figures of docs/log.md: what was measured by hand, as notes-log.json has it, and a few of the reports."""

from __future__ import annotations

from collections.abc import Iterator

from figures.performance_engine import prompt, ratio
from figures.performance_recovery import methods
from figures.performance_serving import tiny_steps
from figures.results import commits, note, report, row
from figures.written import percent

# The note's id, and the phrase of the page with the note's values in it.
NOTED = [
    ("new rows", "reads the embedding once more: {ms} ms"),
    (
        "new rows",
        "{after_s:.2f} s where it took {before_s:.2f}, and {again_after_s:.2f} where it took {again_before_s:.2f}",
    ),
    ("two hashes", "{two} GB/s against {hashlib} GB/s of hashlib"),
    ("two hashes", "would save about {share} % of the run"),
    ("mapped files", "{mapped} CPU seconds of reading instead of {read}"),
    ("semaphore", "{low} to {high} s in a prototype in which fewer threads took {threads_low} to {threads_high} s"),
    ("pieces", "{least} to {most} Mi elements a piece, {workers_least} to {workers_most} workers"),
    ("pieces, before", "pieces of {least} to {most} MiB"),
    ("warm kept", "{before} s became {threads} s"),
    ("warm kept", "{low} to {high} s"),
    ("overlay", "{cold} s where it took {cold_before}, warm {warm} s where it took {warm_before}"),
    (
        "direct reads, first",
        "{first} and {second} s with O_DIRECT reads, {buffered_first} and {buffered_second} s with buffered ones",
    ),
    ("direct reads, huge pages", "{before} s became {after} s, where a plain copy takes {plain} s"),
    ("writes at once", "{copy} s where O_DIRECT writes took {direct} s"),
    ("writes at once", "{recover} s, and {recover_direct} s with O_DIRECT"),
    ("verify", "{float16} GMAC/s in float16 and {int8} in int8"),
    ("verify", "{float16_before} in float16, {int8_before} in int8 and {int4_before} in int4"),
    (
        "float16 prompts",
        "A core multiplies {registers} GMAC/s in its registers, {l1_low} to {l1_high} with all operands in "
        "its L1 cache, and about {engine} in the engine",
    ),
    ("float16 prompts", "the next block is prefetched (+{sums} %), 132 tokens a panel (+{panel} %)"),
    (
        "tasks",
        "{float16} ms for {float16_before} in float16, {int8} for {int8_before} in int8, {int4_low} to "
        "{int4_high} for {int4_before} in int4",
    ),
    ("tasks", "{steady} ms are {read} GB/s"),
    ("bf16 dots", "Values split into two bfloat16 parts give {error} times the error"),
    ("rows of floats", "between {low} and +{high} %"),
    ("rows of floats", "8 rows {eight_before} to {eight} ms, 32 rows {many_before} to {many} ms"),
    (
        "rest at 32 rows",
        "At 32 rows, about {attention_ms} ms of that is attention over a float32 cache; the products reach "
        "{from_l2} of {peak} GMAC/s a core",
    ),
    ("huge pages", "{huge} GB/s instead of {small}"),
    ("huge pages", "a decode step gains {least} to {most} %"),
    ("avx2 float16", "{reached} of {peak} GFLOP/s"),
    ("avx2 float16", "{whole} % of torch's own product, where llama.cpp reached {llama} %"),
    ("avx2 float16", "each panel is widened once for 128 tokens ({widening} %) and attention ({attention} %)"),
    ("in place", "float16 {float16_before} to {float16} GFLOP/s, int8 {int8_before} to {int8}"),
    ("in place", "from {prompt_before} to between {prompt_low} and {prompt_high} of {peak} GFLOP/s"),
    ("streams", "{one_page} GB/s instead of {apart}"),
    ("barriers", "{before} to {after} GFLOP/s"),
    ("avx2 int4", "{prompts} GMAC/s a core against {prompts_before}"),
    ("avx2 int4", "{few_low} to {few_high} against {few_before_low} to {few_before_high}"),
    ("int4 with 16 bits", "{one_before}, {eight_before} and {many_before} ms, and takes {one}, {eight} and {many} ms"),
    ("int4 on a GPU", "{after} ms instead of {before} ms; int8 takes {int8} ms"),
    (
        "int4 prototype",
        "{stories_before} to {stories} on stories260K and from {demo_before} to {demo} on the demo model, "
        "with {error} % less squared error",
    ),
    ("int4 quantiser", "{now} ns a weight a core instead of {before}"),
    ("attention steps", "{before} µs a layer became about {after} µs"),
    ("attention prompts", "{before} to about {after} GFLOP/s"),
    ("draft tokens", "{k4:.1f}, {k8:.1f}, {k15:.1f} and {k24:.1f} times"),
    (
        "automaton",
        "{automaton_ms} ms for 2000 ids where one id repeats; the index that was kept takes {low_ms} to "
        "{high_ms} ms, and {token_low} to {token_high} µs a token",
    ),
    ("golden drafts", "{low} to {high} of 4 draft tokens on stories260K at temperature 0.8"),
    ("wrong draft", "costs about {loss} % of answers of 40 tokens"),
    ("exchange", "an exchange between two busy ranks cost {exchange} ms"),
    ("exchange", "{after} ms, before {before} ms"),
    ("imports", "{low} to {high} % less"),
    ("imports", "torch's own import, {torch} s"),
    ("quantise at load", "{torch} s with 1.26B parameters; the C++ quantiser takes {cpp} s"),
    ("prompts one by one", "{generated} % (generated) and {scored} % (scored) of what the saved tokens allow"),
    ("prompts one by one", "Computed together, rests reach {together} %"),
    ("loop", "{low} to {high} µs a token at batch 1, and {low_64} to {high_64} µs a step at 64 rows"),
    ("windows", "{before} rows a step, and has {after}"),
    ("sampling", "{before} ms; in C++ a row takes {low} to {high} ms, top_p alone {top_p} ms"),
    ("prompt attention", "spilled {bytes} bytes on sm_80"),
    ("int4 tile", "{bytes} bytes: {failed} of the variants fail, {passed} pass"),
    ("triton 3.6", "{passed} cases and spills in {failed}, by {low} to {high} bytes"),
    ("spills", "16 warps with 128256 logits spill {sampler} bytes on sm_80"),
    ("spills", "at 30B's shape ({head} bytes)"),
    ("small top_k", "{before} ms a token; as many blocks as top_k has, {after} ms"),
    ("late trigger", "{gain} %, and {with_attention} % with attention asking for its keys first"),
    ("read speed", "{low} to {high} GB/s"),
    ("processes", "{one} % at batch 1, {more} % else"),
    ("disk", "{low} to {high} s"),
    ("shared prompt", "is {faster} times as fast"),
]


def measured() -> dict[str, str]:
    """Phrases with figures of reports, by what they are about."""
    cold, profile = methods("zen5-2core-recover"), note("performance", "warm profile")["values"]
    four = [row(f"zen5-2core-rows-1b-{kind}", rows=4)["of_one"] for kind in ("float16", "int8")]
    prompts = [
        ratio(prompt("zen5-2core", "float16", tokens), prompt("zen5-2core", "float16", tokens, "llama.cpp"))
        for tokens in (128, 512)
    ]
    drafted = [
        row("zen5-2core-speculate-1b", kind="int8", what="self-int4", prompts=each)["speedup"]
        for each in ("code_edit", "quoting_summary", "json_echo")
    ]
    edits = row("zen5-2core-speculate-125m", kind="float16", what="ngram", prompts="code_edit", batch=4)["speedup"]
    tiny = [
        each.get("speedup", 1)
        for each in report("zen5-2core-speculate-small")["rows"]
        if each["model"] == "stories260K"
    ]
    exchanges = [
        row(f"zen5-2core-ranks-1b-{kind}", engine=f"baize {kind} 2 ranks: exchange", batch=1)["of_step"]
        for kind in ("int8", "int4")
    ]
    segments = [each for size in ("1b", "13b") for each in report(f"zen5-2core-segments-{size}")["rows"]]
    one = [each["of_whole"] for each in segments if each["rows"] == 1]
    many = [each["of_whole"] for each in segments if each["rows"] == 256]
    xeon = row("xeon-amx-2core-throughput", engine="baize float16")["of_batch"]
    epyc = row("amd-epyc-2core-throughput", engine="baize float16")["of_batch"]
    return {
        "recover": f"`baize recover` takes {cold['recover']['to_plain_copy']:.2f} times a plain copy, and its reads and writes "
        f"alone, without kernel and hash, {cold['copy']['to_plain_copy']:.2f}",
        "warm": f"it takes {profile['sha256_s']} of {profile['cpu_s']} CPU seconds on the Xeon (d80fbbd)",
        "floor": f"{profile['ideal_to_plain_copy']} times a plain copy",
        "verify": f"{four[0]:.2f} and {four[1]:.2f} times a step",
        "prompts": f"{min(prompts):.2f} times was reached",
        "self-int4": f"{min(drafted):.1f} to {max(drafted):.1f} times plain speed",
        "losses": f"Edits in batches of 4 with 125M parameters decode at {edits:.2f} times plain speed, stories260K at "
        f"{min(tiny):.2f} at worst",
        "exchange": f"It takes {percent(exchanges[0])} in int8 and {percent(exchanges[1])} in int4",
        "segments": f"{min(one):.2f} to {max(one):.2f} times the plain products at one row, and up to "
        f"{max(many):.2f} in prompts",
        "tiny": f"models whose steps take {max(tiny_steps()):.1f} ms",
        "throughput": f"{report('zen5-2core-throughput')['of_batch']:.2f} on Zen 5 (d6a2772); {xeon:.2f} on the Xeon and "
        f"{epyc:.2f} on the EPYC with AVX2, with earlier code",
    }


def claims() -> Iterator[str]:
    for id, phrase in NOTED:
        yield phrase.format(**note("log", id)["values"])
    yield from measured().values()
    yield from commits("log")


STATED = {
    "1 GMAC/s is 2 GFLOP/s": "a definition",
    "The goal of 1.1 was met": "a goal",
    "the goal of 1.1 cannot be met": "a goal",
    "**Verifying four tokens for 1.25 times a step**": "a goal",
    "**float16 prompts at 1.1 times llama.cpp**": "a goal",
    "**0.8 of the rate of full batches**": "a goal",
    "32 MiB under way": "how it was tried",
    "512 KiB instead of 128 KiB was kept": "the setting",
    "1 MiB was no better, 4 MiB worse": "settings that were tried",
    "mapped by 2 MiB": "the size of the system's huge pages",
    "in one 4 KiB page": "the size of a page",
    "1 ms of work and an exchange": "how it was measured",
    "top_k 40 with top_p 0.9": "how it was measured",
}
