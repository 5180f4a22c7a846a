"""Layouts that this package does not read, recognised by their files' names, with what to do about each."""

from __future__ import annotations

import os
import re
from itertools import islice
from pathlib import Path

from baize_engine.checkpoint.os_errors import reading
from baize_engine.printable import shown

MOST_NAMES = 1 << 14  # names of a folder that are looked at

# pattern of a name, in any case: hint. The first match counts. Names that trainers leave beside weights come before weights'.
_LAYOUTS = {
    r"zero_to_fp32\.py|global_step\d+|(bf16_)?zero_pp_rank_.+|mp_rank_\d+_model_states\.pt":
        "{name} belongs to a DeepSpeed checkpoint, whose weights are split up: in the folder of zero_to_fp32.py, run "
        "`python zero_to_fp32.py . pytorch_model.bin` (if that makes a folder, the weights are in it)",
    r".+\.distcp":
        "{name} belongs to a torch.distributed checkpoint (FSDP), whose weights are split up: run `python -m "
        "torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER pytorch_model.bin`, FOLDER being the one that holds it",
    r".+\.gguf|ggml-.+\.bin|.+\.ggml(\..+)?":
        "{name} is a llama.cpp file, usually quantised, to which nothing can be added: use the model that it was made from",
    r"quantize_config\.json|quant_config\.json|gptq_model.*|.*(gptq|awq|[348]bit).*\.(safetensors|pt|bin)":
        "{name} holds quantised weights (GPTQ, AWQ), to which nothing can be added: use the model that they were made from",
    r"flax_model.*\.msgpack.*":
        "{name} is a Flax file: convert it to safetensors with transformers 4: `LlamaForCausalLM.from_pretrained(FOLDER, "
        "from_flax=True).save_pretrained(NEW)`",
    r"tf_model.*\.h5.*":
        "{name} is a TensorFlow file: convert it to safetensors with transformers 4: `LlamaForCausalLM.from_pretrained(FOLDER, "
        "from_tf=True).save_pretrained(NEW)`",
}  # fmt: skip
# not a whole model: what transformers' Trainer keeps beside weights, and Meta's layout (meta_layout.py)
_NOT_ALONE = re.compile(r"(optimizer|scheduler|scaler|rng_state.*|training_args|consolidated\.\d+)\.(pt|pth|bin)")
# (suffixes, what such a file is, the name that this package looks for)
_KINDS = (
    ((".safetensors",), "safetensors", "model{}.safetensors"),
    ((".bin", ".pt", ".pth", ".ckpt"), "a file of torch.save", "pytorch_model{}.bin"),
)


def hint_of_other_layouts(folder: Path) -> str | None:
    """Describe the layout in `folder`, where no weights were found, and the remedy; None if it is unknown.

    Looks only at names, in one listing of at most MOST_NAMES. CheckpointError if the folder cannot be listed.
    """
    with reading(folder), os.scandir(folder) as listing:
        names = sorted(entry.name for entry in islice(listing, MOST_NAMES))
    for pattern, hint in _LAYOUTS.items():
        match = next(filter(re.compile(pattern, re.IGNORECASE).fullmatch, names), None)
        if match is not None:
            return hint.format(name=shown(match))
    for suffixes, what, wanted in _KINDS:
        files = [name for name in names if name.endswith(suffixes) and not _NOT_ALONE.fullmatch(name)]
        if len(files) == 1:
            return f"if {shown(files[0])} is {what} with the whole model, rename it to {wanted.format('')}"
        if files:
            first, last = (wanted.format(f"-{number:05d}-of-{len(files):05d}") for number in (1, len(files)))
            found = f"if the {len(files)} files such as {shown(files[0])} are each {what} with some of the tensors of one model"
            return f"{found}, rename them to {first} to {last}"
    return None
