"""What is told of a file of a result that came out wrong, and how long it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from baize_engine.recovery.xor.job import WRONG_BASE, WRONG_KEY, XorJob

JOB = XorJob("config.json", Path("payload/config.json.enc"), 100, 32, Path("base/config.json"), 68)


def test_the_length_is_known_unless_it_is_packed() -> None:
    assert JOB.nbytes == 68
    assert replace(JOB, packed=True).nbytes is None


def test_the_blame_is_the_bases_the_keys_or_the_payloads() -> None:
    assert str(JOB.mismatch("is empty")) == (
        f"payload/config.json.enc with base/config.json makes a config.json that is empty: {WRONG_BASE}"
    )
    assert replace(JOB, keyed=True).suspect == WRONG_KEY
    copied = replace(JOB, base=None, keyed=True)  # nothing was XORed
    assert str(copied.mismatch("is empty")) == "payload/config.json.enc is empty: the payload is damaged"
