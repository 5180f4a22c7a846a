"""Whether a model's folder can be asked in text, from its headers: for what is to be asked only after long work."""

from __future__ import annotations

from baize_engine.checkpoint.hub import folder_of
from baize_engine.checkpoint.index import read_index
from baize_engine.checkpoint.norms import refuse_diff
from baize_engine.model.config import ModelConfig
from baize_engine.text.tokenizer import Tokenizer


def check_askable(path: str) -> None:
    """CheckpointError or ConfigError where `path`, a folder or a hub id, is a weight diff, a model that the decoder does not
    run, or has no tokenizer. Headers, texts, tokenizer.model and one norm are read; torch is not loaded."""
    folder = folder_of(path)
    index = read_index(folder)  # first: it says best what is wrong with a folder that is no model
    config = ModelConfig.from_folder(folder)
    refuse_diff(index)
    Tokenizer.from_folder(folder, config.vocab_size)
