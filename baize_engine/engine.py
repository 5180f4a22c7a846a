"""Engine: the facade over model, tokenizer and decode loop. Only here do text and token ids meet.

Many prompts run together, but a result depends only on its prompt, parameters and seed.
"""

from __future__ import annotations

from collections import abc
from contextlib import aclosing, closing
from functools import cached_property
from itertools import accumulate, groupby
from pathlib import Path
from typing import TYPE_CHECKING

from baize_engine import outputs, plain
from baize_engine.checkpoint.dtypes import FLOATS
from baize_engine.completion import Completion
from baize_engine.errors import RequestError
from baize_engine.generation.params import SamplingParams
from baize_engine.generation.sampling import TokenLogprobs
from baize_engine.generation.scoring import Endings, GivenTokens, NextToken
from baize_engine.generation.sequence import Sequence
from baize_engine.generation.serving import Serving
from baize_engine.generation.usage import Since, Usage
from baize_engine.loaded_model import LoadedModel
from baize_engine.loading import load
from baize_engine.options import EngineOptions
from baize_engine.outputs import raise_error, scored
from baize_engine.progress import Progress
from baize_engine.requests import Prompt, Requests
from baize_engine.text import chat
from baize_engine.text.chat_formats import ChatFormat, format_of
from baize_engine.text.options import TextOptions

if TYPE_CHECKING:
    from types import TracebackType


class Engine:
    """A loaded model that serves requests. Load one with `from_pretrained` or `from_diff`.

    An engine is a context manager; `close` frees the weights and the cache. Any number of threads and coroutines may call it:
    their requests run in one batch, joining as they arrive and leaving as they end. When the cache is full, the requests
    that started last are swapped out to host memory and continue later. With `speculate`, steps also verify proposed tokens:
    results stay the same, bit for bit, and take fewer steps. A process made by fork cannot use the engine.

    Attributes:
        tokenizer (Tokenizer | None): the model's tokenizer, or None.
        vocab_size (int): number of token ids; prompts may use 0 to vocab_size - 1.
        max_model_len (int): the most tokens of a prompt and its answer together.
        eos_token_ids (tuple[int, ...]): the ids that end an answer unless SamplingParams.ignore_eos is set.
    """

    def __init__(self, model: LoadedModel) -> None:
        self._serving = Serving(model.loop, model.on_close)
        self._asked_format = model.chat_format
        self.tokenizer = model.tokenizer
        self.vocab_size = model.vocab_size
        self.max_model_len = model.max_model_len
        # the token that closes a reply in the chat format ends answers to prompts of ids, too
        own = () if self.tokenizer is None or self.tokenizer.eos_id is None else (self.tokenizer.eos_id,)
        self.eos_token_ids = tuple(dict.fromkeys((*model.eos_token_ids, *own)))
        self._requests = Requests(
            self.vocab_size, self.max_model_len, self.eos_token_ids, self.tokenizer, model.why_no_text
        )

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        device: str = "auto",
        dtype: str = "auto",
        quantize: str | None = None,
        max_model_len: int | None = None,
        cache_tokens: int | None = None,
        threads: int | None = None,
        cache_dtype: str = "auto",
        exact_activations: bool = False,
        chat_format: str = "auto",
        speculate: str | None = None,
        speculate_tokens: int | None = None,
        tensor_parallel: str | int = "auto",
    ) -> Engine:
        """Loads a model from a folder: a recovered one, or any LLaMA in the layout of transformers.

        Without tokenizer.model and tokenizer.json, the engine serves token ids only.

        Arguments:
            path: the folder, or a hub id.
            device: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:N".
            dtype: type of the weights: "auto" (as in the files), "float32", "float16" or "bfloat16".
            quantize: "int8" or "int4" quantises the matrices while they load. Not needed for a folder that `quantize` wrote.
            max_model_len: the most tokens of a prompt and its answer together. Default: the smaller of the config's
                max_position_embeddings and cache_tokens.
            cache_tokens: capacity of the KV cache in tokens, at least max_model_len. Default: 64 times 512, or 64 times
                max_model_len if that is less, but at most half of the memory that the weights leave free.
            threads: torch's CPU threads, for the whole process. Default: torch's setting.
            cache_dtype: type of the KV cache: "auto" (float32 on the CPU, the weights' type on a GPU), or on the CPU
                "float32", "float16" or "bfloat16".
            exact_activations: if False, a CPU multiplies int4 weights, and int8 weights in prompts, with 8 bits per
                activation instead of 16, which is faster and rounds more.
            chat_format: how `chat` writes a conversation: "template" (the folder's chat template), "open_instruct", "alpaca",
                "vicuna" or "raw"; "auto": the folder's template, or open-instruct's format if it has none.
            speculate: how to propose tokens, several of which one step verifies; the output stays the same, bit for bit.
                "ngram" proposes what followed the same tokens earlier in the text; "self-int4" what the model's int4 form
                chooses, for float or int8 weights; anything else is the folder of a smaller model with the same vocabulary.
            speculate_tokens: the most tokens to propose at once. Default: 15, and fewer while they are rejected or cost too
                much.
            tensor_parallel: number of ranks (processes) that share the model. "auto": all that torchrun has started, or this
                process alone; a number; "exact": as "auto", but a single rank also gives the bits that any number of ranks
                gives. This returns on rank 0 only: the others load their part and follow rank 0 until it ends.

        Raises:
            RequestError: an argument is wrong, or weights and cache exceed the free memory; the message has the sizes.
            BackendError: the device cannot be used; the message says why.
            ConfigError: config.json describes a model that this engine cannot run correctly.
            CheckpointError: a file is missing or damaged; the message names it.
            DistributedError: ranks differ from each other, or one of them ended.
        """
        options = EngineOptions(
            device,
            dtype,
            quantize,
            max_model_len,
            cache_tokens,
            threads,
            cache_dtype,
            exact_activations,
            chat_format,
            speculate,
            speculate_tokens,
            tensor_parallel,
        )
        return cls(load(path, options))

    @classmethod
    def from_diff(
        cls,
        path_raw: str | Path,
        path_diff: str | Path,
        device: str = "auto",
        dtype: str = "float16",
        quantize: str | None = None,
        max_model_len: int | None = None,
        cache_tokens: int | None = None,
        threads: int | None = None,
        cache_dtype: str = "auto",
        exact_activations: bool = False,
        chat_format: str = "auto",
        speculate: str | None = None,
        speculate_tokens: int | None = None,
        tensor_parallel: str | int = "auto",
        *,
        force: bool = False,
        new_rows: str = "auto",
        drop_rows: bool = False,
        progress: bool = False,
    ) -> Engine:
        """Recovers base + diff straight into memory, without writing to disk.

        The weights equal, bit for bit, those of `recover(path_raw, path_diff, …, dtype)` followed by
        `from_pretrained(…, quantize=…)`. Peak memory is the weights plus some buffers.

        The arguments that are not listed, and the other errors, are those of `from_pretrained`.

        Arguments:
            path_raw: the base, as `recover` takes it: a folder or a hub id.
            path_diff: the diff, in the same way.
            dtype: type of the sums: "float32", "float16" or "bfloat16".
            force: as in `recover`.
            new_rows: as in `recover`.
            drop_rows: as in `recover`.
            progress: show a progress bar if stderr is a terminal.

        Raises:
            MismatchError: base and diff do not belong together.
        """
        from baize_engine.from_diff import load_diff
        from baize_engine.recovery.options import RecoveryOptions

        if dtype not in FLOATS:  # "auto", the type in the files, does not apply to a sum
            raise RequestError(f"dtype is {dtype!r}, wanted {', '.join(FLOATS)}")
        options = EngineOptions(
            device,
            dtype,
            quantize,
            max_model_len,
            cache_tokens,
            threads,
            cache_dtype,
            exact_activations,
            chat_format,
            speculate,
            speculate_tokens,
            tensor_parallel,
        )
        recovery = RecoveryOptions(new_rows=new_rows, drop_rows=drop_rows, force=force, progress=progress)
        return cls(load_diff(path_raw, path_diff, options, recovery))

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Frees weights and cache. Later requests, and the rest of those in progress, raise RequestError."""
        self._serving.close()

    @property
    def usage(self) -> Usage:
        """Tokens asked for, computed and made, and steps, in all calls so far. RequestError once the engine is closed."""
        return self._serving.loop.usage

    # Requests. Each is checked completely before its first token is computed.

    def generate(
        self,
        prompts: Prompt | abc.Sequence[Prompt],
        params: SamplingParams | abc.Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
        parse_special: bool = False,
        add_bos: bool | None = None,
    ) -> list[Completion]:
        """Generates params.n completions of each prompt. Returns them in the order of the prompts.

        Arguments:
            prompts: a text, a list or array of token ids, or a list of these. Any number; they run together as far as the
                cache has room.
            params: SamplingParams for all prompts, or a list with one per prompt. Default: SamplingParams().
            progress: show a bar with tokens per second if stderr is a terminal; with speculation also the share of draft
                tokens that were accepted, tokens per step and the speed-up, which is estimated (Usage.step_time).
            parse_special: turn "</s>" and other special tokens spelled in a text into their ids. Do not use it for untrusted
                text, which could then end a turn or begin one.
            add_bos: whether a text begins with the BOS token; None: as the tokenizer's files say.

        Raises:
            RequestError: a prompt is empty, too long, has an id out of range, or is a text without a tokenizer; the message
                names it by index.
            BaizeError: logits are not finite; the message names the prompt and the token position.
        """
        sequences = self._checked.sequences(prompts, params, TextOptions(parse_special, add_bos))
        with (
            Progress(len(sequences), "sample", progress, "generate", note=Since(self).speculation) as bar,
            closing(self._serving.run(sequences)) as made,
        ):
            for sequence, _, last in made:
                bar.add(int(last), tokens=1)
                if last:
                    raise_error(sequence)
        return [Completion.of(sequence) for sequence in sequences]

    async def agenerate(
        self,
        prompts: Prompt | abc.Sequence[Prompt],
        params: SamplingParams | abc.Sequence[SamplingParams] | None = None,
        *,
        parse_special: bool = False,
        add_bos: bool | None = None,
    ) -> list[Completion]:
        """`generate` for a coroutine. Cancelling it ends its requests. Arguments and errors are those of `generate`."""
        sequences = self._checked.sequences(prompts, params, TextOptions(parse_special, add_bos))
        async with aclosing(self._serving.arun(sequences)) as made:
            async for sequence, _, last in made:
                if last:
                    raise_error(sequence)
        return [Completion.of(sequence) for sequence in sequences]

    def completions(
        self,
        prompts: Prompt | abc.Sequence[Prompt],
        params: SamplingParams | abc.Sequence[SamplingParams] | None = None,
        *,
        parse_special: bool = False,
        add_bos: bool | None = None,
        raise_errors: bool = True,
    ) -> abc.Generator[list[Completion], None, None]:
        """`generate` as an iterator: yields each prompt's completions as soon as they and those of earlier prompts are done.

        The arguments that are not listed, and the errors, are those of `generate`.

        Arguments:
            raise_errors: if False, a sample that fails, for example because its logits are not finite, yields a Completion
                with the error, and the others continue. Wrong arguments still raise before anything runs.
        """
        sequences = self._checked.sequences(prompts, params, TextOptions(parse_special, add_bos))
        return outputs.completions(self._serving, sequences, raise_errors)

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        parse_special: bool = False,
        add_bos: bool | None = None,
    ) -> abc.Generator[str, None, None]:
        """Yields the text of one sample as it is generated, in pieces of whole characters that are final.

        Text that may still become a stop string is held back. Leaving the iterator (close(), an exception, Ctrl-C) frees the
        sample's blocks; the engine stays usable. Arguments and errors are those of `generate`; RequestError also if params.n
        is not 1 or the model has no tokenizer.
        """
        return outputs.texts(self._serving, self._one(prompt, params, TextOptions(parse_special, add_bos)))

    def astream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        parse_special: bool = False,
        add_bos: bool | None = None,
    ) -> abc.AsyncGenerator[str, None]:
        """`stream` for a coroutine: `async for piece in engine.astream(...)`. Cancelling the task frees the sample's blocks.

        Arguments and errors are those of `stream`.
        """
        return outputs.atexts(self._serving, self._one(prompt, params, TextOptions(parse_special, add_bos)))

    def stream_many(
        self,
        prompts: Prompt | abc.Sequence[Prompt],
        params: SamplingParams | abc.Sequence[SamplingParams] | None = None,
        *,
        parse_special: bool = False,
        add_bos: bool | None = None,
    ) -> abc.Generator[tuple[int, int, str], None, None]:
        """Yields (prompt index, sample index, piece) of many samples as their texts are generated.

        The pieces of one sample come in order, and those of different samples interleave. Arguments and errors are those of
        `generate`, pieces those of `stream`.
        """
        self._requests.need_tokenizer("a stream")
        sequences = self._checked.sequences(prompts, params, TextOptions(parse_special, add_bos))
        return outputs.pieces(self._serving, sequences)

    def encode(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        parse_special: bool = False,
        add_bos: bool | None = None,
    ) -> list[int]:
        """The token ids of one prompt, checked with its parameters: what passes here is not refused by `generate`.

        Arguments and errors are those of `generate`, for a single prompt.
        """
        requests = self._checked
        requests.params(params, 1)
        return requests.prompt(prompt, "the prompt", TextOptions(parse_special, add_bos))

    def chat_ids(self, messages: abc.Sequence[chat.Message]) -> list[int]:
        """The token ids of a conversation, as a prompt for `stream` or `generate`.

        Arguments and errors are those of `chat`.
        """
        return self._chat_format.render(messages, self._requests.need_tokenizer("a conversation"))

    def chat(self, messages: abc.Sequence[chat.Message], params: SamplingParams | None = None) -> Completion:
        """The reply to a conversation: one Completion.

        Arguments:
            messages: `[{"role": "user", "content": "…"}, …]`: a system message or none, then user and assistant in turn, a
                user first and last.
            params: as in `generate`; params.n must be 1.

        Raises:
            RequestError: a message or params is wrong, and as `generate` raises it.
        """
        (reply_params,) = self._requests.params(params, 1)
        if reply_params.n != 1:
            raise RequestError(f"SamplingParams.n is {reply_params.n}, wanted 1: a chat has one reply")
        return self.generate(self.chat_ids(messages), reply_params)[0]

    def score(self, prompt: Prompt, completions: abc.Sequence[Prompt], *, add_bos: bool | None = None) -> list[float]:
        """The log-probability of each completion after `prompt`, in nats: the sum over its tokens, 0.0 for an empty one.

        Arguments:
            prompt: a text or a list of token ids.
            completions: texts or lists of token ids. A text after a text is encoded together with it, and the tokens scored
                are those that differ from the prompt's own encoding. A text after ids gets no dummy space: write the space
                that the completion begins with, if it has one.
            add_bos: whether the prompt begins with the BOS token; None: as the tokenizer's files say.

        Raises:
            RequestError: the prompt or a completion, which the message names by index, cannot be scored.
            BaizeError: logits are not finite; the message names the completion, and the token of prompt and completion
                together, counted from 0, after which they come.
        """
        # the first token of a text has nothing before it to be predicted from
        pairs = [(ids, max(start, 1)) for ids, start in self._checked.continued(prompt, completions, add_bos)]
        scores = [GivenTokens(ids, start) for ids, start in pairs]
        numbers = [number for number, (ids, start) in enumerate(pairs) if start < len(ids)]
        sequences = [scored(pairs[number][0][:-1], scores[number], number) for number in numbers]
        outputs.score(self._serving, sequences, "completion")
        return [score.total() for score in scores]

    def prompt_logprobs(
        self, prompts: Prompt | abc.Sequence[Prompt], top: int = 0, *, add_bos: bool | None = None
    ) -> list[list[TokenLogprobs | None]]:
        """For each prompt, the log-probability of each token given those before it, and of the `top` likeliest tokens there.

        The first entry of each list is None: nothing comes before the first token.

        Arguments:
            prompts: as in `generate`, but each may have max_model_len tokens.
            top: how many of the likeliest tokens TokenLogprobs.top lists.
            add_bos: as in `generate`.

        Raises:
            RequestError: an argument or a prompt, which the message names, is wrong.
            BaizeError: logits are not finite; the message names the prompt, and the token, counted from 0, after which they
                come.
        """
        count = _top(top)
        prompt_ids = self._checked.prompts(prompts, TextOptions(add_bos=add_bos), answered=False)
        scores = [GivenTokens(ids, 1, count) for ids in prompt_ids]
        numbers = [number for number, ids in enumerate(prompt_ids) if len(ids) > 1]
        sequences = [scored(prompt_ids[number][:-1], scores[number], number) for number in numbers]
        outputs.score(self._serving, sequences)
        return [[None, *score.logprobs] for score in scores]

    def continuation_logprobs(
        self, pairs: abc.Sequence[tuple[abc.Sequence[int], abc.Sequence[int]]], top: int = 0
    ) -> abc.Generator[list[TokenLogprobs], None, None]:
        """Yields, for each pair in order, the log-probability of each token of its continuation, given all those before it.

        Arguments:
            pairs: (context, continuation), lists of token ids, neither empty; any number, and together at most
                max_model_len + 1 ids in each. Neighbours that differ in their last id alone are computed once: sort the pairs
                to have most of that.
            top: how many of the likeliest tokens TokenLogprobs.top lists.

        Raises:
            RequestError: an argument or a pair, which the message names by index, is wrong; before anything runs.
            BaizeError: logits are not finite; the message names the pair, and the token, counted from 0, after which they
                come.
        """
        count = _top(top)
        texts = self._checked.pairs(pairs)
        alike = [list(run) for _, run in groupby(texts, lambda text: text[0][:-1])]
        scores = [Endings(run, count) for run in alike]
        firsts = accumulate(map(len, alike), initial=0)  # of each run, the number of its first pair
        sequences = [scored(score.prompt_ids, score, first) for score, first in zip(scores, firsts, strict=False)]
        return outputs.endings(self._serving, sequences, scores)

    def next_token_logprobs(
        self,
        prompts: Prompt | abc.Sequence[Prompt],
        candidate_token_ids: abc.Sequence[int],
        *,
        add_bos: bool | None = None,
    ) -> list[list[float]]:
        """For each prompt, the log-probabilities of the candidates as its next token, in the order given.

        Arguments:
            prompts: as in `prompt_logprobs`.
            candidate_token_ids: ids in the vocabulary.
            add_bos: as in `prompt_logprobs`.

        Raises:
            RequestError: an argument or a prompt, which the message names, is wrong.
            BaizeError: logits are not finite; the message names the prompt, and the token, counted from 0, after which they
                come.
        """
        prompt_ids = self._checked.prompts(prompts, TextOptions(add_bos=add_bos), answered=False)
        candidates = self._requests.ids(candidate_token_ids, "candidate_token_ids")
        scores = [NextToken(len(ids), candidates) for ids in prompt_ids]
        sequences = [scored(ids, scores[number], number) for number, ids in enumerate(prompt_ids)]
        outputs.score(self._serving, sequences)
        return [score.logprobs for score in scores]

    @cached_property
    def _chat_format(self) -> ChatFormat:
        """The format of conversations. Finding it may run the folder's chat template, which only conversations should do."""
        return format_of(self.tokenizer, self._asked_format)

    @property
    def _checked(self) -> Requests:
        """The checks of requests. RequestError once the engine is closed."""
        self._serving.check()
        return self._requests

    def _one(self, prompt: Prompt, params: SamplingParams | None, text: TextOptions) -> list[Sequence]:
        """The single sample of a stream, as a list. RequestError if params.n is not 1."""
        self._requests.need_tokenizer("a stream")
        sequences = self._checked.sequences([prompt], params, text)
        if len(sequences) != 1:
            raise RequestError(f"SamplingParams.n is {len(sequences)}, wanted 1: a stream has one sample")
        return sequences


def _top(top: int) -> int:
    count = plain.integer(top)
    if count is None or count < 0:
        raise RequestError(f"top is {top!r}, wanted an integer of at least 0")
    return count
