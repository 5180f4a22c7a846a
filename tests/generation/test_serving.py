"""One engine, called from many places at once: threads, iterators that are read in turn, or left. Tokens are compared."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import signal
import threading
import traceback
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from decoders import Decoder, make, prompt
from events import until
from fake_engine import TOKENIZER, all_free, engine_over
from fakes import VOCAB, FakeCache, TableDecoder
from tiny import config

from baize_engine import Completion, Engine, SamplingParams
from baize_engine.errors import BaizeError, RequestError
from baize_engine.generation.loop import MAX_ROWS
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


def in_threads(call: Callable[[int], None], count: int = THREADS) -> None:
    """Calls it from so many threads that begin together; raises what one of them raised."""
    begin = threading.Barrier(count)

    def one(number: int) -> None:
        begin.wait()
        call(number)

    with ThreadPoolExecutor(count) as pool:
        for done in [pool.submit(one, number) for number in range(count)]:
            done.result()


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


def time_is_up(*_: object) -> None:
    raise TimeoutError


class Pausing(TableDecoder):
    """Calls `at_step`, if it is set, in the middle of every computation."""

    def __init__(self) -> None:
        super().__init__(VOCAB)
        self.at_step: Callable[[], None] | None = None

        self.steps: list[list[list[int]]] = []

    def forward(self, token_ids, sequences):  # type: ignore[no-untyped-def]
        if self.at_step is not None:
            self.at_step()
        self.steps.append(token_ids)
        return super().forward(token_ids, sequences)


def pausing(blocks: int = 64) -> tuple[Engine, Pausing]:
    decoder, cache = Pausing(), FakeCache(blocks)
    return engine_over(decoder, cache, tokenizer=TOKENIZER), decoder


def held_blocks(engine: Engine) -> int:
    pool = engine._serving.loop.pool
    return pool.num_blocks - pool.free_blocks


LONG = SamplingParams(ignore_eos=True, max_new_tokens=40)


@pytest.mark.parametrize("where", ["the same thread", "another thread"])
def test_a_stream_left_in_the_middle_of_another_call_is_freed_after_it(where: str) -> None:
    """As the garbage collector may leave it: anywhere."""
    engine, decoder = pausing()
    wanted = engine.generate([1, 5], LONG)
    streams = [engine.stream([1, 7 + n], LONG) for n in range(3)]
    for number in range(3):
        next(streams[number])
    held = held_blocks(engine)
    seen = []

    def leave() -> None:
        decoder.at_step = None
        if where == "the same thread":
            streams.clear()
        else:
            other = threading.Thread(target=streams.clear)
            other.start()
            other.join()  # which does not wait for this call
        seen.append(held_blocks(engine))

    decoder.at_step = leave
    assert engine.generate([1, 5], LONG) == wanted
    assert seen[0] >= held > 0  # not freed under the feet of who was at work
    assert all_free(engine)


def test_close_ends_streams_and_refuses_calls() -> None:
    engine, decoder = pausing()
    streams = [engine.stream([1, 5], LONG), engine.completions([[1, 5]], LONG), engine.stream_many([[1, 5]], LONG)]
    next(streams[0])
    next(streams[2])
    pool = engine._serving.loop.pool
    engine.close()
    assert pool.free_blocks == pool.num_blocks
    assert engine._serving._loop is None
    for stream in streams:
        with pytest.raises(RequestError, match="this engine is closed"):
            next(stream)
    for call in (
        lambda: engine.generate([1, 5]),
        lambda: engine.stream([1, 5]),
        lambda: engine.score([1, 5], [[7]]),
        lambda: engine.prompt_logprobs([1, 5]),
        lambda: engine.next_token_logprobs([1, 5], [7]),
        lambda: engine.encode("a"),
    ):
        with pytest.raises(RequestError, match="this engine is closed"):
            call()
    engine.close()
    assert decoder is not None


def test_close_in_another_thread_ends_what_is_under_way_and_what_waits() -> None:
    engine, decoder = pausing()
    blocks, at_work, go_on = engine._serving.loop.pool, threading.Event(), threading.Event()

    def wait() -> None:
        at_work.set()
        assert go_on.wait(60)

    decoder.at_step = wait
    with ThreadPoolExecutor(3) as pool:
        working = pool.submit(engine.generate, [1, 5], LONG)
        assert at_work.wait(60)
        waiting = pool.submit(engine.generate, [1, 6], LONG)
        until(lambda: engine._serving._turns._door.locked())
        closing = pool.submit(engine.close)
        until(lambda: engine._serving._turns._closed)
        go_on.set()
        closing.result(60)
        assert engine._serving._loop is None
        for ended in (working, waiting):
            with pytest.raises(RequestError, match="this engine is closed"):
                ended.result(60)
    assert blocks.free_blocks == blocks.num_blocks


def test_a_call_from_within_a_call_is_refused_and_does_not_wait_for_ever() -> None:
    engine, decoder = pausing()
    wanted, said = engine.generate([1, 5], LONG), []

    def again() -> None:
        decoder.at_step = None
        with pytest.raises(RequestError) as refusal:  # as a signal's handler would call it
            engine.generate([1, 6])
        said.append(str(refusal.value))

    decoder.at_step = again
    assert engine.generate([1, 5], LONG) == wanted
    assert said == ["this thread is in the middle of another call to this engine; that must end first"]
    decoder.at_step = engine.close
    with pytest.raises(RequestError, match="this engine is closed"):
        engine.generate([1, 5], LONG)
    assert engine._serving._loop is None


def test_an_error_or_ctrl_c_in_a_turn_ends_the_turn() -> None:
    engine, decoder = pausing()
    wanted = engine.generate([1, 5], LONG)

    def interrupt() -> None:
        decoder.at_step = None
        raise KeyboardInterrupt

    for call in (lambda: engine.generate([1, 5], LONG), lambda: next(engine.stream([1, 5], LONG))):
        decoder.at_step = interrupt
        with pytest.raises(KeyboardInterrupt):
            call()
        assert all_free(engine)
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(engine.generate, [1, 5], LONG).result(60) == wanted


def test_more_rows_than_run_at_a_time_in_threads() -> None:
    engine, _ = pausing(40)
    prompts = [[1, 5 + n % 90] for n in range(MAX_ROWS + 9)]
    few = SamplingParams(ignore_eos=True, max_new_tokens=6)
    wanted = [done.token_ids for done in engine.generate(prompts, few)]
    stream = engine.stream(prompts[0], LONG)
    next(stream)

    def call(_: int) -> None:
        assert [done.token_ids for done in engine.generate(prompts, few)] == wanted

    in_threads(call, 4)
    stream.close()
    assert all_free(engine)


def test_an_iterator_that_was_never_begun_holds_nothing() -> None:
    engine, decoder = pausing()
    engine.stream([1, 5], LONG)
    engine.completions([[1, 5]], LONG)
    gc.collect()
    assert not engine._serving._arriving
    assert decoder.calls == []
    assert len(engine.generate([1, 6], LONG)) == 1
    assert all_free(engine)


def test_close_ends_scores_that_are_under_way() -> None:
    engine, decoder = pausing()
    done = []

    def close_at_the_third() -> None:
        done.append(len(done))
        if len(done) == 3:
            engine.close()

    decoder.at_step = close_at_the_third
    with pytest.raises(RequestError, match="this engine is closed"):
        engine.next_token_logprobs([[5 + n] * 16 for n in range(5)], [5])  # a piece each
    assert done == [0, 1, 2]


def test_calls_of_several_threads_share_the_steps() -> None:
    """Whoever comes while a step runs joins the next; all are told what they would be told alone."""
    engine, decoder = pausing()
    wanted = [engine.generate([1, 5 + n], LONG)[0].token_ids for n in range(4)]
    decoder.calls.clear()
    first, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        first.set()
        assert go_on.wait(60)

    decoder.at_step = hold
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(engine.generate, [1, 5], LONG)]
        assert first.wait(60)
        runs += [pool.submit(engine.generate, [1, 5 + n], LONG) for n in (1, 2, 3)]
        until(lambda: len(engine._serving._arriving) == 3)
        decoder.at_step = None
        go_on.set()
        assert [run.result(60)[0].token_ids for run in runs] == wanted
    steps = [len(step) for step in decoder.steps]
    assert max(steps) == 4
    assert len([rows for rows in steps if rows == 4]) >= 35  # of 39 steps each


def test_a_stream_whose_reader_is_idle_blocks_nobody_and_goes_on() -> None:
    engine, decoder = pausing()
    wanted = engine.generate([1, 5], LONG)[0].text
    stream = engine.stream([1, 5], LONG)
    text = next(stream)
    before = len(decoder.calls)
    engine.generate([1, 6], LONG)
    made = len(decoder.calls)
    assert made - before > 39 + 30  # its tokens were made meanwhile, and wait
    assert text + "".join(stream) == wanted
    assert len(decoder.calls) <= made + 2
    assert all_free(engine)


def test_nothing_runs_where_nobody_reads() -> None:
    engine, decoder = pausing()
    stream = engine.stream([1, 5], LONG)
    next(stream)
    before = list(decoder.calls)
    pausing()[0].generate([1, 5], LONG)  # another engine: time for this one to go on, if anything ran it
    assert decoder.calls == before
    assert not [thread for thread in threading.enumerate() if thread.name == "baize-async"]
    stream.close()


def test_an_error_of_one_sample_leaves_other_calls_alone() -> None:
    engine, decoder = pausing()
    wanted = engine.generate([1, 6], SamplingParams(ignore_eos=True, max_new_tokens=20))
    stream = engine.stream([1, 6], SamplingParams(ignore_eos=True, max_new_tokens=20))
    text = next(stream)
    decoder.fail_at = 30
    with pytest.raises(BaizeError, match=r"prompt 1, sample 0, step 0 \(position 30\): 1 of 259 logits are not finite"):
        engine.generate([[1, 9], [1] * 30], LONG)
    assert text + "".join(stream) == wanted[0].text
    assert all_free(engine)
    assert engine.generate([1, 6], SamplingParams(ignore_eos=True, max_new_tokens=20)) == wanted


def test_completions_may_carry_their_errors() -> None:
    engine, decoder = pausing()
    params = SamplingParams(ignore_eos=True, max_new_tokens=8, n=2)
    wanted = engine.generate([[1, 5], [1, 6]], params)
    decoder.fail_at = 30
    decoder.calls.clear()
    found = list(engine.completions([[1, 5], [1] * 28, [1, 6]], params, raise_errors=False))
    assert [*found[0], *found[2]][0].token_ids == wanted[0].token_ids
    assert [one.text for one in [*found[0], *found[2]]] == [one.text for one in wanted]
    assert [one.finish_reason for one in found[1]] == ["error"] * 2
    assert [len(one.token_ids) for one in found[1]] == [2, 2]
    assert "sample 1, step 2 (position 30)" in str(found[1][1].error)
    assert sum(count for count in decoder.calls if count > 1) == 2 + 28 + 2  # each prompt once
    assert all_free(engine)


def test_an_unexpected_error_ends_all_that_was_under_way_and_no_more() -> None:
    engine, decoder = pausing()
    wanted = engine.generate([1, 5], LONG)
    stream, other = engine.stream([1, 5], LONG), engine.stream([1, 6], LONG)
    next(stream)

    def fail() -> None:
        decoder.at_step = None
        raise MemoryError("no room")

    decoder.at_step = fail
    with pytest.raises(MemoryError, match="no room"):
        engine.generate([1, 7], LONG)
    with pytest.raises(MemoryError, match="no room"):
        list(stream)
    assert len(list(other)) > 0  # it had not begun
    assert engine.generate([1, 5], LONG) == wanted
    assert all_free(engine)


def fail_once(decoder: Pausing) -> None:
    """The next step raises MemoryError."""

    def fail() -> None:
        decoder.at_step = None
        raise MemoryError("no room")

    decoder.at_step = fail


@pytest.mark.parametrize("raise_errors", [False, True])
@pytest.mark.parametrize("how", ["closed", "another call's step fails"])
def test_completions_yield_no_aborted_sample(how: str, raise_errors: bool) -> None:
    engine, decoder = pausing()
    params = [SamplingParams(ignore_eos=True, max_new_tokens=count) for count in (2, 40, 8)]
    samples = engine.completions([[1, 5], [1, 6], [1, 7]], params, raise_errors=raise_errors)
    assert [one.finish_reason for one in next(samples)] == ["length"]
    other = engine.stream([1, 9], LONG)
    for _ in range(12):  # prompt 2 has ended meanwhile, and waits for prompt 1
        next(other)
    if how == "closed":
        engine.close()
        with pytest.raises(RequestError, match="this engine is closed"):
            next(samples)
    else:
        fail_once(decoder)
        for iterator in (other, samples):
            with pytest.raises(MemoryError, match="no room"):
                for _ in range(41):
                    assert isinstance(next(iterator), str)  # no completions
    assert list(samples) == []


@pytest.mark.parametrize("reason", [None, "abort"])
def test_no_completion_is_made_of_a_sequence_that_did_not_end_by_itself(reason: Any) -> None:
    sequence = Sequence([1, 5], LONG, 4)
    sequence.finish_reason = reason
    with pytest.raises(ValueError, match=f"finish_reason is {reason!r}"):
        Completion.of(sequence)


def test_completions_that_wait_for_their_turn_are_not_given_out_after_close() -> None:
    engine, _ = pausing()
    params = [SamplingParams(ignore_eos=True, max_new_tokens=count) for count in (9, 2, 2)]
    samples = engine.completions([[1, 5], [1, 6], [1, 7]], params)
    next(samples)
    engine.close()
    with pytest.raises(RequestError, match="this engine is closed"):
        next(samples)


@pytest.mark.parametrize("how", ["stream", "stream_many", "astream"])
def test_text_made_before_an_error_is_read_first(how: str) -> None:
    """The reader is idle while another's steps make the rest, and the error."""
    engine, decoder = pausing()
    wanted = engine.generate([1, 5], SamplingParams(ignore_eos=True, max_new_tokens=18))[0]
    decoder.fail_at = 20
    pieces: list[str] = []

    async def read() -> None:
        stream = engine.astream([1, 5], LONG)
        pieces.append(await anext(stream))
        engine.generate([1] * 25, SamplingParams(ignore_eos=True, max_new_tokens=30))
        async for piece in stream:
            pieces.append(piece)

    def read_in_thread() -> None:
        many = engine.stream_many([[1, 5]], LONG)
        stream = engine.stream([1, 5], LONG) if how == "stream" else (piece for _, _, piece in many)
        pieces.append(next(stream))
        engine.generate([1] * 25, SamplingParams(ignore_eos=True, max_new_tokens=30))
        pieces.extend(iter(stream))

    with pytest.raises(BaizeError, match=r"prompt 0, sample 0, step 18 \(position 20\)"):
        asyncio.run(read()) if how == "astream" else read_in_thread()
    assert len("".join(pieces)) > 10
    assert wanted.text.startswith("".join(pieces))
    join_driver()
    assert all_free(engine)


def test_text_made_before_a_failed_step_is_read_first() -> None:
    engine, decoder = pausing()
    wanted = engine.generate([1, 5], LONG)[0].text
    decoder.steps.clear()
    pieces: list[str] = []
    failed = threading.Event()

    def fail() -> None:
        if len(decoder.steps) == 20:
            decoder.at_step = None
            failed.set()
            raise MemoryError("no room")

    async def read() -> None:
        decoder.at_step = fail
        stream = engine.astream([1, 5], LONG)
        pieces.append(await anext(stream))
        assert failed.wait(60)  # in the event loop's thread: nothing is read meanwhile
        join_driver()
        async for piece in stream:
            pieces.append(piece)

    with pytest.raises(MemoryError, match="no room"):
        asyncio.run(read())
    assert len("".join(pieces)) > 10
    assert wanted.startswith("".join(pieces))
    assert all_free(engine)


def test_an_error_after_a_sample_has_ended_reaches_its_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last output is lost with the step."""
    engine, _ = pausing()
    loop = engine._serving.loop
    stream, other = (
        engine.stream([1, 5], SamplingParams(ignore_eos=True, max_new_tokens=20)),
        engine.stream([1, 6], LONG),
    )
    next(stream)
    next(other)
    postprocess = loop._postprocess

    def fail(made: Any) -> Any:
        outputs = postprocess(made)
        if any(last for _, _, last in outputs):
            raise MemoryError("no room")
        return outputs

    monkeypatch.setattr(loop, "_postprocess", fail)
    for reader in (other, stream):
        with pytest.raises(MemoryError, match="no room"):
            list(reader)
    assert all_free(engine)


def test_an_error_while_calls_join_the_loop_loses_none(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, decoder = pausing()
    wanted = engine.generate([1, 5], LONG)
    add, first, go_on = engine._serving.loop.add, threading.Event(), threading.Event()

    def hold() -> None:
        decoder.at_step = None
        first.set()
        assert go_on.wait(60)

    def fail(sequences: Any) -> None:
        monkeypatch.setattr(engine._serving.loop, "add", add)
        raise MemoryError("no room")

    decoder.at_step = hold
    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(engine.generate, [1, 5], LONG)]
        assert first.wait(60)
        runs += [pool.submit(engine.generate, [1, 5], LONG) for _ in range(2)]
        until(lambda: len(engine._serving._arriving) == 2)
        monkeypatch.setattr(engine._serving.loop, "add", fail)
        go_on.set()
        found = [run.exception(60) or run.result() for run in runs]
    assert [type(one) for one in found[:2]] == [MemoryError] * 2  # in progress, and the one that was joining
    assert found[2] == wanted
    assert all_free(engine)


def test_each_reader_of_a_failed_step_gets_the_traceback_of_the_step() -> None:
    engine, decoder = pausing()
    streams = [engine.stream([1, 5 + n], LONG) for n in range(3)]
    for stream in streams:
        next(stream)
    fail_once(decoder)
    lengths = []
    for stream in streams:
        with pytest.raises(MemoryError) as failure:
            list(stream)
        lengths.append(len(traceback.extract_tb(failure.tb)))
    assert lengths == [lengths[0]] * 3


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


@pytest.mark.parametrize(
    ("number", "handler", "error"),
    [(signal.SIGINT, signal.default_int_handler, KeyboardInterrupt), (signal.SIGALRM, time_is_up, TimeoutError)],
)
def test_what_a_signals_handler_raises_in_a_step_waits_for_its_end_and_leaves_other_calls_alone(
    number: signal.Signals, handler: Any, error: type[BaseException]
) -> None:
    """As Ctrl-C in a terminal: the handler runs in the middle of a step."""
    before = signal.signal(number, handler)  # a shell's background jobs ignore SIGINT
    engine, decoder = pausing()
    few = SamplingParams(ignore_eos=True, max_new_tokens=20)
    wanted = "".join(engine.stream([1, 6], few))
    stream = engine.stream([1, 6], few)
    text, ended = next(stream), []

    def interrupt() -> None:
        decoder.at_step = None
        signal.raise_signal(number)
        ended.append(True)

    decoder.at_step = interrupt
    try:
        with pytest.raises(error):
            engine.generate([1, 5], LONG)
    finally:
        signal.signal(number, before)
    assert ended == [True]
    assert text + "".join(stream) == wanted
    assert all_free(engine)


# Coroutines.


def test_a_hundred_streams_of_coroutines_share_a_batch() -> None:
    engine, decoder = pausing(blocks=400)
    few = SamplingParams(ignore_eos=True, max_new_tokens=12)
    wanted = [engine.generate([1, 5 + n], few)[0] for n in range(100)]
    decoder.steps.clear()

    async def read(number: int) -> str:
        return "".join([piece async for piece in engine.astream([1, 5 + number], few)])

    async def all_of_them() -> tuple[list[str], list[Completion]]:
        reading = asyncio.gather(*(read(number) for number in range(100)))
        return await reading, await engine.agenerate([[1, 5], [1, 6]], few)

    texts, made = asyncio.run(all_of_them())
    assert texts == [one.text for one in wanted]
    assert [one.token_ids for one in made] == [one.token_ids for one in wanted[:2]]
    steps = [step for step in decoder.steps if len(step[0]) == 1]  # the others are prompts
    assert max(len(step) for step in steps) == MAX_ROWS
    assert len(steps) < 5 * 12
    assert all_free(engine)
    join_driver()
    assert asyncio.run(all_of_them())[0] == texts  # in another event loop
    join_driver()


def join_driver() -> None:
    """The thread that steps for coroutines ends when none is left."""
    for thread in threading.enumerate():
        if thread.name == "baize-async":
            thread.join(60)
            assert not thread.is_alive()


def test_a_cancelled_coroutine_frees_what_it_held() -> None:
    engine, decoder = pausing()
    begun, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        assert go_on.wait(60)

    async def cancelled() -> str:
        few = SamplingParams(ignore_eos=True, max_new_tokens=9)
        first = asyncio.create_task(engine.agenerate([1, 5], LONG))
        second = asyncio.create_task(engine.agenerate([1, 6], few))
        decoder.at_step = wait
        await asyncio.to_thread(begun.wait, 60)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        decoder.at_step = None
        go_on.set()
        pieces = [piece async for piece in engine.astream([1, 7], few)]
        assert pieces
        return (await second)[0].text

    assert (
        asyncio.run(cancelled()) == engine.generate([1, 6], SamplingParams(ignore_eos=True, max_new_tokens=9))[0].text
    )
    join_driver()
    assert all_free(engine)


def test_a_coroutine_that_leaves_its_stream_frees_it() -> None:
    engine, _ = pausing()

    async def leave() -> None:
        async for _ in engine.astream([1, 5], LONG):
            break
        stream = engine.astream([1, 6], LONG)
        await anext(stream)
        await stream.aclose()

    asyncio.run(leave())
    join_driver()
    gc.collect()
    assert all_free(engine)


def test_coroutines_and_threads_share_a_batch_and_learn_of_errors_and_of_close() -> None:
    engine, decoder = pausing()

    async def both() -> None:
        wanted = engine.generate([1, 5], LONG)[0].text
        text = "".join([piece async for piece in engine.astream([1, 5], LONG)])
        assert text == wanted == (await asyncio.to_thread(engine.generate, [1, 5], LONG))[0].text
        with pytest.raises(RequestError, match="prompt 0 has 0 tokens"):
            engine.astream([], LONG)
        decoder.fail_at = 20
        with pytest.raises(BaizeError, match="position 20"):
            await engine.agenerate([1, 5], LONG)
        decoder.fail_at = None

        def fail() -> None:
            decoder.at_step = None
            raise MemoryError("no room")

        decoder.at_step = fail
        with pytest.raises(MemoryError):
            await engine.agenerate([1, 5], LONG)
        assert (await engine.agenerate([1, 5], LONG))[0].text == wanted
        stream = engine.astream([1, 5], LONG)
        await anext(stream)
        engine.close()
        with pytest.raises(RequestError, match="this engine is closed"):
            [piece async for piece in stream]
        with pytest.raises(RequestError, match="this engine is closed"):
            await engine.agenerate([1, 5], LONG)

    asyncio.run(both())
    join_driver()


def test_an_event_loop_that_is_gone_leaves_nothing_behind() -> None:
    engine, _ = pausing()
    event_loop = asyncio.new_event_loop()
    stream = engine.astream([1, 5], LONG)
    event_loop.run_until_complete(anext(stream))
    event_loop.close()
    assert len(engine.generate([1, 6], LONG)) == 1
    join_driver()
    assert all_free(engine)


def test_nothing_runs_for_an_event_loop_that_stands_still() -> None:
    """Its coroutines go on when it does."""
    engine, decoder = pausing()
    wanted = engine.generate([1, 5], LONG)[0].text
    decoder.steps.clear()
    event_loop, stands_still = asyncio.new_event_loop(), threading.Event()

    def stop_it() -> None:
        if len(decoder.steps) == 5:
            event_loop.call_soon_threadsafe(event_loop.stop)
            assert stands_still.wait(60)

    async def read() -> str:
        return "".join([piece async for piece in engine.astream([1, 5], LONG)])

    decoder.at_step = stop_it
    reading = event_loop.create_task(read())
    event_loop.run_forever()
    stands_still.set()
    join_driver()
    assert len(decoder.steps) == 6
    assert not all_free(engine)
    assert event_loop.run_until_complete(reading) == wanted
    event_loop.close()
    join_driver()
    assert all_free(engine)
