"""Check that weights and cache fit into free memory before anything is read. Knows no model."""

from __future__ import annotations

import re
from pathlib import Path

from baize_engine.errors import RequestError


def check_fits(weights: int, cache: int, free: int | None, where: str) -> None:
    """Raise RequestError, with the sizes and a remedy, if `weights` + `cache` exceed `free`; all in bytes.

    free: from `free_bytes`; None (unknown) skips the check.
    where: the device as the message names it.
    """
    if free is None or weights + cache <= free:
        return
    remedy = (
        "set a smaller max_model_len or cache_tokens"
        if weights < free
        else "close other programs, or use a 16-bit dtype or a larger machine, or several devices (tensor_parallel)"
    )
    raise RequestError(
        f"weights {_size(weights)} and cache {_size(cache)} need {_size(weights + cache)}, "
        f"and {where} has {_size(free)} free: {remedy}"
    )


def free_bytes(device: str) -> int | None:
    """Bytes that `device` ("cpu" or "cuda[:n]") could give this process now; None if the system does not say.

    On the CPU that is Linux's MemAvailable or the rest of the container's limit, whichever is less. Both include the page
    cache, where mapped weights live.
    """
    if device == "cpu":
        limits = available_memory(Path("/proc/meminfo")), available_in_group(Path("/sys/fs/cgroup"))
        return min((free for free in limits if free is not None), default=None)
    import torch

    return int(torch.cuda.mem_get_info(device)[0])


def available_memory(meminfo: Path) -> int | None:
    """MemAvailable, in bytes, of a file like Linux's /proc/meminfo; None without such a file or line."""
    if not meminfo.is_file():
        return None
    found = re.search(r"^MemAvailable:\s*(\d+)", meminfo.read_text(), re.MULTILINE)
    return None if found is None else int(found[1]) * 1024


def available_in_group(group: Path) -> int | None:
    """Bytes left of the memory limit of a Linux control group (version 2); None without such a folder or limit."""
    if not (group / "memory.max").is_file():
        return None
    limit = (group / "memory.max").read_text().strip()
    if limit == "max":
        return None
    used = int((group / "memory.current").read_text())
    stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return max(0, int(limit) - used + int(stat["active_file"]) + int(stat["inactive_file"]))


def _size(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
