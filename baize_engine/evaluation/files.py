"""Files beside the records, which are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

from baize_engine.checkpoint.output_folder import OutputFolder


def place(path: Path, content: bytes) -> None:
    """Writes a file in place of an earlier one. OutputError, the earlier one being left, where that fails."""
    folder = OutputFolder(path.parent, resume=True)
    try:
        folder.place(path.name, content)
        folder.keep()
    finally:
        folder.discard()
