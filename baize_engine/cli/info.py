"""`baize info`: the backends of this machine, and the facts of a model from its headers."""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
import time
from collections.abc import Mapping
from functools import cache
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baize_engine import __version__
from baize_engine.cli.options import flag, path
from baize_engine.cli.streams import need_output
from baize_engine.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from baize_engine.checkpoint.index import CheckpointIndex

LINK = 25.0  # GB/s each way that copies over PCIe 4.0 x16 reach, of the 31.5 of its lanes


def info_options(parser: argparse.ArgumentParser) -> None:
    """The options of `baize info`."""
    parser.add_argument("model", nargs="?", type=path, metavar="MODEL", help="folder of a model, or a hub id")
    ranks = "also show what MODEL costs each of N ranks that share it"
    flag(parser, "--tensor_parallel", type=int, metavar="N", help=ranks)
    link = (
        f"speed at which a rank can send, for the ceiling of --tensor_parallel (default: {LINK}, that of PCIe 4.0 x16)"
    )
    flag(parser, "--link_speed", type=float, default=LINK, metavar="GB/s", help=link)


def info(options: argparse.Namespace) -> int:
    """Prints the table of implementations, and what the headers of a model say."""
    from baize_engine.backend import choose, devices
    from baize_engine.checkpoint.config_file import read_normalised
    from baize_engine.checkpoint.hub import folder_of
    from baize_engine.checkpoint.index import read_index
    from baize_engine.model.config import ModelConfig
    from baize_engine.model.share import Share

    ranks = options.tensor_parallel
    if ranks is not None and not options.model:
        options.usage_error("--tensor_parallel needs MODEL")
    if not 0 < options.link_speed < inf:
        options.usage_error(f"--link_speed is {options.link_speed}, wanted more than 0")
    need_output("the facts")
    model = None
    if options.model:  # before anything is printed about the machine
        folder = folder_of(options.model)
        index = read_index(folder)  # first: it says best what is wrong with a folder that is no model
        model = folder, index, read_normalised(folder)
        if ranks is not None:
            Share(0, ranks).check(ModelConfig.from_folder(folder))
    _say(f"baize_engine {__version__}")
    device = devices.resolve_device("auto")
    _say(f"device: {device}")
    alike: dict[tuple[str, str], list[str]] = {}  # ops by what they run on and what that was chosen from
    for op in choose.OPS:
        rows = "; ".join(f"{row.name} ({row.why_not(device) or 'can run'})" for row in choose.table(op))
        alike.setdefault((choose.implementation(op, device).name, rows), []).append(op)
    for (chosen, rows), ops in alike.items():
        _say(f"  {chosen}: {', '.join(ops)}\n    of: {rows}")
    if device != "cpu":
        _say(f"  launch settings: {choose.launch_settings(device)}")
    if model is not None:
        can_run = _info_model(*model, device)
        if can_run and ranks is not None:
            _info_ranks(folder, index, device, ranks, options.link_speed * 1e9)
    return 0


def _say(text: str) -> None:
    """Prints lines. On a terminal, one that is too long is broken between words, and goes on a little further in.

    A word that is too long, such as a path, stays in one piece, so that it can be copied.
    """
    if not sys.stdout.isatty():
        print(text)
        return
    width = shutil.get_terminal_size().columns
    wrapper = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False)
    for line in text.split("\n"):
        wrapper.subsequent_indent = " " * (len(line) - len(line.lstrip()) + 2)
        print(wrapper.fill(line) or line)


def _info_model(folder: Path, index: CheckpointIndex, config: Mapping[str, Any], device: str) -> bool:
    """Prints what the headers say. False for a diff: how it would be run and how fast is left out."""
    from baize_engine.checkpoint.norms import why_diff

    dtypes = sorted({entry.stored_dtype for entry in index.entries.values()})
    size = sum(entry.stored_nbytes for entry in index.entries.values())
    _say(
        f"{folder}: {len(index.entries)} tensors in {len(index.files)} file(s), {size / 1e9:.3f} GB, {', '.join(dtypes)}"
    )
    _say(
        f"  {config['num_hidden_layers']} layers, hidden {config['hidden_size']}, {config['num_attention_heads']} heads, "
        f"{config['num_key_value_heads']} kv heads, "
        f"intermediate {config['intermediate_size']}, vocabulary {config['vocab_size']}, "
        f"{config['max_position_embeddings']} positions"
    )
    if diff := why_diff(index):
        _say(f"  {diff}")
        return False
    _info_ids(folder, config["vocab_size"])
    _info_costs(folder, index, device)
    return True


def _info_ids(folder: Path, vocab_size: int) -> None:
    """Prints the ids around prompts, the ids that end a text and the chat format, and which file says so."""
    from baize_engine.text import choose, special_ids
    from baize_engine.text.chat_formats import format_of

    try:
        tokenizer = choose.tokenizer_of(folder, vocab_size)
        found = special_ids.of_folder(folder, tokenizer, vocab_size)
        chat = format_of(tokenizer)
    except CheckpointError as error:
        _say(f"  no text: {error}")
        return
    text = found.text
    if tokenizer is None:
        _say(f"  no text: {choose.why_none(folder)}")
    elif text.adds_bos:
        _say(f"  prompts begin with id {text.bos_id}: {text.bos_why}")
    else:
        _say(f"  prompts get no BOS id: {'none is known' if text.bos_id is None else 'the files ask for none'}")
    if tokenizer is not None:
        _say(f"  chat format: {chat.name}: {chat.why}")
    if text.adds_eos:
        _say(f"  prompts end with id {text.eos_id}: the files ask for it; {text.eos_why}")
    _say(f"  texts end with {'; '.join(f'id {end}: {why}' for end, why in found.ends.items()) or 'no id'}")
    for line in found.passed_over:
        _say(f"  passed over: {line}")


def _info_costs(folder: Path, index: CheckpointIndex, device: str) -> None:
    """Prints what the model takes in memory, what a decode step moves, and the speed that this machine's memory allows."""
    from baize_engine.checkpoint.dtypes import FLOATS
    from baize_engine.model import cost, names
    from baize_engine.model.config import ModelConfig

    try:
        config = ModelConfig.from_folder(folder)
    except ConfigError as error:
        _say(f"  not a model that this decoder runs: {error}")
        return
    table = index.entries.get(names.EMBED)
    if table is None or table.dtype not in FLOATS:
        found = "no such tensor" if table is None else table.dtype
        _say(f"  not a model that this decoder runs: {names.EMBED}: {found}, wanted {', '.join(FLOATS)}")
        return
    activation = "float32" if device == "cpu" else table.dtype
    kv = cost.kv_bytes_per_token(config, cost.itemsize(activation))
    _say(f"  parameters: {cost.parameters(config):,}; KV cache: {kv:,} bytes a token in {activation}")
    speed, how = _memory_speed(device)
    _say(f"  memory of {device}: {f'{speed / 1e9:.1f} GB/s, ' if speed else ''}{how}")
    context = min(128, config.max_position_embeddings)
    _say(f"  decode at batch 1 and context {context}:")
    for kind in (config.held,) if config.held else (table.dtype, "int8", "int4"):
        costs = cost.decode_step(config, kind, 1, context, activation, table.dtype)
        weights = cost.weight_bytes(config, kind, activation, table.dtype)
        ceiling = f"{cost.ceiling_tokens_per_second(costs, 1, speed):,.1f} tok/s" if speed else "not known"
        moved = sum(each.bytes for each in costs)
        _say(f"    {kind:<9} weights {weights / 2**30:.3f} GiB, {moved:,} bytes a step, ceiling {ceiling}")


def _info_ranks(folder: Path, index: CheckpointIndex, device: str, ranks: int, link: float) -> None:
    """Prints what each of `ranks` ranks holds, reads and sends in a decode step, and the speed that memory and link allow."""
    from baize_engine.backend.memory import free_bytes
    from baize_engine.model import names
    from baize_engine.model.config import ModelConfig
    from baize_engine.model.parallel_cost import rank_cost

    config, table = ModelConfig.from_folder(folder), index.entries[names.EMBED].dtype
    activation = "float32" if device == "cpu" else table
    context = min(128, config.max_position_embeddings)
    free, (speed, _) = free_bytes(device), _memory_speed(device)
    sharing = ranks if device == "cpu" else 1
    _say(
        f"  each of {ranks} ranks, decode at batch 1 and context {context}, each rank's memory as fast as this machine's, "
        f"its link with {link / 1e9:g} GB/s, and no time for starting an exchange:"
    )
    for kind in (config.held,) if config.held else (table, "int8", "int4"):
        found = rank_cost(config, ranks, kind, 1, context, activation, table)
        _say(
            f"    {kind:<9} weights {found.weights / 2**30:.3f} GiB, KV cache {found.kv:,} bytes a token, "
            f"{found.exchanges} exchanges and {found.sent:,} bytes sent a step; {_fits(found.weights, found.kv, free, sharing)}"
        )
        if speed:
            memory, sending = found.seconds(speed, link)
            by_link = f"{1 / sending:,.1f} by link" if sending else "no link"
            _say(
                f"              ceiling {1 / memory:,.1f} tok/s by memory, {by_link}, {1 / (memory + sending):,.1f} by both"
            )


def _fits(weights: int, kv: int, free: int | None, sharing: int) -> str:
    """sharing: ranks that would have the same memory if all were here."""
    if free is None:
        return "free memory is not known"
    if weights + kv > free:
        return f"does not fit in the {free / 2**30:.1f} GiB free here"
    fits = f"fits in the {free / 2**30:.1f} GiB free here, with {(free - weights) // kv:,} tokens"
    if sharing == 1:
        return fits
    part = free // sharing  # as Team.memory_share
    if weights + kv > part:
        return f"{fits}; all {sharing} on this machine do not"
    return f"{fits}; all {sharing} on this machine with {(part - weights) // kv:,}"


@cache  # the same for both tables of a model
def _memory_speed(device: str) -> tuple[float | None, str]:
    """(bytes a second of the memory, the best of a few runs; how that was measured). None where it could not be."""
    import torch

    size = (256 if device == "cpu" else 1024) << 20  # larger than caches
    best = float("inf")
    try:
        source = torch.ones(size // 4, device=device)
        copy = None if device == "cpu" else torch.empty_like(source)
        for _ in range(3 if copy is None else 10):
            begin = time.perf_counter()
            if copy is None:
                source.sum()
            else:
                copy.copy_(source)
                torch.cuda.synchronize(device)
            best = min(best, time.perf_counter() - begin)
    except RuntimeError as error:  # the device has no room, however torch puts it
        return None, f"speed not measured: {str(error).splitlines()[0]}"
    if copy is None:
        return size / best, f"measured by a read of {size >> 20} MiB now"
    # a copy reads and writes them
    return 2 * size / best, f"measured by a copy of {size >> 20} MiB now"
