"""The jinja2 environment that chat templates run in: transformers' functions, and nothing of this machine but the clock.

jinja2's own sandbox keeps templates from attributes that begin with an underscore and from changing what they are given;
there is no loader, so that `include` and `import` reach no file. How long a template runs and what it holds meanwhile are not
bounded.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace


def environment() -> ImmutableSandboxedEnvironment:
    """A new environment with the settings, functions and filters that transformers gives to chat templates."""
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols])
    made.filters["tojson"] = tojson
    made.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": strftime_now,
        "dict": new_dict,
        "namespace": PlainNamespace,
    }
    return made


class GenerationTag(Extension):
    """{% generation %}…{% endgeneration %}, around the replies that are trained on: here it is what it contains."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class PlainNamespace(Namespace):
    """jinja's namespace without names that Python gives a meaning."""

    def __init__(*args: Any, **given: Any) -> None:  # `self` may be a name in it
        self, args = args[0], args[1:]
        Namespace.__init__(self)
        for name, value in dict(*args, **given).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise TemplateError(f"a namespace has no {name!r}: names in it begin with no underscore")
        super().__setitem__(name, value)


def new_dict(*args: Any, **given: Any) -> dict[Any, Any]:
    """`dict` as a function, not as the class with its attributes."""
    return dict(*args, **given)


def raise_exception(message: str) -> NoReturn:
    """How a template refuses a conversation."""
    raise TemplateError(message)


def strftime_now(form: str) -> str:
    """The local time, as `datetime.strftime` writes it."""
    return datetime.now().strftime(form)


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """A value as JSON, unlike jinja's own without escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
