"""How far each result may be from its oracle, and why. One table, so that nobody loosens a bound in passing."""

# float32 ops against a float64 oracle on values of order 1: reductions over up to 512 terms, each off by 2^-24.
OP_FLOAT32 = 5e-6

# Logits of a whole tiny model, float32 against transformers' float32: other orders of summation through some layers.
LOGITS_FLOAT32 = 2e-4

# Prefill in chunks, or token by token, against prefill at once: the same sums in another order.
PREFILL_SHAPE = 1e-4

# Greedy ids must agree unless the two best logits are closer than this: then either is right.
GREEDY_MARGIN = 1e-3
