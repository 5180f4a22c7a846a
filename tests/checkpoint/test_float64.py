"""Weights in float64: rounded once to float32, element by element, before anything is done with them; then as ever."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_meta
import torch
from safetensors.torch import load_file, save_file

from baize_engine import Engine, make_diff, quantize, recover, verify
from baize_engine.checkpoint import tensor_reader
from baize_engine.checkpoint.buffers import SLACK, aligned_buffer
from baize_engine.checkpoint.index import read_index
from baize_engine.checkpoint.manifest import read_manifest
from baize_engine.checkpoint.meta_layout import read_meta
from baize_engine.checkpoint.norms import mean_magnitude, why_diff
from baize_engine.checkpoint.tensor_reader import NARROWED, TensorReader
from baize_engine.errors import MismatchError
from baize_engine.recovery.result import describe

Tensors = dict[str, torch.Tensor]
SPECIAL = [
    0.0, -0.0, 1e-300, -1e-46, 1e-45, 2.0**-149, 2.0**-150, 1.5 * 2.0**-149, 1e39, -1e300, float("inf"), -float("inf"),
    float("nan"), 1 + 2.0**-24, 1 + 2.0**-24 + 2.0**-52, 1 + 3 * 2.0**-24, float(np.finfo(np.float32).max),
    float(np.finfo(np.float32).max) + 2.0**103, float(np.finfo(np.float32).max) + 2.0**102, np.pi,
]  # fmt: skip


def widened(tensors: Tensors, seed: int = 5) -> Tensors:
    """The tensors in float64 with digits that float32 has no room for."""
    generator = torch.Generator().manual_seed(seed)

    def own(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.double() * (1 + torch.rand(tensor.shape, generator=generator, dtype=torch.float64) * 2.0**-22)

    return {name: own(tensor) for name, tensor in tensors.items()}


def rounded(tensors: Tensors) -> Tensors:
    """What they are read as, by numpy."""
    with np.errstate(over="ignore"):
        return {name: torch.from_numpy(tensor.numpy().astype(np.float32)) for name, tensor in tensors.items()}


def as_float32(root: Path, name: str) -> Path:
    """A copy of the model root/name whose weights somebody else rounded."""
    index = read_index(root / name)
    config = json.loads((root / name / "config.json").read_text())
    tensors: Tensors = {}
    for path in index.files:
        tensors |= load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    wide = {key: value for key, value in tensors.items() if value.dtype == torch.float64}
    return tiny.write_model(root / f"{name}32", config, tensors | rounded(wide))


def hashes(folder: Path) -> dict[str, str]:
    return {name: record.sha256 for name, record in read_manifest(folder).tensors.items()}


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """base (float64, .bin in three shards), diff (float64, safetensors in two, one more row)."""
    cfg = tiny.config()
    tuned = {**cfg, "vocab_size": cfg["vocab_size"] + 1, "torch_dtype": "float64"}
    base = widened(tiny.state(cfg, 0)) | {name: value.double() for name, value in tiny.inv_freq(cfg).items()}
    diff = widened(tiny.state(tuned, 1, scale=0.003))
    for name in diff:
        if name.endswith("norm.weight"):
            diff[name] -= 1
    tiny.write_model(tmp_path / "base", {**cfg, "torch_dtype": "float64"}, base, "bin", shards=3)
    tiny.write_model(tmp_path / "diff", tuned, diff, "safetensors", shards=2)
    return tmp_path


@pytest.mark.parametrize("form", ["bin", "safetensors"])
def test_each_element_is_rounded_once_to_nearest_even(tmp_path: Path, form: str) -> None:
    count = 2 * NARROWED + 37
    values = torch.randn(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values[: len(SPECIAL)] = torch.tensor(SPECIAL, dtype=torch.float64)
    tensors = {"a": torch.ones(3, dtype=torch.float64), "w": values}
    entry = read_index(tiny.write_model(tmp_path, tiny.config(), tensors, form)).entries["w"]
    assert (entry.dtype, entry.stored_dtype, entry.nbytes, entry.stored_nbytes) == (
        "float32",
        "float64",
        4 * count,
        8 * count,
    )
    wanted = rounded(tensors)["w"].numpy()
    buffer = aligned_buffer(4 * count + SLACK)
    with warnings.catch_warnings(), TensorReader(entry, direct=True) as reader:
        warnings.simplefilter("error")
        for begin, end in (
            (0, count),
            (1, count),
            (0, 0),
            (NARROWED - 3, NARROWED + 3),
            (count - 1, count),
            (5, 2 * NARROWED),
        ):
            reader.prefetch(begin, end)
            assert bytes(reader.read(begin, end, buffer)) == wanted[begin:end].tobytes()
        assert reader.cached
        assert reader.file_range(0) is None  # no kernel is to read those bytes by itself


@pytest.mark.parametrize("wide", ["both", "base", "diff"])
def test_recover(pair: Path, wide: str) -> None:
    """As from files that somebody else rounded, bit for bit, and said so."""
    base32, diff32 = as_float32(pair, "base"), as_float32(pair, "diff")
    sides = {"both": ("base", "diff"), "base": ("base", "diff32"), "diff": ("base32", "diff")}[wide]
    wanted = recover(base32, diff32, pair / "wanted", device="cpu", progress=False)
    found = recover(pair / sides[0], pair / sides[1], pair / "found", device="cpu", progress=False)
    assert hashes(pair / "found") == hashes(pair / "wanted")
    told = [line for line in describe(found) if "float64" in line]
    count = len(read_index(diff32).entries)
    assert told == [
        f"{count} tensor(s) of {pair / side} are float64, rounded to float32 before the sum"
        for side in sides
        if not side.endswith("32")
    ]
    assert not [line for line in describe(wanted) if "float64" in line]
    assert set(told) <= set(found.manifest.notes)
    assert verify(pair / "found").ok


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_sum_is_that_of_the_reference(pair: Path, dtype: str) -> None:
    recover(pair / "base", pair / "diff", pair / "out", dtype=dtype, device="cpu", progress=False)
    (file,) = read_index(pair / "out").files
    made = load_file(file)
    base, diff = (
        load_file(as_float32(pair, "base") / "model.safetensors"),
        load_file(as_float32(pair, "diff") / "model.safetensors"),
    )
    base = tiny.add_pad_row(base)
    for name, value in made.items():
        assert torch.equal(value, (base[name] + diff[name]).to(getattr(torch, dtype))), name


def test_values_beyond_float32_become_infinite_and_are_told(pair: Path) -> None:
    file = pair / "diff" / "model-00001-of-00002.safetensors"
    tensors = load_file(file)
    tensors["model.embed_tokens.weight"][3, 4] = 1e300
    save_file(tensors, file)
    result = recover(pair / "base", pair / "diff", pair / "out", device="cpu", progress=False)
    assert {name: record.nonfinite for name, record in result.nonfinite.items()} == {"model.embed_tokens.weight": 1}


def test_make_diff_and_back(pair: Path) -> None:
    recover(pair / "base", pair / "diff", pair / "tuned", dtype="float32", device="cpu", progress=False)
    tensors: Tensors = {}
    for path in read_index(pair / "tuned").files:
        tensors |= load_file(path)
    config = json.loads((pair / "tuned" / "config.json").read_text())
    tiny.write_model(pair / "tuned64", config, widened(tensors))
    made = make_diff(pair / "base", pair / "tuned64", pair / "d", device="cpu", progress=False)
    make_diff(as_float32(pair, "base"), as_float32(pair, "tuned64"), pair / "d32", device="cpu", progress=False)
    assert hashes(pair / "d") == hashes(pair / "d32")
    assert sum("float64" in note for note in made.manifest.notes) == 2
    recover(pair / "base", pair / "d", pair / "back", device="cpu", progress=False)
    recover(pair / "base32", pair / "d", pair / "back32", device="cpu", progress=False)  # the rows it carries fit both
    assert hashes(pair / "back") == hashes(pair / "back32")


def answers(engine: Engine) -> Iterator[list[int]]:
    with engine:
        for prompt in ([1, 5, 9], [1, 70]):
            (completion,) = engine.generate([prompt])
            yield completion.token_ids


@pytest.mark.parametrize("dtype", ["auto", "float32", "float16"])
@pytest.mark.parametrize("kind", [None, "int8"])
def test_an_engine_runs_the_rounded_weights(pair: Path, dtype: str, kind: str | None) -> None:
    base32 = as_float32(pair, "base")
    settings = {"device": "cpu", "dtype": dtype, "quantize": kind}
    assert list(answers(Engine.from_pretrained(pair / "base", **settings))) == list(
        answers(Engine.from_pretrained(base32, **settings))
    )


def test_an_engine_from_base_and_diff(pair: Path) -> None:
    recover(pair / "base", pair / "diff", pair / "out", device="cpu", progress=False)
    direct = Engine.from_diff(pair / "base", pair / "diff", device="cpu")
    assert list(answers(direct)) == list(answers(Engine.from_pretrained(pair / "out", device="cpu")))


def test_quantize(pair: Path) -> None:
    quantize(pair / "base", pair / "q")
    quantize(as_float32(pair, "base"), pair / "q32")
    for left, right in zip(read_index(pair / "q").files, read_index(pair / "q32").files, strict=True):
        assert left.read_bytes() == right.read_bytes()


def test_norms_tell_a_diff(pair: Path) -> None:
    index = read_index(pair / "base")
    values = rounded({"x": torch.load(index.entries["model.norm.weight"].path, weights_only=True)["model.norm.weight"]})
    assert mean_magnitude(index.entries["model.norm.weight"]) == pytest.approx(values["x"].abs().double().mean().item())
    assert why_diff(index) is None
    assert "weight diff" in (why_diff(read_index(pair / "diff")) or "")


def test_integers_stay_refused(pair: Path) -> None:
    name = "model.norm.weight"
    path = read_index(pair / "base").entries[name].path
    tensors = torch.load(path, weights_only=True)
    torch.save({**tensors, name: tensors[name].long()}, path)
    with pytest.raises(MismatchError, match=r"model\.norm\.weight in .* is int64, wanted one of float32"):
        recover(pair / "base", pair / "diff", pair / "out", device="cpu", progress=False)


def test_a_result_that_somebody_widened_does_not_verify(pair: Path) -> None:
    recover(pair / "base", pair / "diff", pair / "out", dtype="float32", device="cpu", progress=False)
    (file,) = read_index(pair / "out").files
    save_file({name: tensor.double() for name, tensor in load_file(file).items()}, file)
    problems = verify(pair / "out").problems
    assert any("is float64" in problem and "the manifest says float32" in problem for problem in problems)


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("block", [NARROWED, 7])
def test_metas_layout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shards: int, block: int) -> None:
    """Parts that are joined, permuted and read by columns, with blocks that end anywhere in a row."""
    monkeypatch.setattr(tensor_reader, "NARROWED", block)
    cfg = tiny.config()
    files = [widened(file, 7) for file in tiny_meta.random_shards(cfg, shards)]
    wanted = rounded({name: tensor.contiguous() for name, tensor in tiny_meta.convert(cfg, files).items()})
    index, _ = read_meta(tiny_meta.write_meta(tmp_path, cfg, files))
    assert {part.stored_dtype for entry in index.entries.values() for part in entry.parts} == {"float64"}
    for name, entry in index.entries.items():
        values, rng = wanted[name].numpy().reshape(-1), random.Random(0)
        buffer = memoryview(bytearray(4 * entry.numel))
        with TensorReader(entry) as reader:
            for begin, end in [(0, entry.numel), *(sorted(rng.choices(range(entry.numel), k=2)) for _ in range(5))]:
                assert bytes(reader.read(begin, end, buffer)) == values[begin:end].tobytes(), (name, begin, end)
