"""Engine: the facade over model, tokenizer and decode loop. Here text meets token ids; nothing below knows of both.

Many prompts run together, and still a result depends on its prompt, its parameters and its seed only.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from baize_engine import plain
from baize_engine.completion import Completion, Run, Writer, in_order, pieces, pushed, texts
from baize_engine.errors import RequestError
from baize_engine.generation.loop import Sample, generate
from baize_engine.generation.params import SamplingParams
from baize_engine.generation.progress import Progress
from baize_engine.generation.sampling import SampleOp, TokenLogprobs
from baize_engine.generation.score import next_token_logprobs, prompt_logprobs, score_tokens
from baize_engine.loading import Parts, load_parts
from baize_engine.model.runner import DecodeSteps
from baize_engine.requests import Intake, Prompt
from baize_engine.text import chat
from baize_engine.text.options import TextOptions
from baize_engine.text.tokenizer import Tokenizer
from baize_engine.turns import Turns

if TYPE_CHECKING:
    from types import TracebackType

Item = TypeVar("Item")


class Engine:
    """A loaded model, ready for requests. A context manager; close() lets go of weights and cache.

    from_pretrained makes it from a folder. The constructor takes the parts: a decoder (`Llama`), its cache, the steps over
    both, the ids that end a text, the backend's `sample` op, and a tokenizer, without which prompts are ids and texts are "".
    Any number of threads may call it: calls take turns, iterators one for each of their steps. What iterators hold in the
    cache is copied out of it where another call needs the room, and back. A process made by fork cannot use it.
    """

    def __init__(
        self,
        decoder: Any,
        cache: Any,
        *,
        vocab_size: int,
        eos_token_ids: Sequence[int],
        max_model_len: int,
        sample: SampleOp,
        steps: DecodeSteps | None = None,
        tokenizer: Tokenizer | None = None,
        why_no_text: str | None = None,
    ) -> None:
        self._decoder, self._cache, self._sample = decoder, cache, sample
        self._steps = steps or DecodeSteps(decoder, cache)
        self._turns = Turns()
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.max_model_len = max_model_len
        # what closes a reply in the chat format ends it, whoever gave the ids
        own = () if tokenizer is None or tokenizer.eos_id is None else (tokenizer.eos_id,)
        self.eos_token_ids = tuple(dict.fromkeys((*eos_token_ids, *own)))
        limits = (vocab_size, max_model_len, self.eos_token_ids)
        self._intake = Intake(*limits, tokenizer, why_no_text or "the engine was made without one")

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
        """Loads a model's folder, recovered or any LLaMA in transformers' form.

        device: auto (a GPU if there is one), cpu, cuda or cuda:N. dtype: auto (as in the files), float32, float16 or
        bfloat16. max_model_len: tokens of a prompt and its answer together; the config's max_position_embeddings or
        cache_tokens unless given. cache_tokens: tokens that the KV cache holds, at least max_model_len; unless given, 512 (or
        max_model_len, if less) for each of 64 samples, as far as half of the memory goes that the weights leave free.
        threads: torch's on the CPU, for the whole process. quantize: "int8" or "int4" matrices, made from the files while
        they are read; a folder that `quantize` wrote has them already. cache_dtype: what the KV cache is kept in: auto
        (float32 on the CPU, the weights' type on a GPU), and on the CPU float32, float16 or bfloat16. exact_activations: a
        CPU reads prompts with quantised weights at 8 bits an activation, which is faster, unless this is True; README says what
        it costs.
        A RequestError names an argument that cannot be, or the sizes where weights and cache exceed the free memory;
        ConfigError and CheckpointError name the file. A folder without tokenizer.model serves ids only.
        """
        lengths = (max_model_len, cache_tokens)
        return cls._of(load_parts(path, device, dtype, quantize, *lengths, threads, cache_dtype, exact_activations))

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

        The weights are, bit for bit, those of `recover(path_raw, path_diff, …, dtype)` and then
        `from_pretrained(…, quantize=…)`; memory peaks at them and some buffers. dtype: float32, float16 or bfloat16.
        Bases and diffs are those that `recover` takes, refused where it refuses them unless `force`, and joined as `new_rows`
        and `drop_rows` say there; the other arguments and errors are those of from_pretrained.
        """
        from baize_engine.from_diff import load_diff_parts

        settings = (device, dtype, quantize, max_model_len, cache_tokens, threads, cache_dtype, exact_activations)
        return cls._of(load_diff_parts(path_raw, path_diff, *settings, force, new_rows, drop_rows, progress))

    @classmethod
    def _of(cls, parts: Parts) -> Engine:
        named = ("eos_token_ids", "max_model_len", "sample", "steps", "tokenizer", "why_no_text")
        settings = {name: getattr(parts, name) for name in named}
        return cls(parts.decoder, parts.cache, vocab_size=parts.config.vocab_size, **settings)

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of weights and cache. Any later request is refused, and what is under way ends with that RequestError."""
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
        with self._turns.turn(), Progress(len(writers), progress) as bar, closing(self._run(writers)) as run:
            for writer, _ in run:
                bar.token(writer.done.finish_reason is not None)
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
