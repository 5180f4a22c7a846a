"""Files that want to do harm: to run code, to change this process, to take its memory or time, to bring in other files."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import fuzz_cases as cases
import measured_recover
import peak_memory
import pytest
import tiny
import torch

from baize_engine import recover
from baize_engine.checkpoint.index import read_index
from baize_engine.checkpoint.manifest import MANIFEST_NAME, read_manifest
from baize_engine.checkpoint.safetensors_file import read_safetensors
from baize_engine.checkpoint.tokenizer_files import TokenizerFiles
from baize_engine.checkpoint.torch_file import read_torch
from baize_engine.checkpoint.writer import TensorSpec, lay_out
from baize_engine.errors import CheckpointError, MismatchError
from baize_engine.text.special_ids import Own, special_ids, text_ids

TENSOR = cases.tensor_ops("HalfStorage", "0", 6, 0, (2, 3))
LAUGHS = b"K\0\x85" + b"q\0h\0\x86" * 60  # ((((0,), (0,)), ...), ...), 2**60 deep: hashing or showing it never ends


def torch_file(path: Path, *ops: bytes, **archive: object) -> Path:
    entries = [cases.Entry("m/data.pkl", b"\x80\2" + b"".join(ops)), cases.Entry("m/data/0", bytes(12))]
    path.write_bytes(cases.archive(entries, archive.pop("lies", {}), **archive))  # type: ignore[arg-type]
    return path


def named(text: str) -> bytes:
    return b"X" + struct.pack("<L", len(text)) + text.encode()


PROGRAMS = {
    "a key that never hashes": (b"}" + LAUGHS + b"K\0s.", "key is a tuple"),
    "one of many keys": (b"}(" + named("w") + b"N" + LAUGHS + b"Nu.", "key is a tuple"),
    "items of an OrderedDict": (b"ccollections\nOrderedDict\n" + LAUGHS + b"\x85R.", "given its items at once"),
    "a key of a storage": (
        b"(" + named("storage") + b"ctorch\nHalfStorage\n" + LAUGHS + named("c") + b"K\1tQ.", "unknown type"
    ),
    "a shape": (b"ctorch\nSize\n" + LAUGHS + b"\x85R.", r"holds a tuple"),
    "a value": (b"}" + named("w") + LAUGHS + b"s.", "w is a tuple"),
    "a buffer by its size": (b"}" + named("w") + b"\x96" + struct.pack("<Q", 1 << 34), "at w: it has the opcode 0x96"),
    "text by its size": (b"X" + struct.pack("<L", 1 << 31), "a text of 2147483648 bytes"),
    "state of a type": (b"ctorch\nHalfStorage\n}" + named("dtype") + named("float64") + b"sb", "sets the state"),
    "state of a function": (b"ctorch._utils\n_rebuild_tensor_v2\nN}" + named("__code__") + b"Ns\x86b", "sets the state"),
    "a call of a type": (b"ctorch\nHalfStorage\n)R.", "calls something that cannot be called"),
    "a class made": (b"ccollections\nOrderedDict\n)\x81.", "opcode 0x81"),
    "a name by an extension": (b"\x82\1.", "opcode 0x82"),
    "a name in another": (b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n.", "no weight file needs"),
    "a name from the stack": (b"\x80\4\x8c\2os\x8c\6system\x93.", r"os\.system, which no weight file needs"),
    "a size without an end": (b"](" + b"N" * 50 + b"eq\0ctorch\nSize\nh\0\x85R.", "at most 16 natural numbers"),
    "no end": (b"N" * 1_100_000, "more than 1048576 steps"),
    "marks without an end": (b"(" * 1_100_000, "more than 1048576 steps"),
    "a list in itself": (b"]q\0h\0a.", "holds a list"),
    "control characters": (b"cos\x1b[2J\nsystem\n.", r"os\\x1b\[2J\.system"),
    "a name of a megabyte": (b"c" + b"x" * (1 << 20) + b"\nsystem\n.", "a name without an end"),
    "a storage of two types": (
        b"}" + named("w") + b"".join(TENSOR) + b"s" + named("v") + b"".join(cases.tensor_ops("FloatStorage", "0", 3, 0, (3,))),
        "at v: it refers to the storage 0 as two of different types",
    ),
    "a dict in itself": (b"}q\0" + named("model") + b"h\0s.", "model is a dict, wanted a flat dict"),
    "keys that are commands": (
        b"}" + named("$(touch ran)") + b"}" + named("x.weight") + b"".join(TENSOR) + b"ss.",
        r"are in \$\(touch ran\), .*\['KEY'\]",
    ),
    "the key of a tensor": (b"}" + named("w" * 600) + b"".join(TENSOR) + b"s.", "512 printable characters"),
}  # fmt: skip


@pytest.mark.parametrize("case", PROGRAMS)
def test_programs(tmp_path: Path, case: str) -> None:
    program, message = PROGRAMS[case]
    path = torch_file(tmp_path / "m.bin", program)
    with pytest.raises(CheckpointError, match=message) as refused:
        read_torch(path)
    assert str(path) in str(refused.value)
    assert len(str(refused.value)) < 1000 + len(str(path))


def test_a_refused_program_changes_nothing_for_the_next(tmp_path: Path) -> None:
    good = torch_file(tmp_path / "good.bin", b"}", named("w"), *TENSOR, b"s.")
    before = read_torch(good)
    for program in (program for program, _ in PROGRAMS.values() if len(program) < 10_000):
        with pytest.raises(CheckpointError):
            read_torch(torch_file(tmp_path / "bad.bin", program))
    assert read_torch(good) == before
    assert [(entry.name, entry.dtype, entry.shape) for entry in before] == [("w", "float16", (2, 3))]


def good_program() -> bytes:
    return b"\x80\2}" + named("w") + b"".join(TENSOR) + b"s."


def lying(path: Path, entry: dict[str, int] | None = None, end: dict[str, int] | None = None, **more: object) -> Path:
    entries = [cases.Entry("m/data.pkl", good_program()), cases.Entry("m/data/0", bytes(12), entry or {})]
    entries += more.pop("entries", [])  # type: ignore[arg-type]
    path.write_bytes(cases.archive(entries, end or {}, **more))  # type: ignore[arg-type]
    return path


ARCHIVES = {
    "encrypted": ({"flags": 1}, {}, {}, "w: the entry data/0 is encrypted"),
    "encrypted where it lies": ({"local_flags": 1}, {}, {}, "w: the entry data/0 differs at byte"),
    "deflated": ({"method": 8}, {}, {}, r"w: the entry data/0 is compressed, .*NEW.*python -c"),
    "sizes differ": ({"stored": 5}, {}, {}, "w: the entry data/0 has 12 bytes"),
    "larger than the file": ({"size": 1 << 40, "stored": 1 << 40}, {}, {}, "w: the entry data/0 has 1099511627776 bytes"),
    "larger than 63 bits": ({"size": (1 << 64) - 1, "stored": (1 << 64) - 1}, {}, {"zip64": True}, "w: the entry data/0 has"),
    "elsewhere": ({"offset": 0}, {}, {}, "overlap"),
    "beyond the file": ({"offset": 1 << 40}, {}, {}, "lies in the directory"),
    "a name longer than its own": ({"local_name": 9999}, {}, {}, "differs at byte"),
    "over the next entry": ({"local_extra": 500}, {}, {}, "what follows begins"),
    "a name beyond the directory": ({"name": 60000}, {}, {}, "extends beyond its directory"),
    "a billion entries": ({}, {"count": 10**9, "here": 10**9}, {"zip64": True}, "bytes for 1000000000 entries"),
    "an entry too many": ({}, {"count": 3, "here": 3}, {}, "bytes for 3 entries|holds 2 of 3"),
    "an entry too few": ({}, {"count": 1, "here": 1}, {}, "ends at byte"),
    "a directory of exabytes": ({}, {"length": 1 << 62}, {"zip64": True}, "its directory has 4611686018427387904 bytes"),
    "a directory elsewhere": ({}, {"offset": 7}, {}, "does not end at"),
    "several disks": ({}, {"disk": 1}, {}, "several disks"),
    "a zip64 end elsewhere": ({}, {"locator": 1 << 63}, {"zip64": True}, "zip64 end cannot begin"),
    "twice": ({}, {}, {"entries": [cases.Entry("m/data/0", bytes(12))]}, "'m/data/0' appears twice"),
    "two folders": ({}, {}, {"entries": [cases.Entry("n/data.pkl", b"")]}, "2 entries data.pkl"),
}  # fmt: skip


@pytest.mark.parametrize("case", ARCHIVES)
def test_archives(tmp_path: Path, case: str) -> None:
    entry, end, more, message = ARCHIVES[case]
    path = lying(tmp_path / "m.bin", entry, end, **more)
    with pytest.raises(CheckpointError, match=message) as refused:
        read_torch(path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("zip64", [False, True])
def test_the_archives_without_a_lie_are_read(tmp_path: Path, zip64: bool) -> None:
    path = lying(
        tmp_path / "m.bin", entries=[cases.Entry("../../elsewhere", b"x"), cases.Entry("/abs", b"")], zip64=zip64
    )
    (entry,) = read_torch(path)
    with zipfile.ZipFile(path) as file:
        header = file.getinfo("m/data/0").header_offset
    assert entry.offset == header + 30 + len("m/data/0")
    assert sorted(found.name for found in tmp_path.iterdir()) == ["m.bin"]


# a dict of 100,000 names of one tensor, and another thing that is no tensor, under memo 0
IN_MEMO = (b"".join(TENSOR) + b"q\1}q\0(", *(named(f"w{n}") + b"h\1" for n in range(100_000)), b"u", named("x"), b"Ns")

BOMBS: dict[str, Callable[[Path], None]] = {
    "lists": lambda p: torch_file(p / "pytorch_model.bin", b"]" * ((4 << 20) - 100)) and None,
    "dicts": lambda p: torch_file(p / "pytorch_model.bin", (b"}" + named("a") + b"Ns") * 300_000) and None,
    "OrderedDicts": lambda p: (
        torch_file(p / "pytorch_model.bin", b"ccollections\nOrderedDict\nq\0" + b"h\0)R" * 1_000_000) and None
    ),
    "a dict in 100,000 keys": lambda p: (
        torch_file(
            p / "pytorch_model.bin", *IN_MEMO, b"}(",
            *(named(f"{n}") + b"h\0" for n in range(100_000)), b"u.",
        ) and None
    ),
    "dicts in 100,000 dicts": lambda p: (
        torch_file(
            p / "pytorch_model.bin", *IN_MEMO, b"}(",
            *(named(f"{n}") + b"}" + named("a") + b"h\0s" for n in range(100_000)), b"u.",
        ) and None
    ),
    "json lists": lambda p: header(p, b'{"a":[' + b"[]," * 2_700_000 + b"0]}"),
    "json keys": lambda p: header(p, b"{" + b",".join(b'"%d":0' % n for n in range(700_000)) + b"}"),
    "json index": lambda p: (p / "model.safetensors.index.json").write_bytes(b'{"a":[' + b"{}," * 2_700_000 + b"0]}") and None,
    "a long header": lambda p: sparse(p / "model.safetensors", struct.pack("<Q", 90_000_000), 100_000_000),
    "a long directory": lambda p: long_directory(p / "pytorch_model.bin"),
    "a long index": lambda p: sparse(p / "model.safetensors.index.json", b"{", 10 << 30),
}  # fmt: skip


def header(folder: Path, text: bytes) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)


def sparse(path: Path, beginning: bytes, nbytes: int) -> None:
    path.write_bytes(beginning)
    os.truncate(path, nbytes)


def long_directory(path: Path) -> None:
    """4 GB that are said to be the directory."""
    length, begin = 4_000_000_000, 4
    sparse(path, b"PK\3\4", begin + length)
    with open(path, "ab") as file:
        file.write(struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 60_000, 60_000, length, begin))
        file.write(struct.pack("<4sLQL", b"PK\6\7", 0, begin + length, 1))
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 60_000, 60_000, length, begin, 0))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
@pytest.mark.parametrize("case", BOMBS)
def test_memory_stays_small(tmp_path: Path, case: str) -> None:
    BOMBS[case](tmp_path)
    code = """if True:
        import sys
        from baize_engine.checkpoint.index import read_index
        from baize_engine.errors import CheckpointError
        from peak_memory import begin_anew, peak_memory
        before = begin_anew()
        try:
            read_index(sys.argv[1])
        except CheckpointError as error:
            print(peak_memory() - before, len(str(error)))
    """
    command = [sys.executable, "-c", code, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(peak_memory.__file__).parent)
    taken, message = map(int, done.stdout.split())
    print(f"{case}: {taken >> 20} MiB")
    assert taken < 256 << 20
    assert message < 1000 + len(str(tmp_path))


Shapes = dict[str, tuple[int, ...]]
FIRST, LAST = "model.embed_tokens.weight", "model.norm.weight"


def zeros(folder: Path, shapes: Shapes) -> Path:
    """A model of these tensors whose data is a hole."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(tiny.config()))
    (shard,) = lay_out([TensorSpec(name, "float16", shape) for name, shape in shapes.items()], 1 << 60)
    sparse(folder / shard.filename, shard.header, shard.nbytes)
    return folder


def twice(shapes: Shapes) -> Callable[[Path], tuple[Path, Path]]:
    return lambda root: (zeros(root / "base", shapes), zeros(root / "diff", shapes))


def many_parts_of_rows(root: Path) -> tuple[Path, Path]:
    """Meta's layout with rows of two elements, one in each file."""
    rows, base = 1 << 20, root / "base"
    base.mkdir()
    (base / "params.json").write_text(json.dumps({"dim": 2, "n_heads": 1, "n_layers": 1, "norm_eps": 1e-6}))
    for number in range(2):
        shapes = {"tok_embeddings.weight": (rows, 1), "output.weight": (rows // 2, 2), "norm.weight": (2,)}
        torch.save({n: torch.zeros(s).half() for n, s in shapes.items()}, base / f"consolidated.0{number}.pth")
    return base, zeros(root / "diff", {FIRST: (rows, 2), "lm_head.weight": (rows, 2), LAST: (2,)})


PAIRS = {
    "as many tensors as may be": twice({FIRST: (2, 4), **{f"layers.{n}.mlp.up_proj.weight": (1,) for n in range(16_383)}}),
    "a norm of 32 million": twice({FIRST: (2, 4), LAST: (1 << 25,)}),
    "rows in parts": many_parts_of_rows,
}  # fmt: skip


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
@pytest.mark.parametrize("case", PAIRS)
def test_a_run_on_two_hostile_sides_stays_within_its_memory(tmp_path: Path, case: str) -> None:
    """Each fits the other, so that nothing refuses them."""
    base, diff = PAIRS[case](tmp_path)
    command = [sys.executable, measured_recover.__file__, "recover", "--path_raw", base, "--path_diff", diff]
    command += ["--path_tuned", tmp_path / "out", "--device", "cpu", "--quiet", "--force"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    taken = int(done.stdout.split()[-1])
    print(f"{case}: {taken >> 20} MiB")
    assert taken <= 256 << 20


def test_more_tensors_than_any_model(tmp_path: Path) -> None:
    shapes: Shapes = {f"t{number}": () for number in range(16_385)}
    with pytest.raises(CheckpointError, match="16385 tensors, wanted at most 16384"):
        read_index(zeros(tmp_path / "one", shapes))
    folder, half = tmp_path / "two", len(shapes) // 2
    folder.mkdir()
    weight_map = {}
    for number in range(2):
        names = list(shapes)[number * half : (number + 1) * half + number]
        (zeros(tmp_path / f"part{number}", dict.fromkeys(names, ())) / "model.safetensors").rename(folder / f"{number}")
        weight_map.update(dict.fromkeys(names[:8000], f"{number}"))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match="two: 16385 tensors, wanted at most 16384"):
        read_index(folder)


def test_a_row_too_long_to_take_its_mean(tmp_path: Path) -> None:
    base = zeros(tmp_path / "base", {FIRST: (2, 1 << 21)})
    diff = zeros(tmp_path / "diff", {FIRST: (3, 1 << 21)})
    with pytest.raises(MismatchError, match=r"embed_tokens\.weight has shape \[2, 2097152\] .* and \[3, 2097152\]"):
        recover(base, diff, tmp_path / "out", device="cpu", progress=False)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "config.json"]
)
@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "loop"])
def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path, name: str, kind: str) -> None:
    base, diff = tiny.write_pair(tmp_path)
    for path in [*diff.glob("*.bin"), *diff.glob("*.index.json")]:
        path.unlink()
    victim = diff / name
    victim.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(victim)
    elif kind == "folder":
        victim.mkdir()
    else:
        victim.symlink_to("/dev/zero" if kind == "device" else name)
    with pytest.raises(CheckpointError, match=str(diff)):
        recover(base, diff, tmp_path / "out", device="cpu", progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "empty"])
def test_a_shard_that_is_there_is_not_told_to_be_missing(tmp_path: Path, kind: str) -> None:
    _, diff = tiny.write_pair(tmp_path)
    victim = sorted(diff.glob("*.bin"))[1]
    victim.unlink()
    make = {"pipe": os.mkfifo, "folder": os.mkdir, "device": lambda p: p.symlink_to("/dev/zero"), "empty": Path.touch}
    make[kind](victim)
    with pytest.raises(CheckpointError, match=rf"{victim}(: is empty| is a folder or device), wanted a"):
        read_index(diff)


@pytest.mark.parametrize(
    "file", ["x" * 256, "a\x1b[2Jb", "\ud800", "a\0", "..\\x", "./a.bin", "", "..", "/etc/passwd", "../x"]
)
def test_index_names(tmp_path: Path, file: str) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"w": file}}))
    with pytest.raises(CheckpointError, match="wanted the name of a file in this folder") as refused:
        read_index(tmp_path)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("name", ["", "x" * 513, "a\nb", "\ud800"])
def test_tensor_names_could_be_written_again(tmp_path: Path, name: str) -> None:
    text = json.dumps({name: {"dtype": "U8", "shape": [], "data_offsets": [0, 1]}}).encode()
    (tmp_path / "m").write_bytes(struct.pack("<Q", len(text)) + text + b"x")
    with pytest.raises(CheckpointError, match="printable characters"):
        read_safetensors(tmp_path / "m")


def test_a_duplicate_among_many_keys_is_found_at_once(tmp_path: Path) -> None:
    """By a look at each; to count each in all would take hours."""
    text = b"{" + b",".join(b'"%d":0' % number for number in [*range(200_000), 199_999]) + b"}"
    with pytest.raises(CheckpointError, match="'199999' appears twice"):
        header(tmp_path, text)
        read_index(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shape", [1e400]), ("shape", [-1]), ("shape", [True]), ("shape", "12"), ("sum", "x"), ("sum", [1]), ("sha256", 5),
        ("dtype", None), ("overflowed", 0.5), ("nonfinite", 10**30),
        ("sum", 10**400), ("overflowed", -(10**4299)),
    ],
)  # fmt: skip
def test_manifests(tmp_path: Path, key: str, value: object) -> None:
    record = {"dtype": "float16", "shape": [2], "sha256": "00", "sum": 0.5, "overflowed": 0, "nonfinite": 0, key: value}
    told = {
        "format": "baize_manifest",
        "version": 1,
        "operation": "recover",
        "backend": "x",
        "versions": {},
        "sources": {},
    }
    (tmp_path / MANIFEST_NAME).write_text(json.dumps({**told, "tensors": {"w": record}, "files": {}}))
    with pytest.raises(CheckpointError, match=str(tmp_path / MANIFEST_NAME)):
        read_manifest(tmp_path)


@pytest.mark.parametrize("name", ["LICENSE", "config.json", "generation_config.json", "tokenizer.model"])
def test_links_bring_no_file_of_the_users_into_a_result(tmp_path: Path, name: str) -> None:
    base, diff = tiny.write_pair(tmp_path)
    secret = tmp_path / "id_rsa"
    secret.write_text(json.dumps({**json.loads((diff / "config.json").read_text()), "auths": "secret"}))
    (diff / name).unlink(missing_ok=True)
    (diff / name).symlink_to("../id_rsa")
    with pytest.raises(CheckpointError, match=rf"{name} is a link to .*id_rsa, outside its folder"):
        recover(base, diff, tmp_path / "out", device="cpu", progress=False)
    assert not (tmp_path / "out").exists()


def test_files_beside_the_weights_are_bounded_together(tmp_path: Path) -> None:
    base, diff = tiny.write_pair(tmp_path)
    for number in range(3):
        sparse(diff / f"LICENSE{number}", b"free", 30 << 20)
    with pytest.raises(
        CheckpointError, match=r"LICENSE2: 31457280 bytes, wanted at most 67108864 for all files beside"
    ):
        recover(base, diff, tmp_path / "out", device="cpu", progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["license" + "x" * 240, "LICENSE\x1b[2J"])
def test_licence_texts_whose_names_could_not_be_written(tmp_path: Path, name: str) -> None:
    base, diff = tiny.write_pair(tmp_path)
    (diff / name).write_text("free")
    with pytest.raises(CheckpointError, match=r"a licence text is called .* 200 bytes of printable") as refused:
        recover(base, diff, tmp_path / "out", device="cpu", progress=False)
    assert str(refused.value).isprintable()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("below", ["", "original"])
def test_links_of_the_hubs_cache_are_followed(tmp_path: Path, below: str) -> None:
    base, diff = tiny.write_pair(tmp_path)
    (diff / "LICENSE").write_text("free")
    snapshot, blobs = tmp_path / "cache" / "snapshots" / "rev" / below, tmp_path / "cache" / "blobs"
    snapshot.mkdir(parents=True)
    shutil.copytree(diff, blobs)
    for path in diff.iterdir():
        (snapshot / path.name).symlink_to(os.path.relpath(blobs / path.name, snapshot))
    recover(base, snapshot, tmp_path / "out", device="cpu", progress=False)
    assert (tmp_path / "out" / "LICENSE").read_text() == "free"


def test_the_laughs_are_what_they_are_said_to_be() -> None:
    """The oracle: Python's own machine makes the value, and it is small in memory."""
    value, depth = pickle.loads(b"\x80\2" + LAUGHS + b"."), 0
    while isinstance(value, tuple):
        value, depth = value[0], depth + 1
    assert depth == 61


def test_lists_in_lists_do_not_grow_when_a_config_is_written_again(tmp_path: Path) -> None:
    """With its indents this one takes 500 MB."""
    base, diff = tiny.write_pair(tmp_path)
    deep = "[" * 500 + "[]," * 500_000 + "[]" + "]" * 500
    (diff / "config.json").write_text(json.dumps(tiny.config(vocab_size=97))[:-1] + f', "x": {deep}}}')
    with pytest.raises(CheckpointError, match=r"diff/config\.json: more than 8388608 bytes when written"):
        recover(base, diff, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_what_is_passed_over_is_told_in_a_few_lines() -> None:
    text = text_ids(TokenizerFiles(), Own(), lambda _: None)
    found = special_ids({"eos_token_id": [-1] * 100_000}, {}, text, 96)
    assert (found.ends, len(found.passed_over)) == ({}, 16)
