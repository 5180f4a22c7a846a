"""The reader of torch.save's files: right offsets for good ones, a remedy for those of other forms, an error for bad ones."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import zipfile
from collections import OrderedDict
from pathlib import Path

import forked
import pytest
import tiny
import torch
from torch_archives import FLOATS, archive, program

from baize_engine import Engine, recover
from baize_engine.checkpoint.index import read_index
from baize_engine.checkpoint.torch_file import read_torch
from baize_engine.errors import BaizeError, CheckpointError

TENSORS = {
    "half": torch.arange(15).half().view(3, 5),
    "brain": torch.arange(7).bfloat16(),
    "single": torch.arange(8.0).view(2, 2, 2),
    "whole": torch.arange(9),
    "scalar": torch.tensor(3.0),
    "empty": torch.zeros(0, 4),
}


def stored_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def check(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    content = path.read_bytes()
    found = {entry.name: entry for entry in read_torch(path)}
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        entry = found[name]
        assert (entry.dtype, entry.shape) == (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        assert content[entry.offset : entry.offset + entry.nbytes] == stored_bytes(tensor)


def test_every_tensor_lies_where_it_is_said(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "m.bin")
    check(tmp_path / "m.bin", TENSORS)


def test_the_state_dict_of_a_module_with_its_metadata(tmp_path: Path) -> None:
    state = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4)).state_dict()
    assert isinstance(state, OrderedDict)
    torch.save(state, tmp_path / "m.bin")
    check(tmp_path / "m.bin", dict(state))


def test_parameters_and_shared_and_sliced_storages(tmp_path: Path) -> None:
    rows = torch.arange(20.0).view(4, 5)
    tensors = {"all": rows, "again": rows, "part": rows[1:3], "parameter": torch.nn.Parameter(torch.ones(3))}
    torch.save(tensors, tmp_path / "m.bin")
    check(tmp_path / "m.bin", {name: tensor.detach() for name, tensor in tensors.items()})


def test_a_transposed_tensor_is_refused_by_name(tmp_path: Path) -> None:
    torch.save({"w": torch.arange(6.0).view(2, 3).t()}, tmp_path / "m.bin")
    with pytest.raises(CheckpointError, match=r"w: stride \(1, 3\) of shape \(3, 2\)"):
        read_torch(tmp_path / "m.bin")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"w": torch.ones(2), "state_dict": {"v": torch.ones(2)}}, "state_dict is a dict, wanted a flat dict"),
        ({"epoch": 3, "args": {"lr": 0.1}}, "epoch is a int, wanted a flat dict"),
        ({"w": torch.ones(2), "step": 7}, "step is a int"),
        ({3: torch.ones(2)}, "int is a Tensor"),
        ([torch.ones(2)], "holds a list"),
        ({"w": torch.ones(2, dtype=torch.complex64)}, "refused"),
    ],
)
def test_what_is_no_flat_dict_of_tensors(tmp_path: Path, value: object, message: str) -> None:
    torch.save(value, tmp_path / "m.bin")
    with pytest.raises(CheckpointError, match=message):
        read_torch(tmp_path / "m.bin")


def trained() -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """A module's state dict, and what a trainer keeps beside it."""
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    optimizer = torch.optim.AdamW(module.parameters())
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer)
    module(torch.ones(3)).sum().backward()
    optimizer.step()
    settings = {
        "lr": 1e-4,
        "betas": (0.9, 0.95),
        "name": "x",
        "seed": 1 << 40,
        "resume": None,
        "layers": [1, {"a": True}],
    }
    beside = {
        "optimizer_states": [optimizer.state_dict()],
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "loss": 0.5,
    }
    return module.state_dict(), {
        **beside,
        "scheduler": schedule.state_dict(),
        "args": settings,
        "version": "2.1",
        "ema": None,
    }


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "module", "model_state_dict"])
def test_a_state_dict_that_a_trainer_wrapped(tmp_path: Path, wrapper: str) -> None:
    state, beside = trained()
    torch.save({**beside, wrapper: state}, tmp_path / "m.bin")
    check(tmp_path / "m.bin", dict(state))
    torch.save({wrapper: dict(state)}, tmp_path / "m.bin")
    check(tmp_path / "m.bin", dict(state))


def rewritten(refused: pytest.ExceptionInfo[CheckpointError], folder: Path, old: str, **keys: str) -> Path:
    """What the command in a refusal writes; `keys`: what stands for its placeholders."""
    program = str(refused.value).split('python -c "')[1].removesuffix('"').replace("OLD", old).replace("NEW", "new")
    for placeholder, key in keys.items():
        program = program.replace(placeholder, key)
    done = forked.run(["-c", program], cwd=folder)
    assert done.returncode == 0, done.stderr.decode()
    return folder / "new"


DEEPER = {
    "a dict in a dict in a dict": ("trainer", "model"),
    "another name": ("weights",),
    "a name that no command should hold": ('"; touch ran; "',),
    "a number": (0, "model"),
}


@pytest.mark.parametrize("case", DEEPER)
def test_a_state_dict_elsewhere_gets_a_remedy_that_works(tmp_path: Path, case: str) -> None:
    state, beside = trained()
    value: object = dict(state)
    for key in reversed(DEEPER[case]):
        value = {key: value}
    assert isinstance(value, dict)
    torch.save({**beside, **value}, tmp_path / "m.bin")
    named = " > ".join(map(str, DEEPER[case]))
    with pytest.raises(CheckpointError, match=re.escape(f"its tensors are in {named}, wanted one dict")) as refused:
        read_torch(tmp_path / "m.bin")
    (key,) = DEEPER[case][:1]
    check(
        rewritten(refused, tmp_path, "m.bin", **({"'KEY'": repr(key)} if "KEY" in str(refused.value) else {})),
        dict(state),
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.bin", "new"]


def test_two_state_dicts_in_one_file_are_refused(tmp_path: Path) -> None:
    state, beside = trained()
    moved = {name: tensor + 1 for name, tensor in state.items()}
    torch.save({**beside, "model": dict(state), "ema": moved}, tmp_path / "m.bin")
    with pytest.raises(
        CheckpointError, match=r"in model and ema, .* write the one that is the model's anew"
    ) as refused:
        read_torch(tmp_path / "m.bin")
    check(rewritten(refused, tmp_path, "m.bin"), dict(state))


def test_ignored_tensors_are_not_even_located(tmp_path: Path) -> None:
    """Such as those of an optimizer whose entries somebody took out to save room."""
    state, beside = trained()
    torch.save({"model": state, **beside}, tmp_path / "whole")
    with zipfile.ZipFile(tmp_path / "whole") as whole, zipfile.ZipFile(tmp_path / "m.bin", "w") as thin:
        for info in whole.infolist():
            if not info.filename.startswith("whole/data/") or int(info.filename.rsplit("/", 1)[1]) < len(state):
                thin.writestr(info.filename, whole.read(info))
    check(tmp_path / "m.bin", dict(state))


def test_parameters_with_attributes(tmp_path: Path) -> None:
    """As Megatron marks its own."""
    parameter = torch.nn.Parameter(torch.arange(6.0).view(2, 3))
    parameter.tensor_model_parallel = True  # type: ignore[attr-defined]
    torch.save({"w": parameter}, tmp_path / "m.bin")
    assert b"_rebuild_parameter_with_state" in (tmp_path / "m.bin").read_bytes()
    check(tmp_path / "m.bin", {"w": parameter.detach()})


def unpacked(tmp_path: Path, tensors: object) -> list[tuple[str, bytes]]:
    """The entries of a file of torch.save, by their paths below its folder."""
    torch.save(tensors, tmp_path / "saved")
    with zipfile.ZipFile(tmp_path / "saved") as file:
        entries = [(info.filename.removeprefix("saved/"), file.read(info)) for info in file.infolist()]
    (tmp_path / "saved").unlink()
    return entries


REZIPPED = {
    "reordered": lambda entries: [(f"archive/{name}", content) for name, content in reversed(entries)],
    "in a folder": lambda entries: [("x/archive/", b""), *((f"x/archive/{name}", content) for name, content in entries)],
    "without a folder": lambda entries: entries,
    "by macOS": lambda entries: [
        *((f"archive/{name}", content) for name, content in entries),
        *((f"__MACOSX/archive/._{name}", b"Mac OS X") for name, _ in entries),
        ("__MACOSX/archive/data.pkl", b"Mac OS X"), ("archive/.DS_Store", b"Bud1"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("case", REZIPPED)
@pytest.mark.parametrize("compress", [False, True])
def test_zipped_again(tmp_path: Path, case: str, compress: bool) -> None:
    kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(tmp_path / "m.bin", "w", kind) as file:
        for name, content in REZIPPED[case](unpacked(tmp_path, TENSORS)):
            file.writestr(name, content)
    path = tmp_path / "m.bin"
    if compress:
        with pytest.raises(
            CheckpointError, match=r"m\.bin: the entry \S+ is compressed, .*the file was zipped again"
        ) as refused:
            read_torch(path)
        path = rewritten(refused, tmp_path, "m.bin")
    check(path, TENSORS)


def test_zipped_again_and_wrapped_it_is_recovered_and_run(tmp_path: Path) -> None:
    """Its tensors then lie at odd bytes."""
    base, diff = tiny.write_pair(tmp_path)
    wanted = recover(base, diff, tmp_path / "wanted", device="cpu", progress=False)
    for path in [*base.glob("*.bin"), *diff.glob("*.bin")]:
        entries = unpacked(tmp_path, {"model": torch.load(path, weights_only=True), "epoch": 3})
        with zipfile.ZipFile(path, "w") as file:
            for name, content in entries:
                file.writestr(f"archive/{name}", content)
    assert any(entry.offset % 2 for entry in read_index(base).entries.values())
    found = recover(base, diff, tmp_path / "found", device="cpu", progress=False)
    assert found.manifest.tensors == wanted.manifest.tensors
    for quantize in (None, "int8"):
        with Engine.from_pretrained(base, device="cpu", quantize=quantize) as engine:
            assert engine.generate([[1, 5, 9]])[0].token_ids


@pytest.mark.parametrize("level", ["-0", "-6"])
def test_unzipped_and_zipped_by_command(tmp_path: Path, level: str) -> None:
    """With entries for folders, and times of Unix in each header."""
    if shutil.which("zip") is None:
        pytest.skip("there is no zip here")
    for name, content in unpacked(tmp_path, TENSORS):
        (tmp_path / "archive" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "archive" / name).write_bytes(content)
    subprocess.run(["zip", "-q", "-r", level, "m.bin", "archive"], cwd=tmp_path, check=True)
    path = tmp_path / "m.bin"
    if level != "-0":
        with pytest.raises(CheckpointError, match="is compressed") as refused:
            read_torch(path)
        path = rewritten(refused, tmp_path, "m.bin")
    check(path, TENSORS)


@pytest.mark.parametrize("name", ["m.bin", "consolidated.00.pth"])
def test_old_files_get_a_remedy_that_works(tmp_path: Path, name: str) -> None:
    tensors = {"half": TENSORS["half"], "single": TENSORS["single"]}
    torch.save(tensors, tmp_path / name, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"before 1\.6.*python -c") as refused:
        read_torch(tmp_path / name)
    check(rewritten(refused, tmp_path, name), tensors)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (b"", "wanted a zip archive"),
        (b"hello", "wanted a zip archive"),
        (b"PK\x03\x04" + bytes(100), "not a whole zip archive"),
    ],
)
def test_what_is_no_such_file(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "m.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_torch(tmp_path / "m.bin")


# Hostile programs. Each would leave a file behind if it ran.


def test_compressed_and_duplicate_entries_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "m.bin", program(FLOATS), {"data/0": bytes(8)}, compress=True)
    with pytest.raises(CheckpointError, match=r"m\.bin: the entry data\.pkl is compressed, wanted it stored plainly"):
        read_torch(path)
    path = archive(tmp_path / "n.bin", program(FLOATS), {"data/0": bytes(8)})
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as file:
        file.writestr("archive/data/0", bytes(8))
    with pytest.raises(CheckpointError, match="appears twice"):
        read_torch(path)


def test_random_damage_is_an_error_or_harmless(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(40), "v": torch.ones(3, 3).half()}, tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    rng, refused = random.Random(0), 0
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        (tmp_path / "damaged").write_bytes(damaged[: rng.choice([len(damaged), rng.randrange(len(damaged))])])
        try:
            for entry in read_torch(tmp_path / "damaged"):
                assert entry.offset + entry.stored_nbytes <= len(damaged)
        except BaizeError:
            refused += 1
    assert refused > 100
