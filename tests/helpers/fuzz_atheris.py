"""The promises of `fuzz.py` under libFuzzer's coverage, where atheris is installed (pip install atheris; in no extra).

python tests/helpers/fuzz_atheris.py torch -runs=100000 -seed=1        the other arguments are libFuzzer's

Cases are bytes, begun from the seeds of `fuzz_cases.py`. A broken promise ends the run with a traceback and the case in a file.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["baize_engine.checkpoint"]):
    import fuzz
    import fuzz_readers


def main() -> None:
    name, *rest = sys.argv[1:]
    with tempfile.TemporaryDirectory() as root:
        corpus, files = Path(root) / "corpus", Path(root) / "files"
        corpus.mkdir()
        files.mkdir()
        target = fuzz_readers.targets(files)[name]
        rng = random.Random(0)
        for number in range(200):
            case = rng.choice(target.pool)
            case = case if number < len(target.pool) else case.changed(rng)
            (corpus / str(number)).write_bytes(case.render(fuzz_readers.Whole()))
        watch = fuzz.Watch(files)
        for path in corpus.iterdir():  # whatever the reader imports, it imports now
            fuzz.run_case(target, watch, path.read_bytes(), armed=False)
        atheris.Setup([sys.argv[0], *rest, str(corpus)], lambda content: fuzz.run_case(target, watch, content) and None)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
