"""ik_llama.cpp's binaries as peers: scripts in their place print, in the form that theirs have, times that a test knows."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import bench_decode
import bench_prefill
import ik_llama
import peers
import pytest
import standard
from ik_llama import FORMS, Binaries, Failed
from model_files import Store
from shapes import PRESETS

from baize_engine.model import cost
from baize_engine.model.config import ModelConfig

TINY = PRESETS["tiny"]
CONTEXT, STEPS = 20, 3
ASKED = """
import json, sys
def of(name): return sys.argv[sys.argv.index(name) + 1]
assert open(of("-m")).read() == "GGUF" and of("-ngl") == "0"
"""
# A prompt takes 2 ms a token, the first in a process 4 ms.
PROMPTS = f"""{ASKED}
assert (of("-n"), of("-o")) == ("0", "json")
tokens = int(of("-p"))
samples = [4000000 * tokens] + [2000000 * tokens] * (int(of("-r")) - 1)
told = dict(build_commit="ab12cd34", n_threads=int(of("-t")), repack=of("-rtr") == "1", n_prompt=tokens, n_gen=0,
            avg_ns=3000000 * tokens, stddev_ns=0, samples_ns=samples)
print("[", "============ Repacked 12 tensors", json.dumps(told, indent=4), "", "]", sep="\\n")
"""
# A step of n sequences takes n + 1 ms, half of it where they are repacked, and a second after prompts of one token.
TABLE = f"""{ASKED}
steps, batch = int(of("-ntg")), int(of("-npl"))
def say(*cells): print("|" + " | ".join(cells) + " |", file=sys.stderr)
open("llama.log", "w").close()
print("main: n_kv_max = 256, is_pp_shared = 0, n_threads = 2", file=sys.stderr)
say("    PP", "    TG", "   B", "  N_KV", "  T_PP s", "S_PP t/s", "  T_TG s", "S_TG t/s", "     T s", "   S t/s")
say("------", "------", "----", "------", "--------", "--------", "--------", "--------", "--------", "--------")
for prompt in map(int, of("-npp").split(",")):
    cells = batch * (prompt + steps)
    assert cells <= int(of("-c"))
    step = 1.0 if prompt == 1 else (batch + 1) * 1e-3 / (2 if "-rtr" in sys.argv else 1)
    say("%6d" % prompt, "%6d" % steps, "%4d" % batch, "%6d" % cells, "   0.100", "  200.00", "%8.3f" % (steps * step),
        "%8.2f" % (batch / step), "   1.000", "  100.00")
"""


def build(folder: Path, prompts: str = PROMPTS, table: str = TABLE) -> Path:
    """A build's folder, whose binaries are these programs."""
    (folder / "bin").mkdir(parents=True)
    for name, program in (("llama-bench", prompts), ("llama-batched-bench", table)):
        path = folder / "bin" / name
        path.write_text(f"#!{sys.executable} -S\n{program}")
        path.chmod(0o755)
    return folder


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], forked: None
) -> Callable[..., dict[str, Any]]:
    """Runs a script on the tiny preset beside the binaries in a folder, and returns its report."""
    file = tmp_path / "a.gguf"
    file.write_text("GGUF")
    monkeypatch.setattr(Store, "gguf", lambda self, form: file)
    monkeypatch.setattr(peers, "missing", lambda *packages: None)

    def call(script: ModuleType, folder: Path, *arguments: object) -> dict[str, Any]:
        words = ["--device", "cpu", "--preset", "tiny", "--runs", 2, "--ik_llama", folder, *arguments]
        monkeypatch.setattr(sys, "argv", [script.__file__, *map(str, words)])
        assert script.main() == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return call


def decode(run: Callable[..., dict[str, Any]], folder: Path, *kinds: str) -> dict[str, Any]:
    places = ["--contexts", CONTEXT, "--batches", 1, 4, "--steps", STEPS, "--rounds", 2]
    return run(bench_decode, folder, "--kinds", *kinds, *places)


def test_decode(tmp_path: Path, run: Callable[..., dict[str, Any]]) -> None:
    """A turn gives one mean; the steps that warm up are not counted."""
    found = decode(run, build(tmp_path / "build"), "float16", "int4")
    theirs = [row for row in found["rows"] if not row["engine"].startswith("baize ")]
    plain, repacked = "ik_llama.cpp Q4_0", "ik_llama.cpp Q4_0 repacked"
    assert [(row["engine"], row["kind"], row["batch"]) for row in theirs] == [
        ("ik_llama.cpp F16", "float16", 1), ("ik_llama.cpp F16", "float16", 4), (plain, "int4", 1), (repacked, "int4", 1),
        (plain, "int4", 4), (repacked, "int4", 4),
    ]  # fmt: skip
    config = ModelConfig.from_dict(TINY.config(TINY.vocabulary, "float16"))
    for row in theirs:
        ours = next(other for other in found["rows"] if (other["kind"], other["batch"]) == (row["kind"], row["batch"]))
        ms = (row["batch"] + 1) / (2 if row["engine"] == repacked else 1)
        assert (row["ms/token"], row["p99"], row["ttft_ms"]) == pytest.approx((ms, ms, 2 * CONTEXT), rel=1e-4)
        assert (row["gaps"], row["firsts"]) == (2, 2)
        assert row["ratio"] == pytest.approx(ours["tok/s"] / row["tok/s"])
        bits = 16 if row["kind"] == "float16" else 4.5
        tokens = row["batch"] * (CONTEXT + STEPS // 2)
        moved = int(cost.step_bytes_weights(config, "float16") * bits / 16) + tokens * cost.kv_bytes_per_token(config)
        assert row["GB/s"] * row["ms/token"] * 1e6 == pytest.approx(moved)
    threads = found["threads"]
    assert found["builds"][repacked] == f"commit ab12cd34, {threads} threads"


def test_prefill(tmp_path: Path, run: Callable[..., dict[str, Any]]) -> None:
    """From the folder of the binaries itself; the first prompt of a process is not counted."""
    found = run(bench_prefill, build(tmp_path) / "bin", "--kinds", "bfloat16", "int8", "--tokens", 20)
    theirs = [row for row in found["rows"] if row["engine"].startswith("ik_llama.cpp ")]
    assert [(row["engine"], row["kind"]) for row in theirs] == [
        ("ik_llama.cpp Q8_0", "int8"), ("ik_llama.cpp Q8_0 repacked", "int8")
    ]  # fmt: skip
    assert all((row["ms"], row["tok/s"]) == pytest.approx((40, 500)) for row in theirs)
    assert {row["engine"] for row in found["rows"]} > {"baize bfloat16", "baize int8"}


def test_without_its_binary_for_steps_the_other_rows_stay(tmp_path: Path, run: Callable[..., dict[str, Any]]) -> None:
    folder = build(tmp_path / "build")
    (folder / "bin" / "llama-batched-bench").unlink()
    found = decode(run, folder, "int4")
    assert [(row["engine"], row["batch"]) for row in found["rows"] if "ms/token" in row] == [
        (name, batch) for batch in (1, 4) for name in ("baize int4", "baize int4 sampled")
    ]
    wanted = "wanted the S_TG t/s of 3 steps of 1 sequences after 20 tokens"
    said = f"llama-batched-bench is not in {folder} or its bin; {wanted}"
    assert [row for row in found["rows"] if "ms/token" not in row] == [
        {"engine": name, "kind": "int4", "tok/s": said} for name in ("ik_llama.cpp Q4_0", "ik_llama.cpp Q4_0 repacked")
    ]


def test_an_empty_folder_costs_only_its_rows(tmp_path: Path, run: Callable[..., dict[str, Any]]) -> None:
    found = run(bench_prefill, tmp_path, "--kinds", "float16", "--tokens", 20)
    ours, theirs = found["rows"]
    assert ours["ms"] > 0
    assert theirs["tok/s"].startswith(
        f"llama-bench is not in {tmp_path} or its bin; wanted the samples_ns of 1 prompts"
    )


UNKNOWN = 'print("usage: llama-bench"); sys.exit("error: invalid parameter for argument: -rtr")'

ABORTED = """
import os, sys
print("iqk_mul_mat.cpp:581: GGML_ASSERT(false) failed", "[Inferior 1 (process 7) detached]", sep="\\n", file=sys.stderr)
sys.stderr.flush()
os.abort()
"""


@pytest.mark.parametrize(
    ("program", "did"),
    [
        (f"import sys; {UNKNOWN}", r"/llama-bench ended with 1 \(error: invalid parameter for argument: -rtr\)"),
        ("import os; os.kill(os.getpid(), 11)", r"/llama-bench ended with -11 \(nothing\)"),
        (ABORTED, r"/llama-bench ended with -6 \(iqk_mul_mat.cpp:581: GGML_ASSERT\(false\) failed\)"),
        ("print('hello')", "llama-bench printed 'hello'"),
        ("print('[ {\"n_prompt\": 1, ')", "llama-bench printed "),
        (PROMPTS.replace("repack=", "repacked="), "llama-bench printed "),
        (PROMPTS.replace("n_prompt=tokens", "n_prompt=512"), "llama-bench printed "),
        (PROMPTS.replace("4000000 * tokens]", "0]"), "llama-bench printed "),
        (PROMPTS.replace("samples_ns=samples", "samples_ns=None"), "llama-bench printed "),
    ],
)  # fmt: skip
def test_prompts_that_fail(program: str, did: str, tmp_path: Path) -> None:
    """A build that lacks the option, one that crashes, what is no report, and reports of something else."""
    (tmp_path / "a.gguf").write_text("GGUF")
    with pytest.raises(Failed, match=did + ".*; wanted the samples_ns of 1 prompts of 1 tokens, and build_commit"):
        Binaries(build(tmp_path / "build", prompts=program), FORMS["int4"][1], tmp_path / "a.gguf", 2)


@pytest.mark.parametrize(
    ("program", "did"),
    [
        ("import sys; sys.exit('error: unknown argument: -pps\\n\\nusage: x')",
         r"/bin/llama-batched-bench ended with 1 \(error: unknown argument: -pps\)"),
        ("print('| PP | TG |')", r"llama-batched-bench printed '\| PP \| TG \|'"),
        ("", "llama-batched-bench printed 'nothing'"),
        (TABLE.replace('"%8.2f" % (batch / step)', '"     inf"'), r"llama-batched-bench printed \[inf, inf\] t/s"),
        (TABLE.replace('"%8.2f" % (batch / step)', '"    fast"'), r"llama-batched-bench printed '\|"),
        (TABLE.replace('"%4d" % batch', '"   9"'), r"llama-batched-bench printed '\|"),
    ],
)  # fmt: skip
def test_steps_that_fail(program: str, did: str, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_text("GGUF")
    engine = Binaries(build(tmp_path / "build", table=program), FORMS["int4"][0], tmp_path / "a.gguf", 2)
    engine.start([5] * 20, 2)
    with pytest.raises(Failed, match=f"{did}.*; wanted the S_TG t/s of 3 steps of 2 sequences after 20 tokens"):
        engine.steps(4)


def test_what_cannot_run(tmp_path: Path) -> None:
    folder = build(tmp_path / "build")
    (folder / "bin" / "llama-bench").chmod(0o644)
    with pytest.raises(Failed, match="/llama-bench does not run: Permission denied; wanted"):
        Binaries(folder, FORMS["float16"][0], tmp_path / "a.gguf", 2)


def test_without_gguf_there_are_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "missing", lambda *packages: f"{', '.join(packages)} not installed")
    assert ik_llama.started("float16", build(tmp_path / "build"), Store(tmp_path, "tiny"), 1) == (
        {}, {"ik_llama.cpp F16": "gguf not installed"}
    )  # fmt: skip


def test_the_standard_set_passes_the_folder_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # steps run elsewhere
    given = {step.name for step in standard.steps("tiny", tmp_path, Path("ik")) if str(tmp_path / "ik") in step.command}
    assert given == {"decode", "prefill"}
