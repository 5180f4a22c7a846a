"""Makes what `EngineOptions.speculate` asks for: the proposer of draft tokens and the costs of verifying them."""

from __future__ import annotations

from baize_engine.generation.loop import MAX_ROWS
from baize_engine.generation.speculation.ngram import SPECULATE_TOKENS, Ngrams
from baize_engine.generation.speculation.proposer import Proposer
from baize_engine.generation.speculation.speculator import Speculator
from baize_engine.kernels.quantized import Int4Weight, Int8Weight
from baize_engine.model.llama import Llama
from baize_engine.model.step_costs import step_costs
from baize_engine.options import EngineOptions


def speculator(options: EngineOptions, model: Llama) -> Speculator | None:
    """The speculator of an engine of `model`, or None if it is not to speculate."""
    if options.speculate is None:
        return None
    most = options.speculate_tokens or SPECULATE_TOKENS
    proposer: Proposer = Ngrams(most)
    return Speculator(proposer, step_costs(kind_of(model), model.device != "cpu"), most, MAX_ROWS)


def kind_of(model: Llama) -> str:
    """The kind of the model's matrices, as model/cost.py names them."""
    weight = model.layers[0].down
    if isinstance(weight, Int8Weight | Int4Weight):
        return "int8" if isinstance(weight, Int8Weight) else "int4"
    return str(weight.dtype).removeprefix("torch.")
