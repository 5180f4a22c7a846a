"""Engine over a decoder without weights: streams, chats and scores at its surface, and blocks that are always freed."""

from __future__ import annotations

import gc
import io
from dataclasses import replace
from pathlib import Path

import pytest
from fake_engine import TOKENIZER, all_free, make, saying
from fakes import EOS, VOCAB, TableDecoder

from baize_engine.engine import Completion, Engine
from baize_engine.errors import RequestError
from baize_engine.generation.params import SamplingParams
from baize_engine.generation.usage import Usage


def test_generation_ends_at_max_model_len() -> None:
    (done,) = saying("x" * 50, max_model_len=12).generate("q")
    assert (len(done.token_ids), done.finish_reason) == (10, "length")


def test_logprobs_have_one_entry_per_token() -> None:
    (done,) = make(TableDecoder(VOCAB), None).generate([1, 5], SamplingParams(max_new_tokens=4, logprobs=3))
    assert done.logprobs is not None
    assert len(done.logprobs) == len(done.token_ids)
    assert all(entry.top[0][1] == entry.logprob and len(entry.top) == 3 for entry in done.logprobs)  # greedy


def test_a_stream_joined_is_the_text_and_never_half_a_character() -> None:
    text = "naïve 😀 text"
    pieces = list(saying(text).stream("q"))
    assert "".join(pieces) == text
    assert "😀" in pieces
    assert all(pieces)


def test_streams_of_many_prompts_mix_and_each_is_its_text() -> None:
    engine = make(TableDecoder(VOCAB))
    params = [SamplingParams(max_new_tokens=9, ignore_eos=True), SamplingParams(max_new_tokens=5, ignore_eos=True, n=2)]
    wanted = engine.generate([[1, 60], [1, 61]], params)
    texts: dict[tuple[int, int], str] = {}
    order = []
    for prompt, index, piece in engine.stream_many([[1, 60], [1, 61]], params):
        assert piece
        texts[prompt, index] = texts.get((prompt, index), "") + piece
        order.append(prompt)
    assert texts == {(each.prompt_index, each.index): each.text for each in wanted if each.text}
    assert sorted(order) != order  # they come as they are made
    assert all_free(engine)


def test_a_stop_string_ends_one_stream_and_not_its_neighbours() -> None:
    engine = saying("one two")
    params = [SamplingParams(stop="e"), SamplingParams()]
    assert [each.text for each in engine.generate(["q", "r"], params)] == ["on", "one two"]
    assert all_free(engine)


def test_leaving_streams_of_many_prompts_frees_all_of_them() -> None:
    engine = make(TableDecoder(VOCAB))
    stream = engine.stream_many([[1, 5 + n] for n in range(9)], SamplingParams(ignore_eos=True))
    next(stream)
    assert not all_free(engine)
    stream.close()
    assert all_free(engine)


def test_many_prompts_in_a_small_cache_are_all_answered_in_order() -> None:
    many = [[1, *range(5, 6 + n % 7)] for n in range(30)]
    params = SamplingParams(max_new_tokens=20, ignore_eos=True)
    engine = make(TableDecoder(VOCAB), None, blocks=16)
    done = engine.generate(many, params)
    assert [each.prompt_index for each in done] == list(range(30))
    assert [each.token_ids for each in done] == [
        make(TableDecoder(VOCAB), None).generate(ids, params)[0].token_ids for ids in many
    ]
    assert {"out", "in"} <= set(engine._serving.loop.cache.moved)
    assert all_free(engine)


def test_completions_come_in_order_as_soon_as_they_are_whole() -> None:
    engine = make(TableDecoder(VOCAB))
    prompts = [[1, 5], [1, 9, 7], [1, 20], [1, 30]]
    params = [
        SamplingParams(max_new_tokens=most, n=n, ignore_eos=True, seed=0)
        for most, n in ((2, 1), (9, 2), (3, 1), (30, 1))
    ]
    wanted = engine.generate(prompts, params)
    run = engine.completions(prompts, params)
    found = [next(run) for _ in range(3)]
    assert not all_free(engine)  # the last one is not whole yet
    found += run
    assert [len(each) for each in found] == [1, 2, 1, 1]
    assert [done for each in found for done in each] == wanted
    assert list(engine.completions([])) == []
    with pytest.raises(RequestError, match="prompt 1 has 0 tokens"):
        engine.completions([[1, 5], []])
    left = engine.completions(prompts, params)
    next(left)
    left.close()
    assert all_free(engine)


@pytest.mark.parametrize("shown", [False, True])
def test_a_progress_bar_only_where_asked_for_and_on_a_terminal(shown: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    params = SamplingParams(max_new_tokens=4, ignore_eos=True)
    for stderr in (Terminal(), io.StringIO()):
        monkeypatch.setattr("sys.stderr", stderr)
        make(TableDecoder(VOCAB), None).generate([[1, 5], [1, 6]], params, progress=shown)
        said = stderr.getvalue()
        assert ("2/2" in said and "8 tokens" in said and "tok/s" in said) == (shown and stderr.isatty())
        assert shown or not said


@pytest.mark.parametrize("leave", ["close", "drop", "throw"])
def test_an_abandoned_stream_frees_its_blocks(leave: str) -> None:
    engine = saying("abcdef")
    stream = engine.stream("q")
    assert next(stream) == "a"
    assert not all_free(engine)
    if leave == "close":
        stream.close()
    elif leave == "throw":
        with pytest.raises(KeyboardInterrupt):
            stream.throw(KeyboardInterrupt)
    del stream
    gc.collect()
    assert all_free(engine)
    assert engine.generate("q")[0].text == "abcdef"


def test_a_failing_decoder_frees_its_blocks() -> None:
    engine = make(TableDecoder(VOCAB))
    engine._serving.loop.decoder.fail_at = 4
    with pytest.raises(Exception, match="step 2"):
        engine.generate([1, 5], SamplingParams(ignore_eos=True))
    assert all_free(engine)


def test_chat_renders_and_answers() -> None:
    talk = [{"role": "user", "content": "Hi"}]
    ids = TOKENIZER.encode("<|user|>\nHi\n<|assistant|>\n")
    engine = saying("Hello!", "<|user|>\nHi\n<|assistant|>\n")
    assert engine.chat_ids(talk) == ids
    done = engine.chat(talk)
    assert isinstance(done, Completion)
    assert done.text == "Hello!" == "".join(engine.stream(ids))


def expected_score(decoder: TableDecoder, ids: list[int], start: int) -> float:
    rows = [decoder.table[i % 7, ids[i - 1]].log_softmax(dim=-1)[ids[i]] for i in range(start, len(ids))]
    return float(sum(row.double() for row in rows))


def test_score_sums_the_completions_log_probabilities() -> None:
    decoder = TableDecoder(VOCAB)
    engine = make(decoder, max_model_len=400, blocks=200)
    long = [3 + i % 200 for i in range(300)]  # several chunks
    context = [1, 5, 9]
    scores = engine.score(context, [[7, 8], [], long, "ab"])
    assert scores[0] == pytest.approx(expected_score(decoder, [*context, 7, 8], 3), rel=1e-6)
    assert scores[1] == 0.0
    assert scores[2] == pytest.approx(expected_score(decoder, [*context, *long], 3), rel=1e-6)
    assert scores[3] == pytest.approx(
        expected_score(decoder, [*context, *TOKENIZER.encode("ab", add_bos=False)], 3), rel=1e-6
    )
    text = TOKENIZER.encode("xyab")
    assert engine.score("xy", ["ab"]) == pytest.approx([expected_score(decoder, text, 3)], rel=1e-6)
    assert all_free(engine)


@pytest.mark.parametrize("start", [1, 2, 127, 128, 129, 130, 256, 299])
def test_scoring_asks_for_no_logits_that_nobody_reads(start: int) -> None:
    decoder = TableDecoder(VOCAB)
    engine = make(decoder, max_model_len=400, blocks=200)
    ids = [3 + i % 200 for i in range(300)]
    assert engine.score(ids[:start], [ids[start:]])[0] == pytest.approx(expected_score(decoder, ids, start), rel=1e-6)
    assert decoder.taken == len(ids) - start
    assert sum(decoder.calls) == len(ids) - 1
    assert all_free(engine)


def test_prompt_logprobs_are_those_of_each_token_after_the_others() -> None:
    decoder = TableDecoder(VOCAB)
    engine = make(decoder, None, max_model_len=400, blocks=200)
    prompts = [[1, 5, 9, 4], [1], [3 + i % 200 for i in range(300)]]
    for ids, (first, *rest) in zip(prompts, engine.prompt_logprobs(prompts, top=2), strict=True):
        assert first is None
        assert len(rest) == len(ids) - 1
        for i, entry in enumerate(rest, 1):
            row = decoder.table[i % 7, ids[i - 1]].log_softmax(dim=-1)
            assert entry is not None
            assert entry.logprob == pytest.approx(float(row[ids[i]]), abs=1e-6)
            assert [token for token, _ in entry.top] == row.topk(2).indices.tolist()
    assert engine.prompt_logprobs([1, 5])[0][1].top == ()
    assert all_free(engine)
    with pytest.raises(RequestError, match="top is -1, wanted an integer of at least 0"):
        engine.prompt_logprobs([1, 5], top=-1)


def test_continuation_logprobs_are_those_of_each_token_after_context_and_earlier_ones() -> None:
    decoder = TableDecoder(VOCAB)
    engine = make(decoder, None, max_model_len=400, blocks=200)
    long = [3 + i % 200 for i in range(300)]
    pairs = [([1, 5], [9]), ([1, 5], [4, 7, 8]), ([5], [1]), (long, [7]), (long[:200], [*long[200:], 8])]
    found = list(engine.continuation_logprobs(pairs, top=2))
    for (context, continuation), tokens in zip(pairs, found, strict=True):
        ids = context + continuation
        rows = [decoder.table[i % 7, ids[i - 1]].log_softmax(dim=-1) for i in range(len(context), len(ids))]
        wanted = [float(row[token]) for row, token in zip(rows, continuation, strict=True)]
        assert [token.logprob for token in tokens] == pytest.approx(wanted, abs=1e-6)
        assert [[i for i, _ in token.top] for token in tokens] == [row.topk(2).indices.tolist() for row in rows]
    assert next(engine.continuation_logprobs(pairs))[0].top == ()
    assert list(engine.continuation_logprobs([])) == []
    assert all_free(engine)


def test_continuations_that_differ_in_their_last_token_are_computed_once() -> None:
    decoder = TableDecoder(VOCAB)
    engine = make(decoder, None)
    pairs = [([1, 5, 6], [9]), ([1, 5, 6], [4]), ([1, 5], [6, 9]), ([1, 5, 6], [9])]
    assert len(list(engine.continuation_logprobs(pairs))) == 4
    assert sum(decoder.calls) == 3
    assert decoder.taken == 2


def test_a_continuation_may_end_one_token_behind_the_context_length() -> None:
    engine = make(TableDecoder(VOCAB), None, max_model_len=12)
    (tokens,) = engine.continuation_logprobs([([1, 5], [7] * 11)])
    assert len(tokens) == 11
    for pair, wanted in (
        (
            ([1, 5], [7] * 12),
            r"context 1 and its continuation have 14 tokens, wanted at most 13 \(max_model_len \+ 1\)",
        ),
        (([], [7]), "context 1 has 0 tokens, wanted at least 1"),
        (([1], []), "continuation 1 has 0 tokens, wanted at least 1"),
        (([1], [VOCAB]), f"continuation 1 has {VOCAB} at 0"),
    ):
        with pytest.raises(RequestError, match=wanted):
            engine.continuation_logprobs([([1], [5]), pair])
    with pytest.raises(RequestError, match="top is None"):
        engine.continuation_logprobs([([1], [5])], top=None)


def test_next_token_logprobs_of_candidates() -> None:
    decoder = TableDecoder(VOCAB)
    engine = make(decoder, None)
    found = engine.next_token_logprobs([[1, 5], [1, 6, 7]], [9, 4])
    for ids, row in zip([[1, 5], [1, 6, 7]], found, strict=True):
        wanted = decoder.table[len(ids) % 7, ids[-1]].log_softmax(dim=-1)[[9, 4]].tolist()
        assert row == pytest.approx(wanted, abs=1e-6)
    assert all_free(engine)


def test_a_closed_engine_refuses() -> None:
    with saying("a") as engine:
        assert engine.generate("q")[0].text == "a"
    with pytest.raises(RequestError, match="closed"):
        engine.generate("q")


def test_the_tokenizers_end_id_ends_a_text_that_the_config_names_wrongly() -> None:
    assert saying("ab", eos_token_ids=(1,)).generate("q")[0].stop_reason == EOS


def test_the_bar_tells_what_speculation_did(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    params = SamplingParams(max_new_tokens=40, allowed_token_ids=[7, 8])  # with so few it repeats itself
    made, told = [], []
    for how in (None, "ngram"):
        with Engine.from_pretrained(folder, device="cpu", speculate=how) as engine:
            engine.generate("a", params)  # the bar tells of its own call, not of this one
            before = engine.usage
            monkeypatch.setattr("sys.stderr", stderr := Terminal())
            made += engine.generate("the cat the cat the cat", params, progress=True)
            told.append((engine.usage - before).speculation)
            assert stderr.getvalue().rstrip().endswith(f" tok/s{told[-1] and ', '}{told[-1]}]")
    assert made[0] == made[1]
    assert made[1].num_steps < made[0].num_steps == 39
    assert [bool(each) for each in told] == [False, True]


def test_usage_counts_what_was_asked_for_and_what_was_computed() -> None:
    engine = make(TableDecoder(VOCAB), None)
    assert engine.usage == Usage()
    begin = [1, *range(5, 12)]  # two of the cache's chunks
    params = SamplingParams(max_new_tokens=3, ignore_eos=True)
    engine.generate([[*begin, 20], [*begin, 21, 22]], params)
    assert engine.usage == Usage(19, computed_tokens=11, generated_tokens=6, steps=4, step_tokens=4)
    engine.next_token_logprobs([[*begin, 23]], [5, 6])
    assert engine.usage == Usage(28, computed_tokens=12, generated_tokens=6, steps=4, step_tokens=4)
    engine.generate([40, 41, 42, 43, 44], replace(params, n=4))  # samples of one prompt share it, to the token
    assert engine.usage == Usage(33, computed_tokens=17, generated_tokens=18, steps=12, step_tokens=12)
    engine.close()
    with pytest.raises(RequestError, match="this engine is closed"):
        _ = engine.usage
