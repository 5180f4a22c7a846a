"""`baize`, measured: run as a script, it prints as its last line the peak memory (bytes) of its own process.

    python measured_recover.py recover --path_raw ...

The result is left sparse: its tensors' data is not written, its space not allocated. For sparse inputs, whose sums are zeros,
the files are then still those of a plain run. Inputs are read past the page cache, which takes the most memory: pages of holes
come at once, so that files of them would be taken for cached.
"""

from __future__ import annotations

import os
import sys

from peak_memory import peak_memory

from baize_engine.checkpoint import file_io, output_file, output_folder
from baize_engine.cli import main


def leave_sparse() -> None:
    write = output_file.OutputFile.write_at

    def headers_only(self: output_file.OutputFile, offset: int, view: memoryview) -> None:
        if offset == 0:
            write(self, offset, view)

    output_file.OutputFile.write_at = headers_only  # type: ignore[method-assign]
    output_file._allocate = os.ftruncate
    output_folder.check_room = lambda needs: None


def read_past_the_cache() -> None:
    file_io.is_cached = lambda *_: False


if __name__ == "__main__":
    leave_sparse()
    read_past_the_cache()
    code = main(sys.argv[1:])
    print(peak_memory())
    sys.exit(code)
