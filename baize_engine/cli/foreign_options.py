"""Option names of other scripts that make or apply weight diffs, as read in their sources.

weight_diff.py: stanford_alpaca, open-instruct (`--original_model`), WizardLM, UltraLM, KnowLM (`--is_fp16`), gisting
(`--model_type`, and whatever from_pretrained takes), landmark-attention, Lion. apply_delta.py and make_delta.py: FastChat
and its copies in LLaVA, StableVicuna, Wombat, Ziya, BayLing, ChatYuan, LMFlow, where argparse took `--base` for
`--base-model-path`; Panda has `--base_model`. recover_model_weights.py: AlpacaFarm. xor_codec.py: OASST, Pygmalion.
decrypt.py: BELLE, TechGPT.
"""

from __future__ import annotations

from baize_engine.cli.spelling import ForeignOptions

_OURS = {
    **dict.fromkeys(("base", "base_model", "base_model_path"), "path_raw"),
    **dict.fromkeys(("target", "target_model", "target_model_path"), "path_tuned"),
    **dict.fromkeys(("delta", "delta_model", "delta_path"), "path_diff"),
    "llama_7b_hf_dir": "path_raw",
}
_MEMORY = "memory is bounded at any model size (--memory)"
_NEEDLESS = {
    **dict.fromkeys(("low_cpu_mem", "low_cpu_mem_usage"), _MEMORY),
    "is_fp16": "every sum is made in float32 and rounded once to --dtype, whatever the files hold",
    "model_type": "the files say which tensors the model has",
}
_CACHE = "downloads go to huggingface_hub's own cache; set HF_HOME to move it"
_FARM = "give --path_diff tatsu-lab/alpaca-farm-NAME-wdiff, and --path_tuned for the folder to write"

RECOVER = ForeignOptions(
    ours=_OURS,
    needless=_NEEDLESS,
    valued=["model_type"],
    refused={
        "cache_dir": _CACHE,
        "alpaca_farm_model_name": _FARM,
        "models_save_dir": _FARM,
        "path_to_sft10k": "only --path_raw and --path_diff are read",
        "push_to_hub": "nothing is uploaded; upload the folder of the result yourself",
    },
)
MAKE_DIFF = ForeignOptions(
    ours=_OURS,
    needless=_NEEDLESS,
    valued=["model_type"],
    refused={
        "cache_dir": _CACHE,
        **dict.fromkeys(
            ("hub_repo_id", "push_to_hub"), "nothing is uploaded; upload the folder of the diff yourself (hf upload)"
        ),
    },
)
XOR = ForeignOptions(
    ours={"key_file": "path_raw", "input_dir": "path_payload", "output_dir": "path_tuned"},
    needless={
        "decode": "xor only decodes",
        "compress": "gzip data are recognised",
        "type": "the files' names say how they were made",
    },
    valued=["type"],
    refused={
        "encode": "xor only decodes published files",
        "input_file": "give --path_payload, the folder with all of the finetune's .enc files",
    },
)

# Which command to type in place of another script's name.
COMMANDS = {
    "apply_delta": "recover",
    "make_delta": "make_diff",
    "weight_diff": "recover, or baize make_diff",
    "recover_model_weights": "recover",
    "xor_codec": "xor",  # OASST, Pygmalion
    "decrypt": "xor",  # BELLE, TechGPT
}
