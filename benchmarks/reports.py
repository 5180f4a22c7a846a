"""The form of a benchmark's report: rows printed and kept as they are measured, and the whole as the last line of stdout.

    with Report("decode", options, device, {"preset": "13b"}) as report:
        for batch in batches:
            with report.case(batch=batch):
                report.row({"batch": batch, "ms": measure(batch)})
    return report.code

Whatever ends a run, the rows before it are kept: an error costs the case it hit, Ctrl-C the case it hit and those after it.
The file of `--json` is in a folder that is there, which is looked up before anything is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from common import commit, device_name, versions

WIDTH = 9  # characters of a column, at least: numbers of four digits, as most rows have, stay in line
INTERRUPTED = 130  # the exit status of a program that Ctrl-C ended


class DeviceLost(RuntimeError):
    """An error after which nothing runs on the GPU in this process, such as an illegal address."""


class Report:
    """A benchmark's rows and facts. `code`: the exit status, 1 where a case failed and 130 after Ctrl-C.

    `options.json`, where it is given, names a file that holds the whole after each row. `facts` stand beside the rows and
    may be added to as they become known. "ended" among them says why a run stopped before its end.
    """

    def __init__(
        self, bench: str, options: argparse.Namespace, device: str = "cpu", facts: Mapping[str, object] | None = None
    ) -> None:
        self.facts: dict[str, Any] = dict(facts or {})
        self.rows: list[dict[str, Any]] = []
        self.code = 0
        self._file: Path | None = getattr(options, "json", None)
        if self._file and not self._file.absolute().parent.is_dir():
            raise SystemExit(f"--json {self._file}: there is no folder {self._file.absolute().parent}")
        self._device = device
        self._heads: tuple[str, ...] = ()
        self._head = {
            "bench": bench,
            "device": device_name(device),
            "commit": commit(),
            "versions": versions("torch", "triton", "numpy", "transformers", "llama_cpp_python", "ctranslate2"),
        }

    def whole(self) -> dict[str, Any]:
        """The report as it stands."""
        return {**self._head, **self.facts, "rows": self.rows}

    def row(self, row: dict[str, Any]) -> None:
        """Prints a row and keeps it."""
        self.rows.append(row)
        widths = [max(len(key), WIDTH) for key in row]
        if tuple(row) != self._heads:
            self._heads = tuple(row)
            say("  ".join(key.rjust(width) for key, width in zip(row, widths, strict=True)))
        cells = (cell(value).rjust(width) for value, width in zip(row.values(), widths, strict=True))
        say("  ".join(cells))
        self._keep()

    @contextmanager
    def case(self, **keys: object) -> Iterator[None]:
        """One thing to measure. What goes wrong in it, a check that fails included, becomes a row of `keys` and a "problem"."""
        try:
            yield
        except KeyboardInterrupt:
            self.row({**keys, "problem": "interrupted"})
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001  said in the row, and by the exit status
            self.code = 1
            if not isinstance(error, SystemExit):
                traceback.print_exc()
            said = str(error).strip().splitlines() or [""]
            kind = "" if isinstance(error, SystemExit) else f"{type(error).__name__}: "
            self.row({**keys, "problem": kind + said[0]})
            self._check_device()

    def __enter__(self) -> Report:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Prints the whole. Ctrl-C ends here, and a lost device; other errors go on."""
        known = isinstance(error, (KeyboardInterrupt, DeviceLost))
        if error is not None:
            self.facts["ended"] = "interrupted" if isinstance(error, KeyboardInterrupt) else f"{error}"
            self.code = INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1
        say(json.dumps(self.whole()))  # first: the file may be what went wrong
        self._keep()
        return known

    def _keep(self) -> None:
        if self._file:
            part = self._file.with_name(self._file.name + ".part")
            part.write_text(json.dumps(self.whole(), indent=1) + "\n")
            os.replace(part, self._file)

    def _check_device(self) -> None:
        """DeviceLost where the GPU does nothing more in this process: every later case would fail for the same reason."""
        if self._device == "cpu":
            return
        import torch

        try:
            torch.cuda.synchronize(self._device)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            raise DeviceLost(f"the GPU is lost to this process: {str(error).splitlines()[0]}") from error


def say(text: str) -> None:
    """Prints a line at once. Where nobody reads any more (`| head`), what is printed from now on goes nowhere."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rows of equal or different keys as aligned lines, the head first; numbers with four digits that matter."""
    heads = list(dict.fromkeys(key for row in rows for key in row))
    cells = [heads, *([cell(row.get(head, "")) for head in heads] for row in rows)]
    widths = [max(len(line[n]) for line in cells) for n in range(len(heads))]
    return ["  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def cell(value: object) -> str:
    """A value as tables show it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
