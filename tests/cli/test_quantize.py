"""`baize quantize` as it is typed: what it writes loads, and nothing is written twice."""

from __future__ import annotations

from pathlib import Path

import tiny
from commands import baize, forked_baize

from baize_engine import Engine, SamplingParams


def test_quantize_writes_a_model_that_loads_and_is_refused_twice(tmp_path: Path) -> None:
    base, _ = tiny.write_pair(tmp_path)
    out = tmp_path / "int4"
    done = baize("quantize", "--path", base, "--path_quantized", out, "--weights", "int4")
    assert (done.returncode, done.stderr) == (0, "")
    assert "int4 matrices" in done.stdout
    with Engine.from_pretrained(out, device="cpu") as saved, Engine.from_pretrained(
        base, device="cpu", quantize="int4"
    ) as packed:  # fmt: skip
        params = SamplingParams(max_new_tokens=5, ignore_eos=True)
        prompt = [[1, 5, 9]]
        assert saved.generate(prompt, params)[0].token_ids == packed.generate(prompt, params)[0].token_ids
    kept = sorted((path.name, path.stat().st_mtime_ns) for path in out.iterdir())
    for arguments in (("--path", base, "--path_quantized", out), ("--path", out, "--path_quantized", tmp_path / "two")):
        again = forked_baize("quantize", *arguments)
        assert again.returncode == 1
        assert again.stderr.startswith("baize: ")
    assert sorted((path.name, path.stat().st_mtime_ns) for path in out.iterdir()) == kept
    assert not (tmp_path / "two").exists()
