"""Lists of published sums in the forms that cards have, and what they are compared with."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from published_xor import files, md5_list, publish_by_file, publish_by_key, result, run

from baize_engine import verify
from baize_engine.errors import BaizeError, MismatchError


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
