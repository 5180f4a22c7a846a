"""How files of a model begin, by their names: XOR files, and results of the wrong base, begin otherwise."""

from __future__ import annotations

from collections.abc import Callable

HEAD = 4096  # bytes that are looked at before anything is written
# what torch.save writes since 1.6. The older form is no excuse: a base in it makes a result that begins as it does
ZIP = b"PK\x03\x04"
TORCH = (".bin", ".pth", ".pt")


def why_not(name: str, head: bytes) -> str:
    """Why a file that begins with `head`, all of it or some bytes, cannot be what `name` says; "" where it can."""
    return next((look(head) for suffix, look in _HEADS if name.endswith(suffix)), "")


def are_swapped(name: str, payload: bytes, base: bytes) -> bool:
    """Whether the payload's file begins as one of a model does and the base's, which is not empty, does not.

    Where both are what they should be the payload begins with zeros, or as gzip data do.
    """
    return bool(payload and base) and not why_not(name, payload) and why_not(name, base) != ""


def _json(head: bytes) -> str:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n")
    if text[:1] not in (b"{", b"["):
        return "which is not JSON"
    control = next((at for at, byte in enumerate(head) if byte < 32 and byte not in b"\t\r\n"), None)
    return "" if control is None else f"and its byte {control} is {head[control]}, which is not JSON"


def _torch(head: bytes) -> str:
    return "" if head.startswith(ZIP) else "wanted 'PK', as torch.save writes it"


def _safetensors(head: bytes) -> str:
    length = int.from_bytes(head[:8], "little")
    return "" if head[8:9] == b"{" and 2 <= length < 1 << 27 else "which is no header of safetensors"


def _sentencepiece(head: bytes) -> str:
    return "" if head.startswith(b"\n") else "which is no sentencepiece model"


_HEADS: tuple[tuple[str, Callable[[bytes], str]], ...] = (
    (".json", _json),
    *((suffix, _torch) for suffix in TORCH),
    (".safetensors", _safetensors),
    ("tokenizer.model", _sentencepiece),
)
