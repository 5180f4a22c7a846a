"""Which ids begin and end texts: what each file says, what is passed over, and why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes import small_model

from baize_engine.checkpoint.tokenizer_files import TokenizerFiles
from baize_engine.errors import CheckpointError
from baize_engine.text import special_ids
from baize_engine.text.choose import tokenizer_of
from baize_engine.text.special_ids import Own, text_ids

LLAMA = Own(bos=1, eos=2, unk=0)
NAMES = {"<unk>": 0, "<s>": 1, "</s>": 2, "<|im_start|>": 32000, "<|im_end|>": 32001, "<|eot_id|>": 128009}
EARLY = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": -1}


def text(config: dict | None = None, special_map: dict | None = None, own: Own = LLAMA) -> special_ids.TextIds:
    return text_ids(TokenizerFiles(config=config or {}, special_map=special_map or {}), own, NAMES.get)


def ends(config: dict, generation: dict, tokenizer: dict | None = None, own: Own = LLAMA, rows: int = 32002) -> tuple:
    return special_ids.special_ids(config, generation, text(tokenizer, own=own), rows).end_ids


@pytest.mark.parametrize(
    ("config", "generation", "tokenizer", "wanted"),
    [
        ({"eos_token_id": 2}, {}, {}, (2,)),
        ({}, {}, {}, (2,)),
        ({"eos_token_id": None}, {"eos_token_id": None}, {}, (2,)),
        ({"eos_token_id": 2}, {"eos_token_id": [32001, 2]}, {}, (32001, 2)),
        ({"eos_token_id": [2, 7]}, {"eos_token_id": 9}, {}, (9, 2, 7)),
        ({"eos_token_id": 2}, {}, {"eos_token": "<|im_end|>"}, (2, 32001)),
        ({"eos_token_id": 2}, {}, {"eos_token": {"content": "<|im_end|>"}}, (2, 32001)),
        ({"eos_token_id": -1}, {"eos_token_id": [None, -1, 32002, 10**30, "2", True, 2.0, [2], {}]}, {}, (2,)),
        ({"eos_token_id": 0}, {}, {}, (0, 2)),  # some finetunes learnt to end with <unk>
        (EARLY, {"_from_model_config": True, **EARLY}, {"bos_token": "", "eos_token": "", "unk_token": ""}, (2,)),
        ({"eos_token_id": 1}, {}, {}, (2,)),
        ({"eos_token_id": 2}, {}, {"eos_token": "<|eot_id|>"}, (2,)),  # the model has no row for it
    ],
)
def test_end_ids(config: dict, generation: dict, tokenizer: dict, wanted: tuple) -> None:
    known = {name: token_id for name, token_id in NAMES.items() if token_id < 32002}
    told = text_ids(TokenizerFiles(config=tokenizer), LLAMA, known.get)
    assert special_ids.special_ids(config, generation, told, 32002).end_ids == wanted


def test_end_ids_without_a_sentencepiece_model() -> None:
    none = Own()
    assert ends(EARLY, {}, own=none) == (2,)
    assert ends({"eos_token_id": 1}, {}, own=none) == (1,)  # without the other two it may well be the end
    assert ends({"eos_token_id": 128001}, {"eos_token_id": [128001, 128008]}, own=none, rows=128256) == (128001, 128008)
    assert ends({}, {"eos_token_id": 128001}, {"eos_token": "<|eot_id|>"}, none, 128256) == (128001, 128009)
    assert ends({}, {}, own=none) == (2,)  # transformers' default
    assert ends({"eos_token_id": None}, {}, own=none) == ()
    assert ends({}, {}, own=none, rows=2) == ()


@pytest.mark.parametrize(
    ("config", "special_map", "bos", "eos"),
    [
        ({}, {}, 1, 2),
        ({"bos_token": "<s>", "eos_token": "</s>"}, {}, 1, 2),
        ({"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>"}, {}, 1, 2),  # alpaca
        ({"bos_token": "", "eos_token": ""}, {}, 1, 2),
        ({"bos_token": None, "eos_token": None}, {}, 1, 2),
        ({"bos_token": "<unk>", "eos_token": "<s>"}, {}, 1, 2),
        ({"bos_token": "<|startoftext|>", "eos_token": 7}, {}, 1, 2),
        ({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}, {}, 32000, 32001),
        ({"eos_token": "</s>"}, {"eos_token": "<|im_end|>"}, 1, 32001),  # as transformers: the map counts
        ({"eos_token": "<|im_end|>", "added_tokens_decoder": {}}, {"eos_token": "</s>"}, 1, 32001),
    ],
)
def test_begin_and_end_of_a_text(config: dict, special_map: dict, bos: int, eos: int) -> None:
    told = text(config, special_map)
    assert (told.bos_id, told.eos_id, told.adds_bos, told.adds_eos) == (bos, eos, True, False)


@pytest.mark.parametrize(
    ("config", "own", "wanted"),
    [
        ({"add_bos_token": False}, LLAMA, (False, False)),
        ({"add_bos_token": True, "add_eos_token": True}, LLAMA, (True, True)),
        ({"add_bos_token": None, "add_eos_token": None}, LLAMA, (True, False)),
        ({"add_bos_token": "no", "add_eos_token": 1}, LLAMA, (True, False)),
        ({"add_bos_token": True, "add_eos_token": True}, Own(), (False, False)),
    ],
)
def test_what_is_added_to_prompts(config: dict, own: Own, wanted: tuple) -> None:
    told = text(config, own=own)
    assert (told.adds_bos, told.adds_eos) == wanted
    odd = [name for name, value in config.items() if value is not None and not isinstance(value, bool)]
    assert [line.split()[0] for line in told.passed_over] == odd


def test_reasons_name_the_files() -> None:
    told = text({"bos_token": "</s>", "eos_token": "<|im_end|>", "add_bos_token": "no"})
    found = special_ids.special_ids({"eos_token_id": 1}, {"eos_token_id": [2, -1]}, told, 32002)
    assert told.bos_why == "the sentencepiece model's own"
    assert list(found.ends.items()) == [
        (2, "eos_token_id in generation_config.json"),
        (32001, "eos_token '<|im_end|>' in tokenizer_config.json"),
    ]
    assert found.passed_over == (
        "bos_token '</s>' in tokenizer_config.json is a token with another use in this model, id 2",
        "add_bos_token 'no' in tokenizer_config.json is neither true nor false",
        "eos_token_id in generation_config.json: -1 is not a token of this model",
        "eos_token_id in config.json: 1 is the BOS token",
    )


def test_early_converters_are_told_of_where_their_numbers_stand() -> None:
    early = special_ids.special_ids(EARLY, {}, text(), 32002)
    wrote = "eos_token_id in config.json: 1 is the BOS token (converters of March 2023 wrote it)"
    assert early.passed_over == (wrote,)
    assert special_ids.special_ids(EARLY, {}, text(own=Own()), 32002).passed_over == (wrote,)
    other = text(own=Own(bos=5, eos=6))
    found = special_ids.special_ids({"eos_token_id": 5}, {}, other, 32002)
    assert (found.end_ids, found.passed_over) == ((6,), ("eos_token_id in config.json: 5 is the BOS token",))


def test_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 2}))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|eot|>", "added_tokens_decoder": {"361": {"content": "<|eot|>", "special": True}}})
    )
    assert special_ids.of_folder(tmp_path, None, 384).end_ids == (2, 361)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5], "x": 10**30}))
    (tmp_path / "tokenizer.model").write_bytes(small_model())
    tokenizer = tokenizer_of(tmp_path, 384)
    assert special_ids.of_folder(tmp_path, tokenizer, 384).end_ids == (5, 2, 361)
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"generation_config\.json: not JSON"):
        special_ids.of_folder(tmp_path, tokenizer, 384)
