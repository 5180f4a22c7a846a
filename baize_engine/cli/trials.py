"""What `baize recover` tries with a finished result: weight_diff.py's sum, and a question to it and to its original."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from baize_engine.cli.streams import tell
from baize_engine.errors import BaizeError

if TYPE_CHECKING:
    from baize_engine.recovery.result import Result

QUESTION = "Who are you?"


class Trials:
    """The trials of one run. Made before the long work, so that what cannot be tried is refused early."""

    def __init__(self, options: argparse.Namespace) -> None:
        from baize_engine.recovery.published_sum import NaiveCheck

        self.options = options
        original = options.original_model
        self.asks = original is not None if options.test_inference is None else options.test_inference
        if original is not None and not self.asks:
            tell("--original_model is not asked, because --test_inference is off")
        elif original is not None:
            check_askable(original)
        diffs = options.path_diff if options.check_integrity_naively else []
        self.checks = [NaiveCheck(options.path_raw, path) for path in diffs]

    def run(self, results: Sequence[Result]) -> int:
        """Prints the outcome; returns 1 where a result's sum is not the one that its diff's folder states."""
        code = self._check_sums(results) if self.checks else 0
        if self.asks:
            self._ask(results)
        return code

    def _check_sums(self, results: Sequence[Result]) -> int:
        code = 0
        for check, result in zip(self.checks, results, strict=True):
            good, lines = check.compare(result)
            for line in lines[:-1]:
                print(line)
            print(lines[-1], file=sys.stdout if good and not lines[-1].startswith("warning") else sys.stderr)
            if not good:
                tell(f"{result.folder} was kept, but is not what its authors published")
                code = 1
        return code

    def _ask(self, results: Sequence[Result]) -> None:
        original = self.options.original_model
        answers = {result.folder: self._answer(str(result.folder)) for result in results}
        told = {folder: answer for folder, answer in answers.items() if answer is not None}
        wanted = self._answer(original) if told and original is not None else None
        for folder, answer in told.items():
            if wanted is None:
                print(f"{QUESTION}\n{answer}")
            else:
                same = "the same" if answer == wanted else "not the same"
                print(f"{QUESTION}\nRecovered model, {folder}:\n{answer}\nOriginal model, {original}:\n{wanted}")
                print(f"the two answers are {same}")

    def _answer(self, model: str) -> str | None:
        """The answer; None, with a warning, if a model cannot be asked, which leaves the result in place."""
        from baize_engine.engine import Engine

        try:
            with Engine.from_pretrained(model, device=self.options.device, tensor_parallel=1) as engine:
                return engine.chat([{"role": "user", "content": QUESTION}]).text
        except BaizeError as error:
            print(f"warning: {model} was not asked: {error}", file=sys.stderr)
            return None


def check_askable(path: str) -> None:
    """CheckpointError or ConfigError where the folder or hub id `path` cannot be asked in text.

    That is a weight diff, a model that the decoder does not run, or one without a tokenizer. Headers, texts, the tokenizer
    and one norm are read; torch is not loaded.
    """
    from baize_engine.checkpoint.hub import folder_of
    from baize_engine.checkpoint.index import read_index
    from baize_engine.checkpoint.norms import refuse_diff
    from baize_engine.errors import CheckpointError
    from baize_engine.model.config import ModelConfig
    from baize_engine.text import choose

    folder = folder_of(path)
    index = read_index(folder)  # first: it says best what is wrong with a folder that is no model
    config = ModelConfig.from_folder(folder)
    refuse_diff(index)
    if choose.tokenizer_of(folder, config.vocab_size) is None:
        raise CheckpointError(choose.why_none(folder) or "")
