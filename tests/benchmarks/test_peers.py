"""Benchmarks side by side: our decoder and its peers on the same weights, checked, in turns; peers where they are installed."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import bench_decode
import bench_prefill
import model_files
import peers
import pytest
import side_by_side
import torch
from assets import REPO
from bandwidth import memory_bandwidth
from model_files import Store, interleaved, write_gguf
from models import Decoder
from reports import Report
from safetensors.torch import load_file, save_file
from shapes import PRESETS

from baize_engine.kernels import reference
from baize_engine.model import cost
from baize_engine.model.config import ModelConfig
from baize_engine.model.rope import tables

TINY = PRESETS["tiny"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all runs of this file keep the tiny model's forms."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Runs a script on the tiny preset and returns its report."""

    def call(script: ModuleType, *arguments: object) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", [script.__file__, "--device", "cpu", "--preset", "tiny", *map(str, arguments)])
        assert script.main() == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return call


def expected(kind: str) -> tuple[set[str], set[str]]:
    """Names of the engines of `kind` that have rows of figures, and of those that say why they have none."""
    found, absent = peers.installed(kind, peers.ENGINES)
    return {f"baize {kind}", *(peer.name for peer in found)}, set(absent)


@pytest.mark.usefixtures("forked_with_transformers")
def test_decode_beside_the_peers(folder: Path, run: Callable[..., dict[str, Any]]) -> None:
    kinds, short = (
        ("float16", "int8", "int4"),
        ["--contexts", 20, "--batches", 1, 3, "--steps", 3, "--runs", 2, "--rounds", 2],
    )
    found = run(bench_decode, "--kinds", *kinds, "--peers", "--folder", folder, *short)
    rows = [row for row in found["rows"] if "ms/token" in row]
    measured, absent = (set.union(*sets) for sets in zip(*map(expected, kinds), strict=True))
    crashed = {row["engine"] for row in found["rows"] if "its process ended with -" in str(row["tok/s"])}
    measured -= crashed - {f"baize {kind}" for kind in kinds}
    measured |= {f"baize {kind} sampled" for kind in kinds}
    assert {(row["engine"], row["batch"]) for row in rows} == {(name, batch) for name in measured for batch in (1, 3)}
    assert {row["engine"] for row in found["rows"] if "not installed" in str(row["tok/s"])} == absent
    assert found["builds"].keys() >= {row["engine"].removesuffix(" sampled") for row in rows}
    assert all(said.endswith(" threads") for said in found["builds"].values())
    for row in rows:
        assert 0 < row["p20"] <= row["ms/token"] <= row["p80"]
        assert row["p80"] <= row["p99"]
        assert 0 < row["ttft_p20"] <= row["ttft_ms"] <= row["ttft_p80"] <= row["ttft_p99"]
        assert (row["firsts"], row["gaps"]) == (2, 6)  # 3 steps in each of 2 turns
        assert row["share"] == pytest.approx(row["GB/s"] / row["read_GB/s"])
    for kind in kinds:
        ours = next(row for row in rows if row["engine"] == f"baize {kind}" and row["batch"] == 3)
        moved = sum(op.bytes for op in cost.decode_step(config(folder), kind, 3, 21, "float32"))
        assert ours["GB/s"] * ours["ms/token"] * 1e6 == pytest.approx(moved)
        for row in (row for row in rows if row["engine"] in expected(kind)[0] and row["batch"] == 3):
            assert row["ratio"] == pytest.approx(ours["tok/s"] / row["tok/s"])


@pytest.mark.usefixtures("forked_with_transformers")
def test_prefill_beside_the_peers(folder: Path, run: Callable[..., dict[str, Any]]) -> None:
    found = run(
        bench_prefill, "--tokens", 20, "--runs", 2, "--peers", "--folder", folder, "--kinds", "float16", "bfloat16"
    )
    assert {row["engine"] for row in found["rows"] if "ms" in row} == expected("float16")[0] | {"baize bfloat16"}
    flops = sum(op.flops for op in cost.prefill(config(folder), 20, "float16", "float32"))
    for row in (row for row in found["rows"] if "ms" in row):
        assert 0 < row["p20"] <= row["ms"] <= row["p80"]
        assert row["GFLOP/s"] * row["ms"] * 1e6 == pytest.approx(flops)
        assert row["share"] == pytest.approx(row["GFLOP/s"] / row["peak_GFLOP/s"])


def config(folder: Path) -> ModelConfig:
    return ModelConfig.from_folder(Store(folder, "tiny").ours("float16"))


def test_rows_for_neighbouring_pairs_give_the_same_scores() -> None:
    heads, dim, hidden, tokens = 2, 8, 16, 5
    generator = torch.Generator().manual_seed(0)
    wq, wk = torch.randn(2, heads * dim, hidden, generator=generator)
    x, positions = torch.randn(tokens, hidden, generator=generator), torch.tensor([3, 0, 7, 21, 2])
    shape = {**TINY.config(50, "float32"), "hidden_size": hidden, "num_attention_heads": heads}
    cos, sin = tables(ModelConfig.from_dict(shape), 32)
    q, k = ((x @ w.t()).view(tokens, heads, dim) for w in (wq, wk))
    keys = torch.zeros(1, 16, heads, dim)
    reference.rope_and_store(q, k, k, cos, sin, positions, keys, torch.zeros_like(keys), torch.arange(tokens))
    wanted = torch.einsum("ihd,jhd->hij", q, keys[0, :tokens])  # q was turned in place

    def turned(weight: torch.Tensor) -> torch.Tensor:  # (T, heads, dim), neighbours turned
        even, odd = (x @ interleaved(weight, heads).t()).view(tokens, heads, -1, 2).unbind(3)
        c, s = cos[positions, None], sin[positions, None]
        return torch.stack([even * c - odd * s, even * s + odd * c], 3).flatten(2)

    torch.testing.assert_close(torch.einsum("ihd,jhd->hij", turned(wq), turned(wk)), wanted, rtol=1e-4, atol=1e-4)


def test_llama_cpp_turns_as_we_do(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its logits are the reference ops', and are not where q and k are written as they are."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    pytest.importorskip("gguf", reason="gguf is not installed")
    np = pytest.importorskip("numpy")
    from engines import LlamaCpp

    source = tmp_path / "model"
    source.mkdir()
    drawn = Store(folder, "tiny").ours("float16")
    (source / "config.json").write_bytes((drawn / "config.json").read_bytes())
    tensors = load_file(drawn / "model.safetensors")
    sharp = {
        name: t * 12 if ".q_proj" in name or ".k_proj" in name else t for name, t in tensors.items()
    }  # far from even
    save_file(sharp, source / "model.safetensors")
    prompt = side_by_side.random_prompt(60, TINY.vocabulary)
    model = side_by_side.Oracle(source).model
    wanted = (decoder := Decoder(model, 64)).prefill(prompt, decoder.sequence())[0]

    def error(name: str) -> float:
        write_gguf(source, TINY, tmp_path / name, "F16")
        engine = LlamaCpp(str(tmp_path / name), 1)
        token, seconds = engine.prefill(prompt)
        assert seconds > 0
        logits = np.ctypeslib.as_array(engine.api.llama_get_logits(engine.context), (TINY.vocabulary,)).copy()
        assert token == int(logits.argmax())
        return float((torch.from_numpy(logits) - wanted).norm() / wanted.norm())

    assert error("right.gguf") < 5e-3
    monkeypatch.setattr(model_files, "interleaved", lambda weight, heads: weight)
    assert error("wrong.gguf") > 5e-2


class Wrong:
    """An engine that chooses ids of its own."""

    def ask(self, call: str, *arguments: Any) -> Any:
        return [5, 0.1] if call == "start" else [[[7, 8]] * arguments[0], [0.1] * arguments[0]]


def test_a_wrong_choice_ends_the_run(folder: Path) -> None:
    oracle = side_by_side.Oracle(Store(folder, "tiny").ours("float16"))
    with pytest.raises(SystemExit, match="standard deviations of the logits below the best"):
        side_by_side.check("wrong", Wrong(), oracle, "float16")


@pytest.mark.usefixtures("forked")
def test_an_engine_that_ends_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="baize absent: its process ended with 1"):
        peers.Child("baize", tmp_path / "absent", 1)
    assert "absent" in capfd.readouterr().err


@pytest.mark.usefixtures("forked")
def test_a_peer_that_crashes_is_left_out_and_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peer, codes = peers.Peer("other", "F16", (), 16, 2), [-11, 1]
    real = side_by_side.Child

    def child(engine: str, path: Path, threads: int) -> Any:
        if engine == "other":
            raise peers.Ended("other model", codes.pop(0))
        return real(engine, path, threads)

    monkeypatch.setattr(side_by_side, "Child", child)
    with side_by_side.group(Store(folder, "tiny"), "float16", [peer], 1) as (children, crashed):
        assert list(children) == ["baize float16"]
        assert children["baize float16"].ask("prefill", [1, 2, 3])[1] > 0
    assert crashed == {"other F16": "other model: its process ended with -11, see its message above"}
    with (
        pytest.raises(SystemExit, match="other model: its process ended with 1"),
        side_by_side.group(Store(folder, "tiny"), "float16", [peer], 1),
    ):
        pass


class Fading:
    """An engine whose process lives for so many calls."""

    build = "1.0"

    def __init__(self, calls: int, seconds: float = 0.1) -> None:
        self.calls, self.seconds = calls, seconds

    def ask(self, call: str, *arguments: Any) -> Any:
        self.calls -= 1
        if self.calls < 0:
            raise peers.Ended("a model", -9)
        many = arguments[0] if call in ("steps", "sampled") else 1
        return [[5], self.seconds] if call in ("start", "prefill") else [[[7]] * many, [self.seconds] * many]


@contextmanager
def no_models(children: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, str]]]:
    yield children, {}


def fading(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    groups: list[dict[str, Any]],
    rows: Callable[..., None],
    **options: Any,
) -> Report:
    """The report of `rows` where these are the processes of each kind."""
    monkeypatch.setattr(side_by_side, "group", lambda *_: no_models(groups.pop(0)))
    monkeypatch.setattr(side_by_side, "ReadProbe", lambda threads: lambda: 10.0)
    monkeypatch.setattr(side_by_side, "matmul_peak", lambda *_: 0.01)
    monkeypatch.setattr(side_by_side, "installed", lambda kind, engines: (peers.PEERS[kind][:1], {}))
    asked = argparse.Namespace(
        folder=folder, preset="tiny", kinds=["float16", "int8"], peers=(), ik_llama=None, runs=2, rounds=2, **options
    )
    with Report("toy", asked) as report:
        rows(report, asked)
    return report


def test_engines_that_end_amid_the_turns_cost_their_rows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours of float16 in its second batch; llama.cpp of int8 in the first, which goes on without it."""
    groups = [
        {"baize float16": Fading(3 + 5), "llama.cpp F16": Fading(99)},
        {"baize int8": Fading(99), "llama.cpp Q8_0": Fading(3 + 2)},
    ]
    report = fading(monkeypatch, folder, groups, side_by_side.decode_rows, contexts=[20], batches=[1, 2, 3], steps=3)
    said = [(row["engine"], row.get("batch")) for row in report.rows if "ms/token" in row]
    assert said == [
        ("baize float16", 1), ("llama.cpp F16", 1), ("baize float16 sampled", 1),
        *((name, batch) for batch in (1, 2, 3) for name in ("baize int8", "baize int8 sampled")),
    ]  # fmt: skip
    others = [row for row in report.rows if "ms/token" not in row]
    ended = "a model: its process ended with -9, see its message above"
    assert others[:2] == [{"engine": "baize float16", "kind": "float16", "batch": batch, "context": 20, "problem": ended}
                          for batch in (2, 3)]  # fmt: skip
    assert others[2:] == [{"engine": "llama.cpp Q8_0", "kind": "int8", "tok/s": ended}]
    assert report.code == 1


def test_a_length_that_fails_costs_its_row(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [{"baize float16": Fading(3 + 1)}, {"baize int8": Fading(99, 0.5)}]
    report = fading(monkeypatch, folder, groups, side_by_side.prefill_rows, tokens=[8, 16])
    assert [(row["engine"], row["tokens"], row.get("ms")) for row in report.rows] == [
        ("baize float16", 8, 100.0), ("baize float16", 16, None), ("baize int8", 8, 500.0), ("baize int8", 16, 500.0)
    ]  # fmt: skip
    assert report.code == 1


# bench_decode.py, in which the turns of batch 2, after the prompt's and two of batch 1, say that they begin and do not end
ENDLESS = """
import sys, bench_decode, side_by_side
run, made = side_by_side.Turns.run, []

def endless(self, turns, one):
    made.append(one)
    if len(made) == 4:
        print("batch 2", flush=True)
        turns = 10**9
    return run(self, turns, one)

side_by_side.Turns.run = endless
sys.exit(bench_decode.main())
"""


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("whole_group", [False, True])
def test_ctrl_c_keeps_what_was_measured(whole_group: bool, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal sends it to the engines' processes too."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPO), str(REPO / "benchmarks")]))
    words = "--device cpu --preset tiny --contexts 20 --batches 1 2 --steps 3 --runs 1 --rounds 2 --folder"
    with subprocess.Popen(
        [sys.executable, "-c", ENDLESS, *words.split(), str(folder)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        first = list(iter(process.stdout.readline, "batch 2\n"))
        (os.killpg if whole_group else os.kill)(process.pid, signal.SIGINT)
        rest, _ = process.communicate(timeout=300)
    assert "baize float16" in first[2]  # after its build and the head
    found = json.loads(rest.splitlines()[-1])
    assert (process.returncode, found["ended"]) == (130, "interrupted")
    assert "tok/s" in found["rows"][0]
    assert any(row.get("problem") == "interrupted" for row in found["rows"])
    assert not any(row.get("batch") == 2 and "tok/s" in row for row in found["rows"])


def test_forms_are_made_once_and_whole(tmp_path: Path) -> None:
    store = Store(tmp_path, "tiny")
    (tmp_path / "tiny/int8-baize-1.partial").mkdir()  # of a killed run
    path = store.ours("int8")
    assert {each.name for each in path.iterdir()} > {"config.json"}
    assert not list((tmp_path / "tiny").glob("*.partial"))
    before = path.stat().st_mtime_ns
    assert Store(tmp_path, "tiny").ours("int8") == path
    assert path.stat().st_mtime_ns == before


def test_what_a_peer_reads() -> None:
    whole = peers.PEERS["float16"][0]
    small = ModelConfig.from_dict(TINY.config(TINY.vocabulary, "float16"))
    weights = cost.step_bytes_weights(small, "float16")
    assert whole.bytes(small, 1, 1) == weights + cost.kv_bytes_per_token(small)
    assert whole.bytes(small, 3, 20) == weights + 60 * cost.kv_bytes_per_token(small)
    assert peers.PEERS["int4"][0].bytes(small, 1, 1) < whole.bytes(small, 1, 1) / 3


def test_missing_packages_are_named() -> None:
    assert model_files.missing("json") is None
    assert model_files.missing("json", "no_such_package") == "no_such_package not installed"


def test_memory_bandwidth() -> None:
    speeds = memory_bandwidth(1)
    assert speeds.keys() == {"read", "copy"}
    assert min(speeds.values()) > 0
