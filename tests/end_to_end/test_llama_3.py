"""A small Llama-3: tokenizer.json, chat template, GQA, llama3's rope, several end ids.

It is generated from, chatted with, scored and recovered; transformers reads the same folder and says the same.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import fast_files
import pytest
import tiny
import tokenizers
import torch

from baize_engine import Engine, SamplingParams, make_diff, verify
from baize_engine.cli import main
from baize_engine.errors import RequestError
from baize_engine.text.chat_template import ChatTemplate

transformers = pytest.importorskip("transformers")

ROWS = 448  # some more than the tokenizer has ids
BOS, EOS, EOT = map(
    tokenizers.Tokenizer.from_str(fast_files.byte_level()).token_to_id, (fast_files.BOS, fast_files.EOS, fast_files.EOT)
)
TALK = [
    {"role": "system", "content": "Be brief.\n"},
    {"role": "user", "content": "Wer bist du? 日本"},
    {"role": "assistant", "content": " who are you "},
    {"role": "user", "content": "It's 12345 😀"},
]
PARAMS = SamplingParams(max_new_tokens=12)


def write(folder: Path, seed: int, tied: bool, **config: object) -> Path:
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32}  # fmt: skip
    made = tiny.config(
        vocab_size=ROWS, num_key_value_heads=2, head_dim=16, rope_theta=500000.0, rope_scaling=rope, rms_norm_eps=1e-5,
        max_position_embeddings=256, tie_word_embeddings=tied, torch_dtype="float32", bos_token_id=BOS, eos_token_id=[EOS, EOT],
        pad_token_id=None, **config,
    )  # fmt: skip
    tiny.write_model(folder, made, tiny.state(made, seed, scale=0.3))
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": BOS, "eos_token_id": [EOS, EOT]}))
    return fast_files.llama_3(folder)


@pytest.fixture(scope="module", params=[False, True], ids=["own head", "tied head"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("model"), 1, request.param)


def test_it_answers_as_in_transformers(folder: Path) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompts = ["the cat sat on", "Größe 日本 😀", " it's 1234567"]
    with Engine.from_pretrained(folder, device="cpu") as engine, torch.inference_mode():
        assert sorted(engine.eos_token_ids) == [EOS, EOT]
        asked = [(engine.encode(prompt), theirs.encode(prompt)) for prompt in prompts]
        asked += [
            (
                engine.chat_ids(TALK[:end]),
                theirs.apply_chat_template(TALK[:end], add_generation_prompt=True, return_dict=False),
            )
            for end in (2, 4)
        ]
        for ours, wanted in asked:
            assert ours == wanted
            answer = model.generate(torch.tensor([wanted]), max_new_tokens=12, do_sample=False, pad_token_id=0)
            ids = answer[0, len(wanted) :].tolist()
            (done,) = engine.generate([ours], PARAMS)
            assert done.token_ids == ids
            assert "".join(engine.stream(ours, PARAMS)) == done.text
            if "\ufffd" not in done.text:
                kept = ids[:-1] if done.finish_reason == "stop" else ids
                assert done.text == theirs.decode(kept, skip_special_tokens=True)
        assert engine.chat(TALK, PARAMS).token_ids == done.token_ids
        ids = engine.encode("the cat sat")
        logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        wanted_score = sum(logits[at - 1, ids[at]].item() for at in range(len(engine.encode("the cat")), len(ids)))
        assert engine.score("the cat", [" sat"]) == pytest.approx([wanted_score], abs=1e-4)


def test_stop_strings_and_special_tokens_of_prompts(folder: Path) -> None:
    with Engine.from_pretrained(folder, device="cpu") as engine:
        text = engine.generate("the cat", SamplingParams(max_new_tokens=20, ignore_eos=True))[0].text
        (done,) = engine.generate("the cat", SamplingParams(max_new_tokens=20, ignore_eos=True, stop=[text[5:8]]))
        assert done.text == text[: text.index(text[5:8])]
        assert EOT not in engine.encode("a<|eot_id|>")
        assert engine.encode("a<|eot_id|>", parse_special=True)[-1] == EOT
        assert engine.encode("a", add_bos=False) == engine.encode("a")[1:]


def test_it_is_recovered_and_speaks(folder: Path, tmp_path: Path) -> None:
    tied = json.loads((folder / "config.json").read_text())["tie_word_embeddings"]
    base = write(tmp_path / "base", 2, tied)
    make_diff(base, folder, tmp_path / "diff", device="cpu", progress=False)
    arguments = [
        "--path_raw",
        base,
        "--path_diff",
        tmp_path / "diff",
        "--path_tuned",
        tmp_path / "out",
        "--dtype",
        "float32",
    ]
    assert main(["recover", *map(str, arguments), "--device", "cpu", "--test_inference"]) == 0
    (line,) = verify(tmp_path / "out").warnings
    assert f"and the model {ROWS} rows: " in line
    assert line.endswith("stand for no text")
    with (
        Engine.from_pretrained(tmp_path / "out", device="cpu") as engine,
        Engine.from_diff(base, tmp_path / "diff", device="cpu", dtype="float32", chat_format="template") as direct,
    ):
        assert engine.chat(TALK, PARAMS).text == direct.chat(TALK, PARAMS).text
        assert engine.chat_ids(TALK) == direct.chat_ids(TALK)


def test_the_command_speaks_each_format_and_info_names_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    records = tmp_path / "records.jsonl"
    records.write_text(json.dumps({"messages": TALK}) + "\n")
    for name in ("auto", "template", "open_instruct", "alpaca", "vicuna", "raw"):
        options = ["--device", "cpu", "--max_new_tokens", "4", "--ignore_eos", "--chat_format", name]
        with Engine.from_pretrained(folder, device="cpu", chat_format=name) as engine:
            few = SamplingParams(max_new_tokens=4, ignore_eos=True)
            wanted = engine.chat(TALK, few)
            reply = engine.chat([{"role": "user", "content": "Hi"}], few).text
        out = tmp_path / f"{name}.jsonl"
        assert main(["generate", str(folder), *options, "--input", str(records), "--output", str(out), "--quiet"]) == 0
        (line,) = [json.loads(line) for line in out.read_text().splitlines()]
        assert line["completions"][0]["token_ids"] == wanted.token_ids
        capsys.readouterr()
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Hi\n")))
        assert main(["chat", str(folder), *options]) == 0
        assert capsys.readouterr().out == reply + "\n"
    assert main(["info", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert f"  prompts begin with id {BOS}: the post-processor of tokenizer.json adds it\n" in shown
    assert "  chat format: template: the chat template in tokenizer_config.json\n" in shown


def test_a_run_is_resumed_with_the_same_format_only(folder: Path, tmp_path: Path) -> None:
    records, out = tmp_path / "records.jsonl", tmp_path / "out.jsonl"
    records.write_text(json.dumps({"messages": TALK}) + "\n")
    run = [
        "generate",
        str(folder),
        "--device",
        "cpu",
        "--max_new_tokens",
        "2",
        "--input",
        str(records),
        "--output",
        str(out),
    ]
    assert main([*run, "--quiet"]) == 0
    assert main([*run, "--quiet", "--resume"]) == 0
    assert main([*run, "--quiet", "--resume", "--chat_format", "auto"]) == 0
    assert main([*run, "--quiet", "--resume", "--chat_format", "raw"]) == 1


def test_a_template_is_run_by_conversations_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a stranger's program, which may run for ever: prompts do without it."""
    rendered: list[object] = []
    render = ChatTemplate.text
    monkeypatch.setattr(ChatTemplate, "text", lambda self, talk: rendered.append(talk) or render(self, talk))
    with Engine.from_pretrained(folder, device="cpu", max_model_len=64) as engine:
        engine.generate("the cat", SamplingParams(max_new_tokens=2))
        assert rendered == []
        engine.chat_ids(TALK[1:2])
        tried = len(rendered)
        assert engine.chat_ids(TALK[1:2]) == engine.chat_ids(TALK[1:2])
        assert len(rendered) == tried + 2  # the format is found once


def test_what_cannot_be_is_refused_before_the_weights_are_read(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="chat_format is 'llama', wanted auto, template, open_instruct"):
        Engine.from_pretrained(folder, chat_format="llama")
    bare = write(tmp_path / "bare", 1, False)
    path = bare / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": None}))
    with pytest.raises(RequestError, match=r"chat_format is 'template', and .*bare has no chat template"):
        Engine.from_pretrained(bare, device="cpu", chat_format="template")
