"""EngineOptions: how an engine holds, runs and asks its model, checked where it is made. Knows no torch, files or model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from os import PathLike, fspath
from typing import Any

from baize_engine import plain
from baize_engine.checkpoint.dtypes import FLOATS
from baize_engine.distributed.world import World
from baize_engine.errors import RequestError
from baize_engine.fields import option
from baize_engine.text.chat_formats import AUTO, CHAT_FORMATS

DTYPES = ("auto", *FLOATS)
QUANTIZED = ("int8", "int4")
# csrc's own bound; far beyond it, OpenMP ends the process where the system has no more threads to give
MOST_THREADS = 1024
RANKS = (1, 2, 4, 8)  # that may hold a model together (model/share.py)
EXACT = "exact"  # tensor_parallel: the form that any number of ranks computes, also on one device
NGRAM, SELF_INT4 = "ngram", "self-int4"  # ways to speculate; any other is a model's folder
# rows of a step but one: beyond 64 rows a GPU's products change their order of summation
MOST_SPECULATED = 63


@dataclass(frozen=True)
class EngineOptions:
    """How an engine holds and runs its model; `Engine.from_pretrained` explains each field.

    A field's metadata are the settings of its flag, as argparse takes them. RequestError names the field that is wrong, what
    it holds and what it may hold.
    """

    device: str = option("auto", "auto (a GPU if there is one), cpu, cuda, or cuda:N for GPU number N")
    dtype: str = option(
        "auto", "type of the weights; auto: as in the files, or float16 with --path_diff", choices=DTYPES
    )
    quantize: str | None = option(None, "quantise the weight matrices while loading", choices=QUANTIZED)
    max_model_len: int | None = option(
        None,
        "maximum number of tokens of a prompt and its completion together (default: the model's max_position_embeddings, but "
        "at most --cache_tokens)",
        metavar="N",
    )
    cache_tokens: int | None = option(
        None,
        "size of the KV cache in tokens, for all prompts that run together (default: 64 times 512 or --max_model_len, "
        "whichever is less, but at most half of the free memory)",
        metavar="N",
    )
    threads: int | None = option(None, "number of CPU threads (default: all cores)", metavar="N")
    cache_dtype: str = option(
        "auto", "type of the KV cache; auto: float32 on the CPU, the weights' type on a GPU", choices=DTYPES
    )
    exact_activations: bool = option(
        False,
        "on a CPU, multiply quantised weights by activations of 16 bits instead of 8 (in prompts, and with int4 in every step)",
    )

    chat_format: str = option(
        AUTO,
        "format of conversations; auto: the folder's chat template, or open-instruct's format if it has none",
        choices=CHAT_FORMATS,
    )
    speculate: str | None = option(
        None,
        "propose tokens and verify several in one step; the output stays the same, bit for bit. ngram proposes what followed "
        "the same tokens earlier in the text, self-int4 what the model's own int4 form chooses; or give the folder of a "
        "smaller model with the same vocabulary",
        metavar="HOW",
    )
    speculate_tokens: int | None = option(
        None,
        "maximum number of tokens to propose at once (default: 15, and fewer while they are rejected)",
        metavar="N",
    )
    tensor_parallel: str | int = option(
        AUTO,
        "number of ranks (processes) that share the model: auto (all that torchrun has started), a number, or exact (as auto, "
        "but a single rank also gives the bits that any number of ranks gives)",
        metavar="N",
    )

    def __post_init__(self) -> None:
        if not isinstance(self.device, str):
            raise RequestError(f"device is {self.device!r}, wanted auto, cpu, cuda or cuda:N")
        for name in ("dtype", "cache_dtype"):
            if getattr(self, name) not in DTYPES:
                raise RequestError(f"{name} is {getattr(self, name)!r}, wanted {', '.join(DTYPES)}")
        if self.chat_format not in CHAT_FORMATS:
            raise RequestError(f"chat_format is {self.chat_format!r}, wanted {', '.join(CHAT_FORMATS)}")
        if self.quantize is not None and self.quantize not in QUANTIZED:
            raise RequestError(f"quantize is {self.quantize!r}, wanted None, 'int8' or 'int4'")
        self._check_count("threads", 1, MOST_THREADS)
        self._check_count("max_model_len", 2)
        self._check_count("cache_tokens", self.max_model_len or 2)
        if self.speculate is not None:
            if not isinstance(self.speculate, (str, PathLike)) or not str(self.speculate):
                wanted = "wanted None, 'ngram', 'self-int4' or a model's folder"
                raise RequestError(f"speculate is {self.speculate!r}, {wanted}")
            object.__setattr__(self, "speculate", fspath(self.speculate))
        self._check_count("speculate_tokens", 1, MOST_SPECULATED)
        if self.speculate_tokens is not None and self.speculate is None:
            raise RequestError(
                f"speculate_tokens is {self.speculate_tokens}, but speculate is None: wanted 'ngram', 'self-int4' or a model's "
                "folder"
            )
        if self.tensor_parallel not in (AUTO, EXACT):
            given = self.tensor_parallel
            number = int(given) if isinstance(given, str) and given.isascii() and given.isdigit() else given
            if plain.integer(number) not in RANKS:
                wanted = f"wanted {AUTO!r}, {EXACT!r}, {', '.join(map(str, RANKS))}"
                raise RequestError(f"tensor_parallel is {given!r}, {wanted}")
            object.__setattr__(self, "tensor_parallel", plain.integer(number))
        exact = plain.number(self.exact_activations)
        if not isinstance(exact, bool):
            raise RequestError(f"exact_activations is {self.exact_activations!r}, wanted True or False")
        object.__setattr__(self, "exact_activations", exact)

    def for_answers(self) -> dict[str, Any]:
        """The fields that decide what the model answers, by name: a run is resumed only with the same ones.

        A field that is added here must be left out while it has its default: the digests of outputs that were begun before
        it came would change.
        """
        left_out = [
            "device",
            "cache_tokens",
            "threads",
            "speculate",
            "speculate_tokens",
            *([] if self.segmented else ["tensor_parallel"]),
            *(["chat_format"] if self.chat_format == AUTO else []),
        ]
        deciding = {name: value for name, value in asdict(self).items() if name not in left_out}
        return deciding | ({"tensor_parallel": EXACT} if self.segmented else {})

    @property
    def segmented(self) -> bool:
        """Whether the model is computed in the form that any number of ranks computes, whose last bits differ."""
        world = World.of_environment()
        return self.tensor_parallel == EXACT or (self.tensor_parallel != 1 and world is not None and world.size > 1)

    def context_length(self, positions: int) -> int:
        """Most tokens of a prompt and its answer, for a model with `positions` positions.

        RequestError where max_model_len exceeds them.
        """
        if self.max_model_len is None:
            return count("max_model_len", min(positions, self.cache_tokens or positions), 2)
        if self.max_model_len > positions:
            raise RequestError(
                f"max_model_len is {self.max_model_len}, wanted at most the model's max_position_embeddings, {positions}"
            )
        return self.max_model_len

    def _check_count(self, name: str, least: int, most: int | None = None) -> None:
        value = getattr(self, name)
        if value is not None:
            object.__setattr__(self, name, count(name, value, least, most))


def count(name: str, value: Any, least: int, most: int | None = None) -> int:
    """`value` as an int from `least` to `most`; RequestError names it `name`."""
    number = plain.integer(value)
    if number is None or number < least or (most is not None and number > most):
        limit = "" if most is None else f", at most {most}"
        raise RequestError(f"{name} is {value!r}, wanted an integer of at least {least}{limit}")
    return number
