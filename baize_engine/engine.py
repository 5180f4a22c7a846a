"""Engine: the facade over model, tokenizer and decode loop. Here text meets token ids; nothing below knows of both.

Many prompts run together, and still a result depends on its prompt, its parameters and its seed only.
"""

from __future__ import annotations

from collections import abc, deque
from contextlib import aclosing, closing
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

from baize_engine import plain
from baize_engine.checkpoint.dtypes import FLOATS
from baize_engine.completion import Completion
from baize_engine.errors import BaizeError, RequestError
from baize_engine.generation.params import SamplingParams
from baize_engine.generation.sampling import TokenLogprobs
from baize_engine.generation.scoring import GivenTokens, NextToken
from baize_engine.generation.sequence import Scoring, Sequence
from baize_engine.generation.serving import Serving
from baize_engine.loading import LoadedModel, load
from baize_engine.options import EngineOptions
from baize_engine.progress import Progress
from baize_engine.requests import Prompt, Requests
from baize_engine.text import chat
from baize_engine.text.options import TextOptions

if TYPE_CHECKING:
    from types import TracebackType


class Engine:
    """A loaded model, ready for requests. A context manager; close() frees the weights and the cache.

    from_pretrained and from_diff load one. Any number of threads and coroutines may call an engine: their requests run in one
    batch, which they join as they come and leave as they end. What has to make room in the cache for older requests is copied
    out of it, and back in later. A process made by fork cannot use it.
    """

    def __init__(self, model: LoadedModel) -> None:
        self._serving = Serving(model.loop)
        self.tokenizer = model.tokenizer
        self.vocab_size = model.vocab_size
        self.max_model_len = model.max_model_len
        # what closes a reply in the chat format ends it, whoever gave the ids
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
    ) -> Engine:
        """Loads a model's folder, recovered or any LLaMA in the layout of transformers.

        path: the folder, or a hub id.
        device: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:N".
        dtype: the weights' type: "auto" (as in the files), "float32", "float16" or "bfloat16".
        quantize: "int8" or "int4" quantises the matrices while they are read; a folder that `quantize` wrote needs no such
            argument.
        max_model_len: most tokens of a prompt and its answer together. Default: the smaller of the config's
            max_position_embeddings and cache_tokens.
        cache_tokens: tokens that the KV cache holds, at least max_model_len. Default: 512, or max_model_len if that is less,
            for each of 64 samples, in at most half of the memory that the weights leave free.
        threads: torch's CPU threads, for the whole process. Default: as torch has it.
        cache_dtype: the KV cache's type: "auto" (float32 on the CPU, the weights' type on a GPU), and on the CPU "float32",
            "float16" or "bfloat16".
        exact_activations: a CPU reads prompts with quantised weights at 8 bits an activation, which is faster, unless this
            is True; the README says what that costs.

        RequestError names the argument that is wrong, or the sizes where weights and cache exceed the free memory; BackendError
        says why a device cannot be used; ConfigError and CheckpointError name the file. A folder without tokenizer.model
        serves token ids only.
        """
        options = EngineOptions(
            device, dtype, quantize, max_model_len, cache_tokens, threads, cache_dtype, exact_activations
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
        *,
        force: bool = False,
        new_rows: str = "auto",
        drop_rows: bool = False,
        progress: bool = False,
    ) -> Engine:
        """Recovers base + diff straight into memory; nothing is written to disk.

        The weights are, bit for bit, those of `recover(path_raw, path_diff, …, dtype)` followed by
        `from_pretrained(…, quantize=…)`; peak memory is the weights and some buffers.

        path_raw, path_diff: bases and diffs that `recover` takes, folders or hub ids; what it refuses is refused here.
        dtype: the type of the sums: "float32", "float16" or "bfloat16".
        force, new_rows, drop_rows: as for `recover`.
        progress: show a bar on a terminal while recovering.

        The other arguments and the errors are those of from_pretrained, and MismatchError where base and diff do not belong
        together.
        """
        from baize_engine.from_diff import load_diff
        from baize_engine.recovery.options import RecoveryOptions

        if dtype not in FLOATS:  # "auto", the type in the files, is none of a sum
            raise RequestError(f"dtype is {dtype!r}, wanted {', '.join(FLOATS)}")
        options = EngineOptions(
            device, dtype, quantize, max_model_len, cache_tokens, threads, cache_dtype, exact_activations
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
        """Frees weights and cache. Later requests are refused with RequestError, and so is the rest of those under way."""
        self._serving.close()

    # Requests. Each is checked whole before the first token is computed.

    def generate(
        self,
        prompts: Prompt | abc.Sequence[Prompt],
        params: SamplingParams | abc.Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
        parse_special: bool = False,
        add_bos: bool | None = None,
    ) -> list[Completion]:
        """Completions of each prompt, prompt by prompt, params.n each.

        prompts: a text, a list or array of ids, or a list of these; any number of them, which run together as far as the
        cache has room. params: one for all, or one per prompt. progress: a bar with tokens a second, on a terminal.
        parse_special: "</s>" and other special tokens spelled in a text become their ids; not for text of strangers, who
        could end a turn or begin one. add_bos: whether a text gets a begin token in front; None: as the tokenizer's files say.
        RequestError names the prompt by index: empty, too long, an id out of range, text without a tokenizer.
        """
        sequences = self._checked.sequences(prompts, params, TextOptions(parse_special, add_bos))
        with (
            Progress(len(sequences), "sample", progress, "generate") as bar,
            closing(self._serving.run(sequences)) as outputs,
        ):
            for sequence, _, last in outputs:
                bar.add(int(last), tokens=1)
                _raise_error(sequence)
        return [Completion.of(sequence) for sequence in sequences]

    async def agenerate(
        self,
        prompts: Prompt | abc.Sequence[Prompt],
        params: SamplingParams | abc.Sequence[SamplingParams] | None = None,
        *,
        parse_special: bool = False,
        add_bos: bool | None = None,
    ) -> list[Completion]:
        """`generate` for a coroutine, which may be cancelled: what runs for it then ends."""
        sequences = self._checked.sequences(prompts, params, TextOptions(parse_special, add_bos))
        async with aclosing(self._serving.arun(sequences)) as outputs:
            async for sequence, _, _ in outputs:
                _raise_error(sequence)
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
        """As generate, prompt by prompt: the completions of one as soon as they and those of all prompts before are whole.

        raise_errors=False: where a sample cannot be finished, for logits that are not finite say, its completion has the
        error, and the others go on. Arguments that cannot be served are refused before anything runs all the same.
        """
        sequences = self._checked.sequences(prompts, params, TextOptions(parse_special, add_bos))
        return self._in_order(sequences, raise_errors)

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        parse_special: bool = False,
        add_bos: bool | None = None,
    ) -> abc.Generator[str, None, None]:
        """The text of one sample as it comes, in pieces of whole characters, none of which a stop string can take back.

        Leaving the iterator (close(), an exception, Ctrl-C) frees what the sample holds; the engine stays usable.
        """
        return self._texts(self._one(prompt, params, TextOptions(parse_special, add_bos)))

    def astream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        parse_special: bool = False,
        add_bos: bool | None = None,
    ) -> abc.AsyncGenerator[str, None]:
        """`stream` for a coroutine: `async for piece in engine.astream(...)`. A task that is cancelled frees what it holds."""
        return self._atexts(self._one(prompt, params, TextOptions(parse_special, add_bos)))

    def stream_many(
        self,
        prompts: Prompt | abc.Sequence[Prompt],
        params: SamplingParams | abc.Sequence[SamplingParams] | None = None,
        *,
        parse_special: bool = False,
        add_bos: bool | None = None,
    ) -> abc.Generator[tuple[int, int, str], None, None]:
        """(prompt index, sample index, piece) of many samples as their texts come; arguments as generate's, pieces as stream's.

        The pieces of one sample are in order; those of different samples mix as they become certain.
        """
        self._requests.need_tokenizer("a stream")
        return self._pieces(self._checked.sequences(prompts, params, TextOptions(parse_special, add_bos)))

    def encode(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        parse_special: bool = False,
        add_bos: bool | None = None,
    ) -> list[int]:
        """The ids of one prompt, checked with its parameters: what raises nothing here is not refused by generate()."""
        asked = self._checked
        asked.params(params, 1)
        return asked.prompt(prompt, "the prompt", TextOptions(parse_special, add_bos))

    def chat_ids(self, messages: abc.Sequence[chat.Message]) -> list[int]:
        """The prompt of a conversation, for stream() or generate(). `chat.render` says what messages may be."""
        return chat.render(messages, self._requests.need_tokenizer("a conversation"))

    def chat(self, messages: abc.Sequence[chat.Message], params: SamplingParams | None = None) -> Completion:
        """The reply to a conversation, [{"role": "user", "content": "…"}, …]: one sample."""
        (one,) = self._requests.params(params, 1)
        if one.n != 1:
            raise RequestError(f"SamplingParams.n is {one.n}, and a chat has one reply")
        return self.generate(self.chat_ids(messages), one)[0]

    def score(self, prompt: Prompt, completions: abc.Sequence[Prompt], *, add_bos: bool | None = None) -> list[float]:
        """Each completion's log-probability after `prompt`: the sum over its tokens; 0.0 for an empty one.

        Two texts are encoded as one, and the tokens scored are those that differ from the prompt's own encoding. A
        text after ids gets no dummy space: write the space that the completion begins with, if it has one. add_bos: of the
        prompt, as generate's.
        """
        # the first token of a text has nothing before it to be predicted from
        pairs = [(ids, max(start, 1)) for ids, start in self._checked.continued(prompt, completions, add_bos)]
        scores = [GivenTokens(ids, start) for ids, start in pairs]
        asked = [number for number, (ids, start) in enumerate(pairs) if start < len(ids)]
        self._score([_scored(pairs[number][0][:-1], scores[number], number) for number in asked], "completion")
        return [score.total() for score in scores]

    def prompt_logprobs(
        self, prompts: Prompt | abc.Sequence[Prompt], top: int = 0, *, add_bos: bool | None = None
    ) -> list[list[TokenLogprobs | None]]:
        """For each prompt the log-probability of each of its tokens given those before, and of the `top` likeliest there.

        The first entry of each list is None: nothing comes before the first token. A prompt may have max_model_len tokens.
        """
        count = plain.integer(top)
        if count is None or count < 0:
            raise RequestError(f"top is {top!r}, wanted an integer of at least 0")
        many = self._checked.prompts(prompts, TextOptions(add_bos=add_bos), answered=False)
        scores = [GivenTokens(ids, 1, count) for ids in many]
        asked = [number for number, ids in enumerate(many) if len(ids) > 1]
        self._score([_scored(many[number][:-1], scores[number], number) for number in asked])
        return [[None, *score.logprobs] for score in scores]

    def next_token_logprobs(
        self,
        prompts: Prompt | abc.Sequence[Prompt],
        candidate_token_ids: abc.Sequence[int],
        *,
        add_bos: bool | None = None,
    ) -> list[list[float]]:
        """For each prompt the log-probabilities of the candidates as its next token, in the order given."""
        many = self._checked.prompts(prompts, TextOptions(add_bos=add_bos))
        candidates = self._requests.ids(candidate_token_ids, "candidate_token_ids")
        scores = [NextToken(len(ids), candidates) for ids in many]
        self._score([_scored(ids, scores[number], number) for number, ids in enumerate(many)])
        return [score.logprobs for score in scores]

    @property
    def _checked(self) -> Requests:
        """What can be asked; RequestError once the engine is closed."""
        self._serving.check()
        return self._requests

    def _one(self, prompt: Prompt, params: SamplingParams | None, text: TextOptions) -> list[Sequence]:
        """The one sample of a stream."""
        self._requests.need_tokenizer("a stream")
        sequences = self._checked.sequences([prompt], params, text)
        if len(sequences) != 1:
            raise RequestError(f"SamplingParams.n is {len(sequences)}, and a stream has one sample")
        return sequences

    def _in_order(self, sequences: list[Sequence], raise_errors: bool) -> abc.Generator[list[Completion], None, None]:
        left = deque([list(group) for _, group in groupby(sequences, attrgetter("prompt_index"))])
        with closing(self._serving.run(sequences)) as outputs:
            for sequence, _, last in outputs:
                if raise_errors:
                    _raise_error(sequence)
                while last and left and all(one.finished for one in left[0]):
                    if raise_errors:
                        for one in left[0]:
                            _raise_error(one)
                    yield [Completion.of(one) for one in left.popleft()]

    def _pieces(self, sequences: list[Sequence]) -> abc.Generator[tuple[int, int, str], None, None]:
        with closing(self._serving.run(sequences)) as outputs:
            for sequence, piece, _ in outputs:
                _raise_error(sequence)
                if piece:
                    yield sequence.prompt_index, sequence.index, piece

    def _texts(self, sequences: list[Sequence]) -> abc.Generator[str, None, None]:
        with closing(self._pieces(sequences)) as pieces:
            for _, _, piece in pieces:
                yield piece

    async def _atexts(self, sequences: list[Sequence]) -> abc.AsyncGenerator[str, None]:
        async with aclosing(self._serving.arun(sequences)) as outputs:
            async for sequence, piece, _ in outputs:
                _raise_error(sequence)
                if piece:
                    yield piece

    def _score(self, sequences: list[Sequence], what: str = "prompt") -> None:
        """Runs sequences that are scored, all together."""
        with closing(self._serving.run(sequences)) as outputs:
            for sequence, _, _ in outputs:
                _raise_error(sequence, what)


def _scored(prompt_ids: list[int], scoring: Scoring, number: int) -> Sequence:
    """A sequence of which nothing is wanted but its scoring."""
    return Sequence(prompt_ids, SamplingParams(), 0, prompt_index=number, scoring=scoring)


def _raise_error(sequence: Sequence, what: str = "prompt") -> None:
    """Raises the error that ended the sequence, with the index of its prompt where the model is to blame."""
    if isinstance(sequence.error, RequestError):
        raise sequence.error
    if sequence.error is not None:
        raise BaizeError(f"{what} {sequence.prompt_index}, {sequence.error}") from sequence.error
