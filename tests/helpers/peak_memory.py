"""The most memory that this program has had, as Linux tells it: ru_maxrss would count the one that started it, too."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def peak_memory() -> int:
    """Bytes since the program began, or since `begin_anew`."""
    return _of_status("VmHWM")


def begin_anew() -> int:
    """From now on the peak is a later one, where the system lets it begin anew. The bytes that it begins with."""
    with suppress(OSError):  # some containers'; what was the most until now is then part of the peak
        Path("/proc/self/clear_refs").write_text("5")
        return _of_status("VmRSS")
    return peak_memory()


def _of_status(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))
