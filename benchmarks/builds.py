"""What builds of llama.cpp can do: the instruction sets in its system line against the processor's. Runs nothing."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

# in llama_print_system_info -> in /proc/cpuinfo; a set that a build lacks is not in the line, or is "= 0"
SETS = {
    "AVX2": "avx2", "FMA": "fma", "F16C": "f16c", "BMI2": "bmi2", "AVX_VNNI": "avx_vnni", "AVX512": "avx512f",
    "AVX512_VBMI": "avx512vbmi", "AVX512_VNNI": "avx512_vnni", "AVX512_BF16": "avx512_bf16", "AMX_INT8": "amx_int8",
}  # fmt: skip


def processor_flags() -> set[str]:
    """The flags of the first processor in /proc/cpuinfo; none where it does not say."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"^flags\s*:(.*)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return set(found[1].split()) if found else set()


def lacking(system: str, flags: Collection[str]) -> list[str]:
    """Instruction sets among `flags` of the processor that the build with this system line was made without."""
    built = set(re.findall(r"(\w+) = 1\b", system))
    return [name for name, flag in SETS.items() if flag in flags and name not in built]


def told(version: str, system: str, flags: Collection[str]) -> str:
    """A build of llama.cpp in words: version, system line, and what the processor has that it lacks."""
    absent = lacking(system, flags)
    said = f"built without {', '.join(absent)}, which this processor has" if absent else "no instruction set left out"
    return f"{version}, {said} ({system.strip().rstrip('|').strip()})"
