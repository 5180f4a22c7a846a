"""Scripts of benchmarks/ as processes."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from assets import REPO


def report_of(script: str, *arguments: object) -> dict[str, Any]:
    """What the script says in its last line; it must succeed."""
    command = [sys.executable, str(REPO / "benchmarks" / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report
