"""Errors, signals and aborts in the middle of calls: who learns of them, what was made before, and that nobody else does."""

from __future__ import annotations

import asyncio
import signal
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from events import Queue
from fake_engine import all_free
from pausing import LONG, fail_once, join_driver, pausing

from baize_engine import Completion, SamplingParams
from baize_engine.errors import BaizeError, RequestError
from baize_engine.generation.sequence import Sequence


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


def time_is_up(*_: object) -> None:
    raise TimeoutError


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
        arriving = engine._serving._arriving = Queue()
        runs += [pool.submit(engine.generate, [1, 5], LONG) for _ in range(2)]
        arriving.wait(2)
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
