"""One engine, called from many threads and by iterators that are read in turn: all get what one thread gets by itself."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import weakref
from typing import Any

import pytest
from decoders import Decoder, make, prompt
from fake_engine import TOKENIZER, all_free
from pausing import in_threads
from tiny import config

from baize_engine import Engine, SamplingParams
from baize_engine.generation.sequence import Sequence

THREADS = 8
PROMPTS = [prompt(length, length) for length in (3, 17, 40, 5, 33, 64)]
PARAMS = [
    SamplingParams(max_new_tokens=20, ignore_eos=True),
    SamplingParams(max_new_tokens=12, temperature=1.0, seed=4, n=3),
    SamplingParams(max_new_tokens=15, temperature=0.7, seed=9, repetition_penalty=1.3, logprobs=1),
]
CASES = list(itertools.product(range(len(PROMPTS)), range(len(PARAMS))))
LARGE, SMALL = 2048, 128  # tokens of the cache; in the small one hardly two of these fit beside each other


class Bytes:
    """Texts for ids below 96: TOKENIZER's pieces are bytes, most of which are characters by themselves."""

    def __getattr__(self, name: str) -> Any:
        return getattr(TOKENIZER, name)


def engine_of(tokens: int, ahead: bool = False) -> Engine:
    decoder = Decoder(make(config(max_position_embeddings=128)), tokens, ahead=ahead)
    return decoder.engine(max_model_len=120, tokenizer=Bytes())


class Wanted:
    """What one thread gets of an engine by itself."""

    def __init__(self) -> None:
        engine = engine_of(LARGE)
        self.tokens = {case: self.ask(engine, case) for case in CASES}
        self.texts = [engine.generate(ids, PARAMS[0])[0].text for ids in PROMPTS]
        self.scores = [engine.score(ids, [[5, 9], [7]]) for ids in PROMPTS]
        self.logprobs = [engine.prompt_logprobs([ids], top=2) for ids in PROMPTS]

    @staticmethod
    def ask(engine: Engine, case: tuple[int, int]) -> list[list[int]]:
        return [done.token_ids for done in engine.generate(PROMPTS[case[0]], PARAMS[case[1]])]


@pytest.fixture(scope="module")
def wanted() -> Wanted:
    return Wanted()


@pytest.mark.parametrize(("tokens", "ahead"), [(LARGE, False), (SMALL, False), (SMALL, True), (LARGE, True)])
def test_eight_threads_get_the_tokens_that_one_gets(wanted: Wanted, tokens: int, ahead: bool) -> None:
    engine = engine_of(tokens, ahead)

    def calls(number: int) -> None:
        for k in range(15):
            case = CASES[(5 * number + 7 * k) % len(CASES)]
            ids, text = PROMPTS[case[0]], wanted.texts[case[0]]
            kind = (number + k) % 5
            if kind == 0:
                assert "".join(engine.stream(ids, PARAMS[0])) == text
            elif kind == 1:
                assert engine.score(ids, [[5, 9], [7]]) == wanted.scores[case[0]]
            elif kind == 2:
                assert engine.prompt_logprobs([ids], top=2) == wanted.logprobs[case[0]]
            elif kind == 3:
                left = engine.stream(ids, PARAMS[0])
                assert text.startswith(next(left))  # and is left where it is
            assert wanted.ask(engine, case) == wanted.tokens[case]

    in_threads(calls)
    gc.collect()
    assert all_free(engine)


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("tokens", [LARGE, SMALL])
def test_streams_of_one_thread_that_are_read_in_turn_with_other_calls(wanted: Wanted, tokens: int, ahead: bool) -> None:
    """In the small cache each has to copy the others out of it, every time."""
    engine = engine_of(tokens, ahead)
    streams = [engine.stream(ids, PARAMS[0]) for ids in PROMPTS]
    texts = [""] * len(streams)
    for turn, _ in enumerate(range(8)):
        for number, stream in enumerate(streams):
            texts[number] += next(stream, "")
        case = CASES[turn]
        assert wanted.ask(engine, case) == wanted.tokens[case]
        assert engine.score(PROMPTS[case[0]], [[5, 9], [7]]) == wanted.scores[case[0]]
        assert engine.next_token_logprobs([PROMPTS[5]], [3])[0][0] < 0
    for number, stream in enumerate(streams):
        texts[number] += "".join(stream)
    assert texts == wanted.texts
    assert all_free(engine)


@pytest.mark.parametrize("ahead", [False, True])
def test_batches_of_many_samples_give_way_to_each_other(wanted: Wanted, ahead: bool) -> None:
    engine = engine_of(SMALL, ahead)
    alone = {(p, n): one for (p, s), found in wanted.tokens.items() if s == 1 for n, one in enumerate(found)}
    runs = [engine.completions(PROMPTS, PARAMS[1]) for _ in range(3)]
    found = [list(each) for each in zip(*runs, strict=True)]
    assert len(found) == len(PROMPTS)
    for per_prompt in found:
        for completions in per_prompt:
            assert [done.token_ids for done in completions] == [
                alone[done.prompt_index, done.index] for done in completions
            ]


def test_a_sample_stopped_by_its_reader_while_it_was_copied_out(wanted: Wanted) -> None:
    """The stop string is complete in a piece that is told before the stream is asked to go on."""
    engine, ids = engine_of(SMALL), PROMPTS[2]
    stop = wanted.texts[2][1]
    stream = engine.stream_many(
        [ids, PROMPTS[1]], [SamplingParams(max_new_tokens=20, ignore_eos=True, stop=stop), PARAMS[0]]
    )
    texts = ["", ""]
    for index, _, piece in stream:
        texts[index] += piece
        assert wanted.ask(engine, (5, 0)) == wanted.tokens[5, 0]  # needs nearly all of the cache
    assert texts == [wanted.texts[2].partition(stop)[0], wanted.texts[1]]
    assert all_free(engine)


def test_calls_in_asyncios_threads(wanted: Wanted) -> None:
    engine = engine_of(LARGE)

    async def answer(case: tuple[int, int]) -> list[list[int]]:
        return await asyncio.to_thread(wanted.ask, engine, case)

    async def read(number: int) -> str:
        stream, text = engine.stream(PROMPTS[number], PARAMS[0]), ""
        while piece := await asyncio.to_thread(next, stream, ""):  # each step perhaps in another thread
            text += piece
        return text

    async def both() -> tuple[list[list[list[int]]], list[str]]:
        answers = asyncio.gather(*(answer(case) for case in CASES))
        texts = asyncio.gather(*(read(number) for number in range(len(PROMPTS))))
        return await answers, await texts

    answers, texts = asyncio.run(both())
    assert answers == [wanted.tokens[case] for case in CASES]
    assert texts == wanted.texts


def test_finished_and_failed_calls_leave_nothing_to_the_garbage_collector() -> None:
    class Buffer: ...

    engine, buffers = engine_of(LARGE), []
    loop = engine._serving.loop
    cache = weakref.ref(loop.cache)
    del loop

    def fail(action: Any) -> Any:
        buffer = Buffer()
        buffers.append(weakref.ref(buffer))
        raise MemoryError("no room")

    gc.collect()
    before = {id(one) for one in gc.get_objects() if type(one) is Sequence}
    gc.disable()
    try:
        engine.generate(PROMPTS, PARAMS[1])
        "".join(engine.stream(PROMPTS[0], PARAMS[0]))
        engine.score(PROMPTS[0], [[5, 9], [7]])
        next(engine.stream(PROMPTS[0], PARAMS[0]))  # and is left
        assert [one for one in gc.get_objects() if type(one) is Sequence and id(one) not in before] == []
        engine._serving.loop._run = fail  # type: ignore[method-assign]
        with contextlib.suppress(MemoryError):  # pytest.raises would keep it
            engine.generate(PROMPTS[0], PARAMS[0])
        assert [one() for one in buffers] == [None]
        engine.close()
        assert cache() is None
    finally:
        gc.enable()
