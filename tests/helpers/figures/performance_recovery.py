"""Figures of docs/performance.md: recovery and the addition itself."""

from __future__ import annotations

from collections.abc import Iterator

from shapes import PRESETS

from figures.results import commit, note, report, row
from figures.written import cells, percent, three

METHODS = {
    "recover": "**`baize recover`**, with SHA-256 and the sum of every tensor",
    "copy": "the same reads and writes, without kernel and hash",
    "plain copy": "plain copy, the fastest that was found",
    "reference": "reference script: transformers in float32",
}


def methods(name: str) -> dict[str, dict]:
    """The medians of each method; reports of earlier commits have no rows but these."""
    return {each["method"]: each for each in report(name).get("methods", report(name)["rows"])}


def table(machine: str) -> Iterator[str]:
    """Rows: seconds and ratio cold, seconds and ratio warm, CPU seconds and peak memory cold."""
    cold, warm = methods(f"{machine}-recover"), methods(f"{machine}-recover-warm")
    for method, words in METHODS.items():
        here, there = cold[method], warm.get(method)
        yield cells(
            words,
            three(here["wall_s"]),
            ratio(here),
            three(there["wall_s"]) if there else "not measured",
            ratio(there) if there else "",
            f"{here['cpu_s']:.1f}",
            memory(here),
        )


def ratio(method: dict) -> str:
    return three(method["to_plain_copy"]) if method["to_plain_copy"] >= 10 else f"{method['to_plain_copy']:.2f}"


def memory(method: dict) -> str:
    mib = method["peak_MiB"]
    return f"{mib:.0f} MiB" if mib < 1024 else f"{mib * 2**20 / 1e9:.1f} GB"


def recovery() -> Iterator[str]:
    for machine in ("zen5-2core", "xeon-amx-2core"):
        yield from table(machine)
        for kind in ("recover", "recover-warm"):
            yield f"commit {commit(f'{machine}-{kind}')}"
    cold, warm = methods("zen5-2core-recover"), methods("zen5-2core-recover-warm")
    yield f"Medians of {cold['recover']['runs']} runs in turn (reference script: {cold['reference']['runs']} run)"
    ours, moved = cold["recover"], cold["recover"]["GB/s"] * cold["recover"]["wall_s"]
    yield f"the two read and write {moved:.1f} GB"
    yield f"The reference script takes {ours['reference_to_it']:.0f} times as long as `baize recover`"
    yield f"{memory(cold['reference'])} of memory where `baize recover` takes {memory(ours)}"
    copy, plain = cold["copy"], cold["plain copy"]
    yield f"Cold, the disk gives the plain copy {plain['GB/s']:.1f} GB/s and `baize recover` {ours['GB/s']:.1f}"
    yield f"{plain['GB/s'] / methods('xeon-amx-2core-recover')['plain copy']['GB/s']:.1f} times as fast as the Xeon's"
    yield f"the same reads and writes without kernel and hash already take {ratio(copy)} times the plain copy"
    yield f"{ours['cpu_s/GB']:.2f} CPU seconds per GB cold and {warm['recover']['cpu_s/GB']:.2f} warm"
    hashing = note("performance", "hashing")["values"]
    yield f"a cold run took {hashing['with_s']:.2f} s with the hash and {hashing['without_s']:.2f} s without it"
    profile = note("performance", "warm profile")["values"]
    yield f"busy for {percent(profile['busy'])} of a warm run"
    yield (
        f"SHA-256 takes {profile['sha256_s']:.1f} of the {profile['cpu_s']:.1f} CPU seconds, copying out of the page cache "
        f"{profile['page_cache_s']:.1f}, the sum {profile['sum_s']:.1f}"
    )
    yield (
        f"hashlib's SHA-256: {profile['hashlib_GB_s']:.2f} GB/s per core), two cores would need about "
        f"{profile['ideal_s']:.1f} s, {profile['ideal_to_plain_copy']:.1f} times the plain copy"
    )
    assert f"{warm_cpu():.1f}" == f"{profile['cpu_s']:.1f}"  # the profile is of the run in the table
    requests = note("performance", "disk requests")["values"]
    yield (
        f"A disk request is split into at most {requests['pieces']} pieces of memory: with small pages a request held "
        f"{requests['small_MB']} MB, with huge pages it holds {requests['huge_low_MB']} to {requests['huge_high_MB']} MB"
    )
    several, meta = note("performance", "several diffs"), note("performance", "meta layout")["values"]
    yield f"Two diffs of one base in one call take {several['values']['to_one']:.1f} times as long as one"
    yield f"{meta['cold']:.1f} times as long cold and {meta['warm']:.1f} warm"
    large = [note("performance", f"memory {size}")["values"]["peak_MiB"] for size in ("13b", "65b")]
    yield f"{large[0]} MiB for a model of 13B parameters and {large[1]} MiB for one of 65B"


def warm_cpu() -> float:
    return methods("xeon-amx-2core-recover-warm")["recover"]["cpu_s"]


def diff_add() -> Iterator[str]:
    name, types = "amd-epyc-2core-diff_add", "float16+float32->float16"
    for implementation, words in (("cpp-avx512", "AVX-512"), ("cpp-avx2", "AVX2"), ("cpp-scalar", "scalar C++")):
        one, two = (row(name, implementation=implementation, types=types, threads=each) for each in (1, 2))
        yield cells(words, three(one["GB/s"]), three(two["GB/s"]))
    yield cells("torch", "not measured", three(row(name, implementation="torch", types=types)["GB/s"]))
    one, two = (row(name, implementation="cpp-avx512", types=types, threads=each)["ceiling_GB/s"] for each in (1, 2))
    yield cells("plain copy in memory", three(one), three(two))
    yield f"at commit {commit(name)}"


def larger() -> Iterator[str]:
    """What a 13B would take, computed: a base and a result in float16, a diff in float32, at the rate of the cold run."""
    size, rate = PRESETS["13b"].parameters * 2 / 1e9, methods("zen5-2core-recover")["recover"]["GB/s"]
    assert 25 < 4 * size / rate < 35  # "about half a minute", says the page
    yield f"moves {size:.0f} + {2 * size:.0f} + {size:.0f} GB, which at the {rate:.1f} GB/s of Zen 5"


def claims() -> Iterator[str]:
    yield from recovery()
    yield from larger()
    yield from diff_add()
