"""Engine: the facade over model, tokenizer and decode loop. Here text meets token ids; nothing below knows of both.

Many prompts run together, and still a result depends on its prompt, its parameters and its seed only.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from baize_engine import plain
from baize_engine.checkpoint.dtypes import FLOATS
from baize_engine.completion import Completion, Run, Writer, in_order, pieces, pushed, texts
from baize_engine.errors import RequestError
from baize_engine.generation.loop import Sample, generate
from baize_engine.generation.params import SamplingParams
from baize_engine.generation.sampling import TokenLogprobs
from baize_engine.generation.score import next_token_logprobs, prompt_logprobs, score_tokens
from baize_engine.loading import LoadedModel, load
from baize_engine.options import EngineOptions
from baize_engine.progress import Progress
from baize_engine.requests import Intake, Prompt
from baize_engine.text import chat
from baize_engine.text.options import TextOptions
from baize_engine.turns import Turns

if TYPE_CHECKING:
    from types import TracebackType

Item = TypeVar("Item")


class Engine:
    """A loaded model, ready for requests. A context manager; close() frees the weights and the cache.

    from_pretrained and from_diff load one. Any number of threads may call an engine: calls take turns, and an iterator takes
    a turn for each of its steps. What an iterator holds in the cache is copied out where another call needs the room, and
    back in later. A process made by fork cannot use it.
    """

    def __init__(self, model: LoadedModel) -> None:
        self._decoder, self._cache, self._steps, self._sample = model.decoder, model.cache, model.steps, model.sample
        self._turns = Turns()
        self.tokenizer = model.tokenizer
        self.vocab_size = model.vocab_size
        self.max_model_len = model.max_model_len
        # what closes a reply in the chat format ends it, whoever gave the ids
        own = () if self.tokenizer is None or self.tokenizer.eos_id is None else (self.tokenizer.eos_id,)
        self.eos_token_ids = tuple(dict.fromkeys((*model.eos_token_ids, *own)))
        self._intake = Intake(
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

        if dtype not in FLOATS:  # "auto", the type in the files, is none of a sum
            raise RequestError(f"dtype is {dtype!r}, wanted {', '.join(FLOATS)}")
        options = EngineOptions(
            device, dtype, quantize, max_model_len, cache_tokens, threads, cache_dtype, exact_activations
        )
        recovered = load_diff(
            path_raw, path_diff, options, new_rows=new_rows, drop_rows=drop_rows, force=force, progress=progress
        )
        return cls(recovered)

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Frees weights and cache. Later requests are refused with RequestError, and so is the rest of those under way."""
        self._turns.close(self._let_go)

    def _let_go(self) -> None:
        self._decoder = self._cache = self._steps = None  # type: ignore[assignment]

    # Requests. Each is checked whole before the first token is computed.

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
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
        writers = self._writers(prompts, params, TextOptions(parse_special, add_bos))
        with (
            self._turns.turn(),
            Progress(len(writers), "sample", progress, "generate") as bar,
            closing(self._run(writers)) as run,
        ):
            for writer, _ in run:
                bar.add(int(writer.done.finish_reason is not None), tokens=1)
        return [writer.done for _, writer in writers]

    def completions(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        parse_special: bool = False,
        add_bos: bool | None = None,
    ) -> Generator[list[Completion], None, None]:
        """As generate, prompt by prompt: the completions of one as soon as they and those of all prompts before are whole."""
        writers = self._writers(prompts, params, TextOptions(parse_special, add_bos))
        return in_order(writers, self._turns.each(self._run(writers)))

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        parse_special: bool = False,
        add_bos: bool | None = None,
    ) -> Generator[str, None, None]:
        """The text of one sample as it comes, in pieces of whole characters, none of which a stop string can take back.

        Leaving the iterator (close(), an exception, Ctrl-C) frees what the sample holds; the engine stays usable.
        """
        self._intake.need_tokenizer("a stream")
        writers = self._writers([prompt], params, TextOptions(parse_special, add_bos))
        if len(writers) != 1:
            raise RequestError(f"SamplingParams.n is {len(writers)}, and a stream has one sample")
        return texts(self._turns.each(self._run(writers)))

    def stream_many(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        parse_special: bool = False,
        add_bos: bool | None = None,
    ) -> Generator[tuple[int, int, str], None, None]:
        """(prompt index, sample index, piece) of many samples as their texts come; arguments as generate's, pieces as stream's.

        The pieces of one sample are in order; those of different samples mix as they become certain.
        """
        self._intake.need_tokenizer("a stream")
        writers = self._writers(prompts, params, TextOptions(parse_special, add_bos))
        return pieces(self._turns.each(self._run(writers)))

    def encode(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        parse_special: bool = False,
        add_bos: bool | None = None,
    ) -> list[int]:
        """The ids of one prompt, checked with its parameters: what raises nothing here is not refused by generate()."""
        asked = self._open
        asked.params(params, 1)
        return asked.prompt(prompt, "the prompt", TextOptions(parse_special, add_bos))

    def chat_ids(self, messages: Sequence[chat.Message]) -> list[int]:
        """The prompt of a conversation, for stream() or generate(). `chat.render` says what messages may be."""
        return chat.render(messages, self._intake.need_tokenizer("a conversation"))

    def chat(self, messages: Sequence[chat.Message], params: SamplingParams | None = None) -> Completion:
        """The reply to a conversation, [{"role": "user", "content": "…"}, …]: one sample."""
        (one,) = self._intake.params(params, 1)
        if one.n != 1:
            raise RequestError(f"SamplingParams.n is {one.n}, and a chat has one reply")
        return self.generate(self.chat_ids(messages), one)[0]

    def score(self, prompt: Prompt, completions: Sequence[Prompt], *, add_bos: bool | None = None) -> list[float]:
        """Each completion's log-probability after `prompt`: the sum over its tokens; 0.0 for an empty one.

        Two texts are encoded as one, and the tokens scored are those that differ from the prompt's own encoding. A
        text after ids gets no dummy space: write the space that the completion begins with, if it has one. add_bos: of the
        prompt, as generate's.
        """
        pairs = self._open.continued(prompt, completions, add_bos)
        with self._turns.turn():
            return [score_tokens(self._decoder, self._cache, ids, start) for ids, start in self._while_open(pairs)]

    def prompt_logprobs(
        self, prompts: Prompt | Sequence[Prompt], top: int = 0, *, add_bos: bool | None = None
    ) -> list[list[TokenLogprobs | None]]:
        """For each prompt the log-probability of each of its tokens given those before, and of the `top` likeliest there.

        The first entry of each list is None: nothing comes before the first token. A prompt may have max_model_len tokens.
        """
        count = plain.integer(top)
        if count is None or count < 0:
            raise RequestError(f"top is {top!r}, wanted an integer of at least 0")
        many = self._open.prompts(prompts, TextOptions(add_bos=add_bos), answered=False)
        with self._turns.turn():
            return [[None, *prompt_logprobs(self._decoder, self._cache, ids, count)] for ids in self._while_open(many)]

    def next_token_logprobs(
        self, prompts: Prompt | Sequence[Prompt], candidate_token_ids: Sequence[int], *, add_bos: bool | None = None
    ) -> list[list[float]]:
        """For each prompt the log-probabilities of the candidates as its next token, in the order given."""
        many = self._open.prompts(prompts, TextOptions(add_bos=add_bos))
        candidates = self._intake.ids(candidate_token_ids, "candidate_token_ids")
        with self._turns.turn():
            each = self._while_open(many)
            return [next_token_logprobs(self._decoder, self._cache, ids, candidates) for ids in each]

    def _while_open(self, items: Sequence[Item]) -> Iterator[Item]:
        """Each of `items`; RequestError once the engine is closed."""
        for item in items:
            self._turns.check()
            yield item

    @property
    def _open(self) -> Intake:
        """What can be asked; RequestError once the engine is closed."""
        self._turns.check()
        return self._intake

    def _writers(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
        text: TextOptions,
    ) -> list[tuple[Sample, Writer]]:
        """One for each sample, all arguments checked."""
        samples = self._open.samples(prompts, params, text)
        return [(sample, Writer(sample, self.tokenizer)) for sample in samples]

    def _run(self, writers: Sequence[tuple[Sample, Writer]]) -> Run:
        """Runs the samples together; yields at each of their tokens the text that has become certain, "" mostly.

        To be run in turns.
        """
        samples = [sample for sample, _ in writers]
        parts = (self._decoder, self._cache, self._steps)
        steps = generate(*parts, samples, max_length=self.max_model_len, sample=self._sample)
        yield from pushed(writers, steps, self._turns.check)
