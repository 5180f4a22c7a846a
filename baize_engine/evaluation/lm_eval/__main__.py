"""`python -m baize_engine.evaluation.lm_eval`: the harness's command line, as `baize lm_eval` starts it."""

from __future__ import annotations

import sys

from baize_engine.errors import BaizeError, error_chain
from baize_engine.evaluation.lm_eval import run

if __name__ == "__main__":
    try:
        run(sys.argv[1:])
    except BaizeError as error:
        sys.exit(f"baize: {error_chain(error)}")
