"""The benchmark scripts at their smallest: they run, report in the common form, and refuse wrong results."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import bench_decode
import bench_diff_add
import bench_prefill
import bench_prefix
import bench_quality
import bench_recover
import bench_throughput
import pytest
import recover_methods
import torch
from arrivals import GREEDY, SAMPLED, Arrivals, CopiedPrompt, Rows, arrivals, engine_of, loop_of, room
from assets import REPO
from common import FIRST, GAP, REHEARSAL, Spread, cached_bytes, commit, drop_cache, latencies, measure, run_child
from make_pair import make_pair
from models import Decoder, random_model
from reports import Report
from shapes import PRESETS

from baize_engine import SamplingParams, recover
from baize_engine.checkpoint.index import read_index
from baize_engine.errors import CheckpointError
from baize_engine.kernels import reference
from baize_engine.model import cost, names
from baize_engine.model.llama import Llama
from baize_engine.model.prompt_runner import PromptPiece, new_cache
from baize_engine.model.runner import Batch

BENCHMARKS = REPO / "benchmarks"


def run(script: str, *arguments: object) -> dict:
    command = [sys.executable, str(BENCHMARKS / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pair")
    make_pair("tiny", out)
    return out


def weights(folder: Path, pattern: str) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.glob(pattern)}


def test_bench_recover(pair: Path, tmp_path: Path) -> None:
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned/mine").touch()  # the folder is a user's: what is in it stays
    file, short = tmp_path / "report.json", ["--runs", 1, "--reference_runs", 0, "--warm", "--device", "cpu"]
    found = run("bench_recover.py", "--preset", "1b", "--pair", pair, "--out", tmp_path, "--json", file, *short)
    assert found == json.loads(file.read_text())
    assert {"bench", "device", "commit", "versions", "rows"} <= found.keys()
    assert (found["bench"], found["preset"], found["cache"]) == ("recover", "tiny", "warm")
    assert [(row["method"], row["device"], row["run"]) for row in found["rows"]] == [
        ("recover", "cpu", 0), ("copy", "cpu", 0), ("plain copy", "cpu", 0),
    ]  # fmt: skip
    methods = {row["method"]: row for row in found["methods"]}
    assert methods.keys() == {"recover", "copy", "plain copy"}
    assert methods["recover"]["reference_to_it"] == "not measured"
    assert methods["plain copy"]["to_plain_copy"] == 1
    assert all(row["p20"] <= row["wall_s"] <= row["p80"] and row["peak_MiB"] > 1 for row in methods.values())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "tuned"]
    assert (tmp_path / "tuned/mine").exists()


def test_the_copies_write_what_recover_writes(pair: Path, tmp_path: Path) -> None:
    base, diff = pair / "base", pair / "diff"
    recover(base, diff, tmp_path / "tuned", device="cpu", progress=False)
    recover_methods.copy(base, diff, tmp_path / "copy")
    recover_methods.plain_copy(base, diff, tmp_path / "plain")
    size = sum(weights(tmp_path / "tuned", "*.safetensors").values())
    rows = 2 * 64 * 2  # bytes of the two rows that only the diff has
    assert sum(weights(tmp_path / "copy", "*.safetensors").values()) == pytest.approx(size - rows, abs=64)
    assert sum(weights(tmp_path / "plain", "data").values()) == pytest.approx(size, rel=0.02)
    copied = next((tmp_path / "copy").glob("*.safetensors")).read_bytes()
    assert copied.count(0) < len(copied) / 50  # random bytes: no disk stores them as nothing


def test_a_plain_copy_that_fails_is_no_floor(pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise CheckpointError("broken")

    monkeypatch.setattr(recover_methods.InputFile, "read", broken)
    with pytest.raises(CheckpointError, match="broken"):
        recover_methods.plain_copy(pair / "base", pair / "diff", tmp_path / "plain")


def test_the_reference_method_is_the_same_sum(pair: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    recover_methods.reference(pair / "base", pair / "diff", tmp_path / "tuned")
    entries = read_index(tmp_path / "tuned").entries
    assert {entry.dtype for entry in entries.values()} == {"float32"}
    assert entries["lm_head.weight"].shape[0] == 1001
    bench_recover.check_result(pair / "base", pair / "diff", tmp_path / "tuned", with_mean_row=False)


def test_bench_recover_notices_a_wrong_result(pair: Path, tmp_path: Path) -> None:
    out = tmp_path / "tuned"
    recover(pair / "base", pair / "diff", out, device="cpu", progress=False)
    bench_recover.check_result(pair / "base", pair / "diff", out)
    entry = read_index(out).entries["model.norm.weight"]
    content = bytearray(entry.path.read_bytes())
    content[entry.offset + 4] ^= 1
    entry.path.write_bytes(content)
    with pytest.raises(SystemExit, match=r"model\.norm\.weight is not"):
        bench_recover.check_result(pair / "base", pair / "diff", out)


def test_a_wrong_result_is_not_timed(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """As a user would see it: a recover that writes another pair's result makes the script fail before it times anything."""
    make_pair("tiny", tmp_path / "other", seed=5)
    child = bench_recover.child

    def wrong(way: bench_recover.Way, base: Path, diff: Path, out: Path) -> list[str]:
        return child(way, tmp_path / "other/base", diff, out)

    monkeypatch.setattr(bench_recover, "child", wrong)
    words = ["--pair", str(pair), "--out", str(tmp_path), "--warm", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["bench_recover.py", *words])
    assert bench_recover.main() == 1
    (row,) = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert (row["method"], row["device"]) == ("recover", "cpu")
    assert "is not float32" in row["problem"]
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_recover_on_a_gpu_has_the_cpu_beside_it(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The children are told the device; one that fails there costs its own rows. No GPU is needed: recover is the CPU's."""
    child, told = bench_recover.child, []

    def noted(way: bench_recover.Way, base: Path, diff: Path, out: Path) -> list[str]:
        told.append(child(way, base, diff, out))
        return child(way._replace(device="cpu"), base, diff, out)

    monkeypatch.setattr(bench_recover, "child", noted)
    options = argparse.Namespace(json=None, runs=2, reference_runs=0, cold=False)
    with Report("recover", options) as report:
        bench_recover.bench(options, "cuda", pair / "base", pair / "diff", tmp_path / "tuned", report)
    devices = [words[words.index("--device") + 1] for words in told if "--device" in words]
    assert devices[:2] == ["cuda", "cpu"]
    assert sorted(devices) == ["cpu"] * 3 + ["cuda"] * 3
    assert [(row["method"], row["device"], row["runs"]) for row in report.facts["methods"]] == [
        ("recover", "cuda", 2), ("recover", "cpu", 2), ("copy", "cpu", 2), ("plain copy", "cpu", 2),
    ]  # fmt: skip
    monkeypatch.setattr(bench_recover, "child", child)  # and now the GPU is not there
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with Report("recover", options) as report:
        bench_recover.bench(options, "cuda", pair / "base", pair / "diff", tmp_path / "tuned", report)
    assert "recover failed with 1" in report.rows[0]["problem"]
    assert {(row["method"], row["device"]) for row in report.rows[1:]} == {
        ("recover", "cpu"), ("copy", "cpu"), ("plain copy", "cpu"),
    }  # fmt: skip
    assert report.code == 1
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "said"), [(["--device", "gpu"], "--device: device 'gpu' is not known"), (["--runs", "0"], "--runs is 0")]
)
def test_bench_recover_refuses(words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_recover.py", *words])
    with pytest.raises(SystemExit):
        bench_recover.main()
    assert said in capsys.readouterr().err


def test_bench_diff_add() -> None:
    found = run("bench_diff_add.py", "--elements", 70000, "--runs", 2)
    names = {row["implementation"] for row in found["rows"]}
    assert {"cpp-scalar", "torch"} <= names or "triton" in names
    assert all(row["GB/s"] > 0 and row["ceiling_GB/s"] > 0 for row in found["rows"])
    assert all(row["ms_p20"] <= row["ms"] <= row["ms_p80"] for row in found["rows"])


@pytest.mark.parametrize(("part", "message"), [("bits", "its bits are not"), ("sums", "its sums or counts are not")])
def test_bench_diff_add_notices(part: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = bench_diff_add.cpp

    def wrong(variant: str, threads: int, *tensors: torch.Tensor) -> Callable[[], Any]:
        def run_it() -> Any:
            sums, overflowed, nonfinite = right(variant, threads, *tensors)()
            if part == "bits":
                tensors[2].view(torch.int16)[-1] ^= 1
            else:
                sums[-1] += 1e-9
            return sums, overflowed, nonfinite

        return run_it

    monkeypatch.setattr(bench_diff_add, "cpp", wrong)
    monkeypatch.setattr(bench_diff_add, "memory_bandwidth", lambda threads: {"read": 1.0, "copy": 1.0})
    with Report("diff_add", argparse.Namespace()) as report:
        bench_diff_add.cpu_rows(report, 70000, 1)
    assert report.code == 1
    for row in report.rows:  # torch is right, whatever the others are
        assert "GB/s" in row if row["implementation"] == "torch" else message in row["problem"], row
    assert [row["implementation"] for row in report.rows].count("torch") == len(bench_diff_add.COMBINATIONS)


def test_the_gpu_form_of_bench_diff_add(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code on the CPU: the kernel is the reference op, the clock the host's."""

    def launch(
        base: torch.Tensor, diff: torch.Tensor, out: torch.Tensor, sums: torch.Tensor, counts: torch.Tensor
    ) -> None:
        made, stats = reference.diff_add(base, diff, out.dtype)
        out.copy_(made)
        sums.copy_(stats.chunk_sums)
        counts.zero_()
        counts[0, 0], counts[1, 0] = int(stats.overflowed), int(stats.nonfinite) + wrong

    monkeypatch.setattr("baize_engine.kernels.diff_add.launch", launch)
    monkeypatch.setattr("gpu.gpu_spread", lambda calls, repeats: measure(calls[0], repeats))
    for wrong in (0, 1):
        with Report("diff_add", argparse.Namespace()) as report:
            bench_diff_add.gpu_rows(report, 70000, 2, "cpu")
        assert report.code == wrong
        assert [row["implementation"] for row in report.rows if "GB/s" in row].count("triton") == 3 * (1 - wrong)
        assert [row["implementation"] for row in report.rows if "GB/s" in row].count("torch") == 3
        assert all(row["of_specified"] == pytest.approx(row["GB/s"] / 3350) for row in report.rows if "GB/s" in row)


def test_bench_decode_notices_wrong_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = PRESETS["tiny"]
    model = random_model(shape, "float32", "cpu")
    bench_decode.check_by_reference(model, shape.vocabulary)
    sample = model.ops.sample
    monkeypatch.setattr(model.ops, "sample", lambda logits, *_, out=None, **__: least(logits, out))
    with pytest.raises(SystemExit, match="step 0: the decoder chose"):
        bench_decode.check_by_reference(model, shape.vocabulary)

    def without_top_k(logits: torch.Tensor, temperature: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor,
                      *rest: torch.Tensor, **options: Any) -> torch.Tensor:  # fmt: skip
        return sample(logits, 9 * temperature, 0 * top_k, top_p**0, *rest, **options)

    monkeypatch.setattr(model.ops, "sample", without_top_k)
    with pytest.raises(SystemExit, match="the decoder chose"):
        bench_decode.check_by_reference(model, shape.vocabulary)
    monkeypatch.setattr(model.ops, "sample", sample)
    monkeypatch.setattr(CopiedPrompt, "run", shifted(CopiedPrompt.run))
    with pytest.raises(SystemExit, match=r"two rows say .* by itself"):
        bench_decode.check_by_reference(model, shape.vocabulary)
    monkeypatch.undo()
    monkeypatch.setattr(model.ops, "head", head_of(lambda weight: weight.roll(1, 0)))  # every id off by one
    with pytest.raises(SystemExit, match="the reference ops"):
        bench_decode.check_by_reference(model, shape.vocabulary)


def head_of(wrong: Callable[[Any], torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The op `head` over another matrix."""
    return lambda x, norm, eps, weight, **how: reference.head(x, norm, eps, wrong(weight), **how)


def least(logits: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
    chosen = logits.argmin(-1)
    return chosen if out is None else out.copy_(chosen)


def shifted(run: Callable[..., None]) -> Callable[..., None]:
    """Keys and values that are not the prompt's."""

    def wrong(prompts: CopiedPrompt, pieces: list[PromptPiece]) -> None:
        run(prompts, pieces)
        for piece in pieces:
            prompts.cache.keys[:, piece.sequence.block_table] = 0
            prompts.cache.values[:, piece.sequence.block_table] = 9

    return wrong


def bench_on_cpu(**options: Any) -> Report:
    """The GPU's form of bench_decode, here."""
    asked = {
        "preset": "tiny",
        "batches": [1, 3],
        "contexts": [8, 20],
        "steps": 4,
        "runs": 2,
        "baselines": False,
        **options,
    }
    with Report("decode", argparse.Namespace(**asked)) as report:
        bench_decode.gpu_rows(report, argparse.Namespace(**asked), "cpu")
    return report


@pytest.fixture(autouse=True)
def a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the GPU's forms of scripts hear of this machine."""
    monkeypatch.setattr("gpu.ceilings", lambda device: {"copy_GB/s": 10.0})
    for script in (bench_decode, bench_diff_add, bench_prefill):
        monkeypatch.setattr(script, "device_name", lambda device: "NVIDIA H100 80GB HBM3")


def test_the_gpu_form_of_bench_decode(capsys: pytest.CaptureFixture[str]) -> None:
    report = bench_on_cpu(kinds=["float16"])
    assert report.code == 0
    assert {(row["engine"], row["batch"], row["context"]) for row in report.rows} == {
        (name, batch, context)
        for name in ("baize float16", "baize float16 sampled") for batch in (1, 3) for context in (8, 20)
    }  # fmt: skip
    model = random_model(PRESETS["tiny"], "float16", "cpu")
    for row in report.rows:
        assert 0 < row["p20"] <= row["ms/token"] <= row["p80"] <= row["p99"]
        assert 0 < row["ttft_p20"] <= row["ttft_ms"] <= row["ttft_p80"] <= row["ttft_p99"]
        assert (row["firsts"], row["gaps"]) == (2, 4)
        costs = cost.decode_step(model.config, "float16", row["batch"], row["context"] + 2, "float32")
        assert row["GB/s"] * row["ms/token"] * 1e6 == pytest.approx(sum(op.bytes for op in costs))
        assert row["share"] == pytest.approx(row["GB/s"] / 10)
        assert row["of_specified"] == pytest.approx(row["GB/s"] / 3350)
    tok = {
        (row["batch"], row["context"]): f"{row['tok/s']:.4g}" for row in report.rows if row["engine"] == "baize float16"
    }
    head, *lines = bench_decode.grids(report.rows)[2:5]
    assert head.split() == ["8", "20"]
    assert [line.split() for line in lines] == [["1", tok[1, 8], tok[1, 20]], ["3", tok[3, 8], tok[3, 20]]]


def test_a_kind_that_fails_leaves_the_others_and_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three kinds the second gives wrong ids and the third cannot be made; a batch that fails costs itself alone."""
    made: dict[str, weakref.ref] = {}
    step = Rows.__call__

    def make(shape: Any, kind: str, device: str) -> Llama:
        assert all(model() is None for model in made.values()), "a model is still there when the next is made"
        if kind == "int4":
            raise torch.OutOfMemoryError("CUDA out of memory")
        model = random_model(shape, kind, device)
        if kind == "int8":
            model.ops.head = head_of(lambda weight: torch.randn(weight.shape))
        made[kind] = weakref.ref(model)
        return model

    def too_many(rows: Rows, count: int, params: SamplingParams = GREEDY) -> tuple[list[list[int]], list[float]]:
        ids, seconds = step(rows, count, params)
        if len(ids[0]) == 3 and params is SAMPLED:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return ids, seconds

    monkeypatch.setattr(bench_decode, "random_model", make)
    monkeypatch.setattr(Rows, "__call__", too_many)
    report = bench_on_cpu(kinds=["float16", "int8", "int4", "bfloat16"], batches=[1, 3, 2], contexts=[8])
    assert report.code == 1
    measured = [(row["engine"], row["batch"]) for row in report.rows if "tok/s" in row]
    assert measured == [
        (f"baize {kind}{how}", batch)
        for kind in ("float16", "bfloat16") for batch in (1, 3, 2) for how in ("", " sampled")[: 1 if batch == 3 else 2]
    ]  # fmt: skip
    problems = [(row["engine"], row.get("batch"), row["problem"]) for row in report.rows if "problem" in row]
    lost = "OutOfMemoryError: CUDA out of memory"
    assert [(name, batch, said) for name, batch, said in problems if name != "baize int8"] == [
        ("baize float16 sampled", 3, lost), ("baize int4", None, lost), ("baize bfloat16 sampled", 3, lost)
    ]  # fmt: skip
    assert ["the decoder chose" in said for name, _, said in problems if name == "baize int8"] == [True]


def test_transformers_beside_the_gpu_form(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")

    def compiled(*_: object) -> None:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(bench_decode, "compiled", compiled)
    report = bench_on_cpu(kinds=["float16"], batches=[2], contexts=[8], baselines=True)
    names = ["baize float16", "baize float16 sampled", "transformers float32", "transformers compiled float32"]
    assert [row["engine"] for row in report.rows] == names
    assert [("tok/s" in row, row.get("gaps")) for row in report.rows] == [(True, 4)] * 3 + [(False, None)]
    assert report.rows[3]["problem"] == "RuntimeError: no compiler here"


def test_the_gpu_form_of_bench_prefill(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code on the CPU: a length that fails costs that row; a kind whose logits are wrong costs itself."""
    asked = argparse.Namespace(preset="tiny", tokens=[8, 70], runs=2, baselines=bool(find_spec("transformers")))
    right, reference_model = bench_prefill.ours, bench_prefill.reference_model

    def short(decoder: Decoder, ids: list[int]) -> torch.Tensor:
        if len(ids) == 70:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return right(decoder, ids)

    def another(model: Llama) -> Llama:
        return reference_model(random_model(PRESETS["tiny"], "float16", "cpu", seed=1))

    monkeypatch.setattr(bench_prefill, "matmul_peak", lambda *_: 0.1)
    monkeypatch.setattr(bench_prefill, "ours", short)
    with Report("prefill", asked) as report:
        with report.case(engine="baize float16"):
            bench_prefill.bench(report, asked, "float16", "cpu")
        monkeypatch.setattr(bench_prefill, "reference_model", another)
        with report.case(engine="baize float16"):
            bench_prefill.bench(report, asked, "float16", "cpu")
    names = ["baize float16", "torch float16", *(["transformers float32"] if asked.baselines else [])]
    failed = "OutOfMemoryError: CUDA out of memory"
    assert [(row["engine"], row["tokens"], row.get("problem", "")) for row in report.rows[:-1]] == [
        *((name, 8, "") for name in names), *((name, 70, failed) for name in names[:2]), *((name, 70, "") for name in names[2:])
    ]  # fmt: skip
    assert report.rows[-1]["problem"].startswith("baize: the last logits are ")
    assert report.code == 1


@pytest.mark.parametrize("ahead", [False, True])
def test_each_row_of_a_step_has_its_own_blocks_and_seed(ahead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ahead`: steps are launched before tokens are read, prompts are filled up to a bucket, as on a GPU."""
    model = random_model(PRESETS["tiny"], "float16", "cpu")
    cache = new_cache(model, room(3, 20, 5))
    prompt = bench_decode.prompts(1, 20, 1000)[0]
    rows = Rows(model, cache, prompt, 3, Batch(model, cache, 3, runs_ahead=ahead))
    alike, seconds = rows(5)
    drawn, _ = rows(5, SAMPLED)
    again, _ = rows(5, SAMPLED)
    assert len(alike) == len(seconds) == 5
    assert all(len(set(step)) == 1 for step in alike)
    assert drawn == again
    assert len(set(zip(*drawn, strict=True))) == 3
    assert rows.loop.pool.free_blocks == cache.num_blocks - 2  # those of the prompt that was computed


def test_bench_decode_says_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(PRESETS["tiny"], "float16", "cpu")
    assert bench_decode.does_not_fit(model, 1, 20, 3) is None
    monkeypatch.setattr(bench_decode, "free_bytes", lambda device: bench_decode.SPARE + 100)
    assert bench_decode.does_not_fit(model, 64, 200, 3) == "does not fit (2 of 2 GB)"


def test_bench_quality() -> None:
    found = run("bench_quality.py", "--texts", 2, "--length", 40)
    by_kind = {row["weights"]: row for row in found["rows"]}
    assert by_kind.keys() == {"as published", "int8", "int4"}
    assert 0 <= by_kind["as published"]["KL"] < by_kind["int8"]["KL"] < by_kind["int4"]["KL"]
    for kind in ("int8", "int4"):
        exact, prompt = by_kind[kind]["added_by_exact_activations"], by_kind[kind]["added_in_a_prompt"]
        assert 0 < exact < 1e-6 < prompt < 0.01  # at 16 and at 8 bits an activation


def test_bench_quality_notices_a_wrong_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Kernels that say something else than the reference ops on the published weights cost that row; the others stay."""
    load = bench_quality.load

    def wrong(folder: Path, quantize: str | None) -> tuple[Llama, Llama, Llama]:
        exact, fine, int8_activations = load(folder, quantize)
        if quantize is None:
            fine = replace(fine, weights={**fine.weights, names.HEAD: fine.head.roll(1, 0)})
        return exact, fine, int8_activations

    monkeypatch.setattr(bench_quality, "load", wrong)
    monkeypatch.setattr(sys, "argv", ["bench_quality.py", "--texts", "1", "--length", "8"])
    assert bench_quality.main() == 1
    published, *others = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert published["problem"].startswith("demo: the model diverges from itself by")
    assert [(row["weights"], "KL" in row) for row in others] == [("int8", True), ("int4", True)]


def test_a_childs_peak_is_its_own() -> None:
    ballast = bytearray(300 << 20)  # in this process: a child that was forked from it would begin with as much
    ballast[::4096] = b"x" * len(ballast[::4096])
    small = run_child([sys.executable, "-S", "-c", "pass"])
    large = run_child([sys.executable, "-S", "-c", "b = bytearray(200 << 20); b[::4096] = b'x' * len(b[::4096])"])
    assert small.peak < 100 << 20 < 200 << 20 <= large.peak
    assert len(ballast) == 300 << 20
    failed = run_child([sys.executable, "-c", "import sys; print('out'); sys.exit(3)"])
    assert (failed.code, failed.output) == (3, "out\n")


def test_arrivals_are_those_of_the_engine() -> None:
    """Times ascend, ids are `generate`'s, and neither depends on who else is asked for."""
    model = random_model(PRESETS["tiny"], "float16", "cpu")
    engine = engine_of(loop_of(model, 256))
    many = [bench_decode.prompts(1, length, 1000)[0] for length in (5, 9, 17)]
    params = [SamplingParams(max_new_tokens=count, ignore_eos=True) for count in (1, 4, 2)]
    found = arrivals(engine, many, params)
    assert found.ids == [done.token_ids for done in engine.generate(many, params)]
    assert [len(times) for times in found.seconds] == [1, 4, 2]
    assert all(times == sorted(times) and times[0] > 0 for times in found.seconds)
    assert found.firsts == [times[0] for times in found.seconds]
    first, *rest = found.seconds[1]
    assert len(found.gaps) == 3 + 1
    assert sum(found.gaps[:3]) == pytest.approx(rest[-1] - first)


def test_latencies() -> None:
    milliseconds = [float(n) for n in range(101)]
    cells = latencies(GAP, [1e-3 * each for each in milliseconds])
    assert cells.pop("gaps") == 101
    assert list(cells.items()) == [
        (name, pytest.approx(value)) for name, value in zip(GAP, (50, 20, 80, 99), strict=False)
    ]
    few = latencies(FIRST, [2e-3, 1e-3])
    assert (few["firsts"], few["ttft_p99"]) == (2, pytest.approx(1.99))


def test_spread() -> None:
    spread = Spread.of([5.0, 1.0, 2.0, 4.0, 3.0, 6.0])
    assert (spread.p20, spread.median, spread.p80) == (2.0, 3.5, 5.0)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)


def test_dropped_files_are_not_in_the_page_cache(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_bytes(bytes(1 << 20))
    assert cached_bytes(file) == 1 << 20
    refused = ""
    try:
        drop_cache([tmp_path])
    except SystemExit as error:  # a filesystem in memory: then the refusal is what is wanted
        refused = str(error)
    left = cached_bytes(file)
    assert refused.startswith(f"{file}: {left} bytes stay") if left else not refused


def test_a_run_is_not_called_cold_where_pages_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").write_bytes(bytes(1 << 20))
    monkeypatch.setattr("os.posix_fadvise", lambda *arguments: None)
    with pytest.raises(SystemExit, match="stay in the page cache"):
        drop_cache([tmp_path])


def test_the_commit_is_this_checkouts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.fullmatch(r"[0-9a-f]{12,}(-dirty)?|unknown", commit())
    monkeypatch.setenv("PATH", "")
    assert commit() == "unknown"  # no git


def test_bench_throughput(monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs the mix together and one by one, which must agree, and tells the ceilings of both."""
    monkeypatch.setenv(REHEARSAL, "")  # one ceiling is compared with another
    small = ["--prompts", 8, "--prompt_mean", 10, "--output_mean", 10, "--alone", 3, "--rows", 4, "--steps", 4]
    found = run("bench_throughput.py", "--preset", "tiny", "--device", "cpu", "--peers", "vllm", *small)
    together, alone, absent = found["rows"]
    assert (together["prompts"], alone["prompts"]) == (8, 3)
    assert together["output_tok/s"] > 0 < found["of_batch"]
    assert found["to_alone, ceiling_tok/s"] >= 1
    for row in (together, alone):
        assert 0 < row["ttft_ms"] <= row["ttft_p99"]
        assert 0 < row["gap_ms"] <= row["gap_p99"]
        assert row["gaps"] == row["output_tokens"] - row["prompts"]
    assert alone["ttft_ms"] < together["ttft_p99"]  # the last of them waits for the others' prompts
    assert isinstance(absent["output_tok/s"], str)


def test_prompts_that_say_something_else_alone_cost_that_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one_by_one = bench_throughput.Timed.one_by_one

    def wrong(engine: bench_throughput.Timed, work: bench_throughput.Mix) -> Arrivals:
        found = one_by_one(engine, work)
        if len(work.prompts) == 2:  # not in the check, which has 3
            found.ids[1][-1] += 1
        return found

    def broken(*_: object) -> None:
        raise RuntimeError("no engine")

    monkeypatch.setattr(bench_throughput.Timed, "one_by_one", wrong)
    monkeypatch.setattr(
        bench_throughput, "ceilings", lambda *_: {"read_GB/s": 9.0, "copy_GB/s": 10.0, "matmul_TFLOP/s": 0.1}
    )
    small = ["--preset", "tiny", "--device", "cpu", "--prompts", "3", "--alone", "2", "--rows", "2", "--steps", "3"]
    means = ["--prompt_mean", "9", "--output_mean", "9"]
    monkeypatch.setattr(sys, "argv", ["bench_throughput.py", *small, *means])
    assert bench_throughput.main() == 1
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    together, alone = found["rows"]
    assert together["engine"] == "baize float16"
    assert together["gap_p99"] > 0 < found["of_batch"]
    assert alone["problem"].startswith("prompt 1 says ")
    monkeypatch.setattr(bench_throughput.Timed, "together", broken)
    assert bench_throughput.main() == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"] == [
        {"engine": "baize float16", "problem": "RuntimeError: no engine"}
    ]


def test_the_mix_has_its_seed_and_its_means() -> None:
    made = bench_throughput.mix(64, 64, 192, 2048, 1000, 0)
    assert made == bench_throughput.mix(64, 64, 192, 2048, 1000, 0) != bench_throughput.mix(64, 64, 192, 2048, 1000, 1)
    assert sum(map(len, made.prompts)) / 64 == pytest.approx(64, abs=1)
    assert sum(made.outputs) / 64 == pytest.approx(192, abs=1)
    with pytest.raises(SystemExit, match=r"prompt 1 says \[4\] among others and \[5\] by itself"):
        bench_throughput.same([[1], [4], [7]], [[1], [5]])


def test_bench_prefix_says_why_it_skips() -> None:
    (row,) = run("bench_prefix.py", "--preset", "tiny", "--device", "cpu")["rows"]
    assert row["prompts"].startswith("skipped: ")


def test_tokens_that_sharing_leaves_to_compute() -> None:
    stem = list(range(40))
    many = [[*stem, 100, 101], [*stem, 100, 102], [*stem, 200], stem]
    assert bench_prefix.least(many) == 40 + 2 + 1 + 1  # the last token of a prompt that another begins with too
    assert bench_prefix.counted(many, 16, 64) == 42 + 10 + 9 + 8
    assert bench_prefix.counted(many, 64, 64) == sum(map(len, many))
