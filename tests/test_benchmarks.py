"""The benchmark scripts at their smallest: they run, report in the common form, and refuse wrong results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from assets import REPO

from baize_engine import recover
from baize_engine.checkpoint.index import read_index

BENCHMARKS = REPO / "benchmarks"


def run(script: str, *arguments: object) -> dict:
    command = [sys.executable, str(BENCHMARKS / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pair")
    command = [sys.executable, str(BENCHMARKS / "make_pair.py"), "--preset", "tiny", str(out)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return out


def test_make_pair_has_the_published_shape(pair: Path) -> None:
    base, diff = read_index(pair / "base"), read_index(pair / "diff")
    assert {entry.dtype for entry in base.entries.values()} == {"float16"}
    assert {entry.dtype for entry in diff.entries.values()} == {"float32"}
    assert base.entries.keys() == diff.entries.keys()
    assert any(name.endswith("rotary_emb.inv_freq") for name in base.entries)
    assert (len(base.files), len(diff.files)) == (2, 3)
    assert diff.entries["lm_head.weight"].shape[0] == base.entries["lm_head.weight"].shape[0] + 1


def test_make_pair_does_not_overwrite(pair: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "make_pair.py"), "--preset", "tiny", str(pair)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "exists already" in done.stderr


def test_bench_recover(pair: Path, tmp_path: Path) -> None:
    found = run(
        "bench_recover.py",
        "--preset",
        "tiny",
        "--pair",
        pair,
        "--runs",
        1,
        "--reference_runs",
        0,
        "--json",
        tmp_path / "r",
    )
    assert found == json.loads((tmp_path / "r").read_text())
    assert {"bench", "device", "commit", "versions", "rows"} <= found.keys()
    rows = {row["method"]: row for row in found["rows"]}
    assert rows.keys() == {"recover", "copy", "buffered copy"}
    assert rows["recover"]["reference_to_it"] == "not measured"
    assert all(row["wall_s"] > 0 and row["peak_MiB"] > 1 for row in rows.values())


def test_bench_recover_notices_a_wrong_result(pair: Path, tmp_path: Path) -> None:
    import bench_recover

    out = tmp_path / "tuned"
    recover(pair / "base", pair / "diff", out, device="cpu", progress=False)
    bench_recover.check_result(pair / "base", pair / "diff", out)
    entry = read_index(out).entries["model.norm.weight"]
    content = bytearray(entry.path.read_bytes())
    content[entry.offset + 4] ^= 1
    entry.path.write_bytes(content)
    with pytest.raises(SystemExit, match=r"model\.norm\.weight is not"):
        bench_recover.check_result(pair / "base", pair / "diff", out)


def test_bench_diff_add() -> None:
    found = run("bench_diff_add.py", "--elements", 70000, "--runs", 2)
    names = {row["implementation"] for row in found["rows"]}
    assert {"cpp-scalar", "torch"} <= names or "triton" in names
    assert all(row["GB/s"] > 0 and row["ceiling_GB/s"] > 0 for row in found["rows"])


def test_bench_decode() -> None:
    found = run("bench_decode.py", "--preset", "tiny", "--contexts", 20, "--batches", 1, 3, "--steps", 3)
    ours = [row for row in found["rows"] if row["engine"].startswith("baize")]
    assert [row["batch"] for row in ours] == [1, 3]
    assert all(row["ms/token"] > 0 and row["ttft_ms"] > 0 for row in ours)


def test_bench_decode_notices_wrong_ids() -> None:
    pytest.importorskip("transformers")
    import bench_decode
    import torch
    from shapes import PRESETS

    from baize_engine import backend
    from baize_engine.model.config import ModelConfig
    from baize_engine.model.llama import Llama

    shape = PRESETS["tiny"]
    weights = bench_decode.random_weights(shape, torch.float32, "cpu")
    config = ModelConfig.from_dict(shape.config(shape.vocabulary, "float32"))
    baseline = bench_decode.transformers_model(shape, weights)
    bench_decode.check(Llama(config, weights, backend.ops("cpu")), baseline, shape.vocabulary)
    weights["lm_head.weight"] = weights["lm_head.weight"].roll(1, 0)  # every id off by one
    with pytest.raises(SystemExit, match="the decoder chose"):
        bench_decode.check(Llama(config, weights, backend.ops("cpu")), baseline, shape.vocabulary)


def test_parameter_counts_are_the_published_ones() -> None:
    from shapes import PRESETS

    assert PRESETS["7b"].parameters == 6_738_415_616
    assert PRESETS["13b"].parameters == 13_015_864_320


def test_a_childs_peak_is_its_own() -> None:
    from common import run_child

    small = run_child([sys.executable, "-S", "-c", "pass"])
    large = run_child([sys.executable, "-S", "-c", "b = bytearray(200 << 20); b[::4096] = b'x' * len(b[::4096])"])
    assert small.peak < 100 << 20 < 200 << 20 <= large.peak
    assert run_child([sys.executable, "-c", "import sys; print('out'); sys.exit(3)"]).code == 3
