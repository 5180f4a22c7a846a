"""Base + diff straight into a decoder: the jobs of recovery with weights in memory where their files would be.

The one module that knows both recovery and the decoder's weights. The bits are those of recover, then load, then quantise;
memory is the final weights and the buffers, and nothing is written to disk.
"""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from baize_engine.backend import choose
from baize_engine.checkpoint import side_files
from baize_engine.checkpoint.base import read_base
from baize_engine.checkpoint.dtypes import ITEMSIZE
from baize_engine.checkpoint.hub import folder_of
from baize_engine.checkpoint.index import read_index
from baize_engine.checkpoint.side_files import tokenizer_problems
from baize_engine.checkpoint.vocabulary_files import FAST, MODEL, why_not_fast
from baize_engine.errors import BaizeWarning, CheckpointError, ConfigError
from baize_engine.kernels.quantized import Weight
from baize_engine.kernels.quantized import rows as rows_of
from baize_engine.loading import LoadedModel, assemble, cache_size, resolved
from baize_engine.model import names
from baize_engine.model.config import ModelConfig
from baize_engine.model.narrowing import warn_overflow
from baize_engine.model.weight_loader import allocate
from baize_engine.model.weights import check
from baize_engine.options import EngineOptions
from baize_engine.progress import Progress
from baize_engine.recovery.checks import checked_plan
from baize_engine.recovery.memory import WORKERS
from baize_engine.recovery.options import RecoveryOptions
from baize_engine.recovery.sources import Sources
from baize_engine.recovery.stream import Target, stream, traffic
from baize_engine.speculate import draft_of
from baize_engine.text import special_ids
from baize_engine.text.chat_formats import check_asked
from baize_engine.text.choose import tokenizer_in

# Workers where the CPU quantises: that takes most of the time, and temporary memory for each worker.
QUANTISING = 2


def load_diff(
    path_raw: str | os.PathLike[str],
    path_diff: str | os.PathLike[str],
    options: EngineOptions,
    recovery: RecoveryOptions,
) -> LoadedModel:
    """Recovers base + diff into memory; `Engine.from_diff` says what is refused.

    dtype, not "auto", and device of the sums are those of `options`, whatever `recovery` says.
    """
    options = resolved(options)
    recovery = replace(recovery, dtype=options.dtype, device=options.device)
    source, diff = read_base(folder_of(path_raw)), read_index(folder_of(path_diff))
    sources = Sources(source.index.stats, diff.stats)
    work = checked_plan(source, diff, recovery)
    # nothing is published, so that links may go anywhere
    files = side_files.collect(diff.folder, source.index.folder, options.dtype, work.vocab_size, follow_links=True)
    try:
        config = ModelConfig.from_dict(json.loads(files["config.json"]))
    except ConfigError as error:
        raise ConfigError(f"{diff.folder / 'config.json'}: {error}") from None
    check({job.name: job.other.shape for job in work.jobs}, config, str(diff.folder))
    wanted = names.shapes(config)
    # a stored copy of a tied head is not wanted
    work = replace(work, jobs=tuple(job for job in work.jobs if job.name in wanted))
    tokenizer = tokenizer_in(files, diff.folder, config.vocab_size)
    draft = draft_of(options, config, diff, tokenizer)
    cache_tokens = cache_size(options, config, diff, draft)
    check_asked(tokenizer, options.chat_format)
    why_no_text = None
    if tokenizer is None:
        absent = f"neither {diff.folder} nor its base has a {MODEL} or {FAST}"
        why_no_text = why_not_fast() if FAST in files else absent
    end_ids = special_ids.of_contents(files, diff.folder, tokenizer, config.vocab_size).end_ids
    for line in (*work.notes, *tokenizer_problems(files, config.vocab_size, diff.folder)):
        warnings.warn(line, BaizeWarning, stacklevel=3)  # of the caller of Engine.from_diff
    sink = WeightSink(config, options)
    target = Target(work, sink)
    workers = QUANTISING if options.quantize and options.device == "cpu" else WORKERS
    with Progress(traffic([target]), "B", recovery.progress, "recover") as bar:
        adder = choose.diff_adder(options.device)
        stream([target], adder, progress=bar.add, hashing=False, workers=workers)
    sources.check()
    warn_overflow(((name, record.overflowed) for name, record in target.records.items()), options.dtype)
    if options.device != "cpu":
        torch.cuda.synchronize(options.device)
    return assemble(config, sink.weights, options, cache_tokens, draft, end_ids, tokenizer, why_no_text)


class WeightSink:
    """A sink for `stream` that makes the weights that `load_weights` would give for the recovered folder.

    options: device, dtype and quantize, none of them "auto". Each tensor must come in order and from one thread, as `stream`
    brings it. A row that a piece cuts waits for the next piece.
    """

    def __init__(self, config: ModelConfig, options: EngineOptions) -> None:
        device, dtype, quantize = options.device, options.dtype, options.quantize
        self.device, self.quantize, self._quantizer = device, quantize, choose.quantizer(device)
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._size = ITEMSIZE[dtype]
        self._waiting: dict[str, bytearray] = {}
        self._shapes = names.shapes(config)
        self.weights: dict[str, Weight] = {}
        # where each published tensor goes: all rows of a tensor, or of a quantised matrix
        self._places: dict[str, Weight] = {}
        if device == "cpu" and quantize is None:  # as mapped files are used: each tensor by itself
            self.weights |= {name: torch.empty(shape, dtype=self._dtype) for name, shape in self._shapes.items()}
            self._places |= self.weights
            return
        for name in names.packed(config):
            self.weights[name] = allocate(name, {}, config, dtype, device, quantize)
            end = 0
            for part in names.parts(name):
                begin, end = end, end + self._shapes[part][0]
                self._places[part] = rows_of(self.weights[name], begin, end)

    def write(self, name: str, offset: int, view: memoryview) -> None:
        """Takes `view`, elements of the result's dtype that begin at byte `offset` of the tensor `name`."""
        place = self._places[name]
        if isinstance(place, Tensor):
            begin = offset // self._size
            values = torch.frombuffer(view, dtype=self._dtype)
            with torch.inference_mode():
                place.view(-1)[begin : begin + len(values)].copy_(values)
            return
        row = prod(self._shapes[name][1:]) * self._size
        waiting = self._waiting.pop(name, bytearray())
        if waiting:
            offset, view = offset - len(waiting), memoryview(waiting + view)
        whole = len(view) - len(view) % row
        if whole:
            self._pack(name, place, offset // row, view[:whole])
        if whole < len(view):
            self._waiting[name] = bytearray(view[whole:])

    def _pack(self, name: str, place: Weight, first: int, view: memoryview) -> None:
        """Quantises whole rows, on the device."""
        with torch.inference_mode():
            values = torch.frombuffer(view, dtype=self._dtype).view(-1, prod(self._shapes[name][1:])).to(self.device)
            try:
                self._quantizer(values, self.quantize, out=rows_of(place, first, first + len(values)))
            except ValueError as error:
                raise CheckpointError(f"{name}, recovered: {error}") from None
