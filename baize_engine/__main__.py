"""`python -m baize_engine` is the `baize` command."""

import sys

from baize_engine.cli import main

if __name__ == "__main__":
    sys.exit(main())
