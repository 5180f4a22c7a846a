"""Rank 0's calls, as other ranks make them: their parts of one model give what one rank gives, whatever the loop does."""

from __future__ import annotations

import pickle
import random
from dataclasses import replace

import decoders
import pytest
import shares
import tiny
import torch

from baize_engine import Engine, SamplingParams
from baize_engine.generation.loop import Loop
from baize_engine.generation.sequence import Sequence
from baize_engine.generation.speculation.ngram import Ngrams
from baize_engine.generation.speculation.speculator import Speculator
from baize_engine.loaded_model import LoadedModel
from baize_engine.model.followers import follow
from baize_engine.model.kv_cache import KVCache
from baize_engine.model.llama import Llama
from baize_engine.model.mirrored import Mirrored, MirroredCall, SequenceMirror, mirrored, mirrored_now
from baize_engine.model.step_costs import step_costs

CONFIG = tiny.config(
    hidden_size=64, num_attention_heads=8, num_key_value_heads=4, intermediate_size=128, vocab_size=101
)
ROWS, PROMPTS, SMALL = 6, 9, 208  # rows of a step; prompts asked at once; tokens of a cache in which they do not fit


class Recorded:
    """A channel that keeps what was queued and what was sent."""

    def __init__(self) -> None:
        self.waiting: list[MirroredCall] = []
        self.sent: list[MirroredCall] = []

    def tell(self, message: MirroredCall) -> None:
        self.waiting.append(pickle.loads(pickle.dumps(message)))

    def flush(self) -> None:
        self.sent += self.waiting
        self.waiting = []

    def abandon(self) -> None:
        self.sent.append(MirroredCall("all", "abandon", ()))


class Counter(Mirrored):
    mirror_name = "counter"

    def __init__(self) -> None:
        self.value = 0

    @mirrored
    def add(self, number: int) -> None:
        self.value += number

    @mirrored_now
    def double(self) -> int:
        self.add(self.value)
        return self.value

    @mirrored
    def refuse(self) -> None:
        raise MemoryError

    @mirrored_now
    def break_down(self) -> None:
        raise MemoryError


def test_calls_are_sent_with_the_next_that_computes_and_inner_ones_are_not() -> None:
    channel, leading, following = Recorded(), Counter(), Counter()
    leading.add(1)  # before it leads
    leading.lead(channel)
    leading.add(2)
    assert channel.sent == []
    assert leading.double() == 6
    assert channel.sent == [MirroredCall("counter", "add", (2,)), MirroredCall("counter", "double", ())]
    following.add(1)
    follow(channel.sent, {"counter": following})
    assert following.value == 6
    with pytest.raises(TypeError, match="add is mirrored on other ranks, wanted positional arguments"):
        leading.add(number=1)


def test_a_call_that_fails_while_the_others_make_it_leaves_them() -> None:
    channel, leading = Recorded(), Counter()
    leading.lead(channel)
    with pytest.raises(MemoryError):
        leading.refuse()  # it is not sent yet, and ranks do not meet in it
    assert channel.sent == []
    with pytest.raises(MemoryError):
        leading.break_down()
    assert [call.method for call in channel.sent] == ["refuse", "break_down", "abandon"]
    leading.add(2)  # still mirrored
    assert [call.method for call in channel.waiting] == ["add"]


def test_a_sequence_is_mirrored_by_what_a_run_needs_of_it() -> None:
    sequence = Sequence([3, 4], SamplingParams(temperature=0.5), 9, stop_ids=(7,))
    sequence.block_table, sequence.num_cached = [5], 2
    sequence.token_ids += [8, 9]
    found = SequenceMirror.of(sequence)
    assert (found.block_table, found.num_cached, found.token_ids, found.num_left) == ([5], 2, [9], sequence.num_left)
    assert (set(found.stop_ids), found.params.temperature) == ({7}, 0)


def test_blocks_swapped_out_on_every_rank_come_back_there() -> None:
    channel = Recorded()
    config = replace(decoders.make(tiny.config()).config, num_layers=1)
    ours, theirs = KVCache(config, 4), KVCache(config, 4)
    ours.lead(channel)
    for cache in (ours, theirs):
        cache.keys[:, 1] = 3
    ours.swap_out(1, [1, 2])
    ours.copy_block(0, 1)
    ours.swap_in(1, 0, [3, 0])
    channel.flush()
    follow(channel.sent, {"cache": theirs})
    assert theirs.keys[:, 3].eq(3).all()
    assert torch.equal(ours.keys, theirs.keys)


def asked(seed: int) -> tuple[list[list[int]], list[SamplingParams]]:
    """Prompts, some with a common beginning, and their parameters, some of which the host applies."""
    draw = random.Random(seed)
    common = [draw.randrange(3, 96) for _ in range(40)]
    prompts = [
        (common if number % 2 else []) + [draw.randrange(3, 96) for _ in range(draw.randrange(1, 30))]
        for number in range(PROMPTS)
    ]
    params = [
        SamplingParams(
            max_new_tokens=draw.randrange(1, 30), temperature=draw.choice([0, 0.8]), seed=number, n=draw.choice([1, 1, 3]),
            repetition_penalty=draw.choice([1.0, 1.2]), logprobs=draw.choice([None, 2]), ignore_eos=True,
        )
        for number in range(PROMPTS)
    ]  # fmt: skip
    return prompts, params


def answers(model: Llama, tokens: int, speculate: bool) -> list:
    """What an engine says when all is asked at once, when it is scored, and after a reader left in the middle."""
    decoder = decoders.Decoder(model, tokens)
    speculator = Speculator(Ngrams(4), step_costs("float32", False, 10**6), 4, ROWS) if speculate else None
    loop = Loop(decoder, ROWS, speculator=speculator)
    engine = Engine(LoadedModel(loop, vocab_size=CONFIG["vocab_size"], max_model_len=128, eos_token_ids=(2,)))
    prompts, params = asked(tokens)
    with decoders.actions() as kinds:
        done = engine.generate(prompts, params)
        scores = engine.score(prompts[0], [[5, 6], [7]])
    assert ("SwapOut" in kinds) == (tokens == SMALL)
    left = engine.completions(prompts, params)
    next(left)
    left.close()
    after = engine.generate(prompts[:3], params[1])
    assert decoders.all_free(engine)
    return [[(one.token_ids, one.finish_reason, one.logprobs) for one in (*done, *after)], scores]


@pytest.mark.parametrize("speculate", [False, True], ids=["plain", "ngram"])
@pytest.mark.parametrize("tokens", [4096, SMALL])
def test_ranks_give_what_one_gives(tokens: int, speculate: bool) -> None:
    found = [
        shares.followed(
            ranks, tokens, lambda share: shares.make(CONFIG, share), lambda model: answers(model, tokens, speculate)
        )
        for ranks in (1, 2, 4)
    ]
    assert found[1] == found[0]
    assert found[2] == found[0]


@pytest.mark.parametrize("kind", [None, "int8", "int4"])
@pytest.mark.parametrize(
    "changes", [{}, {"tie_word_embeddings": True}, {"vocab_size": 96}], ids=["odd", "tied", "even"]
)
def test_eight_ranks_give_what_one_gives(changes: dict, kind: str | None) -> None:
    cfg = {**CONFIG, "num_key_value_heads": 8, **changes}

    def said(model: Llama) -> list:
        params = [SamplingParams(max_new_tokens=6, temperature=0, ignore_eos=True, logprobs=2)] * len(tiny.PROMPTS)
        engine = decoders.Decoder(model, 256).engine()
        return [(one.token_ids, one.logprobs) for one in engine.generate(tiny.PROMPTS, params)]

    one, eight = (shares.followed(r, 256, lambda share: shares.make(cfg, share, quantize=kind), said) for r in (1, 8))
    assert eight == one
