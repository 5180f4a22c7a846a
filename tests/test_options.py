"""EngineOptions: every setting stands there once, and each constructor and the command line have all of them."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from baize_engine import Engine
from baize_engine.cli import main
from baize_engine.errors import RequestError
from baize_engine.options import EngineOptions

FIELDS = {field.name: field for field in fields(EngineOptions)}


@pytest.mark.parametrize("constructor", [Engine.from_pretrained, Engine.from_diff], ids=lambda call: call.__name__)
def test_each_constructor_has_every_field(constructor: object) -> None:
    parameters = inspect.signature(constructor).parameters  # type: ignore[arg-type]
    assert FIELDS.keys() <= parameters.keys()
    differing = [name for name, field in FIELDS.items() if parameters[name].default != field.default]
    assert differing == ([] if constructor == Engine.from_pretrained else ["dtype"])  # a sum has no type of the files
    for name, field in FIELDS.items():
        assert parameters[name].annotation == field.type


def test_each_constructor_hands_every_field_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the loader, in one object: none is left at its default."""
    given = {
        "device": "cuda:3", "dtype": "bfloat16", "quantize": "int4", "max_model_len": 77, "cache_tokens": 99, "threads": 3,
        "cache_dtype": "float16", "exact_activations": True, "chat_format": "vicuna", "speculate": "ngram",
        "speculate_tokens": 7, "tensor_parallel": 2,
    }  # fmt: skip
    assert given.keys() == FIELDS.keys()
    seen = []

    class Stopped(Exception):
        pass

    def loader(*arguments: object, **_: object) -> None:
        seen.extend(each for each in arguments if isinstance(each, EngineOptions))
        raise Stopped

    monkeypatch.setattr("baize_engine.engine.load", loader)
    monkeypatch.setattr("baize_engine.from_diff.load_diff", loader)
    with pytest.raises(Stopped):
        Engine.from_pretrained("a", **given)  # type: ignore[arg-type]
    with pytest.raises(Stopped):
        Engine.from_diff("a", "b", **given)  # type: ignore[arg-type]
    assert seen == [EngineOptions(**given)] * 2  # type: ignore[arg-type]


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_every_field_has_its_flag_and_its_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for name, field in FIELDS.items():
        assert f"--{name}" in shown
        assert field.metadata["help"] in shown


def test_the_flags_reach_the_engine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict] = []

    def refuse(path: str, **settings: object) -> None:
        seen.append(settings)
        raise RequestError("enough")

    monkeypatch.setattr(Engine, "from_pretrained", refuse)
    flags = ["--device", "cpu", "--dtype", "float32", "--quantize", "int8", "--max_model_len", "64", "--cache_tokens"]
    flags += ["96", "--threads", "2", "--cache_dtype", "bfloat16", "--exact_activations", "--speculate", "draft/"]
    flags += ["--speculate-tokens", "5"]
    assert main(["generate", str(folder), "--prompt", "a", *flags]) == 1
    assert main(["generate", str(folder), "--prompt", "a"]) == 1
    wanted = EngineOptions(
        "cpu", "float32", "int8", 64, 96, 2, "bfloat16", True, speculate="draft/", speculate_tokens=5
    )
    assert [EngineOptions(**settings) for settings in seen] == [wanted, EngineOptions()]
    assert all(settings.keys() == FIELDS.keys() for settings in seen)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"device": 0}, "device is 0, wanted auto, cpu, cuda or cuda:N"),
        ({"dtype": "float8"}, "dtype is 'float8', wanted auto, float32, float16, bfloat16"),
        ({"quantize": "int3"}, "quantize is 'int3', wanted None, 'int8' or 'int4'"),
        ({"quantize": ""}, "quantize is '', wanted None"),
        ({"max_model_len": 1}, "max_model_len is 1, wanted an integer of at least 2"),
        ({"max_model_len": 2.0}, "max_model_len is 2.0, wanted an integer"),
        ({"cache_tokens": 1}, "cache_tokens is 1, wanted an integer of at least 2"),
        ({"cache_tokens": 63, "max_model_len": 64}, "cache_tokens is 63, wanted an integer of at least 64"),
        ({"threads": 0}, "threads is 0, wanted an integer of at least 1, at most 1024"),
        ({"threads": True}, "threads is True, wanted an integer"),
        ({"cache_dtype": "int8"}, "cache_dtype is 'int8', wanted auto, float32, float16, bfloat16"),
        ({"exact_activations": 1}, "exact_activations is 1, wanted True or False"),
        ({"speculate": ""}, "speculate is '', wanted None, 'ngram', 'self-int4' or a model's folder"),
        ({"speculate": 3}, "speculate is 3, wanted None, 'ngram', 'self-int4' or a model's folder"),
        ({"speculate": False}, "speculate is False, wanted None"),
        ({"speculate": b"ngram"}, "speculate is b'ngram', wanted None"),
        (
            {"speculate": "ngram", "speculate_tokens": 0},
            "speculate_tokens is 0, wanted an integer of at least 1, at most 63",
        ),
        (
            {"speculate": "ngram", "speculate_tokens": 64},
            "speculate_tokens is 64, wanted an integer of at least 1, at most 63",
        ),
        ({"speculate": "ngram", "speculate_tokens": True}, "speculate_tokens is True, wanted an integer"),
        ({"speculate": "ngram", "speculate_tokens": "3"}, "speculate_tokens is '3', wanted an integer"),
        (
            {"speculate_tokens": 4},
            "speculate_tokens is 4, but speculate is None: wanted 'ngram', 'self-int4' or a model's folder",
        ),
    ],
)
def test_a_bad_value_is_refused_by_name(given: dict, wanted: str) -> None:
    with pytest.raises(RequestError) as refused:
        EngineOptions(**given)
    assert str(refused.value).startswith(wanted)


def test_every_field_refuses_what_it_cannot_be() -> None:
    for name in FIELDS:
        with pytest.raises(RequestError, match=f"^{name} is "):
            EngineOptions(**{name: object()})


def test_values_become_pythons_own() -> None:
    options = EngineOptions(threads=np.int64(3), exact_activations=np.True_)  # type: ignore[arg-type]
    assert (type(options.threads), options.exact_activations) == (int, True)
    options = EngineOptions(speculate=Path("a") / "draft", speculate_tokens=np.int64(63))  # type: ignore[arg-type]
    assert (options.speculate, type(options.speculate_tokens)) == ("a/draft", int)


def test_a_context_beyond_the_models_positions_is_refused() -> None:
    with pytest.raises(
        RequestError, match="max_model_len is 129, wanted at most the model's max_position_embeddings, 128"
    ):
        EngineOptions(max_model_len=129).context_length(128)
    with pytest.raises(RequestError, match="max_model_len is 1, wanted an integer of at least 2"):
        EngineOptions().context_length(1)


DIGESTED = [  # flags, and what stood in the digests of outputs before EngineOptions were there
    ([], {}, {}),
    (
        ["--dtype", "float32", "--quantize", "int8", "--max_model_len", "64", "--cache_tokens", "96", "--threads", "2",
         "--cache_dtype", "bfloat16", "--exact_activations", "--add_bos", "yes", "--parse_special", "--extra_columns",
         "keep", "--stop", "x", "--logit_bias", "5=1.5", "--device", "cpu", "--speculate", "ngram", "--speculate_tokens", "3"],
        {"add_bos": "yes", "cache_dtype": "bfloat16", "dtype": "float32", "exact_activations": True,
         "extra_columns": "keep", "max_model_len": 64, "parse_special": True, "quantize": "int8"},
        {"stop": ["x"], "logit_bias": {"5": 1.5}},
    ),
    (["--new_rows", "zero", "--drop_rows", "--extra_columns", "error"], {"drop_rows": True, "new_rows": "zero"}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "settings", "params"), DIGESTED)
def test_outputs_of_earlier_versions_can_be_resumed(
    flags: list[str], settings: dict, params: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The description of a run, which its output's digests are of, is the one of before, byte for byte."""
    seen: list[str] = []

    def noting(path: Path, run: str) -> None:
        seen.append(run)
        raise RequestError("enough")

    monkeypatch.setattr("baize_engine.batch.run.heads", noting)
    records, output, source = tmp_path / "in.jsonl", tmp_path / "out.jsonl", tmp_path / "model"
    records.write_text('{"prompt": "a"}\n')
    source.mkdir()
    model = ["--path_raw", str(source), "--path_diff", str(source)] if "--new_rows" in flags else [str(source)]
    assert main(["generate", *model, "--input", str(records), "--output", str(output), *flags]) == 1
    always = {
        "cache_dtype": "auto",
        "dtype": "auto",
        "exact_activations": False,
        "max_model_len": None,
        "quantize": None,
    }
    defaults = {
        "allowed_token_ids": None, "banned_token_ids": [], "frequency_penalty": 0.0, "ignore_eos": False, "logit_bias": {},
        "logprobs": None, "max_new_tokens": 256, "min_new_tokens": 0, "min_p": 0.0, "n": 1, "presence_penalty": 0.0,
        "repetition_penalty": 1.0, "seed": None, "stop": [], "stop_token_ids": [], "temperature": 0.0, "top_k": 0,
        "top_p": 1.0,
    }  # fmt: skip
    wanted = {"files": [], "params": {**defaults, **params}, "settings": {**always, **settings}}
    assert seen == [json.dumps(wanted, sort_keys=True)]


def test_outputs_that_a_chat_template_would_now_make_otherwise_cannot_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier versions wrote open-instruct's format for a model with any template."""
    seen: list[str] = []
    monkeypatch.setattr("baize_engine.batch.run.heads", lambda path, run: seen.append(run) or iter(()))
    records, source = tmp_path / "in.jsonl", tmp_path / "model"
    records.write_text('{"messages": [{"role": "user", "content": "a"}]}\n')
    source.mkdir()
    command = ["generate", str(source), "--input", str(records), "--output"]
    for name, config in (("without.jsonl", "{}"), ("with.jsonl", '{"chat_template": "x"}')):
        (source / "tokenizer_config.json").write_text(config)
        assert main([*command, str(tmp_path / name)]) == 1  # there is no model
    assert ["chat_format" in json.loads(run)["settings"] for run in seen] == [False, True]


def test_options_load_no_torch() -> None:
    code = "import sys, baize_engine.options; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_options_that_came_later_do_not_change_what_a_run_is() -> None:
    """An output that was begun before them can be resumed."""
    assert "chat_format" not in EngineOptions().for_answers()
    assert EngineOptions(chat_format="raw").for_answers()["chat_format"] == "raw"
    assert EngineOptions(speculate="ngram", speculate_tokens=3).for_answers() == EngineOptions().for_answers()
    with pytest.raises(
        RequestError, match="chat_format is 'chatml', wanted auto, template, open_instruct, alpaca, vicuna, raw"
    ):
        EngineOptions(chat_format="chatml")
