"""One engine in one process: it loads a model, then answers its parent line by line; only its own calls are timed.

    python engines.py llama.cpp F16.gguf 2             engine, the model's file or folder, threads
    python engines.py llama.cpp F16.gguf 2 '[5, 7]'    and a prompt: the stamps of its first token, then the process ends

Requests and answers are JSON lines: {"call": "steps", "arguments": [16]} and its value. Every engine chooses tokens
greedily, and the times include that. Written for benchmarks/peers.py and bench_start.py, which start these.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from functools import partial
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

CACHED, CHOSEN = 512, 64  # least room of a cache in tokens; tokens that a round of steps may add to a context

Steps = tuple[list[list[int]], list[float]]  # ids of each step, one for each sequence; seconds of each step


class Engine(Protocol):
    """What is timed. `prefill` and `start` give the token after the prompt and the seconds; `steps` the rest."""

    def build(self) -> str:
        """Its version, how it was built as far as it tells, and its threads."""

    def prefill(self, prompt: list[int]) -> tuple[int, float]:
        """The prompt from an empty cache."""

    def start(self, prompt: list[int], batch: int) -> tuple[int, float]:
        """Fills the cache of `batch` sequences with the prompt, one or all; the seconds are those of a single one."""

    def steps(self, count: int) -> Steps:
        """`count` steps (CHOSEN at most) after the prompt of the last start, to which the cache then returns."""


class Baize:
    """The loop of `Engine` over a model's folder, mapped, with the ops that `baize info` shows.

    exact: in the form that any number of ranks computes, as tensor_parallel="exact" has it.
    """

    def __init__(self, path: str, threads: int, *, exact: bool = False) -> None:
        import torch

        torch.set_num_threads(threads)
        import arrivals

        from baize_engine.backend import choose
        from baize_engine.checkpoint.index import read_index
        from baize_engine.model.config import ModelConfig
        from baize_engine.model.llama import Llama
        from baize_engine.model.share import Share
        from baize_engine.model.weights import load_weights

        config, share = ModelConfig.from_folder(path), Share() if exact else None
        ops, self.threads = choose.ops("cpu"), threads
        weights = load_weights(read_index(path), config, "auto", "cpu", share=share)
        self.model = Llama(config, weights, ops, "cpu", share=share)
        self.arrivals = arrivals
        self._room(CACHED)

    def build(self) -> str:
        import baize_engine

        return f"{baize_engine.__version__}, {self.threads} threads"

    def prefill(self, prompt: list[int]) -> tuple[int, float]:
        if self.loop.cache.num_blocks * self.loop.cache.block_size < len(prompt) + 1:
            self._room(len(prompt) + 1)
        self.loop.pool.forget()
        found = self.arrivals.arrivals(self.engine, [prompt], [self.arrivals.greedy(1)])
        return found.ids[0][0], found.firsts[0]

    def start(self, prompt: list[int], batch: int) -> tuple[int, float]:
        self._room(self.arrivals.room(batch, len(prompt), CHOSEN))
        token, seconds = self.prefill(prompt)
        self.rows = self.arrivals.Rows(self.model, self.loop.cache, prompt, batch)
        return token, seconds

    def steps(self, count: int) -> Steps:
        return self.rows(count)

    def sampled(self, count: int) -> Steps:
        """The same with temperature, top_k and top_p."""
        return self.rows(count, self.arrivals.SAMPLED)

    def _room(self, tokens: int) -> None:
        """An empty cache for so many."""
        self.loop = self.arrivals.loop_of(self.model, tokens)
        self.engine = self.arrivals.engine_of(self.loop)


class LlamaCpp:
    """llama.cpp by its C functions: llama_decode over a batch, and the greatest logit of each sequence by numpy."""

    def __init__(self, path: str, threads: int) -> None:
        import llama_cpp

        self.api, self.threads = llama_cpp, threads
        self.silent = llama_cpp.llama_log_callback(lambda *said: None)  # held: C calls it
        llama_cpp.llama_log_set(self.silent, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.context: Any = None
        self.room = (0, 0)

    def build(self) -> str:
        from builds import processor_flags, told

        system = self.api.llama_print_system_info().decode()
        return f"{told(self.api.__version__, system, processor_flags())}, {self.threads} threads"

    def prefill(self, prompt: list[int]) -> tuple[int, float]:
        self._make(1, max(len(prompt), CACHED))
        return self._prompt(prompt)

    def start(self, prompt: list[int], batch: int) -> tuple[int, float]:
        self._make(batch, len(prompt) + CHOSEN)
        self.token, seconds = self._prompt(prompt)
        memory = self.api.llama_get_memory(self.context)
        for number in range(1, batch):
            self.api.llama_memory_seq_cp(memory, 0, number, -1, -1)
        self.length = len(prompt)
        return self.token, seconds

    def steps(self, count: int) -> Steps:
        many, memory = self.room[0], self.api.llama_get_memory(self.context)
        tokens, ids, seconds = [self.token] * many, [], []
        for step in range(count):
            begin = time.perf_counter()
            tokens = self._run([(token, self.length + step, number) for number, token in enumerate(tokens)], many)
            seconds.append(time.perf_counter() - begin)
            ids.append(tokens)
        for number in range(many):
            self.api.llama_memory_seq_rm(memory, number, self.length, -1)
        return ids, seconds

    def _prompt(self, prompt: list[int]) -> tuple[int, float]:
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)
        begin = time.perf_counter()
        (token,) = self._run([(token, place, 0) for place, token in enumerate(prompt)], 1)
        return token, time.perf_counter() - begin

    def _make(self, batch: int, each: int) -> None:
        """A context for `batch` sequences of at least `each` tokens; the cache is float16, as by default."""
        if self.room[0] == batch and self.room[1] >= each:
            return
        if self.context:
            self.api.llama_free(self.context)
        options = self.api.llama_context_default_params()
        options.n_ctx, options.n_seq_max = batch * -(-each // 256) * 256, batch  # a sequence has a whole number of 256
        options.n_threads = options.n_threads_batch = self.threads
        self.context = self.api.llama_init_from_model(self.model, options)
        if not self.context:
            raise SystemExit(f"llama.cpp makes no context for {batch} sequences of {each} tokens")
        self.tokens = self.api.llama_batch_init(options.n_ctx, 0, 1)
        self.room = (batch, each)

    def _run(self, rows: list[tuple[int, int, int]], last: int) -> list[int]:
        """The best next token of each of the `last` rows of (token, place, sequence)."""
        import numpy as np

        batch = self.tokens
        batch.n_tokens = len(rows)
        for number, (token, place, sequence) in enumerate(rows):
            batch.token[number], batch.pos[number] = token, place
            batch.n_seq_id[number], batch.seq_id[number][0] = 1, sequence
            batch.logits[number] = number >= len(rows) - last
        if code := self.api.llama_decode(self.context, batch):
            raise SystemExit(f"llama_decode of {len(rows)} tokens fails with {code}")
        found = self.api.llama_get_logits(self.context)
        return np.ctypeslib.as_array(found, (last, self.vocabulary)).argmax(1).tolist()


class CTranslate2:
    """ctranslate2's Generator; its own callback after each step tells the time. Every round runs the prompts again."""

    def __init__(self, path: str, threads: int) -> None:
        import ctranslate2

        self.generator = ctranslate2.Generator(
            path, "cpu", compute_type="default", inter_threads=1, intra_threads=threads
        )
        self.version, self.threads = ctranslate2.__version__, threads

    def build(self) -> str:
        forced = os.environ.get("CT2_FORCE_CPU_ISA", "chosen by it as it runs")
        return f"{self.version}, instruction set {forced}, {self.threads} threads"

    def prefill(self, prompt: list[int]) -> tuple[int, float]:
        ids, times = self._generate(prompt, 1, 1)
        return ids[0][0], times[0]

    def start(self, prompt: list[int], batch: int) -> tuple[int, float]:
        self.prompt, self.batch = prompt, batch
        return self.prefill(prompt)

    def steps(self, count: int) -> Steps:
        ids, times = self._generate(self.prompt, self.batch, count + 1)
        return ids[1:], [after - before for before, after in pairwise(times)]

    def _generate(self, prompt: list[int], batch: int, count: int) -> Steps:
        """The ids of each step, and the seconds from the call to when its last sequence had been told."""
        times, begin = [0.0] * count, time.perf_counter()

        def told(result: Any) -> bool:
            times[result.step] = time.perf_counter() - begin
            return False

        found = self.generator.generate_batch(
            [[str(token) for token in prompt]] * batch, max_length=count, min_length=count, sampling_topk=1,
            include_prompt_in_result=False, max_batch_size=0, callback=told,
        )  # fmt: skip
        rows = [result.sequences_ids[0] for result in found]
        return [list(step) for step in zip(*rows, strict=True)], times


class Transformers:
    """transformers' model in float32, which is the type that torch multiplies fastest on a CPU."""

    def __init__(self, path: str, threads: int) -> None:
        import torch
        from transformers import LlamaForCausalLM

        torch.set_num_threads(threads)
        self.torch, self.model = torch, LlamaForCausalLM.from_pretrained(path, dtype=torch.float32).eval()

    def build(self) -> str:
        from importlib.metadata import version

        torch = self.torch
        kind = torch.backends.cpu.get_cpu_capability()
        return f"{version('transformers')}, torch {torch.__version__} with {kind}, {torch.get_num_threads()} threads"

    def prefill(self, prompt: list[int]) -> tuple[int, float]:
        token, seconds, _ = self._run([prompt], None)
        return token[0], seconds

    def start(self, prompt: list[int], batch: int) -> tuple[int, float]:
        (self.token,), seconds, self.past = self._run([prompt], None)
        self.batch = batch
        self.past.batch_repeat_interleave(batch)
        return self.token, seconds

    def steps(self, count: int) -> Steps:
        tokens, ids, seconds = [self.token] * self.batch, [], []
        for _ in range(count):
            tokens, spent, self.past = self._run([[token] for token in tokens], self.past)
            ids.append(tokens)
            seconds.append(spent)
        self.past.crop(-count)
        return ids, seconds

    def _run(self, rows: list[list[int]], past: Any) -> tuple[list[int], float, Any]:
        with self.torch.inference_mode():
            begin = time.perf_counter()
            out = self.model(self.torch.tensor(rows), past_key_values=past, use_cache=True, logits_to_keep=1)
            tokens = out.logits[:, -1].argmax(-1).tolist()
            return tokens, time.perf_counter() - begin, out.past_key_values


class Memory:
    """No engine, but what bounds all of them: how fast `threads` threads of this machine read its memory."""

    def __init__(self, path: str, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        from bandwidth import ReadProbe

        self.threads, self.probe = threads, ReadProbe(threads)

    def build(self) -> str:
        return f"{self.threads} threads"

    def read(self) -> float:
        """GB/s, now."""
        return self.probe()


# name -> (class, the package that it imports)
ENGINES: dict[str, tuple[Any, str]] = {
    "baize": (Baize, "torch"),
    "baize exact": (partial(Baize, exact=True), "torch"),
    "memory": (Memory, "torch"),
    "llama.cpp": (LlamaCpp, "llama_cpp"),
    "ctranslate2": (CTranslate2, "ctranslate2"),
    "transformers": (Transformers, "transformers"),
}


def now_since_start() -> float:
    """Seconds since this process was started, by the system's account of it, which counts hundredths."""
    started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


def own_bytes() -> int:
    """Resident bytes of this process that belong to no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


def stamps(imported: float, loaded: float, first: float, token: int) -> str:
    """What a process that was started for one token prints: seconds since its start, the token, and its own memory."""
    return json.dumps({"imported": imported, "loaded": loaded, "first": first, "token": token, "own": own_bytes()})


def main() -> int:
    name, path, threads, *prompt = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is not an answer
    make, package = ENGINES[name]
    import_module(package)
    imported = now_since_start()
    engine = make(path, int(threads))
    if prompt:
        loaded = now_since_start()
        token, _ = engine.prefill(json.loads(prompt[0]))
        print("\n" + stamps(imported, loaded, now_since_start(), token), file=answers, flush=True)
        return 0
    print(json.dumps(engine.build()), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(getattr(engine, request["call"])(*request["arguments"])), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
