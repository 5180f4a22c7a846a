"""The site that `make docs` builds: without warnings, with nothing from elsewhere, the same as the pages on GitHub.

What needs mkdocs is skipped where the extra `docs` is not installed (`make docs` installs it).
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from assets import REPO
from lists import read_differently
from page_links import headings

import baize_engine
import baize_engine.errors

PAGES = sorted((REPO / "docs").glob("*.md"))
OBJECTS = re.findall(r"^::: (\S+)$", (REPO / "docs" / "api.md").read_text(), re.MULTILINE)
SAME = re.compile(r"arguments (?:that are not listed|and errors)[^.]* are those of", re.IGNORECASE)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    pytest.importorskip("mkdocs", reason="mkdocs is absent: `make docs` installs it")
    out = tmp_path_factory.mktemp("site")
    nowhere = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy")}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    environment = {**os.environ, **nowhere, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    return out


def test_every_page_is_built_and_none_loads_anything_from_elsewhere(site: Path) -> None:
    built = sorted(site.glob("*.html"))
    assert {page.stem for page in built} == {page.stem for page in PAGES} | {"404"}
    loads = re.compile(
        r"""<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href|srcset)=["']?(?:https?:)?//[^"'> ]*"""
    )
    assert [found for page in built for found in loads.findall(page.read_text())] == []
    styles = "".join(path.read_text() for path in site.rglob("*.css"))
    assert re.findall(r"""(?:@import\s*|url\()["']?(?:https?:)?//[^"')]*""", styles) == []


def test_headings_have_the_anchors_of_github(site: Path) -> None:
    for page in PAGES:
        anchors = re.findall(r'<h[1-6] id="([^"]*)"', (site / f"{page.stem}.html").read_text())
        expected = headings(page.read_text())
        assert [name for name in expected if name not in anchors] == [], page.name


def test_defaults_of_options_are_shown(site: Path) -> None:
    page = re.sub(r"<[^>]*>", "", (site / "api.html").read_text())
    assert re.search(r"max_new_tokens\s*:\s*int\s*=\s*128\b", page)
    assert "option(" not in page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_lists_read_the_same_on_github_and_on_the_site(page: Path) -> None:
    assert read_differently(page.read_text()) == []


def test_lists_that_read_differently_are_found() -> None:
    text = "text\n- a\n\n- b\n  more\n  - c\n\n    d\n\n  e\n\n1. f\n    - g\n\n  ```sh\n  - h\n  ```\n\n**x**\n* i\n"
    assert read_differently(text) == ["2: - a", "6:   - c", "10:   e", "15:   ```sh", "20: * i"]


def found(path: str) -> Any:
    """The object of a dotted path."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def test_the_api_page_has_every_public_name() -> None:
    public = [getattr(baize_engine, name) for name in baize_engine.__all__]
    kinds = [each for each in vars(baize_engine.errors).values() if inspect.isclass(each)]
    shown = list(map(found, OBJECTS))
    assert [each for each in [*public, *kinds] if each not in shown] == []
    assert [each for each in shown if not each.__doc__] == []


def members() -> list[str]:
    """The members of Engine that the page lists."""
    block = (
        (REPO / "docs" / "api.md").read_text().partition("::: baize_engine.engine.Engine\n")[2].partition("\n:::")[0]
    )
    return re.findall(r"^ {8}- (\w+)$", block, re.MULTILINE)


def test_the_api_page_lists_every_public_member_of_engine() -> None:
    assert sorted(members()) == sorted(name for name in vars(baize_engine.Engine) if not name.startswith("_"))


def row(name: str, value: Any) -> str:
    """The line of "At a glance" about a public name: the first sentence of its docstring."""
    paragraph = " ".join((inspect.getdoc(value) or "").partition("\n\n")[0].split())
    return f"| `{name}` | {re.split(r'(?<=[.]) ', paragraph)[0]} |"


def test_the_api_page_says_what_each_name_is() -> None:
    table = (REPO / "docs" / "api.md").read_text().partition("|---|---|\n")[2].partition("\n\n")[0].splitlines()
    methods = [row(f"Engine.{name}", getattr(baize_engine.Engine, name)) for name in members()]
    engine, *others = (row(path.rpartition(".")[2], found(path)) for path in OBJECTS)
    assert table == [engine, *methods, *others]


def functions() -> list[Callable[..., Any]]:
    """The functions of the page, and the methods of Engine."""
    methods = (getattr(baize_engine.Engine, name) for name in members())
    return [*filter(inspect.isfunction, map(found, OBJECTS)), *filter(callable, methods)]


@pytest.mark.parametrize("function", functions(), ids=lambda function: function.__qualname__)
def test_every_argument_is_explained(function: Callable[..., Any]) -> None:
    text = inspect.getdoc(function) or ""
    explained = set(re.findall(r"^    (\w+): ", text.partition("Arguments:\n")[2].partition("\n\n")[0], re.MULTILINE))
    taken = {name for name in inspect.signature(function).parameters if name != "self"}
    assert explained <= taken
    assert taken == explained or SAME.search(" ".join(text.split()))
