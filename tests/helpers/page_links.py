"""What a page of Markdown points at: its links and images, the anchors of its headings, and the files that it names."""

from __future__ import annotations

import re
import subprocess
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

from assets import REPO
from fences import fences

PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "examples/README.md")
LINK = re.compile(
    r"""\]\(\s*<?([^)\s>]+)>?(?:\s+"[^"]*")?\s*\)|(?:href|src|srcset)="([^"]*)"|^\[[^]^]+\]:\s+(\S+)""", re.MULTILINE
)
ABROAD = re.compile(r"^(?:[a-z][a-z+.-]*:|//)")
# a file of the repository: by its place, or a script by its name alone
NAMED = re.compile(
    r"(?:\.ci|\.github|baize_engine|benchmarks|csrc|docs|examples|kernels|tests)/[\w.*/-]*|[\w./-]+\.(?:py|pyi|cpp|h)"
)
# scripts and names of other projects, which the pages speak of
OTHERS = {
    "apply_delta.py": "of FastChat",
    "convert_llama_weights_to_hf.py": "of transformers",
    "llama.cpp": "a peer",
    "ik_llama.cpp": "a peer",
    "weight_diff.py": "of alpaca and open-instruct",
    "xor_codec.py": "of OASST and Pygmalion",
    "encrypt.py": "of BELLE",
    "decrypt.py": "of BELLE",
}


def documents() -> list[Path]:
    """The pages whose links are followed."""
    return [*(REPO / name for name in PAGES if (REPO / name).exists()), *sorted((REPO / "docs").glob("*.md"))]


@cache
def in_git() -> frozenset[str]:
    """The files that git has, relative to the repository, and their folders."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPO, capture_output=True, text=True, check=True).stdout
    files = list(filter(None, listed.split("\0")))
    return frozenset([*files, *(str(folder) for file in files for folder in Path(file).parents if folder != Path())])


def without_fences(text: str) -> str:
    """A page with empty lines in place of its fences and comments."""
    lines = text.splitlines()
    for fence in fences(REPO / "docs" / "page.md", text):
        size = fence.text.count("\n") + 2
        lines[fence.line - 1 : fence.line - 1 + size] = [""] * size
    return re.sub(r"<!--.*?-->", lambda found: "\n" * found[0].count("\n"), "\n".join(lines), flags=re.DOTALL)


def links(text: str) -> list[str]:
    """The targets of a page's links and images that stay in the repository, in order."""
    prose = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "code", without_fences(text), flags=re.DOTALL)
    found = [target for groups in LINK.findall(prose) for target in groups if target]
    return [target for target in found if not ABROAD.match(target)]


def headings(text: str) -> list[str]:
    """The anchors of a page's headings as GitHub makes them, where headings do not repeat; those of the API's objects."""
    prose = without_fences(text)
    found = [anchor(heading) for heading in re.findall(r"^#{1,6} +(.*?)(?: +#+)? *$", prose, re.MULTILINE)]
    return found + re.findall(r"^::: (\S+)$", prose, re.MULTILINE)


def anchor(heading: str) -> str:
    """GitHub's anchor of a heading: lower case, without punctuation, a hyphen for each space."""
    shown = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")


def problem(page: Path, target: str) -> str | None:
    """Why a link of a page leads nowhere."""
    place, _, wanted = target.partition("#")
    file = (page.parent / place).resolve() if place else page
    if not file.is_relative_to(REPO) or str(file.relative_to(REPO)) not in in_git():
        return f"{target}: git has no such file"
    if page.parent == REPO / "docs" and not file.is_relative_to(page.parent):
        return f"{target}: leads out of docs/, which the site does not have: name the file as code"
    if not wanted:
        return None
    count = headings(file.read_text()).count(wanted) if file.suffix == ".md" else 0
    if count > 1:
        return f"{target}: {count} headings have this anchor, and GitHub and the site tell them apart in different ways"
    return None if count else f"{target}: no heading has this anchor"


def named_files(text: str) -> list[str]:
    """The files of the repository that a page names in code, fenced code of shells included."""
    code = [found[1] for found in re.findall(r"(`+)(?!`)(.*?)(?<!`)\1(?!`)", without_fences(text), re.DOTALL)]
    code += [fence.text for fence in fences(REPO / "docs" / "page.md", text) if fence.language == "sh"]
    words = [word.strip("\"'(),;:") for each in code for word in each.split()]
    return [word.split("::")[0] for word in words if NAMED.fullmatch(word.split("::")[0])]


def exists(name: str) -> bool:
    """Whether git has the file, the folder or one of the pattern: by its whole path or, as in the package, by its end."""
    wanted = name.removesuffix("/")
    return any(fnmatch(path, wanted) or fnmatch(path, f"*/{wanted}") for path in in_git())
