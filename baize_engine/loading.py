"""Loads a model's folder for an Engine; everything that can be refused is refused before the weights are read.

Knows no requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from baize_engine.backend import forks
from baize_engine.backend.choose import ops
from baize_engine.backend.devices import resolve_device
from baize_engine.backend.memory import check_fits, free_bytes
from baize_engine.checkpoint.fingerprint import fingerprint
from baize_engine.checkpoint.hub import folder_of
from baize_engine.checkpoint.index import CheckpointIndex, read_index
from baize_engine.checkpoint.norms import refuse_diff
from baize_engine.errors import RequestError
from baize_engine.generation.loop import MAX_ROWS, Loop
from baize_engine.kernels.quantized import Weight
from baize_engine.loaded_model import LoadedModel
from baize_engine.model import names
from baize_engine.model.config import ModelConfig
from baize_engine.model.kv_cache import BLOCK_SIZE, KVCache
from baize_engine.model.llama import Llama
from baize_engine.model.prompt_runner import PromptRunner, new_cache
from baize_engine.model.weights import load_weights, nbytes
from baize_engine.options import MOST_THREADS, EngineOptions, count
from baize_engine.speculate import Draft, draft_of, speculator
from baize_engine.team import Team, on_all_ranks
from baize_engine.text import chat_formats, choose, special_ids
from baize_engine.text.tokenizer import Tokenizer

# of the cache, for each sequence that may run: more than most prompts take with their answers
DEFAULT_TOKENS_PER_SEQUENCE = 512


def load(path: str | Path, options: EngineOptions) -> LoadedModel:
    """Loads the folder or hub id `path`; `Engine.from_pretrained` says what is refused."""
    return on_all_ranks(load_folder, options, path)


def load_folder(team: Team, options: EngineOptions, path: str | Path) -> LoadedModel:
    """`load`, of this rank's part of the model."""
    with team.checking():
        options = resolved(options)
        folder = folder_of(path)
        index = read_index(folder)  # first: it says best what is wrong with a folder that is no model
        config = ModelConfig.from_folder(folder)
        if config.quantization is not None and options.quantize not in (None, config.quantization):
            raise RequestError(
                f"quantize is {options.quantize!r}, but {folder} holds {config.quantization} weights already"
            )
        refuse_diff(index)
        tokenizer = choose.tokenizer_of(folder, config.vocab_size)
        draft = draft_of(options, config, index, tokenizer)
        cache_tokens = cache_size(team, options, config, index, draft)
        chat_formats.check_asked(tokenizer, options.chat_format)
        end_ids = special_ids.of_folder(folder, tokenizer, config.vocab_size).end_ids
        files = fingerprint(index) if team.ranks else ""
    team.agree(options, config, files)
    cache_tokens = team.minimum(cache_tokens)
    with team.serving():
        weights = load_weights(index, config, options.dtype, options.device, options.quantize, team.share)
        return assemble(
            team, config, weights, options, cache_tokens, draft, end_ids, tokenizer, choose.why_none(folder)
        )


def resolved(options: EngineOptions) -> EngineOptions:
    """`options` with the device that "auto" means here. Sets torch's number of threads.

    BackendError where the device cannot be used, or after a fork that torch's threads do not survive.
    """
    if options.threads is None:  # OMP_NUM_THREADS may be anything
        count("torch's number of threads", torch.get_num_threads(), 1, MOST_THREADS)
    else:
        torch.set_num_threads(options.threads)
    forks.usable_threads()
    device = resolve_device(options.device)
    if options.cache_dtype != "auto" and device != "cpu":
        raise RequestError(
            f"cache_dtype is {options.cache_dtype!r}, but on a GPU the cache has the weights' type: wanted 'auto'"
        )
    return replace(options, device=device)


def cache_size(
    team: Team, options: EngineOptions, config: ModelConfig, index: CheckpointIndex, draft: Draft | None = None
) -> int:
    """Tokens of the cache. RequestError where it and the weights, those of `index`, exceed the device's free memory.

    config: of the whole model; what counts is this rank's part. Ranks of one host have equal parts of its memory.

    Unless options.cache_tokens says: enough for a full batch of usual requests, in at most half of the memory that the
    weights leave free, and at least enough for one sequence of the most tokens. What drafts has weights, too, and may have a
    cache of as many tokens.
    """
    longest = options.context_length(config.max_position_embeddings)
    kept = cache_type(options, index)
    held = nbytes(index, config, options.dtype, options.quantize, team.share)
    config = team.config(config)
    free = team.memory_share(free_bytes(options.device), options.device)
    held += 0 if draft is None else draft.nbytes

    beside = 0  # bytes of a block of the draft's own cache
    if draft is not None and draft.index is not None:
        beside = KVCache.nbytes(draft.config, 0, cache_type(options, draft.index))
    tokens = options.cache_tokens
    if tokens is None:
        fits = 0 if free is None else KVCache.tokens_in(config, (free - held) // 2, kept, beside=beside)
        tokens = max(longest, min(MAX_ROWS * min(longest, DEFAULT_TOKENS_PER_SEQUENCE), fits))
    where = f"this machine{team.memory_note}" if options.device == "cpu" else f"the GPU ({options.device})"
    blocks = -(-tokens // BLOCK_SIZE) + 1
    check_fits(held, KVCache.nbytes(config, tokens, kept) + beside * blocks, free, where)
    return tokens


def cache_type(options: EngineOptions, index: CheckpointIndex) -> torch.dtype:
    """The type of keys and values of a model whose weights are those of `index`."""
    embedding = index.entries.get(names.EMBED)
    stored = "float32" if embedding is None else embedding.dtype  # without one, load_weights refuses by name
    weights = stored if options.dtype == "auto" else options.dtype
    activations = "float32" if options.device == "cpu" else weights
    kept: torch.dtype = getattr(torch, activations if options.cache_dtype == "auto" else options.cache_dtype)
    return kept


def assemble(
    team: Team,
    config: ModelConfig,
    weights: Mapping[str, Weight],
    options: EngineOptions,
    cache_tokens: int,
    draft: Draft | None,
    eos_token_ids: tuple[int, ...],
    tokenizer: Tokenizer | None,
    why_no_text: str | None,
) -> LoadedModel:
    """A decoder over `weights` with a new cache of `cache_tokens` tokens, what drafts for it, and what text is to it.

    config: of the whole model. weights: this rank's part.
    """
    backend = ops(options.device)
    model = Llama(
        team.config(config),
        weights,
        backend,
        options.device,
        exact_activations=options.exact_activations,
        share=team.share,
        group=team.ranks,
        channel=None if team.follows else team.ranks,
    )
    cache_dtype = None if options.cache_dtype == "auto" else getattr(torch, options.cache_dtype)
    cache = new_cache(model, cache_tokens, cache_dtype)
    return LoadedModel(
        loop=Loop(PromptRunner(model, cache), speculator=speculator(options, model, cache, draft)),
        vocab_size=config.vocab_size,
        max_model_len=options.context_length(config.max_position_embeddings),
        eos_token_ids=eos_token_ids,
        tokenizer=tokenizer,
        why_no_text=why_no_text or "",
        chat_format=options.chat_format,
    )
