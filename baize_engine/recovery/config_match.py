"""Whether two configs describe the same model: what shapes cannot tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from baize_engine.errors import MismatchError

MUST_AGREE = (  # what shapes cannot tell: LLaMA-1 and Llama-2 of one size differ only here
    "rms_norm_eps",
    "max_position_embeddings",
    "rope_theta",
    "rope",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "hidden_size",
    "num_hidden_layers",
)
KINDS_OF_MODEL = ("model_type", "architectures")  # differ where a finetune built more around the base's model


def check_configs(
    base: Mapping[str, Any], other: Mapping[str, Any], base_name: str, other_name: str, keep_extra: bool = False
) -> None:
    """Raises MismatchError where two normalised configs describe models that differ though their shapes may agree.

    A key that one of them lacks was not told by its file, and is not compared. With `keep_extra` the kinds of model may
    differ: what is kept is what the other one has more.
    """
    keys = MUST_AGREE if keep_extra else (*KINDS_OF_MODEL, *MUST_AGREE)
    differing = [key for key in keys if None not in (found := (base.get(key), other.get(key))) and found[0] != found[1]]
    if differing:
        if not set(differing) - set(KINDS_OF_MODEL):
            remedy = "--keep_extra where the finetune holds the base's model and more, or --force"
        else:
            remedy = "--force goes on where the shapes agree"
        raise MismatchError(
            "the configs describe different models: "
            + "; ".join(
                f"{key} is {base[key]!r} in {base_name} and {other[key]!r} in {other_name}" for key in differing
            )
            + f" ({remedy})"
        )
