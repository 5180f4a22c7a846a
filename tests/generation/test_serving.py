"""Calls that share one engine: streams that are left, closing, calls within calls, who steps for whom."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from events import Door, Queue
from fake_engine import all_free
from pausing import LONG, held_blocks, in_threads, pausing

from baize_engine import SamplingParams
from baize_engine.errors import RequestError
from baize_engine.generation.loop import MAX_ROWS


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
        turns = engine._serving._turns
        door = turns._door = Door()
        waiting = pool.submit(engine.generate, [1, 6], LONG)
        door.wait()
        ends = turns._pending = Queue()
        closing = pool.submit(engine.close)
        ends.wait(1)  # and so it is closed to all others
        assert turns._closed
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
    assert said == ["this thread is in the middle of another call to this engine, which must end first"]
    decoder.at_step = engine.close
    with pytest.raises(RequestError, match="this engine is closed"):
        engine.generate([1, 5], LONG)
    assert engine._serving._loop is None


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
        arriving = engine._serving._arriving = Queue()
        runs += [pool.submit(engine.generate, [1, 5 + n], LONG) for n in (1, 2, 3)]
        arriving.wait(3)
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


def test_completions_that_wait_for_their_turn_are_not_given_out_after_close() -> None:
    engine, _ = pausing()
    params = [SamplingParams(ignore_eos=True, max_new_tokens=count) for count in (9, 2, 2)]
    samples = engine.completions([[1, 5], [1, 6], [1, 7]], params)
    next(samples)
    engine.close()
    with pytest.raises(RequestError, match="this engine is closed"):
        next(samples)
