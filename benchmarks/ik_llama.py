"""ik_llama.cpp as a peer: its own llama-bench and llama-batched-bench over llama.cpp's gguf files, a process a measurement.

A process loads the model anew, in its engine's turn; loading and what it runs first are not counted. Every sequence has a
prompt of its own in the cache, as with the other engines; with -pps they would share one, which is less to read and decodes 2.1
times as fast in the one case tried (125m preset, Q4_0 repacked, batch 8, context 128). The binaries choose no tokens and print
none: what they compute is not checked, and no choice is in their times.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_files import Store
from peers import Lost, Peer

PROMPTS, STEPS = "llama-bench", "llama-batched-bench"


@dataclass(frozen=True, kw_only=True)
class Form(Peer):
    """A gguf file as it is, or with its matrices repacked as it is loaded."""

    engine: str = "ik_llama.cpp"
    packages: tuple[str, ...] = ("gguf",)
    cache: int = 2
    repacked: bool = False

    @property
    def name(self) -> str:
        return f"{self.engine} {self.form}{' repacked' if self.repacked else ''}"

    def path(self, store: Store) -> Path:
        return store.gguf(self.form)


# the kind of our weights -> its forms
FORMS = {
    "float16": (Form(form="F16", bits=16),),
    "int8": (Form(form="Q8_0", bits=8.5), Form(form="Q8_0", bits=8.5, repacked=True)),
    "int4": (Form(form="Q4_0", bits=4.5), Form(form="Q4_0", bits=4.5, repacked=True)),
}


class Failed(Lost):
    """A binary gave no figures."""

    def __init__(self, binary: str, did: str, wanted: str) -> None:
        super().__init__(f"{binary} {did}; wanted {wanted}")


class Binaries:
    """The engine on the gguf file `path`, by its binaries in `folder` or in `folder`/bin; asked as a `peers.Child` is."""

    def __init__(self, folder: Path, form: Form, path: Path, threads: int) -> None:
        self._folder, self._repacked = folder, form.repacked
        self._common = ["-m", str(path.resolve()), "-t", str(threads), "-ngl", "0"]
        self.build = f"commit {self._prompts(1, 1)['build_commit']}, {threads} threads"

    def ask(self, call: str, *arguments: Any) -> Any:
        """The value of the method `call`; Failed where a binary gives no figures."""
        return getattr(self, call)(*arguments)

    def prefill(self, prompt: list[int]) -> tuple[None, float]:
        """Seconds of the second of two prompts of this length, of tokens that the binary draws."""
        return None, self._prompts(len(prompt), 2)["samples_ns"][-1] * 1e-9

    def start(self, prompt: list[int], batch: int) -> None:
        """What `steps` come after."""
        self._context, self._batch = len(prompt), batch

    def steps(self, count: int) -> tuple[None, list[float]]:
        """Seconds of a step, as means of `count` - 1: after prompts of one token, to warm up, and after those of `start`."""
        steps = count - 1
        wanted = f"the S_TG t/s of {steps} steps of {self._batch} sequences after {self._context} tokens"
        words = ["-npp", f"1,{self._context}", "-ntg", str(steps), "-npl", str(self._batch)]
        words += ["-c", str(self._batch * (self._context + steps)), *(["-rtr"] if self._repacked else [])]
        done = self._run(STEPS, words, wanted)
        said = done.stderr + done.stdout
        lines = [[cell.strip() for cell in line.split("|")] for line in said.splitlines() if line.startswith("|")]
        rows = [dict(zip(lines[0], line, strict=False)) for line in lines[1:]]
        rates = []
        for context in (1, self._context):
            place = {"PP": str(context), "TG": str(steps), "B": str(self._batch)}
            found = [row.get("S_TG t/s", "") for row in rows if place.items() <= row.items()]
            try:
                rates.append(float(found[-1]))
            except (IndexError, ValueError):
                raise Failed(STEPS, f"printed {telling_line(said)!r} at last", wanted) from None
        if not all(0 < rate < math.inf for rate in rates):
            raise Failed(STEPS, f"printed {rates} t/s", wanted)
        return None, [self._batch / rate for rate in rates]

    def _prompts(self, tokens: int, runs: int) -> dict[str, Any]:
        """What llama-bench tells of `runs` prompts, its commit among it."""
        wanted = f"the samples_ns of {runs} prompts of {tokens} tokens, and build_commit"
        words = ["-p", str(tokens), "-n", "0", "-r", str(runs), "-o", "json", "-rtr", str(int(self._repacked))]
        said = self._run(PROMPTS, words, wanted).stdout
        try:
            found, _ = json.JSONDecoder().raw_decode(said, said.find("{"))  # a list of one, amid other lines
            about = found["n_prompt"] == tokens and bool(found["repack"]) == self._repacked and found["build_commit"]
            right = about and len(found["samples_ns"]) == runs and min(found["samples_ns"]) > 0
        except (ValueError, KeyError, TypeError):
            right = False
        if not right:
            raise Failed(PROMPTS, f"printed {telling_line(said)!r} at last", wanted)
        return dict(found)

    def _run(self, name: str, words: list[str], wanted: str) -> subprocess.CompletedProcess[str]:
        """The binary's run, which ended well."""
        places = [folder / name for folder in (self._folder, self._folder / "bin")]
        binary = next((place.resolve() for place in places if place.is_file()), None)
        if binary is None:
            raise Failed(name, f"is not in {self._folder} or its bin", wanted)
        with tempfile.TemporaryDirectory() as logs:  # it writes one where it runs
            try:
                done = subprocess.run(
                    [str(binary), *self._common, *words], cwd=logs, capture_output=True, check=False, text=True,
                    errors="replace", stdin=subprocess.DEVNULL,
                )  # fmt: skip
            except OSError as error:
                raise Failed(str(binary), f"does not run: {error.strerror}", wanted) from None
        if done.returncode:
            raise Failed(str(binary), f"ended with {done.returncode} ({telling_line(done.stderr)})", wanted)
        return done


def telling_line(said: str) -> str:
    """The first line that tells an error, else the last that is not empty."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\berror\b|GGML_ASSERT", line)]
    return [*errors, *lines[-1:], "nothing"][0][:200]


def started(kind: str, folder: Path | None, store: Store, threads: int) -> tuple[dict[Form, Binaries], dict[str, str]]:
    """The forms of weights of `kind` that the binaries in `folder` run, none without one; and of the others why not."""
    found: dict[Form, Binaries] = {}
    absent: dict[str, str] = {}
    if folder is None:
        return found, absent
    for form in FORMS.get(kind, ()):
        if reason := form.why_not:
            absent[form.name] = reason
            continue
        try:
            found[form] = Binaries(folder, form, form.path(store), threads)
        except Failed as error:
            absent[form.name] = str(error)
    return found, absent


def add_option(parser: argparse.ArgumentParser) -> None:
    """The option `ik_llama`."""
    parser.add_argument(
        "--ik_llama", type=Path, default=None, metavar="PATH",
        help=f"CPU: ik_llama.cpp beside ours: the folder of its {PROMPTS} and {STEPS}, or of its build, with bin",
    )  # fmt: skip
