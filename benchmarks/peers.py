"""The engines that ours is compared with on a CPU: their precision, the bytes they read per step, and their processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from model_files import Store, missing

import baize_engine
from baize_engine.model import cost
from baize_engine.model.config import ModelConfig

ENGINES = ("llama.cpp", "ctranslate2", "transformers")
LLAMA_CPP, CTRANSLATE2 = ("llama_cpp", "gguf"), ("ctranslate2", "transformers")  # packages


@dataclass(frozen=True)
class Peer:
    """An engine on one form of the weights. `bits` a weight as stored, `cache` bytes of a value in its cache."""

    engine: str
    form: str
    packages: tuple[str, ...]
    bits: float
    cache: int

    @property
    def name(self) -> str:
        return f"{self.engine} {self.form}"

    @property
    def why_not(self) -> str | None:
        """None where it is installed, else what is missing."""
        return missing(*self.packages)

    def path(self, store: Store) -> Path:
        if self.engine == "llama.cpp":
            return store.gguf(self.form)
        return store.ctranslate2(self.form) if self.engine == "ctranslate2" else store.ours("float16")

    def bytes(self, config: ModelConfig, batch: int, context: int) -> int:
        """What a decode step must read: every weight but the embedding's, and the cache."""
        weights = cost.step_bytes_weights(config, "float16") * self.bits / 16
        return int(weights) + batch * context * cost.kv_bytes_per_token(config, self.cache)


# the kind of our weights -> its peers of the same precision; transformers' fastest type on a CPU is float32
PEERS = {
    "float16": (
        Peer("llama.cpp", "F16", LLAMA_CPP, 16, 2), Peer("ctranslate2", "float32", CTRANSLATE2, 32, 4),
        Peer("transformers", "float32", ("transformers",), 32, 4),
    ),
    "int8": (Peer("llama.cpp", "Q8_0", LLAMA_CPP, 8.5, 2), Peer("ctranslate2", "int8", CTRANSLATE2, 8, 4)),
    "int4": (Peer("llama.cpp", "Q4_0", LLAMA_CPP, 4.5, 2),),
}  # fmt: skip


def installed(kind: str, engines: Collection[str]) -> tuple[list[Peer], dict[str, str]]:
    """The peers among `engines` of weights of `kind` that are installed; and of the others why not."""
    wanted = [peer for peer in PEERS.get(kind, ()) if peer.engine in engines]
    absent = {peer.name: reason for peer in wanted if (reason := peer.why_not)}
    return [peer for peer in wanted if peer.name not in absent], absent


class Lost(SystemExit):
    """An engine takes no further part; the message says why."""


class Ended(Lost):
    """An engine's process is gone, by a signal where `crashed`; the message says how it ended."""

    def __init__(self, name: str, code: int) -> None:
        super().__init__(f"{name}: its process ended with {code}, see its message above")
        self.crashed = code < 0


class Timed(Protocol):
    """What takes turns: `ask` calls a method of `engines.Engine`, or raises Lost; `build` is how it says it was built."""

    build: str

    def ask(self, call: str, *arguments: Any) -> Any: ...


class Child:
    """An engine's process; `ask` calls a method of `engines.Engine` there, `build` is how it says it was built."""

    def __init__(self, engine: str, path: Path, threads: int) -> None:
        here = Path(__file__).resolve().parent
        known = os.environ.get("PYTHONPATH")
        package = Path(baize_engine.__file__).resolve().parent.parent  # the child's is the parent's
        paths = os.pathsep.join([str(package), *([known] if known else [])])
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": paths}
        command = [sys.executable, str(here / "engines.py"), engine, str(path), str(threads)]
        self.name = f"{engine} {path.name}"
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.build: str = self._answer()

    def ask(self, call: str, *arguments: Any) -> Any:
        """The value of `call`; Ended where the process has ended."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # _answer tells
            print(json.dumps({"call": call, "arguments": arguments}), file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Ended(self.name, self._process.wait())
        return json.loads(line)
