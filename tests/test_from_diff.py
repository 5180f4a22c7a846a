"""Engine.from_diff: the weights of recover, load, quantise, without the detour; and the memory that it takes."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import folders
import forked
import peak_memory
import pytest
import sparse
import tiny
import tiny_meta
import torch
from commands import MODULE
from fakes import small_model
from folders import snapshot
from processes import on_two_cores
from refusals import REFUSALS
from shapes import Shape

from baize_engine import _C, Engine, SamplingParams, from_diff, recover
from baize_engine.checkpoint.index import read_index
from baize_engine.cli import main
from baize_engine.errors import BaizeError, CheckpointError, ConfigError, RequestError
from baize_engine.from_diff import CheckedDiff, WeightSink, load_diff
from baize_engine.loading import load
from baize_engine.model import names
from baize_engine.model.config import ModelConfig
from baize_engine.model.share import RANKS, Share
from baize_engine.model.weights import load_weights
from baize_engine.options import EngineOptions
from baize_engine.recovery.options import RecoveryOptions
from baize_engine.recovery.stream import Target, stream, traffic
from baize_engine.text.sentencepiece_tokenizer import SentencePieceTokenizer

CONFIG = tiny.config(hidden_size=36, num_attention_heads=3, num_key_value_heads=3)  # rows that no block of 32 divides


def write_pair(root: Path, **changes: object) -> tuple[Path, Path]:
    return tiny.write_pair(root, cfg={**CONFIG, **changes})


def stored(weight: Any) -> list[torch.Tensor]:
    return [weight] if isinstance(weight, torch.Tensor) else [weight.values, weight.scales]


def same_weights(got: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert got.keys() == wanted.keys()
    for name, weight in wanted.items():
        assert type(got[name]) is type(weight), name
        for mine, other in zip(stored(got[name]), stored(weight), strict=True):
            assert (mine.dtype, mine.shape) == (other.dtype, other.shape), name
            assert torch.equal(mine.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8)), name


def both(base: Path, diff: Path, out: Path, device: str, dtype: str, quantize: str | None) -> tuple[Any, Any]:
    direct = load_diff(base, diff, EngineOptions(device, dtype, quantize), RecoveryOptions(progress=False))
    recover(base, diff, out, dtype=dtype, device=device, progress=False)
    return direct, load(out, EngineOptions(device, "auto", quantize))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
def test_the_bits_are_those_of_the_detour(tmp_path: Path, dtype: str, quantize: str | None) -> None:
    direct, detour = both(*write_pair(tmp_path), tmp_path / "tuned", "cpu", dtype, quantize)
    same_weights(direct.loop.decoder.model.weights, detour.loop.decoder.model.weights)
    assert (direct.loop.decoder.model.config, direct.max_model_len) == (
        detour.loop.decoder.model.config,
        detour.max_model_len,
    )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
def test_the_bits_on_a_gpu(tmp_path: Path, dtype: str, quantize: str | None) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    pair = write_pair(tmp_path, hidden_size=128, intermediate_size=256, num_attention_heads=2, num_key_value_heads=2)
    direct, detour = both(*pair, tmp_path / "tuned", "cuda", dtype, quantize)
    same_weights(direct.loop.decoder.model.weights, detour.loop.decoder.model.weights)


@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
def test_a_base_in_metas_layout_and_a_tied_head(tmp_path: Path, quantize: str | None) -> None:
    cfg = tiny.config(hidden_size=64, intermediate_size=160, num_attention_heads=8, num_key_value_heads=8)
    meta = tiny_meta.write_meta(tmp_path / "meta", cfg, tiny_meta.random_shards(cfg, 2))
    delta = {name: t * 0.01 for name, t in tiny.state(cfg, 1).items()}
    diff = tiny.write_model(
        tmp_path / "diff", {**cfg, "tie_word_embeddings": True}, delta
    )  # its head is stored all the same
    direct, detour = both(meta, diff, tmp_path / "tuned", "cpu", "float16", quantize)
    assert names.HEAD not in direct.loop.decoder.model.weights
    same_weights(direct.loop.decoder.model.weights, detour.loop.decoder.model.weights)


@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
def test_pieces_cut_anywhere_change_nothing(quantize: str | None) -> None:
    config = ModelConfig.from_dict(CONFIG)
    rng = random.Random(0)
    whole, cut = (WeightSink(config, EngineOptions("cpu", "float16", quantize)) for _ in range(2))
    for name, shape in names.shapes(config).items():
        content = (torch.randn(shape) * 0.05).half().view(torch.uint8).numpy().tobytes()
        whole.write(name, 0, memoryview(content))
        begin = 0
        while begin < len(content):
            end = min(len(content), begin + 2 * rng.choice([1, 7, 35, 36, 37, 100, 1000]))
            cut.write(name, begin, memoryview(bytearray(content[begin:end])))
            begin = end
    same_weights(cut.weights, whole.weights)


def test_the_engine_answers_as_the_recovered_one(tmp_path: Path) -> None:
    base, diff = write_pair(tmp_path, vocab_size=400)
    (diff / "tokenizer.model").write_bytes(small_model())
    before = snapshot(tmp_path)
    params = SamplingParams(max_new_tokens=8, ignore_eos=True)
    with Engine.from_diff(base, diff, device="cpu", quantize="int8") as engine:
        (direct,) = engine.generate("the cat sat", params)
    assert snapshot(tmp_path) == before  # nothing is written
    recover(base, diff, tmp_path / "tuned", device="cpu", progress=False)
    with Engine.from_pretrained(tmp_path / "tuned", device="cpu", quantize="int8") as engine:
        (detour,) = engine.generate("the cat sat", params)
    assert (direct.token_ids, direct.text) == (detour.token_ids, detour.text)


@pytest.mark.parametrize("case", REFUSALS)
def test_what_recover_refuses_is_refused(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change, error, message = REFUSALS[case]
    base, diff = tiny.write_pair(tmp_path)
    change(base, diff)
    monkeypatch.setattr(from_diff, "WeightSink", None)  # no memory is taken before
    with pytest.raises(error, match=message):
        Engine.from_diff(base, diff, device="cpu")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"dtype": "auto"}, RequestError, "dtype is 'auto', wanted float32"),
        ({"dtype": "int3"}, RequestError, "dtype is 'int3', wanted float32, float16, bfloat16$"),
        ({"quantize": "int3"}, RequestError, "quantize is 'int3'"),
        ({"max_model_len": 4000}, RequestError, "max_position_embeddings, 128"),
        ({"device": "tpu"}, BaizeError, "device 'tpu'"),
    ],
)
def test_arguments_are_refused_by_name(tmp_path: Path, settings: dict, error: type, message: str) -> None:
    base, diff = tiny.write_pair(tmp_path)
    with pytest.raises(error, match=message):
        Engine.from_diff(base, diff, **{"device": "cpu", **settings})


def test_memory_is_checked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, diff = tiny.write_pair(tmp_path)
    monkeypatch.setattr("baize_engine.loading.free_bytes", lambda device: 1000)
    monkeypatch.setattr(from_diff, "WeightSink", None)
    with pytest.raises(RequestError, match=r"this machine has 0\.0 MiB free"):
        Engine.from_diff(base, diff, device="cpu")


def test_values_without_a_code_name_their_tensor(tmp_path: Path) -> None:
    base, diff = write_pair(tmp_path)
    tensors = folders.load(base)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("inf")
    tiny.write_model(tmp_path / "odd", CONFIG, tensors)
    with pytest.raises(
        CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight, recovered: weight holds values"
    ):
        Engine.from_diff(tmp_path / "odd", diff, device="cpu", quantize="int4")


def test_a_config_that_the_decoder_would_run_wrongly(tmp_path: Path) -> None:
    base, diff = write_pair(tmp_path)
    for folder in (base, diff):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "hidden_act": "gelu"}))
    with pytest.raises(ConfigError, match=r"diff.config\.json: config: hidden_act is 'gelu'"):
        Engine.from_diff(base, diff, device="cpu")


def test_the_commands_take_base_and_diff(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, diff = write_pair(tmp_path, vocab_size=400)
    (diff / "tokenizer.model").write_bytes(small_model())
    pair = ["--path_raw", str(base), "--path_diff", str(diff), "--device", "cpu"]
    ask = ["--prompt", "the cat sat", "--max_new_tokens", "6"]
    assert main(["generate", *pair, *ask, "--quantize", "int8"]) == 0
    direct = capsys.readouterr().out
    recover(base, diff, tmp_path / "tuned", device="cpu", progress=False)
    assert main(["generate", str(tmp_path / "tuned"), *ask, "--device", "cpu", "--quantize", "int8"]) == 0
    assert capsys.readouterr().out == direct
    for wrong in ([], pair[:2], ["model", *pair]):
        with pytest.raises(SystemExit) as stop:
            main(["generate", *wrong, *ask])
        assert stop.value.code == 2
        assert "wanted either MODEL, or --path_raw and --path_diff" in capsys.readouterr().err


PEAK = """
import sys, torch
from peak_memory import begin_anew, peak_memory
from baize_engine import Engine
from baize_engine.kernels import quantized

torch.ones(64, 64) @ torch.ones(64, 64)
quantized.quantize(torch.ones(64, 64), "int4")
before = begin_anew()
engine = Engine.from_diff(sys.argv[1], sys.argv[2], device="cpu", quantize=sys.argv[3] or None, max_model_len=16)
size = sum(t.numel() * t.element_size() for w in engine._serving.loop.decoder.model.weights.values()
           for t in ([w] if isinstance(w, torch.Tensor) else [w.values, w.scales]))
print(peak_memory() - before, size)
"""
MEMORY = Shape(layers=2, heads=16, hidden=2048, intermediate=5632)  # 234M parameters, 446 MiB as float16


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from Linux's /proc")
@pytest.mark.parametrize(("quantize", "buffers"), [("", 170), ("int8", 300), ("int4", 400)])
def test_peak_memory_is_the_weights_and_the_buffers(tmp_path: Path, quantize: str, buffers: int) -> None:
    base, diff = sparse.write_sparse_pair(tmp_path, MEMORY)
    command = [sys.executable, "-c", PEAK, str(base), str(diff), quantize]
    where = Path(peak_memory.__file__).parent
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=where, preexec_fn=on_two_cores)
    grown, size = map(int, done.stdout.split())
    assert size <= grown < size + (buffers << 20), (
        f"{(grown - size) / 2**20:.0f} MiB beyond the weights' {size / 2**20:.0f}"
    )


def test_commands_join_rows_as_recover_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows that only the diff has are added to the row that --new_rows names; --drop_rows takes a base with more."""
    base, diff = tiny.write_pair(tmp_path)
    vocab = tiny.config()["vocab_size"]  # and so the id of the row that the diff alone has
    pair = ("--path_raw", base, "--path_diff", diff, "--device", "cpu", "--dtype", "float32")
    asked = ("--input", tmp_path / "in.jsonl", "--max_new_tokens", 8, "--ignore_eos", "--logprobs", 1, "--quiet")
    (tmp_path / "in.jsonl").write_text(f'{{"token_ids": [1, 5, {vocab}]}}\n')

    def answer(out: Path, *more: object) -> tuple[int, list[str]]:
        code = main(["generate", *map(str, (*pair, *asked, "--output", out, *more))])
        return code, out.read_text().split('"completions"')

    made = {}
    for fill in ("mean", "zero"):
        out = tmp_path / f"{fill}.jsonl"
        code, (_, made[fill]) = answer(out, "--new_rows", fill)
        with Engine.from_diff(base, diff, device="cpu", dtype="float32", new_rows=fill) as engine:
            (done,) = engine.generate([[1, 5, vocab]], SamplingParams(8, ignore_eos=True, logprobs=1))
        (line,) = out.read_text().splitlines()
        assert (code, json.loads(line)["completions"][0]["token_ids"]) == (0, done.token_ids)
        for other in ("mean", "zero", "auto"):  # another way is another run
            assert answer(out, "--resume", "--new_rows", other)[0] == (0 if other == fill else 1)
        assert answer(out, "--resume", "--new_rows", fill, "--drop_rows")[0] == 1
    assert made["mean"] != made["zero"]
    capsys.readouterr()


@pytest.mark.parametrize("command", [["generate", "--prompt", "a"], ["chat"]])
@pytest.mark.parametrize("option", [["--new_rows", "zero"], ["--drop_rows"]])
def test_options_of_rows_go_with_a_diff(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str], option: list[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command[0], str(tmp_path), *command[1:], *option])
    assert ended.value.code == 2
    assert f"{option[0]} needs --path_diff" in capsys.readouterr().err


def test_chat_with_a_base_that_has_more_rows(tmp_path: Path) -> None:
    vocab = SentencePieceTokenizer(small_model()).vocab_size
    base, diff = tiny.write_pair(tmp_path, cfg=tiny.config(vocab_size=vocab))
    grown = tiny.config(vocab_size=vocab + 3)
    tiny.write_model(base, grown, tiny.state(grown, 0, torch.float16))
    (diff / "tokenizer.model").write_bytes(small_model())
    pair = ["--path_raw", str(base), "--path_diff", str(diff), "--device", "cpu", "--max_new_tokens", "2"]
    line = [*MODULE, "chat", *pair]
    for more, code in (([], 1), (["--drop_rows"], 0)):
        done = forked.run([*line, *more], b"hi\n")
        assert done.returncode == code, done.stderr
        assert (b"--drop_rows" in done.stderr) == (code == 1)


SHARED = tiny.config(
    hidden_size=128, num_attention_heads=8, num_key_value_heads=8, intermediate_size=172, vocab_size=96
)
LAYOUTS = ["meta", "grown", "tied"]


def write_shared(root: Path, layout: str) -> tuple[Path, Path]:
    """A pair whose base is in Meta's layout, or lacks a row of the diff's, or whose head is tied."""
    if layout == "grown":
        return tiny.write_pair(root, cfg=SHARED)
    cfg = {**SHARED, "tie_word_embeddings": layout == "tied"}
    delta = {name: t * 0.01 for name, t in tiny.state(cfg, 1).items()}
    diff = tiny.write_model(root / "diff", cfg, delta, shards=2)
    if layout == "meta":
        return tiny_meta.write_meta(root / "base", cfg, tiny_meta.random_shards(cfg, 4)), diff
    return tiny.write_model(root / "base", cfg, tiny.state(cfg, 0, torch.float64), "bin"), diff


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
def test_a_rank_has_the_bits_of_the_detour(
    tmp_path: Path, layout: str, quantize: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(from_diff, "stream", partial(stream, piece=_C.CHUNK // 4))  # several pieces of a matrix
    base, diff = write_shared(tmp_path, layout)
    options, recovery = EngineOptions("cpu", "float16", quantize), RecoveryOptions(progress=False)
    recover(base, diff, tmp_path / "tuned", dtype="float16", device="cpu", progress=False)
    index, config = read_index(tmp_path / "tuned"), ModelConfig.from_folder(tmp_path / "tuned")
    found = CheckedDiff.read(base, diff, options, recovery)
    for share in (Share(rank, ranks) for ranks in RANKS for rank in range(ranks)):
        got = found.weights(options, share, progress=False)
        same_weights(got, dict(load_weights(index, config, quantize=quantize, share=share)))


def test_progress_counts_what_a_rank_reads(tmp_path: Path) -> None:
    """The parts of all ranks are the whole, but for embedding and norms, which each has."""
    base, diff = write_shared(tmp_path, "meta")
    found = CheckedDiff.read(base, diff, EngineOptions("cpu", "float16"), RecoveryOptions(progress=False))
    whole = {job.name: job.traffic for job in found.work.jobs}
    everywhere = sum(size for name, size in whole.items() if name == names.EMBED or name.endswith("norm.weight"))
    parts = [traffic([Target(found.part(Share(rank, 4)))]) for rank in range(4)]
    assert sum(parts) == sum(whole.values()) + 3 * everywhere
