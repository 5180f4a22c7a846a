"""The analytic costs against the bytes of real tensors and against figures worked out by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from step_ops import NAMES

from baize_engine.checkpoint.index import read_index
from baize_engine.cli import main
from baize_engine.kernels import quantized
from baize_engine.model import cost
from baize_engine.model.config import ModelConfig
from baize_engine.model.quantize import quantize

# 100 columns are not a multiple of INT4_BLOCK, 72 rows none of anything; q has another width than hidden
ODD = tiny.config(hidden_size=100, intermediate_size=72, num_attention_heads=6, num_key_value_heads=2, head_dim=20)
LLAMA_13B = ModelConfig(
    vocab_size=32000,
    hidden_size=5120,
    intermediate_size=13824,
    num_layers=40,
    num_heads=40,
    num_kv_heads=40,
    head_dim=128,
)


def total(costs: list[cost.OpCost]) -> int:
    return sum(each.bytes for each in costs)


def flops(costs: list[cost.OpCost]) -> dict[str, int]:
    return {each.name: each.flops for each in costs}


def real_bytes(raw: dict, kind: str, dtype: torch.dtype) -> int:
    size = 0
    for name, tensor in tiny.state(raw, dtype=dtype).items():
        packs = kind in ("int8", "int4") and tensor.dim() == 2 and "embed" not in name
        weight = quantized.quantize(tensor, kind) if packs else tensor
        size += (quantized.in_rows(weight) if isinstance(weight, quantized.Int4Weight) else weight).nbytes
    return size


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("changes", [tiny.CONFIG, ODD], ids=["even", "odd"])
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("float32", "float32"),
        ("float16", "float16"),
        ("bfloat16", "bfloat16"),
        ("int8", "float16"),
        ("int4", "float16"),
        ("int8", "float32"),
        ("int4", "bfloat16"),
    ],
)
def test_weight_bytes_are_those_of_the_tensors(kind: str, dtype: str, changes: dict, tied: bool) -> None:
    raw = {**changes, "tie_word_embeddings": tied}
    config = ModelConfig.from_dict(raw)
    real = real_bytes(raw, kind, getattr(torch, dtype))
    assert cost.weight_bytes(config, kind, dtype) == real
    assert cost.weight_bytes(config, kind, "float32", kept=dtype) == real
    unread = 0 if tied else (config.vocab_size - 1) * config.hidden_size
    assert cost.step_bytes_weights(config, kind, dtype) == real - unread * cost.itemsize(dtype)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (7, 64), (5, 65), (3, 640)])
def test_matrix_bytes_are_those_of_the_quantised_format(rows: int, columns: int) -> None:
    assert cost.INT4_BLOCK == quantized.BLOCK
    assert cost.matrix_bytes(rows, columns, "int8") == quantized.empty("int8", rows, columns).nbytes
    int4 = quantized.in_rows(quantized.quantize(torch.ones(rows, columns), "int4"))
    assert cost.matrix_bytes(rows, columns, "int4") == int4.nbytes
    assert cost.matrix_bytes(rows, columns, "float32") == 4 * rows * columns


def test_known_figures_of_13b() -> None:
    assert cost.parameters(LLAMA_13B) == 13_015_864_320  # of the published model
    assert cost.weight_bytes(LLAMA_13B, "float16") == 26_031_728_640
    assert cost.step_bytes_weights(LLAMA_13B, "float16") / 1e9 == pytest.approx(25.70, abs=0.01)
    assert cost.kv_bytes_per_token(LLAMA_13B) == 819_200
    assert cost.kv_bytes_per_token(LLAMA_13B, 4) == 1_638_400
    step = cost.decode_step(LLAMA_13B, "float16", 1, 1)
    assert total(step) / 1e9 == pytest.approx(25.71, abs=0.01)
    # 25.7 GB at 4.8 TB/s (H200's data sheet)
    assert cost.ceiling_tokens_per_second(step, 1, 4.8e12) == pytest.approx(186.7, abs=0.3)


def test_int4_is_a_little_over_four_bits() -> None:
    assert cost.matrix_bytes(5120, 5120, "int4") * 8 / 5120**2 == 4.25 + 32 / 5120
    assert cost.matrix_bytes(5120, 5120, "int8") * 8 / 5120**2 == pytest.approx(8.006, abs=0.001)
    full, int8, int4 = (cost.step_bytes_weights(LLAMA_13B, kind) for kind in ("float16", "int8", "int4"))
    assert full / int8 == pytest.approx(2, rel=0.001)
    assert full / int4 == pytest.approx(16 / 4.25, rel=0.002)


@pytest.mark.parametrize("raw", [tiny.CONFIG, ODD], ids=["even", "odd"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("batch", "context"), [(1, 1), (1, 128), (5, 17)])
def test_operations_of_a_decode_step(raw: dict, tied: bool, batch: int, context: int) -> None:
    config = ModelConfig.from_dict({**raw, "tie_word_embeddings": tied})
    state = tiny.state(raw)  # with a head, whose product is computed whether it is tied or not
    matrices = sum(t.numel() for name, t in state.items() if t.dim() == 2 and "embed" not in name)
    attention = 4 * batch * context * config.num_layers * config.num_heads * config.head_dim
    step = flops(cost.decode_step(config, "int8", batch, context))
    assert list(step) == NAMES
    assert sum(step.values()) == 2 * matrices * batch + attention
    assert step["attention"] == attention


def test_bytes_of_a_decode_step_by_hand() -> None:
    config = ModelConfig.from_dict(tiny.CONFIG)  # H=32, I=80, V=96, 2 layers, 4 heads of 8
    step = {each.name: each for each in cost.decode_step(config, "float16", 3, 10, "float32")}
    found = {name: (each.read, each.written) for name, each in step.items()}
    assert found == {
        "embed": (3 * 32 * 2, 3 * 32 * 4),
        "qkv_rope_store": (2 * (96 * 32 * 2 + 32 * 2 + 3 * 32 * 4), 2 * 3 * 96 * 4),
        "attention": (2 * (3 * 32 * 4 + 2 * 3 * 10 * 32 * 4), 2 * 3 * 32 * 4),
        "linear_add o": (2 * (32 * 32 * 2 + 3 * 64 * 4), 2 * 3 * 32 * 4),
        "gate_up": (2 * (160 * 32 * 2 + 32 * 2 + 3 * 32 * 4), 2 * 3 * 80 * 4),
        "linear_add down": (2 * (32 * 80 * 2 + 3 * 112 * 4), 2 * 3 * 32 * 4),
        "head": (96 * 32 * 2 + 32 * 2 + 3 * 32 * 4, 3 * 96 * 4),
        "sample": (3 * 96 * 4, 3 * 8),
    }


@pytest.mark.parametrize("kind", list(cost.WEIGHT_BITS))
@pytest.mark.parametrize("tied", [False, True])
def test_what_a_batch_and_a_context_add(kind: str, tied: bool) -> None:
    config = ModelConfig.from_dict({**ODD, "tie_word_embeddings": tied})
    one, more = (total(cost.decode_step(config, kind, 1, context)) for context in (20, 21))
    assert more - one == cost.kv_bytes_per_token(config)
    by_batch = [total(cost.decode_step(config, kind, batch, 20)) for batch in (1, 2, 3)]
    assert by_batch[1] - by_batch[0] == by_batch[2] - by_batch[1]  # only activations and the cache grow
    weights = by_batch[0] - (by_batch[1] - by_batch[0])  # a step of no sequence
    row = 0 if tied else config.hidden_size * (4 if kind == "float32" else 2)  # a tied one is part of the head
    assert weights == cost.step_bytes_weights(config, kind) - row


def test_prefill_scales_with_tokens_and_attention_with_half_their_square() -> None:
    for config in (LLAMA_13B, ModelConfig.from_dict(ODD)):
        assert cost.prefill(config, 1, "int4") == cost.decode_step(config, "int4", 1, 1)
        short, long = cost.prefill(config, 1000, "float16"), cost.prefill(config, 2000, "float16")
        assert [each.name for each in short] == NAMES
        a, b = flops(short), flops(long)
        for name in ("qkv_rope_store", "linear_add o", "gate_up", "linear_add down"):
            assert b[name] == 2 * a[name]
        width = config.num_layers * config.num_heads * config.head_dim
        assert a["attention"] == 4 * width * 1000 * 1001 // 2
        assert b["attention"] / a["attention"] == pytest.approx(4, rel=0.001)
        assert a["head"] == b["head"] == 2 * config.vocab_size * config.hidden_size
        grown = [each.bytes for each in cost.prefill(config, 3000, "float16")]
        first, second = ([each.bytes for each in costs] for costs in (short, long))
        assert [c - b for b, c in zip(second, grown, strict=True)] == [
            b - a for a, b in zip(first, second, strict=True)
        ]


def test_the_ceiling_is_batch_over_the_time_of_the_bytes() -> None:
    costs = [cost.OpCost("embed", 0, 300, 100), cost.OpCost("head", 9, 500, 100)]
    assert cost.ceiling_tokens_per_second(costs, 4, 2000.0) == 8.0


def test_what_has_no_cost_is_refused_by_name() -> None:
    config = ModelConfig.from_dict(tiny.CONFIG)
    with pytest.raises(ValueError, match="'int3'"):
        cost.matrix_bytes(2, 2, "int3")
    with pytest.raises(ValueError, match="'int3'"):
        cost.decode_step(config, "int3", 1, 1)
    with pytest.raises(ValueError, match="'int8'"):
        cost.decode_step(config, "int4", 1, 1, activation="int8")
    with pytest.raises(ValueError, match="context is 0"):
        cost.decode_step(config, "int4", 1, 0)
    with pytest.raises(ValueError, match="tokens is 0"):
        cost.prefill(config, 0, "int4")


def test_it_does_not_load_torch() -> None:
    code = "import sys, baize_engine.model.cost; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_info_tells_the_costs_of_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baize_engine.backend.devices.resolve_device", lambda device: "cpu")
    folder = tiny.write_model(tmp_path / "model", tiny.CONFIG, tiny.state(tiny.CONFIG, dtype=torch.float16))
    assert main(["info", str(folder)]) == 0
    out = capsys.readouterr().out
    config = ModelConfig.from_dict(tiny.CONFIG)
    assert f"parameters: {cost.parameters(config):,}; KV cache: 512 bytes a token in float32" in out
    assert "measured by a read of 256 MiB now" in out
    assert "decode at batch 1 and context 128:" in out
    lines = [line.split() for line in out.splitlines() if " weights " in line]
    assert [line[0] for line in lines] == ["float16", "int8", "int4"]
    for kind, *rest in lines:
        step = total(cost.decode_step(config, kind, 1, 128, "float32", "float16"))
        assert f"{step:,}" in rest
        assert float(rest[-2].replace(",", "")) > 0


def test_info_reads_headers_and_a_norm_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny.write_model(tmp_path / "model", tiny.CONFIG, tiny.state(tiny.CONFIG))
    file = folder / "model.safetensors"
    content = file.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    with file.open("r+b") as out:  # the same size, no weights: a hole
        out.truncate(begin)
        out.truncate(len(content))
        norm = read_index(folder).entries["model.norm.weight"]  # which tells a model from a diff
        out.seek(norm.offset)
        out.write(content[norm.offset : norm.offset + norm.nbytes])
    assert main(["info", str(folder)]) == 0
    assert "    float32   weights" in capsys.readouterr().out


def test_info_of_a_quantised_model_is_of_that_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny.write_model(tmp_path / "model", tiny.CONFIG, tiny.state(tiny.CONFIG, dtype=torch.float16))
    quantize(folder, tmp_path / "packed", "int4")
    assert main(["info", str(tmp_path / "packed")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if " weights " in line]
    assert [line[0] for line in lines] == ["int4"]


def test_info_of_another_model_gives_the_reason_in_place_of_costs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = tiny.config(model_type="mistral")
    folder = tiny.write_model(tmp_path / "model", raw, tiny.state(raw))
    assert main(["info", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "2 layers, hidden 32" in out
    assert "not a model that this decoder runs" in out
    assert "mistral" in out
    assert "ceiling" not in out


@pytest.mark.parametrize("what", ["nowhere", "empty", "notes", "file"])
def test_info_of_what_is_no_model_says_so(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / what
    if what == "file":
        folder.write_text("hello")
    elif what != "nowhere":
        folder.mkdir()
    if what == "notes":
        (folder / "notes.txt").write_text("hello")
    assert main(["info", str(folder)]) == 1
    told, err = capsys.readouterr()
    assert told == ""  # the line is not to be looked for behind a table
    reason = {"nowhere": "does not exist", "empty": "it is empty", "notes": "it has notes.txt", "file": "is a file"}
    assert err.startswith(f"baize: {folder}")
    assert reason[what] in err
    assert err.count("\n") == 1
