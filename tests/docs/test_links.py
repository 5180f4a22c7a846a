"""Every link within the pages leads somewhere, and every file that they name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from assets import REPO
from page_links import OTHERS, anchor, documents, exists, headings, links, named_files, problem

MACHINES = re.compile(r"(?<![\w.~])/(?:home|root|Users|tmp)/\S*|[A-Z]:\\\S*")


@pytest.mark.parametrize("page", documents(), ids=lambda page: page.stem)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    assert [said for target in links(page.read_text()) if (said := problem(page, target))] == []


@pytest.mark.parametrize("page", documents(), ids=lambda page: page.stem)
def test_files_that_a_page_names_exist(page: Path) -> None:
    names = set(named_files(page.read_text())) - OTHERS.keys()
    assert [name for name in sorted(names) if not exists(name)] == []


@pytest.mark.parametrize("page", documents(), ids=lambda page: page.stem)
def test_no_page_names_a_folder_of_somebodys_machine(page: Path) -> None:
    assert MACHINES.findall(page.read_text()) == []


def test_links_are_found() -> None:
    text = """
    [a](b.md) and [c
    d](e.md#f "title"), ![picture](g.svg), [abroad](https://h.org/x), `[code](no.md)`
<img src="i.svg"> <a href="mailto:j@k.org">
<!-- [l](no.md) -->
```text
[m](no.md)
```
[n]: o.md
"""
    assert links(text) == ["b.md", "e.md#f", "g.svg", "i.svg", "o.md"]


@pytest.mark.parametrize(
    ("heading", "wanted"),
    [
        ("What is guaranteed, and how", "what-is-guaranteed-and-how"),
        ("`baize xor` & _C: 1.5× **fast**", "baize-xor--_c-15-fast"),
        ("The [demo](x.md)'s pair — Zürich", "the-demos-pair--zürich"),
    ],
)
def test_anchors_are_those_of_github(heading: str, wanted: str) -> None:
    assert anchor(heading) == wanted
    assert headings(f"# {heading}\n```sh\n# no heading\n```\n## Other ##\n") == [wanted, "other"]


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("index.md", None),
        ("#page", None),
        ("index.md#nowhere", "no heading has this anchor"),
        ("absent.md", "git has no such file"),
        ("../README.md", "leads out of docs/"),
        ("../../README.md", "git has no such file"),
        ("api.md#baize_engine.engine.Engine", None),
        ("#twice", "2 headings have this anchor"),
    ],
)
def test_a_link_that_leads_nowhere_is_found(target: str, said: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    page, read = REPO / "docs" / "page.md", Path.read_text
    monkeypatch.setattr("page_links.in_git", lambda: {"README.md", "docs/page.md", "docs/index.md", "docs/api.md"})
    monkeypatch.setattr(Path, "read_text", lambda self: "# Page\n## Twice\n## Twice\n" if self == page else read(self))
    found = problem(page, target)
    assert found is None if said is None else said in (found or "")


def test_files_are_found_by_place_or_name() -> None:
    text = "`tests/x.py`, `y.py`, `python benchmarks/z.py --json q.json`, `tests/a.py::test_b`, `out/`, text/plain.\n"
    text += "```sh\nbash .ci/run < in.txt\n```\n```python\nopen('tests/no.py')\n```\n"
    assert named_files(text) == ["tests/x.py", "y.py", "benchmarks/z.py", "tests/a.py", ".ci/run"]
    for name in ("tests/helpers/", "kernels/reference.py", "model/names.py", "test_figures.py", "docs/*.md"):
        assert exists(name), name
    for name in ("tests/absent.py", "odel/names.py", "links.py", "docs/*.mdx"):
        assert not exists(name), name


def test_paths_of_machines_are_found() -> None:
    assert MACHINES.findall("in /home/me/x and ~/tmp/y, a/root/z, /tmp/q, C:\\x") == ["/home/me/x", "/tmp/q,", "C:\\x"]
