"""What a call's sequences give: completions in order, pieces, scores, and errors that name the prompt."""

from __future__ import annotations

import pytest
import torch
from fake_engine import TOKENIZER, all_free, make
from fakes import VOCAB, TableDecoder

from baize_engine import outputs
from baize_engine.errors import BaizeError, RequestError
from baize_engine.generation.params import SamplingParams
from baize_engine.generation.scoring import Endings, GivenTokens
from baize_engine.generation.sequence import Sequence

LONG, SHORT = (SamplingParams(max_new_tokens=count, ignore_eos=True) for count in (9, 2))


def test_completions_come_in_the_order_of_the_prompts() -> None:
    engine = make(TableDecoder(VOCAB), None)
    sequences = engine._checked.sequences([[5, 6], [7], [8]], [LONG, SHORT, SHORT])
    found = list(outputs.completions(engine._serving, sequences, raise_errors=True))
    assert [len(done.token_ids) for (done,) in found] == [9, 2, 2]
    assert [done.token_ids for (done,) in found] == [sequence.token_ids for sequence in sequences]
    assert all_free(engine)


def test_pieces_say_whose_they_are_and_make_the_text() -> None:
    engine = make(TableDecoder(VOCAB), TOKENIZER)
    sequences = engine._checked.sequences(["a", "b"], LONG)
    found = list(outputs.pieces(engine._serving, sequences))
    assert all(piece for _, _, piece in found)
    for number, done in enumerate(engine.generate(["a", "b"], LONG)):
        assert "".join(piece for prompt, sample, piece in found if (prompt, sample) == (number, 0)) == done.text
    (one,) = engine._checked.sequences(["b"], LONG)
    assert "".join(outputs.texts(engine._serving, [one])) == done.text


def test_scored_sequences_generate_nothing() -> None:
    engine = make(TableDecoder(VOCAB), None)
    score = GivenTokens([5, 6, 7], 1)
    sequence = outputs.scored([5, 6], score, 4)
    assert (sequence.prompt_index, sequence.scoring) == (4, score)
    outputs.score(engine._serving, [sequence])
    assert (len(score.logprobs), sequence.token_ids) == (2, [])
    runs = [Endings([([5, 6, 7], 1), ([5, 6, 8], 2)]), Endings([([9, 5], 1)])]
    asked = [outputs.scored(run.prompt_ids, run, number) for run, number in zip(runs, (0, 2), strict=True)]
    found = list(outputs.endings(engine._serving, asked, runs))
    assert [len(tokens) for tokens in found] == [2, 1, 1]
    assert found[0] == score.logprobs


def failed(error: BaizeError | None, number: int = 0, **more: object) -> Sequence:
    sequence = Sequence([5], SamplingParams(), 1, prompt_index=number, **more)  # type: ignore[arg-type]
    sequence.error = error
    return sequence


def test_errors_name_the_prompt_once() -> None:
    outputs.raise_error(failed(None))
    refused = RequestError("this engine is closed")
    with pytest.raises(RequestError) as caught:
        outputs.raise_error(failed(refused))
    assert caught.value is refused
    sequence = failed(BaizeError("token 2: not finite"), 3)
    with pytest.raises(BaizeError, match=r"^prompt 3, token 2: not finite$"):
        outputs.raise_error(sequence)
    assert sequence.error is None  # so that the traceback keeps no circle alive
    with pytest.raises(BaizeError, match=r"^completion 3: a logit$"):
        outputs.raise_error(failed(BaizeError("a logit"), 3, scoring=GivenTokens([5, 6], 1)), "completion")


def test_a_sample_that_fails_ends_the_call_or_only_itself() -> None:
    decoder = TableDecoder(VOCAB)
    decoder.table[:, 7] = torch.nan
    engine = make(decoder, None)
    asked = [[5, 6], [6, 7], [5, 6]]
    for raise_errors in (False, True):
        sequences = engine._checked.sequences(asked, SamplingParams(max_new_tokens=1, ignore_eos=True))
        found = outputs.completions(engine._serving, sequences, raise_errors)
        if raise_errors:
            with pytest.raises(BaizeError, match=r"^prompt 1, "):
                list(found)
        else:
            assert [done.error is None for (done,) in found] == [True, False, True]
        assert all_free(engine)
