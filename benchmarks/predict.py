"""Predicts the time of a decode step on a card, kernel by kernel, without a GPU.

    python benchmarks/predict.py --card h100 --preset 13b --kind int4
    python benchmarks/predict.py --card h100 --preset 13b --variants     what the kernels' other settings should change
    python benchmarks/predict.py --card a100 --preset 7b --set streaming=0.88     with a constant as it was measured

The formulas are those of kernel_models.py, launches those of kernels/settings.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

import kernel_models as kernels
from card_model import Constants, Estimate, Machine
from cards import CARDS, Card
from common import parser
from kernel_models import Before, before
from reports import Report, table
from shapes import PRESETS

from baize_engine.kernels import settings
from baize_engine.model import cost
from baize_engine.model.config import ModelConfig

BITS = {"float16": 16, "bfloat16": 16, "int8": 8, "int4": 4}
ACTIVATION = 2  # bytes
Change = Mapping[str, Mapping[str, Any]]  # by op, settings that are not to be the rule's


def step(
    card: Card,
    preset: str,
    kind: str = "float16",
    batch: int = 1,
    context: int = 128,
    constants: Constants | None = None,
    change: Change | None = None,
    drawn: bool = False,
) -> list[dict[str, Any]]:
    """A row for each op of a step, named as in model/cost.py, in the order of the step.

    `us_call` is `body`, `latency` and `tail`; `bound` is the greatest of the three, a body's being what limits it. `MB` comes
    from memory in a call, of which a part may come during the op before it. `change`: other settings than the rules', by op or
    of all "products". `drawn`: tokens are drawn with top_k and top_p, not greedily.
    """
    config, bits = _config(card, preset, kind, batch, context), BITS[kind]
    m = Machine(card, constants or Constants())
    layers, hidden, inner = config.num_layers, config.hidden_size, config.intermediate_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes = {
        "qkv_rope_store": (q + 2 * kv, hidden), "linear_add o": (hidden, q), "gate_up": (2 * inner, hidden),
        "linear_add down": (hidden, inner), "head": (config.vocab_size, hidden),
    }  # fmt: skip
    for op in change or {}:
        if op not in {"products", *shapes, "attention", "sample"}:
            wanted = ", ".join(("products", *shapes, "attention", "sample"))
            raise ValueError(f"there is no op {op!r} to change, wanted one of {wanted}")
    how = {op: _changed(settings.product(op.split()[0], bits, batch), change, "products", op) for op in shapes}

    def product(op: str, prior: Before) -> Estimate:
        return kernels.product(m, how[op], bits, batch, shapes[op], op in settings.WITH_NORM, prior)

    alone = {op: product(op, Before()) for op in shapes}

    def behind(op: str) -> Before:
        return before(alone[op], how[op].trigger)

    attending = _changed(settings.attention(ACTIVATION), change, "attention")
    choosing = _changed(settings.sample(), change, "sample")
    heads = (config.num_heads, config.num_kv_heads)
    decode, join = kernels.attention(m, attending, batch, context, heads, config.head_dim, behind("qkv_rope_store"))
    o_behind = Before(quiet_us=join.us)  # o starts when the join has waited, or at once with the kernels before it
    if attending.trigger == "first":
        o_behind = behind("qkv_rope_store")
        if o_behind.trigger == "late":
            o_behind = replace(o_behind, quiet_us=o_behind.quiet_us + decode.us + join.us)
    estimates = {
        "advance": (1, kernels.chain(m, "advance", 3, batch)),  # token, place, block number
        "embed": (1, kernels.chain(m, "embed fp16 5120", 2, batch)),  # id, row
        "qkv_rope_store": (layers, product("qkv_rope_store", behind("linear_add down"))),
        "attention": (layers, decode.then(join)),
        "linear_add o": (layers, product("linear_add o", o_behind)),
        "gate_up": (layers, product("gate_up", behind("linear_add o"))),
        "linear_add down": (layers, product("linear_add down", behind("gate_up"))),
        "head": (1, product("head", behind("linear_add down"))),
        "sample": (1, kernels.sample(m, choosing, batch, config.vocab_size, drawn)),
    }  # fmt: skip
    return [_row(op, calls, estimate) for op, (calls, estimate) in estimates.items()]


def _row(op: str, calls: int, made: Estimate) -> dict[str, Any]:
    return {
        "op": op, "calls": calls, "us_call": made.us, "us": calls * made.us, "MB": made.read / 1e6,
        "GB/s": made.read / made.us / 1e3, "body": made.body, "latency": made.latency, "tail": made.tail, "bound": made.bound,
        "programs": made.programs, "at_once": made.slots,
    }  # fmt: skip


def _changed(rule: Any, change: Change | None, *names: str) -> Any:
    """`rule` with what `change` says of any of the names."""
    for name in names:
        rule = replace(rule, **(change or {}).get(name, {}))
    return rule


def _config(card: Card, preset: str, kind: str, batch: int, context: int) -> ModelConfig:
    if preset not in PRESETS:
        raise ValueError(f"there is no preset {preset!r}, wanted one of {', '.join(PRESETS)}")
    if kind not in BITS:
        raise ValueError(f"kind is {kind!r}, wanted one of {', '.join(BITS)}")
    shape = PRESETS[preset]
    if batch < 1 or not 1 <= context <= shape.positions:
        raise ValueError(
            f"batch {batch}, context {context}: wanted at least 1, and at most {shape.positions} of context"
        )
    config = ModelConfig.from_dict(shape.config(shape.vocabulary, "float16"))
    needed = cost.weight_bytes(config, kind) + batch * context * cost.kv_bytes_per_token(config)
    if needed > card.memory * 1e9:
        raise ValueError(
            f"{preset} {kind}, batch {batch} takes {needed / 1e9:.1f} GB, {card.name} has {card.memory} GB"
        )
    return config


def totals(
    rows: Sequence[Mapping[str, Any]],
    card: Card,
    preset: str,
    kind: str,
    batch: int,
    context: int,
    constants: Constants | None = None,
) -> dict[str, float]:
    """The step of these rows: milliseconds, tokens a second, and the bytes that it must move (model/cost.py) as a share of what
    the card could by its specification."""
    us = sum(row["us"] for row in rows) + (constants or Constants()).between_us
    moved = sum(
        each.bytes for each in cost.decode_step(_config(card, preset, kind, batch, context), kind, batch, context)
    )
    return {
        "step_ms": us / 1e3, "tokens_s": 1e6 * batch / us, "GB": moved / 1e9, "GB/s": moved / us / 1e3,
        "of_specified": moved / us / 1e3 / card.bandwidth,
    }  # fmt: skip


def compare(predicted: Iterable[Mapping[str, Any]], measured: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Prediction beside measurement (rows of profile_step.py) for each op that both have; `ratio` is measured by predicted."""
    times: dict[str, float] = {}
    for row in measured:
        if "us" in row:
            times[row["op"]] = times.get(row["op"], 0.0) + row["us"]
    both = ((row["op"], row["us"], times[row["op"]]) for row in predicted if row["op"] in times)
    return [{"op": op, "predicted_us": ours, "measured_us": us, "ratio": us / ours} for op, ours, us in both]


def _of(names: Iterable[str], **values: Any) -> Change:
    return dict.fromkeys(names, values)


def _all_variants(bits: int) -> Iterator[tuple[int, str, int, bool, Change]]:
    """(prediction of the audit, what is other than the rule, batch, whether tokens are drawn, change); 0: not the audit's."""
    every, normed, added = ("products",), settings.WITH_NORM, ("linear_add o", "linear_add down")
    for trigger in ("early", "late"):
        for ahead in (0, 2, 5):
            yield 1, f"trigger {trigger}, {ahead} tiles ahead", 1, False, _of(every, trigger=trigger, prefetched=ahead)
    late = _of(every, trigger="late")
    for _, many in settings.attention_choices():
        for one in many:
            text = "attention " + ", ".join(f"{key} {value}" for key, value in one.items())
            yield 2, text, 1, False, {"attention": one}
            if "tile" not in one:  # what it does depends on when the product before it lets it start
                yield 2, f"{text}, products trigger late", 1, False, {**late, "attention": one}
    for batch in (1, 2, 4, 8):
        for fused, where in ((True, "in each program"), (False, "in a kernel")):
            apart = _of(normed, fuse_norm=fused)
            yield 3, f"norm {where}", batch, False, apart
            yield 3, f"norm {where}, trigger late", batch, False, {**late, **apart}
    for number, batch in ((4, 64), (0, 1)):
        for ops in (added, ("gate_up",), ("qkv_rope_store",)):
            for aspect, many in settings.product_choices(ops[0].split()[0], bits, batch):
                for tile in many if aspect == "tile" else ():
                    text = f"{' and '.join(ops)}: {', '.join(f'{key} {value}' for key, value in tile.items())}"
                    yield number, text, batch, False, _of(ops, **tile)
    for _, many in settings.sample_choices():
        for one in many:
            yield 5, "sampler " + ", ".join(f"{key} {value}" for key, value in one.items()), 1, True, {"sample": one}


def variants(card: Card, preset: str, kind: str, context: int, constants: Constants) -> list[dict[str, Any]]:
    """What other settings should change: the step by the rules, the step with the variant, and by how much that is faster."""
    rows: list[dict[str, Any]] = []
    rules: dict[tuple[int, bool], float] = {}
    for number, text, batch, drawn, change in _all_variants(BITS[kind]):
        case = (card, preset, kind, batch, context, constants)
        if (batch, drawn) not in rules:
            rules[batch, drawn] = _step_ms(step(*case, drawn=drawn), case)
        rule, other = rules[batch, drawn], _step_ms(step(*case, change=change, drawn=drawn), case)
        row = {"prediction": number, "batch": batch, "rule_ms": rule, "variant_ms": other}
        rows.append({**row, "faster_%": 100 * (rule / other - 1), "variant": text})
    return sorted(rows, key=lambda row: (row["prediction"] == 0, row["prediction"]))


def _step_ms(rows: list[dict[str, Any]], case: tuple[Any, ...]) -> float:
    return totals(rows, *case)["step_ms"]


def _setting(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        Constants().changed({name: float(value)})
        return name, float(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None


def main() -> int:
    options = parser(__doc__.split("\n")[0])
    options.add_argument("--card", choices=CARDS, default="h100")
    options.add_argument("--preset", choices=PRESETS, default="13b")
    options.add_argument("--kind", choices=BITS, default="float16")
    options.add_argument("--batch", type=int, default=1)
    options.add_argument("--context", type=int, default=128, help="tokens that each sequence attends to")
    options.add_argument("--drawn", action="store_true", help="tokens are drawn with top_k and top_p, not greedily")
    options.add_argument("--variants", action="store_true", help="predict what other settings of the kernels change")
    options.add_argument(
        "--set", type=_setting, action="append", default=[], metavar="NAME=VALUE",
        help=f"a constant of the model as it was measured: {', '.join(each.name for each in fields(Constants))}",
    )  # fmt: skip
    options.add_argument("--constants", action="store_true", help="print the constants and their sources, then exit")
    chosen = options.parse_args()
    constants = Constants().changed(dict(chosen.set))
    if chosen.constants:
        known = [
            {"constant": e.name, "value": getattr(constants, e.name), "source": e.metadata["source"]}
            for e in fields(constants)
        ]
        print(*table(known), sep="\n")
        return 0
    card, case = CARDS[chosen.card], (chosen.preset, chosen.kind, chosen.batch, chosen.context)
    facts = {"predicted": True, "card": card.key} | dict(zip(("preset", "kind", "batch", "context"), case, strict=True))
    try:
        rows = step(card, *case, constants, drawn=chosen.drawn)
    except ValueError as error:
        options.error(str(error))
    with Report("predict", chosen, facts={**facts, "constants": asdict(constants)}) as report:
        if chosen.variants:
            rows = variants(card, chosen.preset, chosen.kind, chosen.context, constants)
        else:
            report.facts.update(totals(rows, card, *case, constants))
        for row in rows:
            report.row(row)
        if not chosen.variants:
            print("  ".join(f"{key} {report.facts[key]:.4g}" for key in totals(rows, card, *case, constants)))
    return report.code


if __name__ == "__main__":
    sys.exit(main())
