"""recover's memory has a bound that a user sets and that no model's size moves: shown on sparse files of published shapes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import measured_recover
import pytest
import sparse
import tiny
from shapes import PRESETS, Shape

from baize_engine import _C, make_diff, recover
from baize_engine.errors import RequestError
from baize_engine.recovery.memory import BUFFERS, PIECE, REST_MIB, WORKERS, fit

LLAMA_13B = PRESETS["13b"]
LLAMA_65B = Shape(layers=80, heads=64, hidden=8192, intermediate=22016)
NO_PROC = not Path("/proc/self/status").exists()


def peak(base: Path, diff: Path, out: Path, *options: str) -> int:
    """MiB that `baize recover` took at most."""
    command = [sys.executable, measured_recover.__file__, "recover", "--force", "--path_raw", base, "--path_diff", diff]
    command += ["--path_tuned", out, "--device", "cpu", "--quiet", *options]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    assert list(out.glob("*.safetensors"))
    return int(done.stdout.split()[-1]) >> 20


@pytest.mark.skipif(NO_PROC, reason="memory is read from Linux's /proc")
def test_one_layer_of_13b_within_what_is_set(tmp_path: Path) -> None:
    """Its vocabulary and one layer: the largest tensors of the model, and the mean row. 1.3 + 2.6 GB of input."""
    base, diff = sparse.write_sparse_pair(tmp_path, replace(LLAMA_13B, layers=1))
    usual = peak(base, diff, tmp_path / "usual")
    little = peak(base, diff, tmp_path / "little", "--memory", "72")
    assert usual <= 256
    assert little <= 72
    assert little < usual - 20  # the option is what does it


@pytest.mark.slow
@pytest.mark.skipif(NO_PROC, reason="memory is read from Linux's /proc")
@pytest.mark.parametrize(
    ("shape", "shards"), [(LLAMA_13B, (3, 6)), (LLAMA_65B, (8, 14))], ids=["13b", "65b"]
)  # about a minute and five
def test_whole_models_as_published(tmp_path: Path, shape: Shape, shards: tuple[int, int]) -> None:
    base = sparse.write_sparse_bin(tmp_path / "base", shape, shape.vocabulary, "float16", shards[0])
    diff = sparse.write_sparse_bin(tmp_path / "diff", shape, shape.vocabulary + 1, "float32", shards[1])
    found = peak(base, diff, tmp_path / "tuned")
    print(f"{found:.0f} MiB at most")
    assert found <= 256


@pytest.mark.parametrize("memory", [65, 66, 72, 96, 100, 128, 192, 256, 1000])
def test_the_buffers_fit(memory: int) -> None:
    workers, piece = fit(memory)
    assert REST_MIB + (workers * BUFFERS * piece * 4 >> 20) <= memory
    assert piece % _C.CHUNK == 0
    assert 1 <= workers <= WORKERS
    assert _C.CHUNK <= piece <= PIECE
    assert fit(256) == (WORKERS, PIECE)


@pytest.mark.parametrize("memory", [0, 64, -5, True, 100.0, "256"])
def test_too_little_is_refused_by_name(tmp_path: Path, memory: object) -> None:
    base, diff = tiny.write_pair(tmp_path)
    with pytest.raises(RequestError, match=rf"memory_mib is {memory!r}, wanted a number of MiB of at least 65"):
        recover(base, diff, tmp_path / "out", device="cpu", progress=False, memory_mib=memory)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_little_memory_changes_no_bit(tmp_path: Path) -> None:
    cfg = tiny.config(hidden_size=512, vocab_size=700, num_hidden_layers=1)
    base, diff = tiny.write_pair(tmp_path, cfg=cfg)
    usual = recover(base, diff, tmp_path / "usual", device="cpu", progress=False)
    little = recover(base, diff, tmp_path / "little", device="cpu", progress=False, memory_mib=65)
    assert little.manifest.tensors == usual.manifest.tensors
    tuned = tmp_path / "usual"
    wanted = make_diff(base, tuned, tmp_path / "d1", device="cpu", progress=False).manifest.tensors
    got = make_diff(base, tuned, tmp_path / "d2", device="cpu", progress=False, memory_mib=65).manifest.tensors
    assert got == wanted
