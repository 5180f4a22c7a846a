"""The harness's model "baize": requests in, an Engine's results out, as the harness's `hf` model would give them.

Ids, cuts from the left, windows and texts follow lm_eval/models/huggingface.py (0.4.13), so that figures compare: special
tokens spelled in a text become their ids, as transformers reads them. Batches, order and shared prefixes are the engine's:
each call hands it all requests at once, sorted, and equal ones once. Knows no task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from hashlib import blake2b
from math import fsum
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, simple_parse_args_string

from baize_engine.engine import Engine
from baize_engine.errors import RequestError
from baize_engine.evaluation.lm_eval.conversations import Conversations
from baize_engine.evaluation.lm_eval.gen_kwargs import GenerationSettings, generation_of
from baize_engine.generation.params import SamplingParams
from baize_engine.generation.usage import Since
from baize_engine.options import EngineOptions
from baize_engine.progress import Progress
from baize_engine.text.chat_formats import AUTO
from baize_engine.text.lines import LineEncoder

Answer = tuple[float, bool]  # as the harness has it: a continuation's log-probability, and whether it is the greedy one
Pair = tuple[list[int], list[int]]  # ids of a context, and of what continues it


@dataclass(frozen=True)
class Asked:
    """What equal requests ask for: the prompt's ids, and how it goes on."""

    ids: tuple[int, ...]
    generation: GenerationSettings


@register_model("baize")
class BaizeLM(TemplateLM):
    """A model for `lm_eval.simple_evaluate`, or `--model baize --model_args pretrained=DIR,quantize=int8`.

    pretrained: a folder or hub id, or an Engine. path_raw, path_diff: in its place, a base and the diff to recover.
    max_gen_toks: the most tokens of an answer where the task does not say.
    add_bos_token: whether texts begin with the BOS token; None: as the tokenizer's files say. False also omits the EOS token.
    prefix_token_id: what an empty context is replaced by; None: the BOS token, else the EOS token.
    seed: of sampling. Requests that are equal, such as a task's repeats, are samples of one prompt.
    batch_size, max_batch_size: not used; the harness passes them to every model.
    options: fields of EngineOptions; with an Engine only chat_format.

    RequestError names what is wrong or unknown; other errors are those of Engine.from_pretrained and from_diff.
    """

    def __init__(
        self,
        pretrained: str | Path | Engine | None = None,
        path_raw: str | None = None,
        path_diff: str | None = None,
        *,
        max_gen_toks: int = 256,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        seed: int = 1234,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.engine = _engine(pretrained, path_raw, path_diff, options)
        if self.engine.tokenizer is None:
            raise RequestError("lm_eval's tasks are texts, and the model has no tokenizer")
        self.tokenizer = self.engine.tokenizer
        self.max_gen_toks, self._seed = max_gen_toks, seed
        self._encoder = LineEncoder(self.tokenizer, allow_special=True)
        self._begin = self.tokenizer.encode("", add_bos_token, add_eos=False)
        self._end = [] if add_bos_token is False else self.tokenizer.encode("", add_bos=False, add_eos=None)
        self._conversations = Conversations(self.tokenizer, options.get("chat_format", AUTO))
        prefixes = [prefix_token_id, self.tokenizer.bos_id, self.tokenizer.eos_id, *self.engine.eos_token_ids]
        found = [token_id for token_id in prefixes if token_id is not None]
        if not found:
            raise RequestError("the model has neither a BOS nor an EOS token, wanted prefix_token_id")
        self._prefix = found[0]

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None
    ) -> BaizeLM:
        """The model of --model_args; what the harness adds, such as its --device, is the default of what they lack."""
        more = {name: value for name, value in (additional_config or {}).items() if value is not None}
        return cls(**{**more, **arg_dict})

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: Mapping[str, Any] | None = None) -> BaizeLM:
        """`create_from_arg_obj` of "name=value,name=value"."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @property
    def eot_token_id(self) -> int:
        end = self.tokenizer.eos_id
        return self._prefix if end is None else end

    @property
    def prefix_token_id(self) -> int:
        return self._prefix

    @property
    def max_length(self) -> int:
        return self.engine.max_model_len

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        """The ids of a text, special tokens spelled in it included.

        add_special_tokens: whether the BOS and EOS id stand around it; None: unless it spells the BOS token itself.
        """
        ids = self._encoder.encode(string)
        bare = ids[:1] == [self._prefix] if add_special_tokens is None else not add_special_tokens
        return ids if bare else [*self._begin, *ids, *self._end]

    @property
    def tokenizer_name(self) -> str:
        """What the harness names its cache of prompts by."""
        return str(self.tokenizer.files.folder).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's source or the format's name, for the harness's records; None without --apply_chat_template."""
        if isinstance(chat_template, str):
            wanted = "wanted --apply_chat_template alone: chat_format among --model_args chooses one"
            raise RequestError(f"the chat template {chat_template!r} is not known, {wanted}")
        return self._conversations.template if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as text, up to the reply; or else through the last message, which the reply goes on from."""
        return self._conversations.text(chat_history, add_generation_prompt)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]], disable_tqdm: bool = False
    ) -> list[Answer]:
        """The answer to each (its texts, ids of the context, ids of the continuation), in their order.

        Ids before the last max_length + 1 are cut off. The texts are the key of the harness's cache; None: nothing is kept.
        """
        pairs = [self._cut(context, continuation, i) for i, (_, context, continuation) in enumerate(requests)]
        # those that differ in their last id alone are neighbours, and those that share a prefix are near
        order = sorted(range(len(pairs)), key=lambda i: [*pairs[i][0], *pairs[i][1][:-1]])
        answers: dict[int, Answer] = {}
        with (
            Progress(len(order), "request", not disable_tqdm, "loglikelihood") as bar,
            closing(self.engine.continuation_logprobs([pairs[i] for i in order], top=1)) as scored,
        ):
            for i, tokens in zip(order, scored, strict=True):
                greedy = all(token.top[0][0] == ours for token, ours in zip(tokens, pairs[i][1], strict=True))
                answers[i] = fsum(token.logprob for token in tokens), greedy
                if (key := requests[i][0]) is not None:
                    self.cache_hook.add_partial("loglikelihood", key, answers[i])
                bar.add(1)
        return [answers[i] for i in range(len(pairs))]

    def _cut(self, context: list[int], continuation: list[int], number: int) -> Pair:
        if not 0 < len(continuation) <= self.max_length:
            wanted = f"wanted 1 to {self.max_length} (max_model_len)"
            raise RequestError(f"the continuation of request {number} has {len(continuation)} tokens, {wanted}")
        return context[-(self.max_length + 1 - len(continuation)) :], continuation

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each request's text, in windows of max_length tokens that predict each token once."""
        windows: list[tuple[None, list[int], list[int]]] = []
        ends: list[int] = []
        for request in requests:
            (text,) = request.args
            rolling = get_rolling_token_windows(self.tok_encode(text), self._prefix, self.max_length, context_len=1)
            windows += [(None, *make_disjoint_window(window)) for window in rolling]
            ends.append(len(windows))
        answers = self._loglikelihood_tokens(windows, disable_tqdm)
        totals = []
        for request, begin, end in zip(requests, [0, *ends], ends, strict=False):
            totals.append(fsum(logprob for logprob, _ in answers[begin:end]))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, totals[-1])
        return totals

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """The text that follows each request's context, in their order."""
        alike: dict[Asked, list[int]] = {}
        for i, request in enumerate(requests):
            alike.setdefault(self._asked(*request.args), []).append(i)
        order = sorted(alike, key=lambda asked: asked.ids)
        params = [self._params(asked, len(alike[asked])) for asked in order]
        texts: dict[int, str] = {}
        with (
            Progress(
                len(requests), "request", not disable_tqdm, "generate_until", note=Since(self.engine).speculation
            ) as bar,
            closing(self.engine.completions([asked.ids for asked in order], params)) as completions,
        ):
            for asked, samples in zip(order, completions, strict=True):
                for place, i in enumerate(alike[asked]):
                    sample = samples[place % len(samples)]  # a greedy one stands for all
                    text = self.tokenizer.decode(sample.token_ids)
                    texts[i] = postprocess_generated_text(text, list(asked.generation.until), None)
                    self.cache_hook.add_partial("generate_until", requests[i].args, texts[i])
                    bar.add(1, tokens=len(sample.token_ids))
        return [texts[i] for i in range(len(requests))]

    def _asked(self, context: str, gen_kwargs: Mapping[str, object]) -> Asked:
        generation = generation_of(gen_kwargs, self.tokenizer, self.max_gen_toks)
        most, room = generation.params.max_new_tokens, self.max_length - generation.params.max_new_tokens
        if room < 1:
            raise RequestError(f"max_gen_toks is {most}, wanted less than max_model_len, {self.max_length}")
        return Asked(tuple(self.tok_encode(context)[-room:]) or (self._prefix,), generation)

    def _params(self, asked: Asked, count: int) -> SamplingParams:
        """Its parameters, for `count` samples if they are drawn, with a seed that other prompts do not have."""
        params = asked.generation.params
        if not params.temperature:
            return params
        seed = self._seed if params.seed is None else params.seed
        digest = blake2b(repr((seed, asked.ids)).encode(), digest_size=8).digest()
        return replace(params, n=count, seed=int.from_bytes(digest, "big") >> 1)


def _engine(
    pretrained: str | Path | Engine | None, path_raw: str | None, path_diff: str | None, options: Mapping[str, Any]
) -> Engine:
    """The engine that the model's arguments name. RequestError unless they name one, and `options` are those of an engine."""
    known = [field.name for field in fields(EngineOptions)]
    if unknown := [name for name in options if name not in known]:
        own = ("pretrained", "path_raw", "path_diff", "max_gen_toks", "add_bos_token", "prefix_token_id", "seed")
        wanted = ", ".join((*own, *known))
        raise RequestError(f"{unknown[0]} is not an argument of the model baize, wanted {wanted}")
    if pretrained is None and path_raw is not None and path_diff is not None:
        return Engine.from_diff(path_raw, path_diff, **options)
    if pretrained is None or path_raw is not None or path_diff is not None:
        raise RequestError("wanted either pretrained=FOLDER, or path_raw=BASE and path_diff=DIFF")
    if not isinstance(pretrained, Engine):
        return Engine.from_pretrained(pretrained, **options)
    if late := [name for name in options if name != "chat_format"]:
        raise RequestError(
            f"{late[0]} is given with an Engine that is already loaded, wanted only chat_format beside it"
        )
    return pretrained
