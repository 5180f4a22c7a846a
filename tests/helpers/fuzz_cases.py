"""What `fuzz.py` feeds to the readers: files made from their parts, so that a change goes deep, and then damaged bytes.

A case can be changed in its structure (`changed`) and rendered to bytes. Values come from a list of those that break readers.
"""

from __future__ import annotations

import json
import marshal
import random
import struct
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

NUMBERS = [-(1 << 63), -1, 0, 1, 2, 3, 4, 5, 7, 8, 16, 17, 255, 256, 65535, 65536, (1 << 31) - 1, 1 << 31, (1 << 32) - 1,
           1 << 32, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 64, 10**30]  # fmt: skip
TEXTS = ["", ".", "..", "/", "a", "w", "../w", "/etc/passwd", "a/b", "a\\b", "a\0b", "\x1b[31m", "ü", "\ud800", "x" * 300,
         "x" * 5000, "__class__", "__metadata__", "model.embed_tokens.weight", "F32", "BF16", "float16", "nan"]  # fmt: skip
DAMAGE = 0.15  # of the cases also have bytes changed that no structure knows of


def damaged(rng: random.Random, content: bytes) -> bytes:
    """`content` with some bytes changed, put in, taken away, or its end cut off."""
    found = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if not found:
            break
        at = rng.randrange(len(found))
        how = rng.randrange(6)
        if how == 0:
            found[at] = rng.randrange(256)
        elif how == 1:
            found[at] ^= 1 << rng.randrange(8)
        elif how == 2:
            found[at:at] = rng.choice((b"\0", b"\xff" * 8, b"PK\x05\x06", b"[", b'"', found[: rng.randrange(30)]))
        elif how == 3:
            del found[at : at + rng.choice((1, 2, 8, 64))]
        elif how == 4:
            form = rng.choice(("<H", "<L", "<Q"))
            size = struct.calcsize(form)
            found[at : at + size] = struct.pack(form, rng.choice(NUMBERS) % (1 << 8 * size))
        else:
            del found[at:]
    return bytes(found)


# JSON: safetensors headers, indexes, manifests, configs


def any_value(rng: random.Random, depth: int = 0) -> Any:
    how = rng.randrange(9 if depth < 3 else 7)
    if how < 3:
        return rng.choice(NUMBERS)
    if how < 5:
        return rng.choice(TEXTS)
    if how == 5:
        return rng.choice((None, True, False, 0.5, -0.0, 1e308, [], {}))
    if how == 6:
        return [rng.choice(NUMBERS) for _ in range(rng.choice((0, 1, 2, 3, 17, 40)))]
    if how == 7:
        return [any_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(TEXTS): any_value(rng, depth + 1) for _ in range(rng.randrange(4))}


def _places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every (container, key or index) of a tree."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        found.append((value, key))
        if isinstance(value[key], dict | list):
            _places(value[key], found)
    return found


def _copy(value: Any) -> Any:
    return marshal.loads(marshal.dumps(value))  # ten times as fast as deepcopy


@dataclass
class JsonCase:
    """A JSON document and what is done to its text."""

    value: Any
    edits: list[tuple[str, str]] = field(default_factory=list)  # replacements in the text

    def changed(self, rng: random.Random) -> JsonCase:
        case = replace(self, value=_copy(self.value), edits=list(self.edits))
        for _ in range(rng.choice((1, 1, 2, 3))):
            places = _places(case.value, []) if isinstance(case.value, dict | list) else []
            if not places or rng.random() < 0.02:
                case.value = any_value(rng)
                continue
            container, key = rng.choice(places)
            how = rng.randrange(7)
            if how == 0:
                del container[key]
            elif how == 1 and isinstance(container, dict):
                container[rng.choice(TEXTS)] = container.pop(key)
            elif how == 2 and isinstance(container[key], int):
                container[key] += rng.choice((-1, 1, 4, -4, 1 << 32))
            elif how == 3:
                other, place = rng.choice(places)
                container[key] = _copy(other[place])
            elif how == 4:  # a key twice, or a number that JSON has no name for
                case.edits.append(
                    rng.choice(
                        (('"', '"w":1,"'), ("{", '{"w":0,"w":0,'), ("0", "NaN"), ("1", "1e999"), ("1", "1" * 5000))
                    )
                )
            else:
                container[key] = any_value(rng)
        return case

    def text(self) -> bytes:
        text = json.dumps(self.value)
        for old, new in self.edits[:3]:
            text = text.replace(old, new, 1)
        return text.encode("utf-8", "surrogatepass")

    def render(self, rng: random.Random) -> bytes:
        content = self.text()
        return damaged(rng, content) if rng.random() < DAMAGE else content


@dataclass
class SafetensorsCase(JsonCase):
    """A header with its length and its data, each of which may lie."""

    length: int | None = None
    data: int = 16

    def changed(self, rng: random.Random) -> SafetensorsCase:
        fresh = safetensors_seed(rng) if rng.random() < 0.4 else self
        if fresh is not self and rng.random() < 0.2:
            return fresh
        case = super(SafetensorsCase, fresh).changed(rng)
        assert isinstance(case, SafetensorsCase)
        if rng.random() < 0.1:
            case.length = rng.choice([None, None, *NUMBERS])
        if rng.random() < 0.2:
            case.data = rng.choice((0, 8, 12, 15, 16, 17, 20, 4096))
        return case

    def render(self, rng: random.Random) -> bytes:
        text = self.text()
        length = len(text) if self.length is None else self.length
        content = struct.pack("<Q", length % (1 << 64)) + text + bytes(self.data)
        return damaged(rng, content) if rng.random() < DAMAGE else content


def safetensors_seed(rng: random.Random) -> SafetensorsCase:
    """A whole file of some tensors."""
    sizes = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I8": 1, "BOOL": 1}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}} if rng.random() < 0.5 else {}
    end = 0
    for number in range(rng.randrange(5)):
        dtype = rng.choice(list(sizes))
        shape = [rng.choice((0, 1, 2, 3, 5)) for _ in range(rng.randrange(4))]
        begin, end = end, end + prod(shape) * sizes[dtype]
        header[f"t{number}"] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    return SafetensorsCase(header, data=end)


# torch.save: a program of opcodes in an archive of entries


def text_op(text: str) -> bytes:
    content = text.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<L", len(content)) + content


def integer_op(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<l", value)
    content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


def tensor_ops(kind: str, key: str, numel: int, offset: int, shape: tuple[int, ...]) -> list[bytes]:
    """As torch.save writes a tensor."""
    stride, step = [], 1
    for length in reversed(shape):
        stride.insert(0, step)
        step *= length
    numbers = [integer_op(value) for value in shape], [integer_op(value) for value in stride]
    return [
        b"ctorch._utils\n_rebuild_tensor_v2\n", b"(", b"(", text_op("storage"), f"ctorch\n{kind}\n".encode(), text_op(key),
        text_op("cpu"), integer_op(numel), b"t", b"Q", integer_op(offset), b"(", *numbers[0], b"t", b"(", *numbers[1], b"t",
        b"\x89", b"ccollections\nOrderedDict\n", b")", b"R", b"t", b"R",
    ]  # fmt: skip


HOSTILE_OPS = [
    b"cos\nsystem\n", b"cposix\nsystem\n", b"cbuiltins\neval\n", b"c__builtin__\nexec\n", b"cbuiltins\ngetattr\n",
    b"c__main__\nx\n", b"ctorch\nload\n", b"ctorch.hub\nload\n", b"ccollections\nOrderedDict.__class__\n",
    b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n", b"cfunctools\npartial\n", b"\x93", b"R", b"b", b"i", b"o", b"\x81",
    b"\x92", b"\x82\x01", b"\x84\x01\0\0\0", b"\x96" + struct.pack("<Q", 1 << 40), b"\x8e" + struct.pack("<Q", 1 << 40),
    b"\x8d" + struct.pack("<Q", 1 << 40), b"\x8b" + struct.pack("<L", 1 << 30), b"B" + struct.pack("<L", 1 << 30),
    b"T" + struct.pack("<L", 1 << 30), b"X" + struct.pack("<L", 1 << 30), b"r\xff\xff\xff\x7f", b"j\xff\xff\xff\x7f", b"P0\n",
    b"I" + b"9" * 5000 + b"\n", b"L" + b"9" * 5000 + b"L\n", b"F1e999\n", b"S'x'\n", b"V\\ud800\n", b"ctorch\nSize\n",
    b"ctorch\nHalfStorage\n", b"ctorch._utils\n_rebuild_parameter_with_state\n", text_op("model"), text_op("state_dict"),
    b"ccollections\nOrderedDict\n", text_op("__setstate__"), text_op("dtype"), text_op("float64"),
    b"(", b")", b"t",
    b"\x85", b"\x86", b"\x87", b"]", b"}", b"a", b"e", b"s", b"u", b"q\0", b"h\0", b"q\1", b"h\1", b"\x94", b"N",
    b"\x88", b"0", b"1", b"2", b".", b"\x80\4", b"\x80\xff", b"\x95" + struct.pack("<Q", 1 << 60), b"Q",
    b"\x85" + b"q\0h\0\x86" * 60, b"\x85" + b"q\0h\0\x86" * 60 + b"K\0s",
]  # fmt: skip
METHODS = (0, 0, 0, 8, 12, 14, 99)


@dataclass
class Entry:
    name: str
    content: bytes
    lies: dict[str, int] = field(default_factory=dict)  # of the fields of its headers


@dataclass
class TorchCase:
    ops: list[bytes]
    entries: list[Entry]
    lies: dict[str, int] = field(default_factory=dict)  # of the end of the archive
    zip64: bool = False
    comment: bytes = b""

    def changed(self, rng: random.Random) -> TorchCase:
        entries = [replace(entry, lies=dict(entry.lies)) for entry in self.entries]
        case = replace(self, ops=list(self.ops), entries=entries, lies=dict(self.lies))
        for _ in range(rng.choice((1, 1, 2, 4))):
            if rng.random() < 0.65:
                case._change_program(rng)
            else:
                case._change_archive(rng)
        return case

    def _change_program(self, rng: random.Random) -> None:
        ops = self.ops
        if not ops:
            ops.append(b".")
        at = rng.randrange(len(ops))
        how = rng.randrange(7)
        if how == 0:
            del ops[at]
        elif how == 1:
            ops.insert(at, rng.choice(HOSTILE_OPS))
        elif how == 2:
            ops[at] = rng.choice(HOSTILE_OPS)
        elif how == 3:
            ops[at] = integer_op(rng.choice(NUMBERS))
        elif how == 4:
            ops[at] = text_op(rng.choice([*TEXTS, "storage", "0", "1", "data/0", "../0"]))
        elif how == 5:
            other = rng.randrange(len(ops))
            ops[at], ops[other] = ops[other], ops[at]
        else:
            begin = rng.randrange(len(ops))
            ops[at:at] = ops[begin : begin + rng.choice((1, 3, 25))][:200]
        del ops[2000:]

    def _change_archive(self, rng: random.Random) -> None:
        how = rng.randrange(6)
        fields = (
            "flags",
            "method",
            "stored",
            "size",
            "offset",
            "name",
            "extra",
            "local_name",
            "local_extra",
            "local_flags",
            "crc",
        )
        if how == 0 and self.entries:
            entry = rng.choice(self.entries)
            entry.lies[rng.choice(fields)] = rng.choice([*NUMBERS, *METHODS, 40, 60, 100])
        elif how == 1:
            self.lies[rng.choice(("count", "here", "length", "offset", "disk", "locator", "rest"))] = rng.choice(
                [*NUMBERS, 46, 100, 200, 300]
            )
        elif how == 2:
            self.zip64 = not self.zip64
        elif how == 3:
            self.comment = rng.choice((b"", b"PK\x05\x06" + bytes(18), bytes(65535), b"x"))
        elif how == 4 and self.entries:
            entry = rng.choice(self.entries)
            entry.name = rng.choice(
                [
                    *TEXTS,
                    "m/data.pkl",
                    "data.pkl",
                    "__MACOSX/data.pkl",
                    "m/data/0",
                    "m/data/1",
                    "m/byteorder",
                    "n/data/0",
                ]
            )
        else:
            self.entries.append(Entry(rng.choice(("m/data/0", "m/data/2", "m/data.pkl", "m/byteorder")), b"little"))
            del self.entries[:-40]

    def render(self, rng: random.Random) -> bytes:
        content = archive([Entry("m/data.pkl", b"".join(self.ops)), *self.entries], self.lies, self.zip64, self.comment)
        return damaged(rng, content) if rng.random() < DAMAGE else content


def archive(entries: list[Entry], lies: dict[str, int], zip64: bool = False, comment: bytes = b"") -> bytes:
    """A zip archive as torch.save makes it, with fields that may lie."""
    body, directory = bytearray(), bytearray()
    for entry in entries:

        def said(name: str, truth: int, bits: int, entry: Entry = entry) -> int:
            return entry.lies.get(name, truth) % (1 << bits)

        name, size = entry.name.encode("utf-8", "surrogatepass"), len(entry.content)
        flags, method = said("flags", 0, 16), said("method", 0, 16)
        begin = len(body)
        body += struct.pack(
            "<4s5H3L2H", b"PK\x03\x04", 45, said("local_flags", flags, 16), method, 0, 0, said("crc", 0, 32), size, size,
            said("local_name", len(name), 16), said("local_extra", 0, 16),
        )  # fmt: skip
        body += name + entry.content
        extra = b""
        numbers = [said("size", size, 64), said("stored", size, 64), said("offset", begin, 64)]
        wide = [value for value in numbers if zip64 or value >= 0xFFFFFFFF]
        if wide:
            extra = struct.pack(f"<2H{len(wide)}Q", 1, 8 * len(wide), *wide)
            numbers = [0xFFFFFFFF if zip64 or value >= 0xFFFFFFFF else value for value in numbers]
        directory += struct.pack(
            "<4s4H4L5H2L", b"PK\x01\x02", 45, 45, flags, method, 0, 0, numbers[1], numbers[0],
            said("name", len(name), 16), said("extra", len(extra), 16), 0, 0, 0, 0, numbers[2],
        )  # fmt: skip
        directory += name + extra

    def told(name: str, truth: int, bits: int) -> int:
        value = lies.get(name, truth)
        return min(value, (1 << bits) - 1) if zip64 and value >= 0 else value % (1 << bits)

    end = len(body) + len(directory)
    tail = b""
    if zip64:
        tail = struct.pack(
            "<4sQ2H2L4Q", b"PK\x06\x06", told("rest", 44, 64), 45, 45, 0, 0, told("here", len(entries), 64),
            told("count", len(entries), 64), told("length", len(directory), 64), told("offset", len(body), 64),
        )  # fmt: skip
        tail += struct.pack("<4sLQL", b"PK\x06\x07", 0, told("locator", end, 64), 1)
    tail += struct.pack(
        "<4s4H2LH", b"PK\x05\x06", told("disk", 0, 16), 0, told("here", len(entries), 16), told("count", len(entries), 16),
        told("length", len(directory), 32), told("offset", len(body), 32), len(comment),
    )  # fmt: skip
    return bytes(body + directory) + tail + comment


def torch_seeds() -> list[TorchCase]:
    one = tensor_ops("HalfStorage", "0", 6, 0, (2, 3))
    two = tensor_ops("FloatStorage", "1", 4, 1, (3,))
    entries = [Entry("m/data/0", bytes(12)), Entry("m/data/1", bytes(16)), Entry("m/version", b"3\n")]
    state = [b"\x80\2", b"}", b"q\0", b"(", text_op("w"), *one, text_op("v"), *two, b"u", b"."]
    ordered = [b"\x80\2", b"ccollections\nOrderedDict\n",
               b")", b"R", b"(", text_op("w"), *one, b"u", b"}", text_op("_metadata"),
               b"}", b"s", b"b", b"."]  # fmt: skip
    parameter = [b"\x80\2", b"}", text_op("w"), b"ctorch._utils\n_rebuild_parameter\n", b"(", *one, b"\x88",
                 b"ccollections\nOrderedDict\n", b")", b"R", b"t", b"R", b"s", b"."]  # fmt: skip
    size = [b"\x80\2", b"}", text_op("w"), b"ctorch\nSize\n", b"(", b"K\2", b"K\3", b"t", b"\x85", b"R", b"s", b"."]
    order = [*entries, Entry("m/byteorder", b"little")]
    wide = [b"\x80\2", b"}", text_op("w"), *tensor_ops("DoubleStorage", "1", 2, 1, (1,)), b"s", b"."]
    inner = [b"}", b"(", text_op("w.weight"), *one, b"u"]
    other = [text_op("optimizer"), b"}", text_op("state"), b"}", b"K\0", b"}", text_op("step"), *two, b"s", b"s", b"s",
             text_op("epoch"), b"K\3"]  # fmt: skip
    wrapped = [b"\x80\2", b"}", b"(", text_op("model"), *inner, *other, b"u", b"."]
    deep = [b"\x80\2", b"}", b"(", text_op("a"), b"}", text_op("b"), *inner, b"s", *other, b"u", b"."]
    zipped = [Entry("m/", b""), *entries[::-1], Entry("__MACOSX/m/data.pkl", b"x")]
    return [
        TorchCase(state, entries), TorchCase(state, entries, zip64=True), TorchCase(ordered, order),
        TorchCase(parameter, order),
        TorchCase(size, entries), TorchCase(state, entries, comment=b"x"), TorchCase(wide, entries),
        TorchCase(wrapped, entries), TorchCase(deep, entries), TorchCase(wrapped, zipped),
    ]  # fmt: skip
