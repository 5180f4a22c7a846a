"""What a rank other than 0 does: it makes the calls of rank 0 on runners of its own part of the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from baize_engine.model.kv_cache import KVCache
from baize_engine.model.llama import Llama
from baize_engine.model.mirrored import Mirrored, MirroredCall
from baize_engine.model.prompt_runner import PromptRunner
from baize_engine.model.step_state import StepState
from baize_engine.model.verify_state import VerifyState


def runners(model: Llama, cache: KVCache, rows: int) -> Mapping[str, Mirrored]:
    """The objects that rank 0's calls may name, for steps of up to `rows` rows."""
    made = PromptRunner(model, cache), StepState(model, cache, rows), VerifyState(model, cache, rows), cache
    return {each.mirror_name: each for each in made}


@torch.inference_mode()
def follow(calls: Iterable[MirroredCall], objects: Mapping[str, Mirrored]) -> None:
    """Makes the calls."""
    for call in calls:
        getattr(objects[call.of], call.method)(*call.arguments)
