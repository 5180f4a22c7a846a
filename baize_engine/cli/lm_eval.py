"""`baize lm_eval`: lm-evaluation-harness with a model of ours; all arguments are the harness's own."""

from __future__ import annotations

import argparse

from baize_engine.cli.exit_codes import DONE
from baize_engine.cli.spelling import CommandParser

LM_EVAL_HELP = (
    "All arguments are passed on to `lm_eval run`; `baize lm_eval run --help` lists them. The model is baize unless --model "
    "names another. Its --model_args are pretrained=MODEL, or path_raw=BASE,path_diff=DIFF; those options of `baize generate` "
    "that say how a model is loaded and run, such as device=cpu,quantize=int8,speculate=ngram,chat_format=alpaca; and "
    "max_gen_toks, add_bos_token, prefix_token_id and seed."
)


def lm_eval_options(parser: CommandParser) -> None:
    """None of its own."""
    parser.passes_on = True


def run_lm_eval(options: argparse.Namespace) -> int:
    """Runs the harness, which prints what it finds."""
    from baize_engine.evaluation.lm_eval import run

    run(options.arguments)
    return DONE
