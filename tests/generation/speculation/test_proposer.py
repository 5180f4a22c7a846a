"""The interface: whatever proposes has all of it, with the same parameters."""

from __future__ import annotations

from inspect import isfunction, signature

import pytest

from baize_engine.generation.speculation.ngram import Ngrams
from baize_engine.generation.speculation.proposer import NOTHING, Proposer, Prospect

METHODS = [name for name, member in vars(Proposer).items() if isfunction(member) and not name.startswith("_")]


def test_nothing_is_no_token() -> None:
    assert Prospect(0.0, 0) == NOTHING


@pytest.mark.parametrize("proposer", [Ngrams])
def test_a_proposer_has_the_interface(proposer: type) -> None:
    assert METHODS == ["prospect", "propose", "verified", "moved"]
    for name in METHODS:
        assert signature(getattr(proposer, name)) == signature(getattr(Proposer, name))
    assert proposer().token_cost >= 0
