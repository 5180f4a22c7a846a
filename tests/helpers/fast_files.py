"""tokenizer.json files made on the spot: byte-level BPE as Llama-3 has it, and sentencepiece's BPE as the library writes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

BOS, EOS, EOT = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"
HEADERS = ("<|start_header_id|>", "<|end_header_id|>")
# of Llama-3's tokenizer.json
LLAMA_3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# Llama-3-Instruct's, shortened to one of its kinds of messages
TEMPLATE = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + "
    "'<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LINES = [
    "the cat sat on the mat and the dog ran to the house",
    "  Hello world, who are you? It's 12345 o'clock; we'll see!\n\n",
    "def f(x):\n    return x + 1\t# naïve café",
    "日本語のテキスト 😀 und Größe",
    "<|begin_of_text|> is not </s> nor <s> here",
]
# what tokenizers get wrong
AWKWARD = [
    "",
    " ",
    "   ",
    "\n",
    " \n \t x",
    "the cat",
    " the cat",
    "  the cat  ",
    "Hello world! It's 1234567 o'clock, isn't it? WE'LL see",
    "\u00e9 e\u0301 \u00c5 \u212b \ufb01 \uff21",  # composed, decomposed, compatible
    "日本語、中文 한국어 ไทย हिन्दी",
    "😀 👩‍👩‍👧‍👦 🏳️‍🌈 \U0001f1e9\U0001f1ea",
    "\x00\x01\x7f\u0080\u200b\ufeff\u2028\ufffd\U0010ffff",
    "a\u2581b \u2581\u2581",
    "<s></s><unk> <|begin_of_text|>x<|eot_id|> <0x0A> <x> <y>z",
    "tab\tnew\r\nline\r\r\n\n\n   end   ",
    "\u0120\u010a\u0100",  # byte-level's own spellings
    "x" * 300 + " " * 40 + "\u00df" * 30,
]


def lines() -> Iterator[str]:
    return (line for line in LINES for _ in range(20))


def special(text: str) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(text, special=True, normalized=False)


@cache
def byte_level(**changes: Any) -> str:
    """As Llama-3's: its pattern, every byte a token, special tokens behind, the begin token put in front.

    changes: None leaves out "normalizer" or "post"; "ignore_merges".
    """
    made = tokenizers.Tokenizer(models.BPE())
    split = pre_tokenizers.Split(tokenizers.Regex(LLAMA_3), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        lines(), trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    )
    made.add_special_tokens([special(text) for text in (BOS, EOS, *HEADERS, EOT)])
    made.add_tokens(["<x>", tokenizers.AddedToken("<y>", lstrip=True, rstrip=True)])
    if changes.get("post", True):
        made.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(
                    single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, made.token_to_id(BOS))]
                ),
            ]
        )
    if changes.get("normalizer"):
        made.normalizer = normalizers.NFC()
    whole = json.loads(made.to_str())
    whole["model"]["ignore_merges"] = True
    return json.dumps(whole)


@cache
def spaced(kind: str = "first") -> str:
    """As the library writes a LLaMA's: BPE with byte pieces, and a dummy space.

    kind: "first" or "always", Metaspace's; "prepend", by normalizers, as before Metaspace had these; "metaspace", also in the
    decoder; "never", without one.
    """
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    scheme = kind if kind in ("always", "never") else "first"
    meta = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)  # trains on words
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    made.train_from_iterator(lines(), trainers.BpeTrainer(vocab_size=460, special_tokens=names, show_progress=False))
    whole = json.loads(made.to_str())
    whole["added_tokens"] = [token for token in whole["added_tokens"] if token["content"] in names[:3]]
    made = tokenizers.Tokenizer.from_str(json.dumps(whole))
    made.pre_tokenizer = meta
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    if kind == "prepend":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
        made.pre_tokenizer = None
    if kind == "metaspace":
        made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    else:
        made.decoder = decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] * (kind != "never"))
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    made.add_tokens(["<x>"])
    return made.to_str()


def write(folder: Path, content: str, **config: Any) -> Path:
    """A folder with a tokenizer.json, and a tokenizer_config.json of `config` as Llama-3's is."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(content)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def llama_3(folder: Path, **config: Any) -> Path:
    """The tokenizer files of a Llama-3-Instruct, small."""
    roles = {"bos_token": BOS, "eos_token": EOT, "chat_template": TEMPLATE}
    return write(folder, byte_level(), **{**roles, **config})
