"""The model "baize" gives what the harness's own `hf` model gives for the same float32 weights, by request and by task file."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import WORDS, small_model
from safetensors.torch import load_file, save_file

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (the extra eval)")

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager

import baize_engine
from baize_engine import Engine
from baize_engine.errors import RequestError
from baize_engine.evaluation.lm_eval.model import BaizeLM
from baize_engine.text.sentencepiece_tokenizer import SentencePieceTokenizer

PAIR = Path(baize_engine.__file__).parent / "demo_pair"
GREEDY = {"until": ["dog"], "max_gen_toks": 20, "do_sample": False, "temperature": 0.0}


@pytest.fixture(scope="module")
def spelled(folder: Path) -> Path:
    """The tiny model, but it never says a single byte: transformers and sentencepiece differ where bytes are no character."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"][: 3 + 256] = 0
    save_file(tensors, file, metadata={"format": "pt"})
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "legacy": False}))
    return folder


@pytest.fixture(scope="module")
def ours(spelled: Path) -> Iterator[BaizeLM]:
    model = BaizeLM(spelled, device="cpu", dtype="float32")
    yield model
    model.engine.close()


@pytest.fixture(scope="module")
def theirs(spelled: Path) -> Any:
    """logits_cache=False: with it 0.4.13 reads the wrong row where one context and continuation begin another continuation."""
    pytest.importorskip("accelerate", reason="accelerate is not installed: the harness's hf model needs it")
    return get_model("hf")(pretrained=str(spelled), device="cpu", dtype="float32", batch_size=4, logits_cache=False)


def words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(count))


def requests(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=each, idx=i) for i, each in enumerate(arguments)]


def pairs() -> list[tuple[str, str]]:
    """Contexts with several continuations, of one token and more, some longer than the model's 128 positions."""
    rng = random.Random(1)
    made = []
    for length in (1, 5, 40, 119, 127, 128, 129, 160):
        context = words(rng, length)
        made += [(context, f" {words(rng, count)}") for count in (1, 1, 2, 4)]
    return [
        *made,
        ("", "the cat"),
        ("", words(rng, 9)),
        ("the cat ", "sat"),
        ("the\n", "a"),
        ("the", " cat"),
        ("<s>a", " dog"),
    ]


def test_loglikelihoods_are_those_of_hf(ours: BaizeLM, theirs: Any) -> None:
    asked = requests("loglikelihood", pairs())
    found, wanted = ours.loglikelihood(asked), theirs.loglikelihood(asked)
    assert [logprob for logprob, _ in found] == pytest.approx([logprob for logprob, _ in wanted], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]


def test_a_continuation_is_greedy_if_the_model_would_say_it(ours: BaizeLM) -> None:
    context = ours.tok_encode("who are")
    (said,) = ours.engine.generate([context], baize_engine.SamplingParams(max_new_tokens=4, ignore_eos=True))
    ids = said.token_ids
    asked = [(("", ""), context, ids), (("", ""), context, [*ids[:-1], ids[-1] - 1]), (("", ""), context, ids[:1])]
    assert [greedy for _, greedy in ours._loglikelihood_tokens(asked)] == [True, False, True]


def test_rolling_loglikelihoods_are_those_of_hf(ours: BaizeLM, theirs: Any) -> None:
    rng = random.Random(2)
    asked = requests("loglikelihood_rolling", [(words(rng, n),) for n in (1, 3, 50, 126, 127, 128, 129, 290)] + [("",)])
    assert ours.loglikelihood_rolling(asked) == pytest.approx(theirs.loglikelihood_rolling(asked), abs=1e-4)


def test_greedy_texts_are_those_of_hf(ours: BaizeLM, theirs: Any) -> None:
    rng = random.Random(3)
    stops = (["\n"], ["cat", "dog"], [" "], [], "</s>", [" the", "a"], ["ball red"])
    asked = requests(
        "generate_until",
        [(words(rng, n), {**GREEDY, "until": until}) for n in (1, 3, 50, 107, 108, 109, 200) for until in stops],
    )
    found = ours.generate_until(asked)
    assert found == theirs.generate_until(asked)
    assert len({*found}) > 20


TASKS: dict[str, dict[str, object]] = {
    "choice": {
        "output_type": "multiple_choice",
        "num_fewshot": 2,
        "fewshot_split": "train",
        "doc_to_text": "who {{question}}?\n",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "right",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "answer": {
        "output_type": "generate_until",
        "doc_to_text": "who {{question}}?\n",
        "doc_to_target": "{{choices[right]}}",
        "generation_kwargs": {"until": ["cat", "\n"], "max_gen_toks": 15, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
    "text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "who {{question}}? {{choices[right]}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    },
}


@pytest.fixture
def task_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Task files as users write them, over a file of questions; nothing is looked for on the network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    rng = random.Random(4)
    docs = [{"question": words(rng, 6), "choices": [words(rng, 2) for _ in "abcd"], "right": n % 4} for n in range(10)]
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"train": str(data), "test": str(data)}, "cache_dir": str(tmp_path / "cache")},
        "test_split": "test",
    }
    for name, task in TASKS.items():
        (tmp_path / f"{name}.yaml").write_text(json.dumps({"task": name, **common, **task}))
    return list(TASKS)


def test_task_files_give_what_hf_gives(ours: BaizeLM, theirs: Any, task_files: list[str], tmp_path: Path) -> None:
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found, wanted = (
        lm_eval.simple_evaluate(model, tasks=task_files, task_manager=manager, bootstrap_iters=0)
        for model in (ours, theirs)
    )
    for name in TASKS:
        numbers = [
            {key: value for key, value in run["results"][name].items() if isinstance(value, float)}
            for run in (found, wanted)
        ]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-5)
        assert numbers[0]
        for one, other in zip(found["samples"][name], wanted["samples"][name], strict=True):
            assert one["arguments"] == other["arguments"]
            if name == "answer":
                assert one["resps"] == other["resps"]
    assert found["results"]["choice"]["sample_len"] == 10


def test_prompts_encode_as_transformers_does(ours: BaizeLM, theirs: Any) -> None:
    for text in ("the cat", "<s>the cat", "the cat</s>\nsat", "", "who are you?\n\nA:"):
        for special in (None, True, False):
            assert ours.tok_encode(text, special) == theirs.tok_encode(text, special), (text, special)
    assert (ours.eot_token_id, ours.prefix_token_id, ours.max_length) == (2, 1, 128)
    assert (theirs.eot_token_id, theirs.prefix_token_id, theirs.max_length) == (2, 1, 128)


OPEN_INSTRUCT = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content.strip() }}{% if m.role == 'assistant' %}{{ eos_token }}"
    "{% endif %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
BRACKETS = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}"
    "{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("template", [OPEN_INSTRUCT, BRACKETS])
def test_conversations_are_those_of_hf(
    template: str, spelled: Path, theirs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("jinja2", reason="jinja2 is not installed: chat templates need it")
    file = spelled / "tokenizer_config.json"
    before = file.read_text()
    file.write_text(json.dumps({**json.loads(before), "chat_template": template}))
    ours = BaizeLM(spelled, device="cpu")
    file.write_text(before)
    monkeypatch.setattr(theirs.tokenizer, "chat_template", template)
    talk = [
        {"role": role, "content": said}
        for role, said in (("system", " a"), ("user", "who\n"), ("assistant", "the cat "))
    ]
    for messages, begins in (([*talk, {"role": "user", "content": "are"}], True), (talk[1:2], True), (talk, False)):
        text = ours.apply_chat_template(messages, begins)
        assert text == theirs.apply_chat_template(messages, begins)
        assert ours.tok_encode(text) == theirs.tok_encode(text)
    assert (ours.chat_template(True), ours.chat_template()) == (template, None)
    assert ours.tokenizer_name == str(spelled).replace("/", "__")
    with pytest.raises(RequestError, match="the chat template 'tools' is not known"):
        ours.chat_template("tools")


def test_samples_differ_come_again_and_do_not_depend_on_other_requests(spelled: Path, ours: BaizeLM) -> None:
    drawn = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 12}
    asked = requests(
        "generate_until", [("who", drawn), ("are", drawn), ("who", drawn), ("who", GREEDY), ("who", drawn)]
    )
    found = ours.generate_until(asked)
    assert len({found[0], found[2], found[4]}) == 3
    assert ours.generate_until(asked) == found
    assert ours.generate_until([asked[1]]) == [found[1]]
    assert BaizeLM(ours.engine, seed=5).generate_until(asked)[0] != found[0]


def test_equal_requests_are_computed_once(ours: BaizeLM, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts: list[object] = []
    completions = ours.engine.completions
    monkeypatch.setattr(ours.engine, "completions", lambda ids, params: prompts.extend(ids) or completions(ids, params))
    found = ours.generate_until(requests("generate_until", [("who", GREEDY), ("are", GREEDY), ("who", GREEDY)]))
    assert found[0] == found[2]
    assert len(prompts) == 2


def test_each_result_is_kept_under_its_request(ours: BaizeLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--use_cache` resumes a run from them."""
    kept: list[tuple] = []
    monkeypatch.setattr(ours.cache_hook, "add_partial", lambda *entry: kept.append(entry))
    (answer,) = ours.loglikelihood(requests("loglikelihood", [("who", " are")]))
    (total,) = ours.loglikelihood_rolling(requests("loglikelihood_rolling", [("who are",)]))
    (text,) = ours.generate_until(requests("generate_until", [("who", GREEDY)]))
    assert kept == [
        ("loglikelihood", ("who", " are"), answer),
        ("loglikelihood_rolling", ("who are",), total),
        ("generate_until", ("who", GREEDY), text),
    ]


def test_requests_that_do_not_fit_are_named(ours: BaizeLM) -> None:
    with pytest.raises(
        RequestError, match=r"continuation of request 1 has 129 tokens, wanted 1 to 128 \(max_model_len\)"
    ):
        ours._loglikelihood_tokens([(None, [1], [5]), (None, [1], [5] * 129)])
    with pytest.raises(RequestError, match="max_gen_toks is 128, wanted less than max_model_len, 128"):
        ours.generate_until(requests("generate_until", [("a", {"max_gen_toks": 128})]))


def test_model_arguments(spelled: Path, tmp_path: Path) -> None:
    more = {"batch_size": 1, "max_batch_size": None, "device": "cuda:7"}
    made = get_model("baize").create_from_arg_string(
        f"pretrained={spelled},device=cpu,quantize=int8,max_model_len=64,speculate=ngram,speculate_tokens=3", more
    )
    assert (type(made), made.max_length) == (BaizeLM, 64)
    asked = requests("generate_until", [("Once upon a time", {"max_gen_toks": 8})])
    made.generate_until(asked)
    assert made.engine.usage.speculation
    recovered = BaizeLM.create_from_arg_obj({"path_raw": PAIR / "base", "path_diff": PAIR / "diff"}, {"device": "cpu"})
    with Engine.from_diff(PAIR / "base", PAIR / "diff", device="cpu") as engine:
        (direct,) = engine.generate("Once upon a time", baize_engine.SamplingParams(max_new_tokens=8))
    assert recovered.generate_until(asked) == [recovered.tokenizer.decode(direct.token_ids)]
    bare = BaizeLM(spelled, device="cpu", add_bos_token=False, prefix_token_id=2)
    with pytest.raises(
        RequestError, match="dtype is given with an Engine that is already loaded, wanted only chat_format"
    ):
        BaizeLM(bare.engine, dtype="float16")
    assert (bare.tok_encode("the"), bare.prefix_token_id) == (
        SentencePieceTokenizer(small_model()).encode("the", add_bos=False),
        2,
    )
    for arguments, message in (
        (
            {"pretrained": str(spelled), "parallelize": True},
            "parallelize is not an argument of the model baize, wanted pretrained",
        ),
        ({}, "wanted either pretrained=FOLDER, or path_raw=BASE and path_diff=DIFF"),
        ({"pretrained": str(spelled), "path_raw": "a", "path_diff": "b"}, "wanted either pretrained=FOLDER"),
        ({"path_raw": "a"}, "wanted either pretrained=FOLDER"),
        ({"pretrained": str(spelled), "quantize": "int3"}, "quantize is 'int3'"),
    ):
        with pytest.raises(RequestError, match=message):
            BaizeLM.create_from_arg_obj(arguments, {"device": "cpu"})
    mute = shutil.copytree(spelled, tmp_path / "mute")
    (mute / "tokenizer.model").unlink()
    with pytest.raises(RequestError, match="the model has no tokenizer"):
        BaizeLM(mute, device="cpu")
