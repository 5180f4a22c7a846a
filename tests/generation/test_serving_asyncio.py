"""Coroutines that share an engine with each other and with threads: streams, cancelling, event loops that stop."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest
from fake_engine import all_free
from pausing import LONG, join_driver, pausing

from baize_engine import Completion, SamplingParams
from baize_engine.errors import BaizeError, RequestError
from baize_engine.generation.loop import MAX_ROWS


def test_a_hundred_streams_of_coroutines_share_a_batch() -> None:
    engine, decoder = pausing(blocks=400)
    few = SamplingParams(ignore_eos=True, max_new_tokens=12)
    wanted = [engine.generate([1, 5 + n], few)[0] for n in range(100)]
    decoder.steps.clear()
    all_have_come = threading.Event()  # a fast engine would end the first before the event loop begins the last
    decoder.at_step = lambda: all_have_come.wait(60)

    async def read(number: int) -> str:
        return "".join([piece async for piece in engine.astream([1, 5 + number], few)])

    async def all_of_them() -> tuple[list[str], list[Completion]]:
        reading = asyncio.gather(*(read(number) for number in range(100)))
        await asyncio.sleep(0)  # each begins
        all_have_come.set()
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
