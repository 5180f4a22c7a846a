"""recover end to end on tiny pairs: the bits, the files beside, every refusal, and what a failure leaves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from folders import DTYPES, expected, load, same_bits, snapshot
from refusals import REFUSALS, smaller_base

from baize_engine import recover
from baize_engine.backend.adders import CppAdder
from baize_engine.checkpoint.index import read_index
from baize_engine.checkpoint.tensor_reader import FileRange
from baize_engine.errors import CheckpointError, MismatchError, OutputError
from baize_engine.recovery import memory
from baize_engine.recovery import stream as streaming


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "forms", [("bin", "bin"), ("safetensors", "safetensors"), ("bin", "safetensors")], ids="-".join
)
def test_the_bits_are_the_references(tmp_path: Path, dtype: str, forms: tuple[str, str]) -> None:
    base, diff = tiny.write_pair(tmp_path, base_form=forms[0], diff_form=forms[1])
    result = recover(base, diff, tmp_path / "tuned", dtype=dtype, device="cpu", progress=False)
    same_bits(load(tmp_path / "tuned"), expected(load(base), load(diff), DTYPES[dtype]))
    assert result.extra_rows == 1
    assert len(result.skipped) == 2


@pytest.mark.parametrize("base_dtype", DTYPES)
@pytest.mark.parametrize("diff_dtype", DTYPES)
def test_any_mix_of_types(tmp_path: Path, base_dtype: str, diff_dtype: str) -> None:
    cfg = tiny.config()
    base = tiny.state(cfg, 3, DTYPES[base_dtype])
    diff = {k: v * 0.01 for k, v in tiny.state({**cfg, "vocab_size": 99}, 4, DTYPES[diff_dtype]).items()}
    tiny.write_model(tmp_path / "base", cfg, base)
    tiny.write_model(tmp_path / "diff", {**cfg, "vocab_size": 99}, diff)
    recover(tmp_path / "base", tmp_path / "diff", tmp_path / "tuned", device="cpu", progress=False)
    same_bits(load(tmp_path / "tuned"), expected(base, diff, torch.float16))


@pytest.mark.parametrize("cached", [True, False, None])
@pytest.mark.parametrize(("workers", "cpus"), [(1, 2), (3, 2), (3, 8)])
def test_pieces_and_workers_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, cpus: int, cached: bool | None
) -> None:
    """Small pieces cut rows and the boundary between the base's rows and the mean row."""
    cfg = tiny.config(vocab_size=5000, hidden_size=36, num_attention_heads=3, num_key_value_heads=3)
    base, diff = tiny.write_pair(tmp_path, cfg=cfg)
    whole = recover(base, diff, tmp_path / "whole", device="cpu", progress=False)
    assert memory.PIECE % 65536 == 0
    monkeypatch.setattr("baize_engine.checkpoint.file_io.is_cached", lambda *_: cached)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cpus)), raising=False)
    from_files = counted(monkeypatch, CppAdder, "add_files")
    run = streaming.stream
    monkeypatch.setattr(
        "baize_engine.recovery.run.stream", lambda *a, **k: run(*a, **{**k, "piece": 65536, "workers": workers})
    )
    pieces = recover(base, diff, tmp_path / "pieces", device="cpu", progress=False)
    assert pieces.manifest.tensors == whole.manifest.tensors
    same_bits(load(tmp_path / "pieces"), expected(load(base), load(diff), torch.float16))
    assert bool(from_files) == bool(cached)


def counted(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> list[str]:
    """Gets an item for each call of a method from here on."""
    calls, method = [], getattr(owner, name)

    def counting(*arguments: object, **named: object) -> object:
        calls.append(name)
        return method(*arguments, **named)

    monkeypatch.setattr(owner, name, counting)
    return calls


def test_a_cached_file_that_is_cut_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, diff = tiny.write_pair(tmp_path)
    add_files, run = CppAdder.add_files, streaming.stream

    def cutting(*arguments: Any, **named: Any) -> Any:
        other: FileRange = arguments[2]
        os.truncate(f"/proc/self/fd/{other.descriptor}", other.offset + 10)
        return add_files(*arguments, **named)

    monkeypatch.setattr("baize_engine.checkpoint.file_io.is_cached", lambda *_: True)
    monkeypatch.setattr(CppAdder, "add_files", cutting)
    monkeypatch.setattr("baize_engine.recovery.run.stream", lambda *a, **k: run(*a, **{**k, "workers": 1}))
    with pytest.raises(CheckpointError, match=rf"{diff}/\S+: model\.\S+: the file ends at byte \d+, wanted \d+ more"):
        recover(base, diff, tmp_path / "tuned", device="cpu", progress=False)
    assert not (tmp_path / "tuned").exists()


@pytest.mark.parametrize("backend", ["cpp-scalar", "torch"])
def test_backends_agree_on_bytes_and_sums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    base, diff = tiny.write_pair(tmp_path)
    first = recover(base, diff, tmp_path / "first", device="cpu", progress=False)
    monkeypatch.setenv("BAIZE_BACKEND", backend)
    second = recover(base, diff, tmp_path / "second", device="cpu", progress=False)
    assert second.manifest.backend == backend
    assert second.manifest.tensors == first.manifest.tensors


def test_the_sum_is_that_of_the_unrounded_values(tmp_path: Path) -> None:
    base, diff = tiny.write_pair(tmp_path)
    result = recover(base, diff, tmp_path / "tuned", device="cpu", progress=False)
    wanted = sum(t.double().sum().item() for t in expected(load(base), load(diff), torch.float32).values())
    assert result.manifest.sum == pytest.approx(wanted, abs=1e-9)


def test_overflow_is_counted_by_tensor(tmp_path: Path) -> None:
    cfg = tiny.config()
    base, diff = tiny.state(cfg), {k: v * 0.01 for k, v in tiny.state(cfg, 5).items()}
    base["lm_head.weight"][3, 4] = 65520.0  # rounds to infinity in float16; 65519.99 would not
    base["lm_head.weight"][3, 5] = float("nan")
    tiny.write_model(tmp_path / "base", cfg, base)
    diff["lm_head.weight"][3] = 0
    tiny.write_model(tmp_path / "diff", cfg, diff)
    result = recover(tmp_path / "base", tmp_path / "diff", tmp_path / "tuned", device="cpu", progress=False)
    assert {name: record.overflowed for name, record in result.overflowed.items()} == {"lm_head.weight": 1}
    assert {name: record.nonfinite for name, record in result.nonfinite.items()} == {"lm_head.weight": 1}
    assert result.manifest.tensors["lm_head.weight"].sum is None
    row = load(tmp_path / "tuned")["lm_head.weight"][3]
    assert row[4] == float("inf")
    assert row[5].view(torch.int16) == 0x7E00


def test_manifest_of_sources(tmp_path: Path) -> None:
    base, diff = tiny.write_pair(tmp_path)
    result = recover(base, diff, tmp_path / "tuned", device="cpu", progress=False, hash_sources=True)
    import hashlib

    for role, folder in (("base", base), ("diff", diff)):
        files = result.manifest.sources[role]
        assert len(files) == len(read_index(folder).files)
        for file in files:
            content = (folder / file.name).read_bytes()
            assert (file.bytes, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_come_before_the_first_byte(tmp_path: Path, case: str) -> None:
    change, error, message = REFUSALS[case]
    base, diff = tiny.write_pair(tmp_path)
    change(base, diff)
    before = snapshot(tmp_path)
    with pytest.raises(error, match=message):
        recover(base, diff, tmp_path / "tuned", device="cpu", progress=False)
    assert not (tmp_path / "tuned").exists()
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("case", ["eps differs", "theta differs", "whole model"])
def test_force_goes_on(tmp_path: Path, case: str) -> None:
    base, diff = tiny.write_pair(tmp_path)
    REFUSALS[case][0](base, diff)
    recover(base, diff, tmp_path / "tuned", device="cpu", progress=False, force=True)
    same_bits(load(tmp_path / "tuned"), expected(load(base), load(diff), torch.float16))


def test_force_does_not_bend_shapes(tmp_path: Path) -> None:
    base, diff = tiny.write_pair(tmp_path)
    smaller_base(base, diff)
    with pytest.raises(MismatchError, match="wrong size"):
        recover(base, diff, tmp_path / "tuned", device="cpu", progress=False, force=True)


def test_a_base_that_already_has_the_pad_row(tmp_path: Path) -> None:
    """The long-standing complaint about the reference: 32001 against 32000 rows."""
    cfg = tiny.config(vocab_size=97)
    base, diff = tiny.state(cfg), {k: v * 0.01 for k, v in tiny.state(cfg, 2).items()}
    tiny.write_model(tmp_path / "base", cfg, base)
    tiny.write_model(tmp_path / "diff", cfg, diff)
    result = recover(tmp_path / "base", tmp_path / "diff", tmp_path / "tuned", device="cpu", progress=False)
    assert result.extra_rows == 0
    same_bits(load(tmp_path / "tuned"), expected(base, diff, torch.float16))


def test_output_with_content_is_refused_untouched(tmp_path: Path) -> None:
    base, diff = tiny.write_pair(tmp_path)
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        recover(base, diff, tmp_path / "tuned", device="cpu", progress=False)
    assert snapshot(tmp_path / "tuned") == {"thesis.txt": b"mine"}
    with pytest.raises(OutputError, match="not empty"):
        recover(base, diff, base, device="cpu", progress=False)


def test_a_failure_in_the_middle_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, diff = tiny.write_pair(tmp_path)
    before = snapshot(tmp_path)
    from baize_engine.checkpoint.writer import CheckpointWriter

    write, calls = CheckpointWriter.write, []

    def failing(self: CheckpointWriter, name: str, offset: int, view: memoryview) -> None:
        calls.append(name)
        if len(calls) == 7:
            raise OSError(28, "No space left on device", name)
        write(self, name, offset, view)

    monkeypatch.setattr(CheckpointWriter, "write", failing)
    with pytest.raises(OSError, match="No space left"):
        recover(base, diff, tmp_path / "tuned", device="cpu", progress=False)
    assert snapshot(tmp_path) == before
    assert not (tmp_path / "tuned").exists()


def test_a_source_that_changes_meanwhile_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, diff = tiny.write_pair(tmp_path)
    run = streaming.stream

    def meddling(*args: object, **settings: object) -> object:
        records = run(*args, **settings)
        victim = sorted(base.glob("*.bin"))[0]
        victim.write_bytes(victim.read_bytes() + b"x")
        return records

    monkeypatch.setattr("baize_engine.recovery.run.stream", meddling)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        recover(base, diff, tmp_path / "tuned", device="cpu", progress=False)
    assert not (tmp_path / "tuned").exists()


def test_transformers_opens_the_result_and_generates_the_same(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from baize_engine import Engine, SamplingParams

    base, diff = tiny.write_pair(tmp_path)
    recover(base, diff, tmp_path / "tuned", device="cpu", progress=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "tuned", dtype=torch.float32)
    prompt = [1, 5, 9, 33, 70]
    theirs = model.generate(
        torch.tensor([prompt]), max_new_tokens=16, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    with Engine.from_pretrained(tmp_path / "tuned", device="cpu") as engine:
        (ours,) = engine.generate([prompt], SamplingParams(max_new_tokens=16, ignore_eos=True))
    assert ours.token_ids == theirs[0, len(prompt) :].tolist()


FORKED = """
import os, signal, sys
from tqdm import tqdm
from baize_engine import recover

tqdm.get_lock()
if (child := os.fork()) == 0:
    tqdm.get_lock().acquire()
    os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(child, 0)
recover(*sys.argv[1:], device="cpu", progress=False)
"""


def test_without_a_bar_none_waits_for_the_bar_of_a_killed_fork(tmp_path: Path) -> None:
    """tqdm's lock is shared by forked processes, and hidden bars take it too."""
    base, diff = tiny.write_pair(tmp_path)
    subprocess.run([sys.executable, "-c", FORKED, base, diff, tmp_path / "tuned"], check=True, timeout=120)
    assert (tmp_path / "tuned/model.safetensors").exists()


FORKS = """
import gc, mmap, os, sys
from baize_engine import recover
from baize_engine.checkpoint.writer import CheckpointWriter

def full(*_):
    raise OSError(28, "No space left on device")

gc.disable()
CheckpointWriter.write = full
try:
    recover(*sys.argv[1:], device="cpu", progress=False)
except OSError:
    pass
if (child := os.fork()) == 0:
    mine = [mmap.mmap(-1, 1 << 18) for _ in range(200)]
    gc.collect()  # of the buffers, which the failure's traceback kept
    for memory in mine:
        memory.write(bytes(len(memory)))
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_fork_after_a_failure_has_its_memory(tmp_path: Path) -> None:
    base, diff = tiny.write_pair(tmp_path)
    subprocess.run([sys.executable, "-c", FORKS, base, diff, tmp_path / "tuned"], check=True, timeout=120)
