"""A task's generation_kwargs, in the harness's words, as SamplingParams and stop strings. Knows no engine and no request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

from baize_engine.errors import RequestError
from baize_engine.generation.params import SamplingParams
from baize_engine.text.tokenizer import Tokenizer

FILTERS = ("top_k", "top_p", "min_p", "seed")  # change nothing where nothing is drawn, whatever they are
PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")


@dataclass(frozen=True)
class GenerationSettings:
    """How to generate. until: the strings before which the harness wants the text cut, the EOS token's among them."""

    params: SamplingParams
    until: tuple[str, ...]


def generation_of(gen_kwargs: Mapping[str, object], tokenizer: Tokenizer, max_gen_toks: int) -> GenerationSettings:
    """What `gen_kwargs` ask for; without its own limit, an answer has at most `max_gen_toks` tokens.

    Greedy unless it has a temperature, and do_sample is not false. RequestError names a key that is unknown, or beam search,
    and a value out of range.
    """
    given = dict(normalize_gen_kwargs(dict(gen_kwargs), max_gen_toks))
    ends = [text for text in tokenizer.special_tokens if tokenizer.id_of(text) == tokenizer.eos_id]
    until = handle_stop_sequences(given.pop("until"), eos=ends[0] if ends else None)
    limit = given.pop("max_gen_toks")
    drawn, temperature = given.pop("do_sample"), given.pop("temperature", 0.0)
    if (beams := given.pop("num_beams", 1)) != 1:
        raise RequestError(f"num_beams is {beams!r} in generation_kwargs, wanted 1: there is no beam search")
    known = (*FILTERS, *PENALTIES)
    if unknown := [key for key in given if key not in known]:
        wanted = f"until, max_gen_toks, do_sample, temperature, {', '.join(known)}"
        raise RequestError(f"{unknown[0]} in generation_kwargs is unknown, wanted {wanted}")
    if not drawn or not temperature:
        temperature = 0.0
        given = {key: value for key, value in given.items() if key not in FILTERS}
    special = [token_id for text in until if (token_id := tokenizer.id_of(text)) is not None]
    params = SamplingParams(
        max_new_tokens=limit,
        temperature=temperature,
        # the engine's texts have the space in front of an answer's first word, and the harness's have not: it must not end them
        stop=[text for text in until if text and not text.startswith(" ")],
        stop_token_ids=[token_id for token_id in special if not tokenizer.piece(token_id)],
        **given,
    )
    return GenerationSettings(params, tuple(until))
