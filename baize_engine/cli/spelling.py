"""How options may be spelled: as `-h` lists them, and as command lines for the scripts of 2023 have them.

Those scripts used python-fire (weight_diff.py of alpaca and its copies) or argparse (apply_delta.py of FastChat and its
copies). Before argparse sees a command's arguments, each option is replaced by the one name under which it is listed:

- hyphens and underscores are the same, and so are one dash and two, of any kind, before a name (`–path-raw` is `--path_raw`);
- `--flag`, `--flag True`, `--flag=1`, `--flag False`, `--noflag` and `--no-flag` set a switch; a 0, 1, yes or no after a space
  is a path where a file of that name exists;
- names of other scripts become ours; needless ones get a line on stderr, unsupported ones are a usage error;
- an unknown option is a usage error that names the nearest known one.

Options are then put first and positional arguments last, so that users may mix them in any order.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from baize_engine.cli.streams import tell

_DASHES = "-‐‑‒–—―−"  # what web pages and word processors make of a dash
_OPTION = re.compile(rf"[{_DASHES}]{{1,2}}[^\W\d_][\w-]*")
_WORDS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass(frozen=True)
class ForeignOptions:
    """Option names of other scripts, without dashes in front and with underscores."""

    ours: Mapping[str, str] = field(default_factory=dict)  # the same option here
    needless: Mapping[str, str] = field(default_factory=dict)  # why it is not needed here; a switch, or one of `valued`
    valued: Collection[str] = ()
    refused: Mapping[str, str] = field(default_factory=dict)  # what to do in its place


class CommandParser(argparse.ArgumentParser):
    """The parser of one command. `foreign` lists other scripts' options that it understands.

    passes_on: the arguments are another program's, and go to `arguments` as they are, but for a lone --help.
    """

    foreign = ForeignOptions()
    passes_on = False

    def parse_known_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:
        given = sys.argv[1:] if args is None else list(args)
        if self.passes_on and given not in (["help"], ["-h"], ["--help"]):
            options, _ = super().parse_known_args([], namespace)
            options.arguments = given
            return options, []
        return super().parse_known_args(["--help"] if given == ["help"] else self._respelled(given), namespace)

    def _respelled(self, given: Sequence[str]) -> list[str]:
        table = {_key(option): option for option in self._option_string_actions}
        options: list[str] = []
        positional: list[str] = []
        tokens = list(given)
        while tokens:
            token = tokens.pop(0)
            name, equals, given_value = token.partition("=")
            value = given_value if equals else None
            if token == "--":
                positional += tokens
                break
            if not _OPTION.fullmatch(name):
                positional.append(token)
                continue
            key = _key(name)
            key = self.foreign.ours.get(key, key)
            if key.startswith("no_") and f"no{key[3:]}" in table:  # --no-flag
                key = f"no{key[3:]}"
            if key in self.foreign.needless:
                self._pass_over(name, key, value, tokens)
            elif key in self.foreign.refused:
                self.error(f"{name} is not supported: {self.foreign.refused[key]}")
            elif key in table:
                options += self._one(table[key], table, value, tokens)
            else:
                self.error(self._unknown(name, table))
        return [*options, "--", *positional] if positional else options

    def _one(self, option: str, table: Mapping[str, str], value: str | None, tokens: list[str]) -> list[str]:
        """One option under its listed name, followed by its values, which are removed from `tokens`."""
        count, key = self._option_string_actions[option].nargs, _key(option)
        if f"no{key}" in table:
            return [option if self._is_set(option, value, tokens) else table[f"no{key}"]]
        # the --no form takes no separate word, as in python-fire
        if count == 0 and key.startswith("no") and key[2:] in table:
            if value is None and (word := self._word(tokens)):
                self.error(f"{option} {word}: wanted {option} alone, or --{key[2:]} {word}")
            return [option if self._is_set(option, value, []) else table[key[2:]]]
        if value is not None:
            return [f"{option}={value}"]
        if count == 0:
            return [option]
        taken = [option]
        most = count if isinstance(count, int) else 1 if count in (None, "?") else len(tokens)
        while tokens and tokens[0] != "--" and len(taken) <= most and not self._is_option(tokens[0]):
            taken.append(tokens.pop(0))
        if len(taken) == 1 and count != "?" and count != "*":
            self.error(f"argument {option}: expected {'one argument' if most == 1 else 'arguments'}")
        return taken

    def _is_option(self, token: str) -> bool:
        """Whether argparse takes it for an option: it begins with a dash and has no space, even where a value is wanted."""
        return _OPTION.fullmatch(token.partition("=")[0]) is not None and " " not in token

    def _is_set(self, name: str, value: str | None, tokens: list[str]) -> bool:
        """The value of a switch; a word that is one is removed from `tokens`."""
        if value is None:
            return _WORDS[tokens.pop(0).casefold()] if self._word(tokens) else True
        if value.casefold() not in _WORDS:
            self.error(f"{name} is {value!r}, wanted True or False")
        return _WORDS[value.casefold()]

    def _word(self, tokens: Sequence[str]) -> str | None:
        """The first of `tokens` if it is a switch's value, and not the name of a file that exists here."""
        if not tokens or tokens[0].casefold() not in _WORDS:
            return None
        can_be_path = tokens[0].casefold() not in ("true", "false")  # which all those command lines use
        return None if can_be_path and os.path.lexists(tokens[0]) else tokens[0]

    def _pass_over(self, name: str, key: str, value: str | None, tokens: list[str]) -> None:
        if key in self.foreign.valued:
            if value is None and tokens:
                tokens.pop(0)
        elif not self._is_set(name, value, tokens):
            return
        tell(f"{name} is not needed here: {self.foreign.needless[key]}")

    def _unknown(self, name: str, table: Iterable[str]) -> str:
        known = [key for key in table if len(key) > 1 and not (key.startswith("no") and key[2:] in table)]
        near = nearest(_key(name), [*known, *self.foreign.ours])
        hint = f"did you mean --{near}?" if near else f"{self.prog} -h lists the options"
        return f"there is no option {name}; {hint}"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The name of `known` that somebody who typed `word` probably meant: a longer form of it, or one spelled alike."""
    names = list(known)
    longer = [name for name in names if len(word) > 2 and name.startswith(word)]
    return next(iter(longer or get_close_matches(word, names, n=1)), None)


def _key(option: str) -> str:
    return option.lstrip(_DASHES).replace("-", "_")
