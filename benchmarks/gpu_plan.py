"""The steps of `make gpu`: what runs, in which order, for how many seconds, and in which of the calls that a lent GPU allows.

Evidence first: a machine that is lent for half an hour may be taken back, so that what decides most comes before what takes
long. Three groups, each a call of its own with its own build, stay below CALL; a file that a step needs is written in the same
group. Knows nothing of how a step is run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
GROUPS = ("first", "second", "third")
CALL = 570  # seconds of a group; a lent machine gives ten minutes to a call
PROCESSES = 12  # of a step of tests, whose time is mostly compiling, where the machine has pytest-xdist
MOST_FAILED = 8  # an error that the GPU does not recover from fails every later test of its process
TUNING = 330  # seconds that the tuner gives itself
REHEARSED = 120  # seconds of a rehearsed step
RUNNING = "running.json"  # a benchmark's rows so far; in the whole once it has ended
TUNED = "tuned.json"
BUILD = "build"  # the step that the others need

Place = Callable[[str], Path]


@dataclass(frozen=True)
class Step:
    """A command, relative to the repository, and the seconds set aside for it. A benchmark's last line is its report.

    `rehearsal`: the command on a machine without a GPU, empty where there is none; `needs`: files that another step writes.
    """

    name: str
    command: tuple[str, ...]
    seconds: int
    is_benchmark: bool = True
    groups: tuple[str, ...] = ()
    rehearsal: tuple[str, ...] = ()
    needs: tuple[Path, ...] = ()


def has(package: str) -> bool:
    return find_spec(package) is not None


def gpu_tests() -> list[str]:
    """The files that hold tests marked gpu: pytest would import every file of tests in every process to find them."""
    found = sorted((REPO / "tests").rglob("test_*.py"))
    return [str(path.relative_to(REPO)) for path in found if "pytest.mark.gpu" in path.read_text()]


def cpp_tests() -> list[str]:
    return [str(path.relative_to(REPO)) for path in sorted((REPO / "tests" / "csrc").glob("test_*.py"))]


def of_tests(name: str, seconds: int, group: str, words: Iterable[str], small: Iterable[str] = ()) -> Step:
    """A step of pytest. Each test's line comes as it ends (-v), so that a run that is out of time has said what it found."""

    def command(processes: int, *more: str) -> tuple[str, ...]:
        side_by_side = ("-n", str(processes)) if has("xdist") else ()
        brief = ("-v", "--tb=short", f"--maxfail={MOST_FAILED}", "-p", "no:cacheprovider")
        return ("-m", "pytest", *brief, *side_by_side, *more, *words)

    many = min(PROCESSES, os.cpu_count() or 1)
    return Step(name, command(many), seconds, False, (group,), command(1, *small))


def bench(name: str, seconds: int, call: str, *paths: str, group: str = "", small: str = "",
          needs: tuple[Path, ...] = ()) -> Step:  # fmt: skip
    """`call`: script and options, a blank between words; `paths`, options too, may hold blanks. `small`: the values that the
    rehearsal gives to options, and options that it has besides."""
    script, *options = call.split()
    command = (f"benchmarks/{script}", *options, *paths)
    return Step(
        name, command, seconds, True, (group,) if group else (), smaller(command, small) if small else (), needs
    )


def options_of(words: Iterable[str]) -> dict[str, list[str]]:
    """Each option, underscores or not, with its values."""
    found: dict[str, list[str]] = {}
    values: list[str] = []
    for word in words:
        if word.startswith("--"):
            values = found.setdefault(word, [])
        else:
            values.append(word)
    return found


def smaller(command: tuple[str, ...], small: str) -> tuple[str, ...]:
    """The same script with the same options, of which those in `small` have its values."""
    options = options_of(command[1:]) | options_of(small.split())
    return (command[0], *(word for option, values in options.items() for word in (option, *values)))


def steps(place: Place) -> list[Step]:
    """All of them in order; `place` says where a file of that name goes. The seconds are estimates for an H100, by bytes,
    operations and kernels to compile; no run has confirmed them yet."""
    first, second, third = GROUPS
    rows = ("--json", str(place(RUNNING)))
    profile, tuned = place("profile.json"), place(TUNED)
    pictures = ["--trace", str(place("profile.trace.json")), "--markdown", str(place("profile.md"))]
    if has("matplotlib"):
        pictures += ["--picture", str(place("profile.png"))]
    usual, kinds = "--batches 1 64 --contexts 128", "--kinds float16 int8 int4"
    tiny = "--device cpu --preset tiny"
    tiny_decode = f"{tiny} --batches 1 2 --contexts 8 --steps 3 --runs 1 --rounds 1"

    def decoding(
        name: str, seconds: int, what: str, group: str, tuning: str, small: str = tiny_decode,
        needs: tuple[Path, ...] = (),
    ) -> Step:  # fmt: skip
        call = f"bench_decode.py --steps 100 --runs 3 {what}"
        return bench(name, seconds, call, "--tuned", tuning, *rows, group=group, small=small, needs=needs)

    return [
        Step(
            BUILD, ("setup.py", "--quiet", "build_ext", "--inplace"), 75, False, GROUPS,
            ("setup.py", "--quiet", "build_ext", "--inplace", "--help") if has("pybind11") else (),
        ),
        decoding("decode13b", 60, f"--preset 13b --kinds float16 {usual}", first, "none"),
        bench(
            "profile", 45, "profile_step.py --preset 13b --tuned none", *pictures, "--json", str(profile),
            group=first, small=f"{tiny} --context 16 --repeats 2 --ncu",
        ),
        bench(
            "predicted", 10, "predicted.py", "--from_json", str(profile), *rows, group=first,
            small="--card h100", needs=(profile,),
        ),
        bench(
            "kernels", 60, "bench_kernels.py --preset 13b --kinds float16 --rows 1 64 --contexts 128 --tuned none", *rows,
            group=first, small=f"{tiny} --rows 1 --contexts 16 --seconds 0.02",
        ),
        of_tests("tests", 130, first, ["-m", "gpu", *gpu_tests()]),
        decoding("int8", 45, f"--preset 13b --kinds int8 {usual}", first, "none"),
        decoding("int4", 45, f"--preset 13b --kinds int4 {usual}", first, "none"),
        bench(
            "dram", 100, "profile_step.py --preset 13b --repeats 5 --ncu --tuned none", *rows, group=first,
            small=f"{tiny} --context 16 --repeats 1",
        ),
        bench("tune", TUNING + 20, f"tune_kernels.py --seconds {TUNING}", "--out", str(tuned), *rows, group=second,
              small="--device cpu --kinds float16 --batches 1"),
        decoding(
            "tuned13b", 100, f"--preset 13b {kinds} {usual}", second, str(tuned),
            f"{tiny_decode} --kinds int4", needs=(tuned,),
        ),
        bench(
            "prefill", 40, "bench_prefill.py --preset 13b --kinds float16 --tokens 64 512 2048", *rows, group=third,
            small=f"{tiny} --tokens 8 --runs 1",
        ),
        bench(
            "diff_add", 25, "bench_diff_add.py --device cuda", *rows, group=third,
            small="--device cpu --elements 70000 --runs 2",
        ),
        decoding("decode7b", 80, f"--preset 7b {kinds} {usual}", third, "auto"),
        decoding("long", 50, "--preset 13b --kinds float16 --batches 1 8 --contexts 512 2048", third, "auto"),
        bench(
            "throughput", 120, "bench_throughput.py --preset 13b --prompts 128 --alone 6 --rows 64", *rows, group=third,
            small=f"{tiny} --prompts 8 --prompt_mean 10 --output_mean 10 --alone 3 --rows 4 --steps 4",
        ),
        bench(
            "recover", 90, "bench_recover.py --device cuda --preset 1b --warm --runs 2 --reference_runs 0", *rows, group=third,
            small=f"{tiny} --runs 1",
        ),
        of_tests("csrc", 50, third, cpp_tests(), ["--collect-only"]),
        bench(
            "speculate", 40, "bench_speculate.py --device cuda --models 1b --kinds float16 --prompts 2", *rows, group=third,
            small="--device cpu --models tiny-random --tokens 4 --rounds 1",
        ),
    ]  # fmt: skip


def chosen(all_steps: Iterable[Step], words: Iterable[str]) -> list[Step]:
    """The steps of those names and groups, in the order of the plan; all without any. ValueError names a word that is none."""
    all_steps, words = list(all_steps), list(words)
    known = [step.name for step in all_steps]
    for word in words:
        if word not in known and word not in GROUPS:
            raise ValueError(f"no step {word!r}, wanted some of {', '.join(known)}, or a group: {', '.join(GROUPS)}")
    return [step for step in all_steps if not words or step.name in words or set(words) & set(step.groups)]


def listing(title: str, some: Sequence[Step]) -> list[str]:
    """A line for each step: when it begins at the latest, in seconds, what it may take, and its command."""
    lines = [f"{title}: {sum(step.seconds for step in some)} s at most"]
    begin = 0
    for step in some:
        lines.append(f"{begin:5} s  {step.seconds:4} s  {step.name:<10}  {' '.join(step.command)}")
        begin += step.seconds
    return lines
