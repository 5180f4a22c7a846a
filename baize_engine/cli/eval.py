"""`baize eval`: evaluates a model on the tasks of the model card."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from baize_engine.cli.exit_codes import DONE, INTERRUPTED, SOME_FAILED
from baize_engine.cli.options import (
    ROWS,
    check_model_options,
    engine_options,
    field_flags,
    field_values,
    flag,
    load_engine,
    model_folders,
    model_options,
    path,
    text,
)
from baize_engine.cli.streams import tell
from baize_engine.evaluation import card
from baize_engine.evaluation.options import EvaluationOptions

# settings that do not follow from the fields' types
FLAGS: dict[str, dict[str, Any]] = {
    "add_bos": {"action": "store_false"},
    "subjects": {"type": text},
    "annotations": {"type": path},
}


def eval_options(parser: argparse.ArgumentParser) -> None:
    """The options of `baize eval`."""
    parser.usage = "%(prog)s MODEL --tasks TASK [TASK ...] --data DIR --out DIR [options]"  # MODEL last would be a TASK
    known = "; ".join(f"{row.name} ({row.figures})" for row in card.ROWS)
    wanted = f"one or more of these, or {card.ALL} for all (in brackets: the model card's figures, in percent): {known}"
    flag(parser, "--tasks", required=True, nargs="+", type=text, metavar="TASK", help=wanted)
    data = "folder with the tasks' data, as downloaded; an error lists what is missing and where to get it"
    flag(parser, "--data", required=True, type=path, metavar="DIR", help=data)
    out = "folder to write: results.json, and TASK.jsonl with a record for each example"
    flag(parser, "--out", required=True, type=path, metavar="DIR", help=out)
    flag(
        parser,
        "--resume",
        action="store_true",
        help="continue from the records of an interrupted run with the same options",
    )
    field_flags(parser, EvaluationOptions, FLAGS)
    flag(parser, "--quiet", action="store_true", help="show no progress bar")
    model_options(parser, without=("chat_format",))  # --format says what the prompts are


def run_eval(options: argparse.Namespace) -> int:
    """Runs the tasks, shows their table, and writes it and their records to --out."""
    chosen = EvaluationOptions(**field_values(options, EvaluationOptions))
    tasks, out = card.tasks(options.tasks, chosen), Path(options.out)
    check_model_options(options)
    from baize_engine.evaluation.report import check_out, table
    from baize_engine.evaluation.selection import select

    # what is wrong with data and output is told before a model is loaded
    check_out(out, [task.name for task in tasks], options.resume)
    selections = select(tasks, Path(options.data), chosen)
    if chosen.allow_code_execution and any(task.name == card.HUMANEVAL for task in tasks):
        _tell_isolation()
    model = _model(options)
    with load_engine(options) as engine:
        from baize_engine.evaluation.run import run

        try:
            results = run(engine, selections, out, chosen, options.resume, not options.quiet, model)
        except KeyboardInterrupt:
            print(f"\nbaize: interrupted; {_left(out, [one.task.name for one in selections])}", file=sys.stderr)
            return INTERRUPTED
    for line in table(results):
        print(line)
    return SOME_FAILED if any(result.failed for result in results) else DONE


def _tell_isolation() -> None:
    """Tells how programs that a model writes are isolated on this system; BackendError if none can run."""
    from baize_engine.evaluation.code_execution import CodeRunner

    for line in CodeRunner().isolation():
        tell(line)


def _model(options: argparse.Namespace) -> dict[str, Any]:
    """Identifies the model, for results.json and --resume."""
    from baize_engine.batch.run import describe_model

    settings = {**engine_options(options).for_answers(), **{name: getattr(options, name) for name in ROWS}}
    return describe_model(model_folders(options), settings)


def _left(out: Path, tasks: list[str]) -> str:
    """What --resume can continue from after an interruption."""
    from baize_engine.evaluation.files import records_name

    files = [out / records_name(task) for task in tasks]
    done = sum(file.read_bytes().count(b"\n") for file in files if file.exists())
    return f"{done} records are in {out}; --resume continues" if done else "nothing was answered yet"
