"""Prompts in pieces: where they are cut, which logits they give, and that no bit depends on either."""

from __future__ import annotations

from collections.abc import Sequence

import decoders
import pytest
import tiny
import torch
from decoders import Decoder, prompt
from implementations import IMPLEMENTATIONS
from tolerances import PREFILL_SHAPE

from baize_engine.model.llama import Llama
from baize_engine.model.prompt_runner import LOGIT_ROWS, PromptPiece, PromptRunner

LONG = tiny.config(num_key_value_heads=2, max_position_embeddings=1024)


def counted(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the pieces that it runs from now on."""
    sizes: list[int] = []
    run = decoder.run

    def counted_run(pieces: Sequence[PromptPiece]) -> None:
        sizes.extend(len(piece.ids) for piece in pieces)
        run(pieces)

    monkeypatch.setattr(decoder, "run", counted_run)
    return sizes


def test_prefill_in_pieces_is_prefill_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = decoders.make(tiny.config()), prompt(50)
    whole = Decoder(model, 200)
    at_once = whole.prefill(ids, whole.sequence())
    decoder = Decoder(model, 200, chunk=16)
    sizes = counted(decoder, monkeypatch)
    chunked = decoder.prefill(ids, decoder.sequence())
    assert sizes == [16, 16, 16, 2]
    assert (chunked - at_once).abs().max() < PREFILL_SHAPE
    one_by_one = whole.sequence()
    for token in ids:
        last = whole.forward([[token]], [one_by_one])
    assert (last - at_once).abs().max() < PREFILL_SHAPE


def test_pieces_end_at_absolute_multiples(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sequence that already has tokens is cut where a fresh one would be."""
    decoder = Decoder(decoders.make(tiny.config()), 100, chunk=16)
    sequence = decoder.sequence()
    decoder.prefill(prompt(5), sequence)
    sizes = counted(decoder, monkeypatch)
    decoder.prefill(prompt(30), sequence)
    assert sizes == [11, 16, 3]
    assert sequence.num_cached == 35


def test_all_logits_of_several_sequences() -> None:
    decoder = Decoder(decoders.make(tiny.config()), 200)
    prompts = [prompt(7, 1), prompt(12, 2)]
    both = decoder.forward(prompts, [decoder.sequence(), decoder.sequence()], all_logits=True)
    assert both.shape == (19, 96)
    single = torch.cat([decoder.forward([ids], [decoder.sequence()], all_logits=True) for ids in prompts])
    assert (both - single).abs().max() < PREFILL_SHAPE
    last = decoder.forward(prompts, [decoder.sequence(), decoder.sequence()])
    assert (last - both[[6, 18]]).abs().max() < PREFILL_SHAPE


def taken(decoder: Decoder, ids: list[int], first: int, cuts: list[int]) -> tuple[torch.Tensor, list[int], list[int]]:
    """Logits of the positions from `first` on of a prompt that comes in parts, their positions, and rows at a time."""
    rows, positions, sizes = [], [], []

    def take(position: int, logits: torch.Tensor) -> None:
        rows.append(logits)
        positions.extend(range(position, position + len(logits)))
        sizes.append(len(logits))

    sequence = decoder.sequence(len(ids))
    for begin, end in zip([0, *cuts], [*cuts, len(ids)], strict=True):
        decoder.prefill_logits(ids[begin:end], sequence, first, take)
    assert sequence.num_cached == len(ids)
    decoder.pool.free(sequence)
    return torch.cat(rows), positions, sizes


@pytest.mark.parametrize("quantize", [None, "int8"])
@pytest.mark.parametrize("ahead", [False, True])
def test_logits_of_positions_have_the_bits_of_any_other_way_to_them(ahead: bool, quantize: str | None) -> None:
    """From any position on, after parts cut anywhere, and of the last token by itself; never of many rows at once."""
    decoder = Decoder(decoders.make(LONG, torch.float16, quantize), 4096, ahead=ahead)
    ids = prompt(600, 7)
    whole, positions, sizes = taken(decoder, ids, 0, [])
    assert positions == list(range(600))
    assert max(sizes) <= LOGIT_ROWS
    assert len(whole) == 600
    for first, cuts in ((1, []), (130, []), (255, [256, 512]), (300, [16, 48, 304]), (599, [512]), (597, [592])):
        found, positions, sizes = taken(decoder, ids, first, cuts)
        assert positions == list(range(first, 600))
        assert max(sizes) <= LOGIT_ROWS
        assert torch.equal(found, whole[first:])
    for length in (1, 16, 40, 256, 257, 600):
        assert torch.equal(decoder.prefill(ids[:length], decoder.sequence())[0], whole[length - 1])


# begin and end of a piece of a prompt, and the first position whose logits are wanted
PARTS = [(0, 16, 99), (32, 70, 0), (16, 17, 0), (48, 80, 75), (0, 1, 0), (64, 71, 70), (16, 48, 0)]


def run_parts(decoder: Decoder, numbers: Sequence[int]) -> dict[int, list[torch.Tensor]]:
    """Keys, values and wanted logits, a row each, of these PARTS: pieces of different prompts, run at once."""
    found: dict[int, list[torch.Tensor]] = {number: [] for number in numbers}
    pieces = []
    for number in numbers:
        begin, end, first = PARTS[number]
        ids, sequence = prompt(80, number), decoder.sequence(80)
        if begin:
            decoder.prefill(ids[:begin], sequence)

        def take(position: int, logits: torch.Tensor, number: int = number) -> None:
            begin, _, first = PARTS[number]
            assert position == max(begin, first) + len(found[number])
            found[number] += logits

        pieces.append(PromptPiece(ids[begin:end], sequence, first, take))
    decoder.run(pieces)
    for number, sequence in zip(numbers, [piece.sequence for piece in pieces], strict=True):
        for part in (decoder.cache.keys, decoder.cache.values):
            found[number].append(part[:, sequence.block_table].flatten(1, 2)[:, : sequence.num_cached])
        decoder.pool.free(sequence)
    return found


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32", "int8", "int4"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_pieces_of_several_prompts_at_once_have_the_bits_of_each_alone(
    implementation: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beginnings and ends of prompts, single tokens among them; logits of all positions, of some, of the last and of none."""
    monkeypatch.setenv("BAIZE_BACKEND", f"cpp-{implementation}")
    monkeypatch.setattr("baize_engine.model.prompt_runner.LOGIT_ROWS", 16)
    quantize = kind if kind.startswith("int") else None
    decoder = Decoder(decoders.make(LONG, torch.float16 if quantize else getattr(torch, kind), quantize), 2048)
    assert decoder.together
    alone = {number: run_parts(decoder, [number])[number] for number in range(len(PARTS))}
    assert [len(tensors) - 2 for tensors in alone.values()] == [0, 38, 1, 5, 1, 1, 32]
    for groups in ([range(len(PARTS))], [[0, 1], [2, 3, 4, 5, 6]]):
        for group in groups:
            for number, tensors in run_parts(decoder, group).items():
                assert all(torch.equal(a, b) for a, b in zip(tensors, alone[number], strict=True))


def test_pieces_of_several_prompts_need_ops_whose_rows_do_not_depend_on_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BAIZE_BACKEND", "torch")
    decoder = Decoder(decoders.make(tiny.config()), 64)
    sequences = [decoder.sequence(8), decoder.sequence(8)]
    assert not decoder.together
    with pytest.raises(ValueError, match="2 pieces at once, wanted one"):
        decoder.run([PromptPiece(prompt(8), sequence, 7, lambda *_: None) for sequence in sequences])
    assert [sequence.num_cached for sequence in sequences] == [0, 0]


def test_positions_before_the_first_that_is_asked_for_have_no_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(decoders.make(LONG), 1024)
    rows: list[int] = []
    head = Llama.head_ops
    monkeypatch.setattr(
        Llama,
        "head_ops",
        lambda self, hidden, *rest, **how: rows.append(len(hidden)) or head(self, hidden, *rest, **how),
    )
    taken(decoder, prompt(600, 7), 590, [])
    assert rows == [10]


def test_a_sequence_without_blocks_is_refused_and_stays_as_it_was() -> None:
    decoder = Decoder(decoders.make(tiny.config()), 32)
    sequence = decoder.sequence()
    decoder.prefill(prompt(20), sequence)
    with pytest.raises(
        ValueError, match="a sequence would have 33 tokens, wanted at most 32, for which its blocks have room"
    ):
        PromptRunner.forward(decoder, [prompt(13)], [sequence])
    assert (sequence.num_cached, len(sequence.block_table), decoder.pool.free_blocks) == (20, 2, 0)
    decoder.forward([prompt(12)], [sequence])


@pytest.mark.parametrize(("ids", "count"), [([], 0), ([[]], 1), ([[1], [2]], 1), ([[1] * 129], 1)])
def test_wrong_calls_are_refused(ids: list[list[int]], count: int) -> None:
    decoder = Decoder(decoders.make(tiny.config()), 300)
    with pytest.raises(ValueError, match=r"wanted one each|wanted at most 128 \(max_position_embeddings\)"):
        decoder.forward(ids, [decoder.sequence() for _ in range(count)])


def test_an_empty_prompt_is_refused() -> None:
    decoder = Decoder(decoders.make(tiny.config()), 32)
    with pytest.raises(ValueError, match="ids is empty, wanted at least one token"):
        decoder.prefill([], decoder.sequence())


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 64])
def test_what_kernels_read_of_each_token_is_aligned(rows: int) -> None:
    """Where a pointer is a multiple of 16 bytes in one bucket of rows and not in another, each has kernels of its own."""
    decoder = Decoder(decoders.make(LONG), 256)
    decoder.prefill(prompt(rows), decoder.sequence())
    inputs = decoder._inputs
    assert [index.data_ptr() % 16 for index in (inputs.ids, inputs.positions, inputs.slots)] == [0, 0, 0]
