"""Every sh and python example of the pages is marked, and those marked as runnable run.

Each runs in a new folder that holds what the pages speak of (conftest.py), with a question on standard input, for a chat.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from assets import REPO
from fences import WORKSPACE, Fence, complaint, fences, pages

RUNNABLE = [fence for page in pages() for fence in fences(page) if fence.runnable]
QUESTION = "Who are you?\n"
Workspace = Callable[[tuple[str, ...]], Path]


def run(fence: Fence, place: Path, environment: dict[str, str]) -> None:
    """Runs a fence in the folder `place`; a test that fails shows where the fence stands and what it printed."""
    if fence.language == "sh":
        command = ["bash", "-euo", "pipefail", "-c", fence.text]
    else:
        script = place.parent / "fence.py"  # a file, so that what it starts can import it
        script.write_text(fence.text)
        command = ["python", str(script)]
    done = subprocess.run(
        command,
        cwd=place,
        env=environment,
        input=QUESTION,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    if done.returncode:
        pytest.fail(f"{fence.at} ended with {done.returncode}\n{fence.text}\nprinted\n{done.stdout}", pytrace=False)


@pytest.mark.parametrize("fence", RUNNABLE, ids=lambda fence: fence.at)
def test_an_example_runs(fence: Fence, workspace: Workspace, commands: dict[str, str]) -> None:
    run(fence, workspace(fence.without), commands)


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_every_example_is_marked(page: Path) -> None:
    assert "\n".join(filter(None, map(complaint, fences(page)))) == ""


def test_the_workspace_holds_what_fences_may_leave_out(originals: Path) -> None:
    assert {path.name for path in originals.iterdir()} == set(WORKSPACE)


def one(text: str) -> Fence:
    """The only fence of a page with this text."""
    (found,) = fences(REPO / "docs" / "page.md", text)
    return found


@pytest.mark.parametrize(
    ("marker", "language", "said"),
    [
        ("", "sh", "above it stands ''"),
        ("<!-- runnable -->\n", "sh", "above it stands ''"),
        ("<!-- runs -->", "python", "above it stands '<!-- runs -->'"),
        ("<!-- not run: -->", "sh", "above it stands"),
        ("<!-- not run: … -->", "sh", "above it stands"),
        ("<!-- runnable: without -->", "sh", "above it stands"),
        ("<!-- runnable: without  -->", "sh", "without what?"),
        ("<!-- runnable: without baize-7b -->", "sh", "no workspace has baize-7b"),
        ("<!-- runnable -->", "sh runnable", "'sh runnable' after the ticks"),
        ("<!-- runnable -->", "bash", "'bash' after the ticks"),
        ("", "", "'' after the ticks"),
    ],
)
def test_a_wrong_marker_is_found(marker: str, language: str, said: str) -> None:
    assert said in (complaint(one(f"{marker}\n```{language}\ntrue\n```\n")) or "")


def test_markers_are_read() -> None:
    right = one(
        "text\n\n  <!-- runnable: without baize-13b, prompts.jsonl -->\n  ```sh\n  if true; then\n    :\n  fi\n  ```\n"
    )
    assert (right.line, right.text, right.runnable) == (4, "if true; then\n  :\nfi\n", True)
    assert right.without == ("baize-13b", "prompts.jsonl")
    assert complaint(right) is None
    for marker in ("not run: needs a GPU", "recipe: slurm"):
        fence = one(f"<!-- {marker} -->\n````sh\n```\n````\n")
        assert (complaint(fence), fence.runnable, fence.text) == (None, False, "```\n")
    assert complaint(one('```json\n{"a": 1}\n```\n')) is None


def test_a_fence_that_is_not_closed_is_found() -> None:
    with pytest.raises(ValueError, match=r"page\.md:2: the fence is not closed"):
        one("\n```sh\ntrue\n")


@pytest.mark.parametrize(
    ("language", "text", "printed"),
    [
        ("sh", "test ! -e baize-13b\nbaize --version\nfalse | cat\n", "baize_engine 0"),
        ("sh", "cat\nfalse\n", QUESTION),
        (
            "python",
            "import baize_engine\nprint(baize_engine.__file__)\nraise SystemExit(3)\n",
            "baize_engine/__init__.py",
        ),
    ],
)
def test_a_failure_says_where_and_shows_the_output(
    language: str, text: str, printed: str, workspace: Workspace, commands: dict[str, str]
) -> None:
    fence = one(f"<!-- runnable: without baize-13b -->\n```{language}\n{text}```\n")
    with pytest.raises(pytest.fail.Exception) as failure:
        run(fence, workspace(fence.without), commands)
    assert "docs/page.md:2 ended with" in str(failure.value)
    assert printed in str(failure.value).partition("\nprinted\n")[2]
