"""recover end to end on tiny pairs: the bits, every refusal, and forks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from folders import DTYPES, expected, load, same_bits, snapshot
from refusals import REFUSALS, smaller_base

from baize_engine import recover
from baize_engine.errors import MismatchError


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
    subprocess.run([sys.executable, "-c", FORKED, base, diff, tmp_path / "tuned"], check=True, timeout=300)
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
    subprocess.run([sys.executable, "-c", FORKS, base, diff, tmp_path / "tuned"], check=True, timeout=300)
