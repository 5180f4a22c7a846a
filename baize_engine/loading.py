"""From a model's folder to the parts of an Engine, every refusal before the weights are read. Knows no requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from baize_engine import plain
from baize_engine.backend import forks
from baize_engine.backend.choose import ops
from baize_engine.backend.devices import resolve_device
from baize_engine.backend.memory import check_fits, free_bytes
from baize_engine.checkpoint.dtypes import FLOATS
from baize_engine.checkpoint.hub import folder_of
from baize_engine.checkpoint.index import CheckpointIndex, read_index
from baize_engine.checkpoint.norms import refuse_diff
from baize_engine.errors import RequestError
from baize_engine.generation.loop import MAX_ROWS
from baize_engine.generation.sampling import SampleOp
from baize_engine.model import names
from baize_engine.model.config import ModelConfig
from baize_engine.model.kv_cache import KVCache
from baize_engine.model.llama import Llama
from baize_engine.model.runner import DecodeSteps
from baize_engine.model.weights import load_weights, nbytes
from baize_engine.text import special_ids
from baize_engine.text.tokenizer import Tokenizer, why_no_tokenizer

# tokens of the cache for each sample that may run, by default: more than most prompts take with their answers
A_ROW = 512
# csrc's own bound; far beyond it, OpenMP ends the process where the system has no more threads to give
MOST_THREADS = 1024


@dataclass(frozen=True)
class Parts:
    """What an Engine is made of. Without a tokenizer, `why_no_text` says why."""

    config: ModelConfig
    decoder: Llama
    cache: KVCache
    max_model_len: int
    sample: SampleOp
    steps: DecodeSteps
    eos_token_ids: tuple[int, ...]
    tokenizer: Tokenizer | None
    why_no_text: str | None


def load_parts(
    path: str | Path,
    device: str,
    dtype: str,
    quantize: str | None,
    max_model_len: int | None,
    cache_tokens: int | None,
    threads: int | None,
    cache_dtype: str = "auto",
    exact_activations: bool = False,
) -> Parts:
    """Loads the folder `path`; `Engine.from_pretrained` says what the arguments mean and what is refused."""
    if dtype != "auto" and dtype not in FLOATS:
        raise RequestError(f"dtype is {dtype!r}, wanted auto, {', '.join(FLOATS)}")
    device = check_settings(device, quantize, threads, cache_dtype)
    path = folder_of(path)
    index = read_index(path)  # first: it says best what is wrong with a folder that is no model
    config = ModelConfig.from_folder(path)
    if config.quantization is not None and quantize not in (None, config.quantization):
        raise RequestError(f"quantize is {quantize!r}, and {path} holds {config.quantization} weights already")
    refuse_diff(index)
    max_model_len, cache_tokens = lengths(config.max_position_embeddings, max_model_len, cache_tokens)
    cache_tokens = cache_room(config, index, device, dtype, quantize, max_model_len, cache_tokens, cache_dtype)
    text = read_tokenizer(path, config.vocab_size)
    ends = special_ids.of_folder(path, text[0], config.vocab_size).end_ids
    weights = load_weights(index, config, dtype, device, quantize)
    return assemble(config, weights, device, max_model_len, cache_tokens, cache_dtype, ends, text, exact_activations)


def check_settings(device: str, quantize: str | None, threads: int | None, cache_dtype: str) -> str:
    """The device by its name, where the settings can be; sets torch's threads."""
    if quantize not in (None, "int8", "int4"):
        raise RequestError(f"quantize is {quantize!r}, wanted None, 'int8' or 'int4'")
    if cache_dtype != "auto" and cache_dtype not in FLOATS:
        raise RequestError(f"cache_dtype is {cache_dtype!r}, wanted auto, {', '.join(FLOATS)}")
    if threads is None:
        _count("torch's number of threads", torch.get_num_threads(), 1, MOST_THREADS)  # OMP_NUM_THREADS may be anything
    else:
        torch.set_num_threads(_count("threads", threads, 1, MOST_THREADS))
    forks.check()
    resolved = resolve_device(device)
    if cache_dtype != "auto" and resolved != "cpu":
        raise RequestError(
            f"cache_dtype is {cache_dtype!r}, and on a GPU the cache has the weights' type: wanted 'auto'"
        )
    return resolved


def read_tokenizer(folder: Path, vocab_size: int) -> tuple[Tokenizer | None, str | None]:
    """The tokenizer of a folder for a model of `vocab_size` rows, or why it has none. CheckpointError for a broken one."""
    reason = why_no_tokenizer(folder)
    return (None if reason else Tokenizer.from_folder(folder, vocab_size)), reason


def assemble(
    config: ModelConfig,
    weights: Mapping[str, Any],
    device: str,
    max_model_len: int,
    cache_tokens: int,
    cache_dtype: str,
    eos_token_ids: tuple[int, ...],
    text: tuple[Tokenizer | None, str | None],
    exact_activations: bool = False,
) -> Parts:
    """The parts around loaded weights. `text`: what `read_tokenizer` gave."""
    backend = ops(device)
    decoder = Llama(config, weights, backend, device, exact_activations=exact_activations)
    cache = decoder.new_cache(cache_tokens, None if cache_dtype == "auto" else getattr(torch, cache_dtype))
    return Parts(
        config, decoder, cache, max_model_len, backend.sample, DecodeSteps(decoder, cache), eos_token_ids, *text
    )


def lengths(positions: int, max_model_len: int | None, cache_tokens: int | None) -> tuple[int, int | None]:
    """(max_model_len, cache_tokens) as asked for, the first as large as the others allow where it is left open."""
    if cache_tokens is not None:
        cache_tokens = _count("cache_tokens", cache_tokens, 2)
    if max_model_len is None:
        max_model_len = positions if cache_tokens is None else min(positions, cache_tokens)
    max_model_len = _count("max_model_len", max_model_len, 2)
    if max_model_len > positions:
        raise RequestError(f"max_model_len is {max_model_len}, and the model's max_position_embeddings is {positions}")
    if cache_tokens is not None:
        _count("cache_tokens", cache_tokens, max_model_len)
    return max_model_len, cache_tokens


def _count(name: str, given: Any, least: int, most: int | None = None) -> int:
    value = plain.integer(given)
    if value is None or value < least or (most is not None and value > most):
        limit = "" if most is None else f", at most {most}"
        raise RequestError(f"{name} is {given!r}, wanted an integer of at least {least}{limit}")
    return value


def cache_room(
    config: ModelConfig,
    index: CheckpointIndex,
    device: str,
    dtype: str,
    quantize: str | None,
    max_model_len: int,
    cache_tokens: int | None,
    cache_dtype: str,
) -> int:
    """The tokens of the cache. RequestError where it and the weights exceed what `device` has free.

    Where nobody says: as many as let a full batch of usual requests run, in at most half of the memory that the weights leave
    free, and at least one sample's most.
    """
    embedding = index.entries.get(names.EMBED)
    stored = "float32" if embedding is None else embedding.dtype  # without one, load_weights refuses by name
    weights = stored if dtype == "auto" else dtype
    activations = "float32" if device == "cpu" else weights
    kept = activations if cache_dtype == "auto" else cache_dtype
    kind, held, free = getattr(torch, kept), nbytes(index, config, dtype, quantize), free_bytes(device)
    if cache_tokens is None:
        fits = 0 if free is None else KVCache.tokens_in(config, (free - held) // 2, kind)
        cache_tokens = max(max_model_len, min(MAX_ROWS * min(max_model_len, A_ROW), fits))
    where = "this machine" if device == "cpu" else f"the GPU ({device})"
    check_fits(held, KVCache.nbytes(config, cache_tokens, kind), free, where)
    return cache_tokens
