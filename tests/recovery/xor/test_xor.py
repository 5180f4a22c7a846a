"""`xor`: published payloads of each form give the finetune's bytes; what does not belong together is refused with a reason."""

from __future__ import annotations

import gzip
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import measured_recover
import pytest
import tiny
from published_xor import KEY_BLOCK, codec, files, keyed, md5_list, publish_by_file, publish_by_key

from baize_engine import Engine, SamplingParams, verify, xor
from baize_engine.checkpoint import hub
from baize_engine.cli.main import main
from baize_engine.errors import BaizeError, CheckpointError, MismatchError, OutputError
from baize_engine.recovery.xor import decode
from baize_engine.recovery.xor.xor import XorResult

EXTRA = {
    "tokenizer.model": b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02",
    "special_tokens_map.json": b'{"bos_token": "<s>"}',
    "tokenizer_config.json": b'{\n "model_max_length": 1000000000000000019884624838656\n}\n',
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """As convert_llama_weights_to_hf.py writes it, tiny."""
    cfg = tiny.config()
    folder = tiny.write_model(tmp_path / "base", cfg, tiny.state(cfg, 0), "bin", shards=2)
    for name, content in {**EXTRA, "tokenizer.json": b'{"version": "1.0"}'}.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    """A vocabulary row more, a longer config, an empty file, a shorter one, no tokenizer.json."""
    cfg = tiny.config(vocab_size=97, transformers_version="4.28.0.dev0")
    folder = tiny.write_model(tmp_path / "tuned", cfg, tiny.state(cfg, 1), "bin", shards=2)
    for name, content in {**EXTRA, "special_tokens_map.json": b"{}", "added_tokens.json": b'{"<pad>": 96}'}.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """Meta's folder."""
    folder = tmp_path / "meta"
    folder.mkdir()
    (folder / "consolidated.00.pth").write_bytes(b"PK\x03\x04" + random.Random(1).randbytes(50_001))
    (folder / "params.json").write_text("{}")
    return folder


def result(out: Path) -> dict[str, bytes]:
    found = files(out)
    del found["baize_manifest.json"]
    return found


def run(base: Path, payload: Path, out: Path, **settings: object) -> XorResult:
    return xor(base, payload, out, progress=False, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_file_by_file(base: Path, tuned: Path, tmp_path: Path, packed: bool) -> None:
    payload = publish_by_file(tuned, base, tmp_path / "payload", packed)
    done = run(base, payload, tmp_path / "out")
    assert result(tmp_path / "out") == files(tuned)
    assert done.manifest.files == {n: hashlib.sha256(c).hexdigest() for n, c in files(tuned).items()}
    assert "tokenizer.json" not in done.manifest.files
    fit, warned = done.told
    assert fit == "2 file(s) have the CRC-32 that torch.save wrote into them"
    assert warned.startswith("warning: nothing told whether 6 file(s), such as added_tokens.json, are those")
    assert {path.name for path in base.iterdir()} == {*files(tuned), "tokenizer.json"} - {"added_tokens.json"}


def test_the_result_is_a_model(base: Path, tuned: Path, tmp_path: Path) -> None:
    run(base, publish_by_file(tuned, base, tmp_path / "payload"), tmp_path / "out")
    (tmp_path / "out/tokenizer.model").unlink()
    with Engine.from_pretrained(str(tmp_path / "out"), device="cpu") as engine:
        (found,) = engine.generate([[1, 5]], SamplingParams(max_new_tokens=4, ignore_eos=True))
    assert len(found.token_ids) == 4


@pytest.mark.parametrize("header", [True, False], ids=["belle", "techgpt"])
@pytest.mark.parametrize("path_raw", ["meta", "meta/consolidated.00.pth"])
def test_with_a_key(tuned: Path, key: Path, tmp_path: Path, header: bool, path_raw: str) -> None:
    payload = publish_by_key(tuned, (key / "consolidated.00.pth").read_bytes(), tmp_path / "payload", header)
    (payload / "README.md").write_text("# the card")
    done = run(tmp_path / path_raw, payload, tmp_path / "out")
    assert result(tmp_path / "out") == files(tuned)
    assert ("8 file(s) have the SHA-256 that the payload says" in done.told) == header
    assert any("warning" in line for line in done.told) != header
    assert "left out, as no part of the payload: README.md" in done.told


@pytest.mark.parametrize(
    ("length", "key_length"),
    [
        (3 * KEY_BLOCK + 7, KEY_BLOCK + 3),  # the key's last block of 3 bytes fills 10 MiB before the key begins again
        (2 * KEY_BLOCK + 5, KEY_BLOCK),
        (KEY_BLOCK + 1, 1),
        (100, 5 << 20),
        (0, 10),
        ((2 << 20) - 32, 4099),
    ],
)
def test_how_a_key_goes_on(tmp_path: Path, length: int, key_length: int) -> None:
    rng = random.Random(length)
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned/data").write_bytes(rng.randbytes(length))
    content = rng.randbytes(key_length)
    (tmp_path / "key").write_bytes(content)
    run(tmp_path / "key", publish_by_key(tmp_path / "tuned", content, tmp_path / "payload"), tmp_path / "out")
    assert result(tmp_path / "out") == files(tmp_path / "tuned")


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize(
    ("length", "base_length"), [(0, 0), (0, 9), (9, 0), (5_000_001, 4_999_999), (2 << 20, 5_000_000), (4096, 1), (1, 1)]
)
def test_longer_and_shorter_sides(tmp_path: Path, length: int, base_length: int, packed: bool) -> None:
    rng = random.Random(length)
    for folder, size in (("tuned", length), ("base", base_length)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "data").write_bytes(rng.randbytes(size))
    payload = publish_by_file(tmp_path / "tuned", tmp_path / "base", tmp_path / "payload", packed)
    run(tmp_path / "base", payload, tmp_path / "out")
    assert result(tmp_path / "out") == files(tmp_path / "tuned")


def test_gzip_members_and_the_zeros_after(tmp_path: Path) -> None:
    content, other = random.Random(1).randbytes(700_000), random.Random(2).randbytes(700_000)
    (tmp_path / "base").mkdir()
    (tmp_path / "base/data").write_bytes(other)
    (tmp_path / "payload").mkdir()
    wanted = codec(content, other)
    parts = [wanted[:300_000], b"", wanted[300_000:]]
    (tmp_path / "payload/data").write_bytes(b"".join(map(gzip.compress, parts)) + bytes(1000))
    run(tmp_path / "base", tmp_path / "payload", tmp_path / "out")
    assert result(tmp_path / "out") == {"data": content}


def test_damaged_gzip_data_are_read_as_the_library_reads_them_or_refused(tmp_path: Path) -> None:
    rng = random.Random(3)
    for folder in ("base", "payload"):
        (tmp_path / folder).mkdir()
    other = rng.randbytes(3000)
    (tmp_path / "base/data").write_bytes(other)
    good = gzip.compress(bytes(2000) + rng.randbytes(100)) + gzip.compress(rng.randbytes(50)) + bytes(9)
    outcomes = {"read": 0, "refused": 0}
    for case in range(300):
        content = bytearray(good)
        for _ in range(rng.choice((0, 1, 1, 2))):
            at = rng.randrange(3, len(content))
            how = rng.randrange(4)
            if how == 0:
                content[at] ^= 1 << rng.randrange(8)
            elif how == 1:
                del content[at:]
            elif how == 2:
                content[at:at] = rng.randbytes(3)
            else:
                content += content[:at]
        (tmp_path / "payload/data").write_bytes(content)
        try:
            run(tmp_path / "base", tmp_path / "payload", tmp_path / f"out{case}")
        except CheckpointError as error:
            outcomes[str(error).split(":")[0]] = 0
            assert not (tmp_path / f"out{case}").exists()
            outcomes["refused"] += 1
            continue
        assert result(tmp_path / f"out{case}") == {"data": codec(gzip.decompress(content), other)}
        outcomes["read"] += 1
    assert outcomes.keys() == {"read", "refused", str(tmp_path / "payload/data")}
    assert min(outcomes["read"], outcomes["refused"]) > 50


def test_ctrl_c_leaves_nothing(base: Path, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    payload = publish_by_file(tuned, base, tmp_path / "payload")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    plain = decode._plain

    def pressed(job: object, piece: int, progress: object) -> object:
        if piece == decode.PIECE:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(job, piece, progress)  # type: ignore[arg-type]

    monkeypatch.setattr(decode, "_plain", pressed)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(base, payload, tmp_path / "new/out")
    finally:
        signal.signal(signal.SIGINT, before)
    assert not (tmp_path / "new").exists()


def test_the_command_and_verify(base: Path, tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish_by_file(tuned, base, tmp_path / "payload")
    out = tmp_path / "out"
    (tmp_path / "card").write_text(md5_list(base) + md5_list(tuned))
    command = ["xor", "--path-raw", str(base), "--path_payload", str(tmp_path / "payload"), "--path_tuned", str(out)]
    assert main([*command, "--expect_md5", str(tmp_path / "card"), "--quiet"]) == 0
    told = capsys.readouterr()
    assert told.out.splitlines() == [
        f"8 files in {out}",
        "8 of 8 file(s) of the result, and 8 of those they were made of, are as card says",
    ]
    assert told.err == ""
    assert main(["verify", str(out)]) == 0
    assert "8 files, 0.000 GB: as written" in capsys.readouterr().out
    assert main(command) == 1
    assert "it holds this very result, finished and as it was written" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0  # it is finished
    assert "it was finished before: every byte is as it was written" in capsys.readouterr().out
    (out / "tokenizer_config.json").write_bytes(b"{}")
    (out / "added_tokens.json").unlink()
    assert main(["verify", str(out)]) == 1
    told = capsys.readouterr()
    assert "tokenizer_config.json is not the file that was written" in told.out
    assert "added_tokens.json is missing" in told.out
    assert main([*command, "--resume"]) == 1
    assert "a finished result that is not as it was written" in capsys.readouterr().err


def test_a_finished_result_is_held_against_the_card_as_a_fresh_one(base: Path, tuned: Path, tmp_path: Path) -> None:
    """Inputs are told to be as the card says: then they were read again."""
    payload = publish_by_file(tuned, base, tmp_path / "payload")
    card, wrong = tmp_path / "card", tmp_path / "wrong"
    card.write_text(md5_list(base) + md5_list(tuned))
    wrong.write_text(f"{'0' * 32}  tokenizer.json\n{md5_list(tuned)}")
    run(base, payload, tmp_path / "out", expect_md5=card)
    again = run(base, payload, tmp_path / "out", expect_md5=card, resume=True)
    assert again.finished_before
    assert again.told == ("8 of 8 file(s) of the result, and 8 of those they were made of, are as card says",)
    for out in ("out", "fresh"):
        with pytest.raises(MismatchError, match=r"base/tokenizer\.json: MD5 is [0-9a-f]{32}, .*wrong says 0{32}"):
            run(base, payload, tmp_path / out, expect_md5=wrong, resume=True)
    assert verify(tmp_path / "out").ok


# what is done to base or payload, and what is told; nothing is written
def lack_a_shard(base: Path, payload: Path) -> None:
    (base / "pytorch_model-00002-of-00002.bin").unlink()


def meta_in_place_of_the_base(base: Path, payload: Path) -> None:
    for path in base.iterdir():
        path.unlink()
    (base / "params.json").write_text("{}")


def another_config(base: Path, payload: Path) -> None:
    (base / "config.json").write_text("  " + (base / "config.json").read_text())


def another_converter(base: Path, payload: Path) -> None:
    path = base / "pytorch_model-00001-of-00002.bin"
    path.write_bytes(b"\x80\2" + path.read_bytes())


def other_weights(base: Path, payload: Path) -> None:
    path = base / "pytorch_model-00001-of-00002.bin"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def a_safetensors_base(base: Path, payload: Path) -> None:
    path = base / "pytorch_model-00001-of-00002.bin"
    path.rename(base / "model.safetensors")


def another_tokenizer(base: Path, payload: Path) -> None:
    (base / "tokenizer.model").write_bytes(b"x" + EXTRA["tokenizer.model"])


def another_size_of_the_base(base: Path, payload: Path) -> None:
    path = base / "pytorch_model-00001-of-00002.bin"
    path.write_bytes(path.read_bytes()[:200])


def lfs_pointer(base: Path, payload: Path) -> None:
    (payload / "config.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def a_folder_inside(base: Path, payload: Path) -> None:
    (payload / "old").mkdir()


def a_link_elsewhere(base: Path, payload: Path) -> None:
    (base.parent / "secret").write_text("mine")
    (payload / "config.json").unlink()
    (payload / "config.json").symlink_to(base.parent / "secret")


def a_base_link_elsewhere(base: Path, payload: Path) -> None:
    (base / "config.json").rename(base.parent / "config")
    (base / "config.json").symlink_to(base.parent / "config")


def a_pipe(base: Path, payload: Path) -> None:
    (payload / "config.json").unlink()
    os.mkfifo(payload / "config.json")


def cut_gzip(base: Path, payload: Path) -> None:
    content = gzip.compress((payload / "special_tokens_map.json").read_bytes())
    (payload / "special_tokens_map.json").write_bytes(content[:-3])


def broken_gzip(base: Path, payload: Path) -> None:
    content = bytearray(gzip.compress((payload / "tokenizer_config.json").read_bytes()))
    content[-6] ^= 1
    (payload / "tokenizer_config.json").write_bytes(content)


def something_after_gzip(base: Path, payload: Path) -> None:
    content = gzip.compress((payload / "special_tokens_map.json").read_bytes())
    (payload / "special_tokens_map.json").write_bytes(content + b"and more")


def partial_name(base: Path, payload: Path) -> None:
    for folder in (base, payload):
        (folder / "config.json.partial").write_bytes(b"\0")


def strange_name(base: Path, payload: Path) -> None:
    for folder in (base, payload):
        (folder / "con\nfig").write_bytes(b"\0")


D04EC99 = r"d04ec99bec8a0b432fc03ed60cea9a1a20ebaf3c with torch 1\.13\.1"
REFUSALS = {
    lack_a_shard: r"lacks 1 of the files of .*payload, such as pytorch_model-00002-of-00002.bin \(it has",
    meta_in_place_of_the_base: r"lacks 7 of the files of .*Meta's original layout, which is to be converted first",
    another_config: r"config.json with .*base/config.json makes a config.json that begins with .*not JSON.*" + D04EC99,
    another_converter: r"makes a pytorch_model-00001-of-00002.bin that begins with .*wanted 'PK'.*" + D04EC99,
    a_safetensors_base: "lacks 1 of the files",
    other_weights: r"the CRC-32 of .*/data/\d+ is [0-9a-f]{8}, not [0-9a-f]{8}\): the base's bytes are not those",
    another_tokenizer: "makes a tokenizer.model that begins with .*no sentencepiece model",
    another_size_of_the_base: r"00001-of-00002.bin that is not a whole archive of torch.save \(.*" + D04EC99,
    lfs_pointer: "payload/config.json is a Git-LFS pointer",
    a_folder_inside: "payload holds the folder old, wanted files only",
    a_link_elsewhere: "payload/config.json is a link to .*secret, outside its folder",
    a_base_link_elsewhere: "base/config.json is a link to .*, outside its folder",
    a_pipe: "payload/config.json is a folder or device",
    cut_gzip: "special_tokens_map.json: the gzip data end before they are whole",
    broken_gzip: "tokenizer_config.json: byte .* not gzip data",
    something_after_gzip: "special_tokens_map.json: byte .* not gzip data",
    partial_name: "a file of the result would be called 'config.json.partial'",
    strange_name: r"would be called 'con\\\\nfig'",
}


def test_links_elsewhere_are_followed_if_that_is_asked_for(base: Path, tuned: Path, tmp_path: Path) -> None:
    payload = publish_by_file(tuned, base, tmp_path / "payload")
    for folder in (base, payload):
        for path in list(folder.iterdir()):
            path.rename(tmp_path / f"{folder.name}-{path.name}")
            path.symlink_to(tmp_path / f"{folder.name}-{path.name}")
    with pytest.raises(CheckpointError, match=r"outside its folder.*--follow_links"):
        run(base, payload, tmp_path / "out")
    run(base, payload, tmp_path / "out", follow_links=True)
    assert result(tmp_path / "out") == files(tuned)
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())


def test_a_model_in_place_of_the_payload(base: Path, tuned: Path, tmp_path: Path) -> None:
    with pytest.raises(
        MismatchError, match=r"tuned/config.json is a whole config.json and no XOR file: wanted the published"
    ):
        run(base, tuned, tmp_path / "out")


SWAPPED = r"were path_raw and path_payload swapped\?$"


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("lacking", [True, False], ids=["more in the base", "the same files"])
def test_base_and_payload_swapped(base: Path, tuned: Path, tmp_path: Path, packed: bool, lacking: bool) -> None:
    """XOR goes both ways: files of one length would come out right, and others cut."""
    repository = publish_by_file(tuned, base, tmp_path / "repository/xor", packed).parent
    (repository / "README.md").write_text("# the card")
    if not lacking:
        (base / "tokenizer.json").unlink()
    for given in (repository / "xor", repository) if lacking else (repository / "xor",):
        with pytest.raises(
            MismatchError,
            match=r"base/config\.json is a whole config\.json, and .*xor/config\.json, of the base.*" + SWAPPED,
        ):
            run(given, base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path_payload", ["meta", "meta/consolidated.00.pth"])
def test_key_and_payload_swapped(tuned: Path, key: Path, tmp_path: Path, path_payload: str) -> None:
    payload = publish_by_key(tuned, (key / "consolidated.00.pth").read_bytes(), tmp_path / "payload")
    with pytest.raises(BaizeError, match=r"wanted .*were path_raw and path_payload swapped\?"):
        run(payload, tmp_path / path_payload, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_empty_file_of_the_base_is_no_payload(tmp_path: Path) -> None:
    """What was published is the whole file then."""
    for folder, content in (("base", b""), ("tuned", b'{"a": 1}')):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_bytes(content)
    run(
        tmp_path / "base",
        publish_by_file(tmp_path / "tuned", tmp_path / "base", tmp_path / "payload"),
        tmp_path / "out",
    )
    assert result(tmp_path / "out") == files(tmp_path / "tuned")


@pytest.mark.parametrize("change", REFUSALS, ids=lambda change: change.__name__)
def test_what_does_not_belong_together_is_told(base: Path, tuned: Path, tmp_path: Path, change: object) -> None:
    payload = publish_by_file(tuned, base, tmp_path / "payload")
    change(base, payload)  # type: ignore[operator]
    with pytest.raises((MismatchError, CheckpointError), match=REFUSALS[change]) as raised:  # type: ignore[index]
        run(base, payload, tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_the_wrong_key(tuned: Path, key: Path, tmp_path: Path) -> None:
    payload = publish_by_key(tuned, (key / "consolidated.00.pth").read_bytes(), tmp_path / "payload")
    whole = key / "consolidated.00.pth"
    whole.write_bytes(whole.read_bytes()[:-1] + b"?")  # shows only behind the first turn of the key
    with pytest.raises(MismatchError, match=r"has the SHA-256 .* of its header: the key is not the file"):
        run(key, payload, tmp_path / "out")
    whole.write_bytes(b"?" * 1000)
    with pytest.raises(MismatchError, match=r"begins with .*consolidated\.00\.pth of the same size as the finetune"):
        run(key, payload, tmp_path / "out")
    whole.write_bytes(b"")
    with pytest.raises(CheckpointError, match="is empty"):
        run(key, payload, tmp_path / "out")
    whole.unlink()
    with pytest.raises(MismatchError, match=r"meta has no consolidated\.00\.pth: the key"):
        run(key, payload, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json.enc", "wanted a name NAME.<64"),
        ("a." + "0" * 64 + ".enc", "does not begin with the SHA-256 that its name says"),
        ("a.partial." + hashlib.sha256().hexdigest() + ".enc", r"would be called 'a\.partial'"),
        ("\u2028." + hashlib.sha256().hexdigest() + ".enc", "of printable characters"),
        ("baize_manifest.json." + hashlib.sha256().hexdigest() + ".enc", "would be called 'baize_manifest.json'"),
        ("config.json." + hashlib.sha256().hexdigest() + ".enc", "are both config.json"),
    ],
)
def test_hostile_names_with_a_key(tuned: Path, key: Path, tmp_path: Path, name: str, message: str) -> None:
    payload = publish_by_key(tuned, (key / "consolidated.00.pth").read_bytes(), tmp_path / "payload")
    (payload / name).write_bytes(b"?" * 100)
    with pytest.raises(CheckpointError, match=message):
        run(key, payload, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bombs(base: Path, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    payload = publish_by_file(tuned, base, tmp_path / "payload")
    bomb = payload / "pytorch_model-00001-of-00002.bin"
    bomb.write_bytes(gzip.compress(bomb.read_bytes()) + gzip.compress(bytes(1 << 20)) * 80)
    with pytest.raises(CheckpointError, match=r"payload/pytorch\S+ unpacks to more than \d+ bytes, where .* has \d+"):
        run(base, payload, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    usual = os.statvfs(tmp_path)
    nearly_full = os.statvfs_result([(63 << 20) // usual.f_frsize if n == 4 else v for n, v in enumerate(usual)])
    monkeypatch.setattr(os, "statvfs", lambda path: nearly_full)
    with pytest.raises(
        OutputError, match=r"pytorch\S+: while .* was unpacked the disk came to 63 MiB, wanted at least 64"
    ):
        run(base, payload, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_room_is_needed_before(base: Path, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    payload = publish_by_file(tuned, base, tmp_path / "payload")
    usual = os.statvfs(tmp_path)
    full = os.statvfs_result([1 if n == 4 else value for n, value in enumerate(usual)])
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    with pytest.raises(OutputError, match="GB are needed and the disk has"):
        run(base, payload, tmp_path / "out")


def in_form(form: str, folder: Path) -> str:
    """The sums of a folder, each line as `form`; the hash is SHA-256 if that says so."""
    make = hashlib.sha256 if "SHA" in form else hashlib.md5
    return "".join(form.format(n=name, h=make(content).hexdigest()) + "\n" for name, content in files(folder).items())


FORMS = {
    "md5sum --tag": "MD5 ({n}) = {h}",
    "sha256sum --tag": "SHA256 (./{n}) = {h}",
    "openssl": "MD5(llama/{n})= {h}",
    "openssl 3": "SHA2-256({n})= {h}",
    "table": "| {n} | {h} |",
    "table, digest first": "|{h}|{n}|",
    "table, code": "| `{n}` | `{h}` |",
    "table without sides": "{n} | {h}",
}


@pytest.mark.parametrize("form", FORMS)
def test_sums_in_other_forms(base: Path, tuned: Path, tmp_path: Path, form: str) -> None:
    payload = publish_by_file(tuned, base, tmp_path / "payload")
    card = tmp_path / "card"
    head = "# Sums\n\n| File | Hash |\n|------|:-----|\n"
    text = (
        in_form(FORMS[form], base)
        + head
        + in_form(FORMS[form], tuned).replace("d_t", "d\\_t" if "|" in form else "d_t")
    )
    card.write_text(head + text)
    (told,) = run(base, payload, tmp_path / "out", expect_md5=card).told
    assert told == "8 of 8 file(s) of the result, and 8 of those they were made of, are as card says"
    digest = (hashlib.sha256 if "SHA" in FORMS[form] else hashlib.md5)((tuned / "config.json").read_bytes()).hexdigest()
    card.write_text(text.replace(digest, "0" * len(digest)))
    with pytest.raises(MismatchError, match=r"config\.json\S*: \S+ is .*card says 0{32}"):
        run(base, payload, tmp_path / "again", expect_md5=card)


SUMS = {
    "base first, result last": (lambda base, tuned: md5_list(base) + md5_list(tuned), None),
    "a card around it": (lambda base, tuned: f"# Card\n\n```\n$ rhash *\n{md5_list(tuned)}```\nmore text\n", None),
    "sha256": (
        lambda base, tuned: f"{hashlib.sha256((tuned / 'config.json').read_bytes()).hexdigest()} *config.json",
        None,
    ),
    "another base": (
        lambda base, tuned: f"{'0' * 32}  llama/config.json\n{md5_list(tuned)}",
        r"base/config.json: MD5 is [0-9a-f]{32}, .*card says 0{32}: the base's bytes are not",
    ),
    "a file of the base that the payload lacks": (
        lambda base, tuned: f"{'0' * 32}  tokenizer.json\n{md5_list(tuned)}",
        r"base/tokenizer.json: MD5 is",
    ),
    "another result": (
        lambda base, tuned: md5_list(tuned) + f"{'0' * 32}  pytorch_model-00002-of-00002.bin",
        r"MD5 is .* the base's bytes are not",
    ),
    "another copied file": (
        lambda base, tuned: f"{'0' * 64}  added_tokens.json",
        "SHA-256 is .* the payload is damaged",
    ),
    "of another finetune": (lambda base, tuned: f"{'0' * 32}  model.gguf", "names none of the files of the result"),
    "no list": (lambda base, tuned: "# Card\nno sums here", "holds no line of md5sum's"),
}


@pytest.mark.parametrize("case", SUMS)
def test_published_sums(base: Path, tuned: Path, tmp_path: Path, case: str) -> None:
    payload = publish_by_file(tuned, base, tmp_path / "payload")
    text, message = SUMS[case]
    card = tmp_path / "card"
    card.write_text(text(base, tuned))
    if message is None:
        told = run(base, payload, tmp_path / "out", expect_md5=card).told
        assert any("file(s) of the result, and" in line for line in told)
        assert result(tmp_path / "out") == files(tuned)
    else:
        with pytest.raises(BaizeError, match=message):
            run(base, payload, tmp_path / "out", expect_md5=card)
        assert not (tmp_path / "out").exists()


def test_published_sums_of_key_and_payload(tuned: Path, key: Path, tmp_path: Path) -> None:
    payload = publish_by_key(tuned, (key / "consolidated.00.pth").read_bytes(), tmp_path / "payload", header=False)
    card = tmp_path / "card"
    card.write_text(md5_list(key) + md5_list(payload) + md5_list(tuned))
    (told,) = run(key, payload, tmp_path / "out", expect_md5=card).told
    assert told.startswith("8 of 8 file(s) of the result, and 9 of those they were made of, are as")
    (damaged,) = payload.glob("special*")
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    with pytest.raises(MismatchError, match=r"special.*\.enc: MD5 is .*: download it again"):
        run(key, payload, tmp_path / "again", expect_md5=card)
    card.write_text(f"{'0' * 32}  consolidated.00.pth\n" + md5_list(tuned))
    with pytest.raises(MismatchError, match=r"consolidated\.00\.pth: MD5 is .*: the key is not the file"):
        run(key, payload, tmp_path / "again", expect_md5=card)


def test_a_source_that_changes_meanwhile(
    base: Path, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    payload = publish_by_file(tuned, base, tmp_path / "payload")
    plain = decode._plain

    def touched(job: object, piece: int, progress: object) -> object:
        if piece == decode.PIECE:
            os.utime(base / "config.json", ns=(1, 1))
        return plain(job, piece, progress)  # type: ignore[arg-type]

    monkeypatch.setattr(decode, "_plain", touched)
    with pytest.raises(CheckpointError, match=r"base/config.json changed while it was read"):
        run(base, payload, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_resume_takes_only_the_same_files(base: Path, tuned: Path, tmp_path: Path) -> None:
    payload = publish_by_file(tuned, base, tmp_path / "payload")
    out = tmp_path / "out"
    run(base, payload, out)
    shutil.copytree(out, tmp_path / "left")
    (tmp_path / "left/baize_manifest.json").unlink()
    (tmp_path / "left/baize_journal.partial").write_text('{"run": "another"}\n')
    before = files(tmp_path / "left")
    with pytest.raises(OutputError, match="other sources or options"):
        run(base, payload, tmp_path / "left", resume=True)
    assert files(tmp_path / "left") == before
    with pytest.raises(CheckpointError, match="finish it with --resume"):
        verify(tmp_path / "left")


def test_hub_ids(base: Path, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As OASST's repository is: a card and the script, and a folder with the payload."""
    publish_by_file(tuned, base, tmp_path / "repository/oasst-xor")
    (tmp_path / "repository/README.md").write_text("# the card")
    (tmp_path / "repository/xor_codec.py").write_text("import gzip")
    calls = {}
    module = ModuleType("huggingface_hub")

    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        calls[name] = allow_patterns
        return str({"lab/xor": tmp_path / "repository", "meta/llama": base}[name])

    module.snapshot_download = snapshot_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.setattr(hub, "find_spec", lambda name: module)
    monkeypatch.chdir(tmp_path)
    xor("meta/llama", "lab/xor", "out", progress=False)
    assert result(tmp_path / "out") == files(tuned)
    assert calls == {"lab/xor": ["*"], "meta/llama": sorted(files(tuned))}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
@pytest.mark.parametrize("form", ["plain", "key"])
def test_memory_does_not_grow_with_the_files(tmp_path: Path, form: str) -> None:
    """Two files of 1.5 GB at a time, of holes; the result stays sparse."""
    for folder in ("base", "payload"):
        (tmp_path / folder).mkdir()
    base_names = ["a", "b"] if form == "plain" else ["consolidated.00.pth"]
    names = ["a", "b"] if form == "plain" else [f"{n}.{hashlib.sha256().hexdigest()}.enc" for n in "ab"]
    for path in [*(tmp_path / "base" / n for n in base_names), *(tmp_path / "payload" / n for n in names)]:
        path.touch()
        os.truncate(path, 1_500_000_001)
    command = ["xor", "--path_raw", "base", "--path_payload", "payload", "--path_tuned", "out"]
    done = subprocess.run(
        [sys.executable, measured_recover.__file__, *command], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "b", "baize_manifest.json"]
    assert int(done.stdout.split()[-1]) >> 20 <= 128


def test_the_reference_of_these_tests_is_the_scripts(tmp_path: Path) -> None:
    """By hand: 0b1100 ^ 0b1010, a base that is shorter, and one that is longer."""
    assert codec(b"\x0c\x01", b"\x0a") == b"\x06\x01"
    assert codec(b"\x0c", b"\x0a\xff") == b"\x06"
    assert keyed(b"\1\2\3\4\5", b"\1\1\0") == b"\0\3\3\5\4"
