"""The files of an evaluation: what the records' is called, and how those beside it are written, whole or not at all."""

from __future__ import annotations

from pathlib import Path

from baize_engine.checkpoint.output_folder import OutputFolder


def records_name(task: str) -> str:
    """The name of the file with a task's records."""
    return f"{task}.jsonl"


def place(path: Path, content: bytes) -> None:
    """Writes a file in place of an earlier one. OutputError, the earlier one being left, where that fails."""
    folder = OutputFolder(path.parent, resume=True)
    try:
        folder.place(path.name, content)
        folder.keep()
    finally:
        folder.discard()
