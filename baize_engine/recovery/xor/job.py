"""One file of a result of `xor`: what it is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from baize_engine.errors import MismatchError

WRONG_BASE = (
    "the base's bytes are not those that the payload was made with. Payloads of OASST and Pygmalion need, byte for byte, the "
    "files that transformers at commit d04ec99bec8a0b432fc03ed60cea9a1a20ebaf3c with torch 1.13.1 wrote from Meta's weights "
    "(convert_llama_weights_to_hf.py): compare the base with the MD5 in the model's card, which --expect_md5 does"
)
WRONG_KEY = (
    "the key is not the file that the payload was made with, which is Meta's consolidated.00.pth of the same size as the "
    "finetune (7B, 13B)"
)


@dataclass(frozen=True)
class XorJob:
    """One file of the result: the payload from byte `begin` on, XORed with a file of the base (None: copied)."""

    name: str
    payload: Path
    payload_size: int  # bytes of the whole file
    begin: int
    base: Path | None
    base_size: int
    keyed: bool = False
    packed: bool = False  # gzip data
    sha256: str | None = None  # of the result, where the payload tells it
    head: bytes = field(default=b"", repr=False)  # first bytes of the payload as it lies there

    @property
    def nbytes(self) -> int | None:
        """Bytes of the result; None where only unpacking tells."""
        return None if self.packed else self.payload_size - self.begin

    @property
    def suspect(self) -> str:
        """What is to blame for a wrong result."""
        if self.base is None:
            return "the payload is damaged"
        return WRONG_KEY if self.keyed else WRONG_BASE

    def mismatch(self, problem: str) -> MismatchError:
        """The error of a result that is wrong."""
        sources = (
            str(self.payload) if self.base is None else f"{self.payload} with {self.base} makes a {self.name} that"
        )
        return MismatchError(f"{sources} {problem}: {self.suspect}")
