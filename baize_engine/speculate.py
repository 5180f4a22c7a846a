"""Makes what `EngineOptions.speculate` asks for: the proposer of draft tokens and the costs of verifying them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from baize_engine.checkpoint.hub import folder_of
from baize_engine.checkpoint.index import CheckpointIndex, read_index
from baize_engine.checkpoint.norms import refuse_diff
from baize_engine.errors import CheckpointError, ConfigError, RequestError
from baize_engine.generation.loop import MAX_ROWS
from baize_engine.generation.speculation.draft_model import DraftModel
from baize_engine.generation.speculation.ngram import SPECULATE_TOKENS, Ngrams
from baize_engine.generation.speculation.proposer import Proposer
from baize_engine.generation.speculation.speculator import Speculator
from baize_engine.kernels.quantized import Int4Weight, Int8Weight
from baize_engine.model import int4_form, names
from baize_engine.model.config import ModelConfig
from baize_engine.model.cost import step_bytes_weights
from baize_engine.model.kv_cache import KVCache
from baize_engine.model.llama import Llama, tensor
from baize_engine.model.step_costs import step_costs
from baize_engine.model.weights import check_index, load_weights, nbytes
from baize_engine.options import NGRAM, SELF_INT4, EngineOptions
from baize_engine.text.choose import tokenizer_of
from baize_engine.text.same_vocabulary import first_difference
from baize_engine.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Draft:
    """A model that drafts for another, before its weights are read.

    nbytes: memory of its weights. index: its folder's files; None: it is the int4 form of the other model, and shares its
    cache.
    """

    config: ModelConfig
    nbytes: int
    index: CheckpointIndex | None = None


def draft_of(
    options: EngineOptions, config: ModelConfig, index: CheckpointIndex, tokenizer: Tokenizer | None
) -> Draft | None:
    """What drafts for the model of `config`, whose weights are those of `index`; None if no model does.

    RequestError says why a model cannot draft: it is none, has another vocabulary, or takes as long as the model itself.
    """
    if options.speculate in (None, NGRAM):
        return None
    if options.segmented:
        raise RequestError(f"speculate is {options.speculate!r} with tensor_parallel, wanted {NGRAM!r}")
    if options.speculate == SELF_INT4:
        if (config.held or options.quantize) == "int4":
            raise RequestError(
                "speculate is 'self-int4', but the model's weights are int4 already: wanted float or int8"
            )
        return Draft(config, int4_form.added_bytes(config))
    said = f"speculate is {options.speculate!r}"
    try:
        folder = folder_of(str(options.speculate))
        own_index = read_index(folder)
        own = ModelConfig.from_folder(folder)
        refuse_diff(own_index)
        check_index(own_index, own)
        own_tokenizer = tokenizer_of(folder, own.vocab_size)
    except (CheckpointError, ConfigError) as error:
        raise RequestError(f"{said}, wanted 'ngram', 'self-int4' or a model's folder: {error}") from None
    if own.vocab_size != config.vocab_size:
        raise RequestError(
            f"{said}, whose vocab_size is {own.vocab_size}, but the model's is {config.vocab_size}: wanted the same"
        )
    if tokenizer is not None and own_tokenizer is not None:
        other = first_difference(own_tokenizer, tokenizer, config.vocab_size)
        if other is not None:
            raise RequestError(
                f"{said}, where id {other} is {own_tokenizer.piece(other)!r}, but the model's is "
                f"{tokenizer.piece(other)!r}: wanted the same vocabulary"
            )
    size = nbytes(own_index, own, options.dtype, _quantize(options, own))
    most = nbytes(index, config, options.dtype, options.quantize)
    if size >= most:
        raise RequestError(
            f"{said}, whose weights take {size} bytes, but the model's take {most}: wanted a smaller model, since a step "
            "takes as long as reading its weights"
        )
    return Draft(own, size, own_index)


def speculator(options: EngineOptions, model: Llama, cache: KVCache, draft: Draft | None) -> Speculator | None:
    """The speculator of an engine of `model` over `cache`, or None if it is not to speculate. Reads the draft's weights."""
    if options.speculate is None:
        return None
    most = options.speculate_tokens or SPECULATE_TOKENS
    proposer: Proposer = Ngrams(most) if draft is None else _draft_model(options, model, cache, draft, most)
    costs = step_costs(kind_of(model), model.device != "cpu", _step_bytes(model))
    return Speculator(proposer, costs, most, MAX_ROWS)


def kind_of(model: Llama) -> str:
    """The kind of the model's matrices, as model/cost.py names them."""
    weight = model.layers[0].down
    if isinstance(weight, Int8Weight | Int4Weight):
        return "int8" if isinstance(weight, Int8Weight) else "int4"
    return _type_name(weight.dtype)


def _draft_model(options: EngineOptions, model: Llama, cache: KVCache, draft: Draft, most: int) -> DraftModel:
    if draft.index is None:
        drafting = int4_form.int4_form(model)
        own = cache
    else:
        config = draft.config
        weights = load_weights(draft.index, config, options.dtype, options.device, _quantize(options, config))
        drafting = Llama(config, weights, model.ops, model.device)
        kept = drafting.dtype if options.cache_dtype == "auto" else getattr(torch, options.cache_dtype)
        own = KVCache(config, cache.num_blocks, cache.block_size, kept, model.device, cache.chunk)
    cost = _step_bytes(drafting) / _step_bytes(model)  # both take as long as their weights are read
    return DraftModel(drafting, own, cost, most, MAX_ROWS, shared=draft.index is None)


def _quantize(options: EngineOptions, config: ModelConfig) -> str | None:
    """How the matrices of a draft's folder are quantised: as the model's are, but those that are stored so stay as they are."""
    return options.quantize if config.quantization is None else None


def _step_bytes(model: Llama) -> int:
    return step_bytes_weights(model.config, kind_of(model), kept=_type_name(tensor(model.weights[names.EMBED]).dtype))


def _type_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
