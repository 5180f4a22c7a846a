"""What the README documents keeps its names, its arguments and their defaults, and works: a user's programs go on unchanged."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path

import pytest

import baize_engine
from baize_engine import BaizeError, Completion, Engine, SamplingParams, make_diff, quantize, recover, verify, xor
from baize_engine.cli import main
from baize_engine.evaluation import evaluate

PAIR = Path(baize_engine.__file__).parent / "demo_pair"
DEFAULT = object()  # an argument that has a default which is not a constant
LOADED = {
    "device": "auto", "dtype": "auto", "quantize": None, "max_model_len": None, "cache_tokens": None, "threads": None,
    "cache_dtype": "auto", "exact_activations": False, "chat_format": "auto", "speculate": None, "speculate_tokens": None,
}  # fmt: skip
TEXT = {"parse_special": False, "add_bos": None}
RECOVERED = {
    "device": "auto", "resume": False, "progress": True, "force": False, "hash_sources": False, "memory_mib": 256,
    "new_rows": "auto", "keep_extra": False, "drop_rows": False, "follow_links": False,
}  # fmt: skip
# callable -> (arguments without a default, {argument: default})
ARGUMENTS: list[tuple[Callable, list[str], dict[str, object]]] = [
    (
        recover,
        ["path_raw", "path_diff"],
        {
            "path_tuned": None, "dtype": "float16", **RECOVERED, "expect_sum": None, "expect_manifest": None,
            "expect_sum_atol": 0.01,
        },
    ),
    (make_diff, ["path_raw", "path_tuned"], {"path_diff": None, "dtype": "float32", **RECOVERED}),
    (verify, ["path"], {"progress": DEFAULT, "expect_manifest": None}),
    (
        xor,
        ["path_raw", "path_payload", "path_tuned"],
        {"resume": False, "progress": True, "expect_md5": None, "follow_links": False},
    ),
    (quantize, ["path", "path_quantized"], {"weights": "int8", "follow_links": False}),
    (
        SamplingParams,
        [],
        {
            "max_new_tokens": 128, "temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0,
            "seed": None, "stop": (), "stop_token_ids": (), "ignore_eos": False, "n": 1, "logprobs": None,
            "presence_penalty": 0.0, "frequency_penalty": 0.0, "logit_bias": DEFAULT, "allowed_token_ids": None,
            "banned_token_ids": (), "min_new_tokens": 0,
        },
    ),
    (Engine.from_pretrained, ["path"], LOADED),
    (
        Engine.from_diff,
        ["path_raw", "path_diff"],
        {**LOADED, "dtype": "float16", "force": False, "new_rows": "auto", "drop_rows": False, "progress": False},
    ),
    (Engine.generate, ["self", "prompts"], {"params": None, "progress": False, **TEXT}),
    (Engine.completions, ["self", "prompts"], {"params": None, **TEXT}),
    (Engine.stream, ["self", "prompt"], {"params": None, **TEXT}),
    (Engine.stream_many, ["self", "prompts"], {"params": None, **TEXT}),
    (Engine.encode, ["self", "prompt"], {"params": None, **TEXT}),
    (Engine.chat, ["self", "messages"], {"params": None}),
    (Engine.chat_ids, ["self", "messages"], {}),
    (Engine.score, ["self", "prompt", "completions"], {"add_bos": None}),
    (Engine.prompt_logprobs, ["self", "prompts"], {"top": 0, "add_bos": None}),
    (Engine.continuation_logprobs, ["self", "pairs"], {"top": 0}),
    (Engine.next_token_logprobs, ["self", "prompts", "candidate_token_ids"], {"add_bos": None}),
    (Engine.close, ["self"], {}),
    (
        evaluate,
        ["engine", "tasks", "data", "out"],
        {
            "format": "chat", "add_bos": True, "limit": None, "too_long": "wrong", "subjects": None, "seed": 42,
            "resume": False, "progress": False, "allow_code_execution": False, "annotations": None, "model": None,
        },
    ),
]  # fmt: skip
MODEL = (
    "--path_raw --path_diff --new_rows --drop_rows --device --dtype --quantize --exact_activations --max_model_len "
    "--cache_tokens --cache_dtype --threads --speculate --speculate_tokens --chat_format"
)
SAMPLING = (
    "--max_new_tokens --min_new_tokens --temperature --top_k --top_p --min_p --repetition_penalty --presence_penalty "
    "--frequency_penalty --logit_bias --allowed_token_ids --banned_token_ids --seed --stop --stop_escaped --stop_token_ids "
    "--ignore_eos"
)
COMBINED = (
    "--path_raw --path_diff --path_tuned --dtype --device --resume --force --hash_sources --memory --new_rows --keep_extra \
--drop_rows --follow_links --quiet"
)
FLAGS = {
    "recover": f"{COMBINED} --expect_sum --expect_sum_atol --expect_manifest --test_inference --original_model "
    "--check_integrity_naively",
    "make_diff": COMBINED,
    "generate": f"--prompt --input --output --extra_columns --resume --window --logprobs --quiet --n --parse_special --add_bos "
    f"{SAMPLING} {MODEL}",
    "chat": f"{SAMPLING} {MODEL}",
    "eval": "--tasks --data --out --format --no_bos --limit --too_long --subjects --seed --resume --allow_code_execution "
    f"--annotations --quiet {MODEL.removesuffix(' --chat_format')}",
}


@pytest.mark.parametrize(
    ("function", "required", "defaults"), ARGUMENTS, ids=lambda value: getattr(value, "__name__", "")
)
def test_arguments_and_their_defaults(function: Callable, required: list[str], defaults: dict[str, object]) -> None:
    """More may be added behind them; those that are there keep their order where they may be given by position."""
    found = inspect.signature(function).parameters
    assert [name for name, each in found.items() if each.default is each.empty] == required
    for name, default in defaults.items():
        assert found[name].default == default or default is DEFAULT, name
    positional = [name for name, each in found.items() if each.kind is each.POSITIONAL_OR_KEYWORD]
    wanted = [name for name in (*required, *defaults) if name in positional]
    assert positional[: len(wanted)] == wanted


def test_a_completion_has_its_fields() -> None:
    names = [field.name for field in dataclasses.fields(Completion)]
    wanted = ["prompt_index", "index", "token_ids", "text", "finish_reason", "stop_reason", "logprobs", "seed"]
    wanted += ["error", "num_steps", "num_draft_tokens", "num_accepted_tokens"]
    assert names[: len(wanted)] == wanted


@pytest.mark.parametrize("command", FLAGS)
def test_flags_by_both_spellings(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parsers: list[argparse.ArgumentParser] = []
    real = argparse.ArgumentParser.parse_known_args

    def noting(parser: argparse.ArgumentParser, *arguments: object, **options: object) -> object:
        parsers.append(parser)
        return real(parser, *arguments, **options)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", noting)
    with pytest.raises(SystemExit):
        main([command, "--help"])
    known = {option for parser in parsers for action in parser._actions for option in action.option_strings}
    assert {*FLAGS[command].split()} <= known


def test_what_the_readme_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tuned = tmp_path / "tuned"
    result = recover(PAIR / "base", PAIR / "diff", tuned, dtype="float16", device="cpu", progress=False)
    assert verify(tuned).ok
    assert len(result.manifest.tensors) > 0
    make_diff(PAIR / "base", tuned, tmp_path / "diff", device="cpu", progress=False)
    quantize(tuned, tmp_path / "int8", "int8")
    few = SamplingParams(max_new_tokens=8, temperature=0.8, seed=1)
    with Engine.from_pretrained(tuned, device="cpu") as engine, Engine.from_pretrained(tmp_path / "int8", device="cpu"):
        assert engine.chat([{"role": "user", "content": "What is the capital of France?"}]).text
        (completion,) = engine.generate(["Once upon a time"], few)
        assert (completion.finish_reason, len(completion.token_ids)) in (
            ("length", 8),
            ("stop", len(completion.token_ids)),
        )
        assert "".join(engine.stream("Once upon a time", few)) == completion.text
        assert {piece[:2] for piece in engine.stream_many(["a", "b"], few)} <= {(0, 0), (1, 0)}
        assert [done[0].prompt_index for done in engine.completions(["a", "b", "c"], few)] == [0, 1, 2]
        ids = engine.encode("Once upon a time")
        assert engine.generate([ids], few)[0].token_ids == completion.token_ids
        assert engine.chat_ids([{"role": "user", "content": "hi"}])
        assert engine.score("Once", [" upon", ""])[1] == 0.0
        (logprobs,) = engine.prompt_logprobs([ids], top=2)
        assert (logprobs[0], len(logprobs), len(logprobs[1].top)) == (None, len(ids), 2)
        assert len(engine.next_token_logprobs([ids], [5, 6])[0]) == 2
        assert min(engine.usage.prompt_tokens, engine.usage.computed_tokens, engine.usage.generated_tokens) > 0

        async def pieces() -> str:
            return "".join([piece async for piece in engine.astream("Once upon a time", few)])

        assert asyncio.run(pieces()) == completion.text
    with pytest.raises(BaizeError):
        engine.generate("a")
    with Engine.from_pretrained(tuned, device="cpu", speculate="ngram", speculate_tokens=4) as speculating:
        assert speculating.generate(["Once upon a time"], few)[0] == completion
        usage = speculating.usage
        assert (usage.draft_tokens >= usage.accepted_tokens, usage.steps > 0) == (True, True)
    with Engine.from_diff(PAIR / "base", PAIR / "diff", device="cpu") as direct:
        assert direct.generate(["Once upon a time"], few)[0].token_ids == completion.token_ids
    assert (
        main(["generate", str(tuned), "--device", "cpu", "--prompt", "Once upon a time", "--max_new_tokens", "4"]) == 0
    )
    assert capsys.readouterr().out.strip()
