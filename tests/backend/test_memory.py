"""The memory check: sizes and remedy in its refusal, and silence where the system does not say what is free."""

from __future__ import annotations

from pathlib import Path

import pytest

from baize_engine.backend.memory import available_in_group, available_memory, check_fits
from baize_engine.errors import RequestError

GIB = 2**30


def test_refuses_with_sizes_and_a_remedy_for_what_is_too_large() -> None:
    with pytest.raises(RequestError) as refused:
        check_fits(3 * GIB, 2 * GIB, 4 * GIB, "this machine")
    message = str(refused.value)
    assert "weights 3.00 GiB and cache 2.00 GiB need 5.00 GiB, and this machine has 4.00 GiB free" in message
    assert "smaller max_model_len or cache_tokens" in message
    with pytest.raises(RequestError, match="16-bit dtype or a larger machine"):
        check_fits(5 * GIB, 0, 4 * GIB, "this machine")


@pytest.mark.parametrize("free", [5 * GIB, None])
def test_lets_pass_what_fits_or_is_not_known(free: int | None) -> None:
    assert check_fits(3 * GIB, 2 * GIB, free, "this machine") is None


def test_reads_the_available_memory(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    assert available_memory(meminfo) is None
    meminfo.write_text("MemTotal:  100 kB\n")
    assert available_memory(meminfo) is None
    meminfo.write_text("MemTotal:       24000000 kB\nMemAvailable:   12000000 kB\n")
    assert available_memory(meminfo) == 12_000_000 * 1024


def test_reads_what_a_containers_limit_leaves(tmp_path: Path) -> None:
    """Page cache counts as free, as it does in MemAvailable."""
    assert available_in_group(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    assert available_in_group(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 300000\nfile 400000\ninactive_file 150000\nactive_file 200000\n")
    assert available_in_group(tmp_path) == 650_000
    (tmp_path / "memory.max").write_text("100000\n")
    assert available_in_group(tmp_path) == 0
