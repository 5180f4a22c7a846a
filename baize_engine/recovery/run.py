"""The run that `recover` and `make_diff` share: one pass over the base for all outputs, each with its folder and journal.

Nothing is written before every output has passed its checks.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from baize_engine.backend import choose
from baize_engine.backend.adders import Adder
from baize_engine.checkpoint.base import Base
from baize_engine.checkpoint.output_folder import check_room
from baize_engine.errors import OutputError
from baize_engine.progress import Progress
from baize_engine.recovery.memory import fit
from baize_engine.recovery.options import RecoveryOptions
from baize_engine.recovery.output import Output
from baize_engine.recovery.result import Result
from baize_engine.recovery.stream import stream, traffic


def run(base: Base, outputs: Sequence[Output], options: RecoveryOptions) -> list[Result]:
    """Makes all outputs, which share `base` and `options`, and returns their results in the same order."""
    _check_folders(outputs)
    make_adder = choose.diff_adder(options.device)
    if not options.subtract:
        for output in outputs:
            output.warn()
    for output in outputs:
        output.expect.check_before(output.plan, base, output.other, make_adder)
    pending = [output for output in outputs if not output.finished_before]
    if pending:
        _write(pending, options, make_adder)
    for output in outputs:
        if output.finished_before:
            output.check_records()
    return [output.result() for output in outputs]


def _check_folders(outputs: Sequence[Output]) -> None:
    """No folder twice, and room on the disks for all together."""
    seen: dict[Path, Path] = {}
    for output in outputs:
        if seen.setdefault(output.folder.resolve(), output.folder) is not output.folder:
            raise OutputError(errno.EEXIST, f"{output.folder} is named for two results, wanted a folder for each")
    check_room((output.folder, output.bytes_needed) for output in outputs if output.bytes_needed)


def _write(outputs: Sequence[Output], options: RecoveryOptions, make_adder: Callable[[], Adder]) -> None:
    workers, piece = fit(options.memory_mib)
    with ExitStack() as stack:
        for output in outputs:
            output.lock(stack)  # all old journals, before anything is changed
        for output in outputs:
            output.open(stack)
        targets = [output.target for output in outputs]
        with Progress(traffic(targets), "B", options.progress, options.operation) as bar:
            bar.add(traffic(targets) - traffic(targets, left=True))
            stream(targets, make_adder, workers=workers, piece=piece, progress=bar.add)
        for output in outputs:
            output.check_records()
        base_files = outputs[0].recorded("base")  # of all outputs: hashed once
        backend = make_adder().name
        for output in outputs:
            output.make_manifest(backend, base_files)
            output.sources.check()
        for output in outputs:
            output.finish(stack)
