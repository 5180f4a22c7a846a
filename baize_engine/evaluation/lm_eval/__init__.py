"""lm-evaluation-harness (the extra `eval`) over an Engine: `run` starts the harness's own command line with the model "baize".

Importing this package does not import the harness, which is `lm_eval` without dots; `model.py`, which does, registers the
model. Knows no task: the harness brings them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from importlib.util import find_spec

from baize_engine.errors import BaizeError


def run(arguments: Sequence[str]) -> None:
    """Runs the harness's command line with `arguments`, as `completed` completes them.

    It prints its table, and exits as it does for wrong usage; its own errors, such as that of an unknown task, pass through.
    BaizeError if the harness is not installed, or what the engine refuses.
    """
    if find_spec("lm_eval") is None:
        raise BaizeError("lm-evaluation-harness is not installed, wanted lm_eval: pip install 'baize-engine[eval]'")
    from lm_eval.__main__ import cli_evaluate

    from baize_engine.evaluation.lm_eval import model  # noqa: F401  (registers it)

    given, sys.argv = sys.argv, ["lm_eval", *completed(arguments)]  # the harness reads them there
    try:
        cli_evaluate()
    finally:
        sys.argv = given


def completed(arguments: Sequence[str]) -> list[str]:
    """`arguments` with the model baize, and the device that it finds, where they run an evaluation and name none.

    Without --device, the harness would ask for the first GPU, whether there is one or not.
    """
    options = list(arguments)
    if not options or not (options[0] == "run" or options[0].startswith("-")):
        return options  # such as `ls tasks`
    if options[0] == "run":
        del options[0]
    chosen = [] if _names(options, "--model", "-M") else ["--model", "baize"]
    if not _names(options, "--device"):
        chosen += ["--device", "auto"]
    return ["run", *chosen, *options]


def _names(options: Iterable[str], name: str, short: str = "\n") -> bool:
    """Whether an option is among them, followed by its value or joined to it."""
    return any(each == name or each.startswith((f"{name}=", short)) for each in options)
