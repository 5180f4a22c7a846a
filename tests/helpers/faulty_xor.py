"""`xor` whose file operations fail, or that is killed, at one call after another: a script that runs under `io_faults.c`.

Prints a JSON object a run: facts only, which `recovery/xor/test_faults.py` judges. Its root holds base, payload and wanted.
"""

from __future__ import annotations

import functools
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from faulty_recover import FAIL, KILL, Faults, content, died

from baize_engine import verify, xor
from baize_engine.errors import BaizeError, error_chain

CHANGES = "open write pwrite fallocate truncate fsync close rename unlink mkdir"


def attempt(root: Path, **settings: object) -> dict:
    out = root / "tuned"
    facts: dict = {"error": None, "message": "", "resumed": None}
    try:
        result = xor(root / "base", root / "payload", out, progress=False, **settings)  # type: ignore[arg-type]
        facts["resumed"] = result.resumed
    except (BaizeError, OSError) as error:
        facts["error"] = type(error).__name__
        facts["message"] = error_chain(error)
    return facts | {"left": left(out)}


def left(out: Path) -> list[str] | None:
    return sorted(path.name for path in out.iterdir()) if out.exists() else None


def named_are_whole(root: Path) -> bool:
    """No file has its last name that is not as wanted."""
    wanted, found = content(root / "wanted"), content(root / "tuned")
    return all(wanted[name] == digest for name, digest in found.items() if name in wanted)


def good(root: Path) -> bool:
    found = content(root / "tuned")
    found.pop("baize_manifest.json", None)
    return found == content(root / "wanted") and verify(root / "tuned").ok


def sweep(faults: Faults, root: Path, calls: str, part: str, number: int) -> Iterator[dict]:
    first = 0
    while True:
        shutil.rmtree(root / "tuned", ignore_errors=True)
        faults.arm(FAIL, calls, str(root / part), first, False, number)
        facts = attempt(root)
        hits = faults.off()
        yield facts | {"good": facts["error"] is None and good(root)}
        if hits <= first:
            return
        first += 1


def kills(faults: Faults, root: Path, stride: int) -> Iterator[dict]:
    out, first = root / "tuned", 0
    while True:
        shutil.rmtree(out, ignore_errors=True)
        arm = functools.partial(faults.arm, KILL, CHANGES, str(out), first)
        dead = died(lambda: attempt(root), arm)
        journal = out / "baize_journal.partial"
        noted = journal.read_bytes().count(b'"name"') if journal.exists() else 0
        facts = {"killed": dead, "noted": noted, "left": left(out), "named_are_whole": named_are_whole(root)}
        facts["resumed"] = attempt(root, resume=True)
        yield facts | {"good": facts["resumed"]["error"] is None and good(root)}
        if not dead:
            return
        first += stride


if __name__ == "__main__":
    kind, root, *rest = sys.argv[2:]
    shim = Faults(sys.argv[1])
    found = (
        sweep(shim, Path(root), rest[0], rest[1], int(rest[2]))
        if kind == "sweep"
        else kills(shim, Path(root), int(rest[0]))
    )
    for facts in found:
        print(json.dumps(facts), flush=True)
