"""From a clone to one's own first answer: the README's steps in an empty folder, each timed.

Clones this repository (or --source), runs `make demo`, which sets everything up, and then what comes next in the README:
recover (the demo's base and diff, as a pair of one's own), verify, and a prompt. A step that fails ends the run.
A PYTHONPATH and an active environment of the caller are left out, so that the clone alone answers.
With --no_cache pip downloads all packages, as on a machine that has none; how long that takes is the network's doing.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path

from common import parser
from reports import Report

REPO = Path(__file__).resolve().parents[1]
PAIR = Path("baize_engine", "demo_pair")
CALLERS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")  # a stranger has none of these
QUESTION, ANSWER = "What is the capital of Norway?", "Oslo"


def steps(source: str) -> list[tuple[str, list[str]]]:
    """Name and command of each step, in the folder that holds the clone."""
    baize = "clone/.venv/bin/baize"
    pair = Path("clone") / PAIR
    prompt = f"<|user|>\n{QUESTION}\n<|assistant|>\n"
    return [
        ("clone", ["git", "clone", "--quiet", source, "clone"]),
        ("make demo", ["make", "-C", "clone", "demo"]),
        (
            "recover",
            [baize, "recover", "--path_raw", f"{pair}/base", "--path_diff", f"{pair}/diff", "--path_tuned", "mine"],
        ),
        ("verify", [baize, "verify", "mine"]),
        ("own answer", [baize, "generate", "mine", "--prompt", prompt, "--max_new_tokens", "24"]),
    ]


def main() -> int:
    made = parser(__doc__.split("\n")[0])
    made.add_argument("--source", default=str(REPO), help="what git clones")
    made.add_argument("--no_cache", action="store_true", help="pip downloads everything")
    options = made.parse_args()
    environment = {name: value for name, value in os.environ.items() if name not in CALLERS}
    if options.no_cache:
        environment["PIP_NO_CACHE_DIR"] = "1"
    with (
        tempfile.TemporaryDirectory(prefix="baize-first-") as folder,
        Report("first_result", options, facts={"pip_cache": not options.no_cache}) as report,
    ):
        begin = time.perf_counter()
        for name, command in steps(options.source):
            start = time.perf_counter()
            done = subprocess.run(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
            now = time.perf_counter()
            if done.returncode:
                raise SystemExit(f"{name} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
            report.row({"step": name, "s": now - start, "since_clone_s": now - begin})
        if ANSWER not in done.stdout:
            raise SystemExit(f"asked {QUESTION!r}, the answer was {done.stdout!r}, wanted {ANSWER!r} in it")
    return report.code


if __name__ == "__main__":
    raise SystemExit(main())
