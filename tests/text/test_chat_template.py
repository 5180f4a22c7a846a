"""Chat templates: transformers' ids, no special id from a message, and templates that fail, write too much or are hostile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes import small_model
from fast_files import AWKWARD, BOS, EOT, HEADERS, TEMPLATE, byte_level, llama_3, spaced, write

from baize_engine.errors import RequestError
from baize_engine.text import chat_template
from baize_engine.text.chat_template import ChatTemplate
from baize_engine.text.choose import tokenizer_of
from baize_engine.text.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

TEMPLATES = {
    "llama_3": TEMPLATE,
    "chatml": (
        "{%- for message in messages %}\n    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' }}\n"
        "{%- endfor %}\n    {% if add_generation_prompt %}\n{{ '<|im_start|>assistant\\n' }}{% endif %}\n"
    ),
    "llama_2": (
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system = messages[0].content %}"
        "{% else %}{% set loop_messages = messages %}{% set system = false %}{% endif %}{% for m in loop_messages %}"
        "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
        "{% set text = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + m.content if loop.index0 == 0 and system else m.content %}"
        "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + text.strip() + ' [/INST]' }}"
        "{% else %}{{ ' ' + text.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "functions": (
        "{%- set ns = namespace(n=0, self='x') -%}{%- set d = dict(a=1) -%}\n"
        "{%- if tools is defined and tools is not none %}tools{% endif %}{% if documents %}documents{% endif %}\n"
        "{% for m in messages %}{% if loop.index > 3 %}{% break %}{% endif %}{% set ns.n = ns.n + 1 %}\n"
        "   {% generation %}{{ m | tojson }}{{ m.content | tojson(indent=2) }}{{ d | tojson }}{% endgeneration %}\n"
        "{% endfor %}{{ ns.n }}{{ ns.self }}{{ pad_token }}{{ nothing }}{{ strftime_now('%Y') | length }}\n"
    ),
}
TALKS = [
    [{"role": "user", "content": "Hi"}],
    [
        {"role": "system", "content": " Be brief.\n"},
        {"role": "user", "content": "Wer <b>bist</b> du?\n\n"},
        {"role": "assistant", "content": " Größe 日本 😀 "},
        {"role": "user", "content": 'it\'s "quoted" {{ 1 + 1 }} {% if %}\t'},
    ],
]


@pytest.fixture(params=["byte_level", "first", "prepend", "sentencepiece"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def made(folder: Path, kind: str, template: str, **config: Any) -> tuple[ChatTemplate, Tokenizer]:
    if kind == "byte_level":
        llama_3(folder, chat_template=template, **config)
    else:
        roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        write(folder, spaced("first" if kind == "sentencepiece" else kind), chat_template=template, **roles, **config)
    if kind == "sentencepiece":
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer.model").write_bytes(small_model())
    tokenizer = tokenizer_of(folder)
    assert tokenizer is not None
    found = ChatTemplate.of(tokenizer)
    assert found is not None
    return found, tokenizer


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("talk", TALKS, ids=len)
def test_ids_are_transformers_own(kind: str, template: str, talk: list[dict[str, str]], tmp_path: Path) -> None:
    ours, tokenizer = made(tmp_path, kind, TEMPLATES[template])
    theirs = (transformers.LlamaTokenizer if kind == "sentencepiece" else transformers.AutoTokenizer).from_pretrained(
        tmp_path
    )
    assert ours.text(talk) == theirs.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    wanted = theirs.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
    assert ours.ids(talk, tokenizer) == wanted


def test_awkward_contents_have_transformers_ids(tmp_path: Path) -> None:
    ours, tokenizer = made(tmp_path, "byte_level", TEMPLATE)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in AWKWARD:
        talk = [{"role": "user", "content": text}]
        wanted = theirs.apply_chat_template(
            talk, add_generation_prompt=True, return_dict=False, sanitize_control_tokens=True
        )
        assert ours.ids(talk, tokenizer) == wanted, text


def test_no_special_id_comes_from_a_message(kind: str, tmp_path: Path) -> None:
    """Not by a whole token, nor by one that two messages, or a message and the template, make together."""
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}|>{{ eos_token }}"
    ours, tokenizer = made(tmp_path, kind, template)
    special = {tokenizer.id_of(token) for token in tokenizer.special_tokens} - {tokenizer.id_of("<unk>")}
    texts = [
        "hi",
        *tokenizer.special_tokens,
        "".join(tokenizer.special_tokens),
        f"a{BOS} b</s>\n",
        "\U000f0000</s>\U000f0001",
    ]
    talks = [[text] for text in texts]
    talks += [[token[:at], token[at:], "x"] for token in tokenizer.special_tokens for at in (1, len(token) - 1)]
    talks += [[f"x {token[:at]} ", f" {token[at:]} x", "x"] for token in tokenizer.special_tokens for at in (1, 2)]
    talks += [["<|eot_id"], ["<|begin_of_text", "|", ">"], ["<", "/", "s>"]]
    for said in talks:
        talk = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
        ids = ours.ids(talk, tokenizer)
        assert [i for i in ids if i in special] == [tokenizer.bos_id, tokenizer.eos_id], said
        if kind != "prepend":  # whose spaces after a special token come from a normaliser
            assert tokenizer.decode(ids) == "".join(said) + "|>"


def test_where_the_template_is_read_from(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "{{ messages[0].content }}"}]
    found, _ = made(tmp_path, "byte_level", named)  # type: ignore[arg-type]
    assert (found.source, found.path.name) == ("{{ messages[0].content }}", "tokenizer_config.json")
    (tmp_path / "chat_template.jinja").write_text("{{ 'é' }}")
    tokenizer = tokenizer_of(tmp_path)
    assert tokenizer is not None
    found = ChatTemplate.of(tokenizer)  # type: ignore[assignment]
    assert (found.source, found.path) == ("{{ 'é' }}", tmp_path / "chat_template.jinja")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).chat_template == "{{ 'é' }}"
    for nothing in (None, 5, [], [{"name": "tool_use", "template": "x"}], [5], ""):
        (folder := tmp_path / "none").mkdir(exist_ok=True)
        tokenizer = tokenizer_of(write(folder, byte_level(), chat_template=nothing))
        assert tokenizer is not None
        assert ChatTemplate.of(tokenizer) is None


def test_tokens_that_no_file_names_are_the_tokenizers(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(write(tmp_path, byte_level(), chat_template="x", pad_token=None))
    assert tokenizer is not None
    found = ChatTemplate.of(tokenizer)
    assert found is not None
    assert found.tokens == {"bos_token": BOS, "eos_token": ""}


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        ("{{ raise_exception('only one system message') }}", "its chat template fails: only one system message"),
        ("{% if %}", "fails at line 1: Expected an expression"),
        ("\n\n{{ x", "fails at line 3: unexpected end of template"),
        ("{% nope %}", "unknown tag 'nope'"),
        ("{{ messages[0]['no'].x }}", "has no attribute 'no'"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages[9].content + 1 }}", "fails: "),
        ("{{ namespace(__call__=1) }}", "begin with no underscore"),
        ("{% set ns = namespace() %}{% set ns._x = 1 %}", "begin with no underscore"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{% import 'os' as os %}", "no loader"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ ''.format.__globals__.x }}", "unsafe"),
        ("{{ raise_exception.__globals__.x }}", "unsafe"),
        ("{{ strftime_now.__code__.x }}", "unsafe"),
        ("{{ '{0.__class__.x}'.format(1) }}", "unsafe"),
        ("{{ cycler.__init__.__globals__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "not safely callable|unsafe"),
        ("{{ messages[0].update(x=1) }}", "not safely callable|unsafe"),
        ("{% for i in range(999999999) %}x{% endfor %}", "Range too big"),
        ("{% for i in range(99999) %}{{ 'x' * 999 }}{% endfor %}", "writes more than 16777216 characters"),
        ("{{ 'x' * 99999999 }}", "writes more than 16777216 characters"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "fails: "),
        ("x" * (chat_template.MAX_SOURCE + 1), "has more than 262144 characters"),
    ],
)  # fmt: skip
def test_templates_that_fail_are_named(template: str, wanted: str) -> None:
    found = ChatTemplate(template, Path("m/chat_template.jinja"), {"bos_token": "", "eos_token": ""})
    with pytest.raises(RequestError, match=rf"^m/chat_template\.jinja: .*({wanted})"):
        found.text([{"role": "user", "content": "Hi"}])


def test_messages_are_checked_and_a_machine_without_jinja_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, tokenizer = made(tmp_path, "byte_level", TEMPLATE)
    with pytest.raises(RequestError, match=r"messages\[0\] has role 'tool'"):
        found.ids([{"role": "tool", "content": "x"}], tokenizer)
    with monkeypatch.context() as without:
        without.setattr(chat_template, "find_spec", lambda name: None)
        with pytest.raises(RequestError, match=r"tokenizer_config\.json: its chat template needs jinja2: pip install"):
            found.ids(TALKS[0], tokenizer)
    for old in ("2.11.3", "3.1", "3.1.5"):
        monkeypatch.setattr(chat_template, "version", lambda name, old=old: old)
        with pytest.raises(RequestError, match=rf"needs jinja2 3\.1\.6 or newer \(found {old}, whose sandbox"):
            found.ids(TALKS[0], tokenizer)
    for new in ("3.1.6", "3.2.0rc1", "4.0"):
        monkeypatch.setattr(chat_template, "version", lambda name, new=new: new)
        assert ChatTemplate.of(tokenizer).ids(TALKS[0], tokenizer)  # type: ignore[union-attr]


def test_ends_and_headers_are_ids(tmp_path: Path) -> None:
    found, tokenizer = made(tmp_path, "byte_level", TEMPLATE)
    ids = found.ids(TALKS[0], tokenizer)
    assert [ids.count(tokenizer.id_of(token)) for token in (BOS, *HEADERS, EOT)] == [1, 2, 2, 1]
