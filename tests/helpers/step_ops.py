"""The ops of a decode step, in order, by the names that the cost model gives them."""

NAMES = [
    "embed", "qkv_rope_store", "attention", "linear_add o", "gate_up", "linear_add down", "head", "sample",
]  # fmt: skip
OPS = ["advance", *NAMES]  # of a plan, which first moves every row on by a token
