"""Every wrapper's launch, compiled for sm_90 as on a GPU but not run: arguments, None pointers, specialisation, launch options.

The interpreter skips all that, and the compile gate writes signatures by hand. Run as a script, in a process of its own: a
stand-in for Triton's driver names a GPU that is not here. Prints the launches as JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import decoders
import tiny
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from baize_engine.backend import choose
from baize_engine.kernels import attention, dequantize, diff_add, launch, product, quantized, sums
from baize_engine.kernels.reference import CHUNK
from baize_engine.model.llama import Llama
from baize_engine.model.step_state import StepState


class Driver:
    """What a launch asks of the driver before it loads machine code."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def add_all_sizes() -> None:
    """diff_add of tensors of many lengths, whose sums and counts lie at many places, as a recovery has them."""
    for count in (1, 16, 17, CHUNK, CHUNK + 1, 16 * CHUNK, 16 * CHUNK + 16, 3 * CHUNK + 5):
        chunks = -(-count // CHUNK)
        base, diff, out = (torch.zeros(count, dtype=kind) for kind in (torch.float16, torch.float32, torch.float16))
        for offset in range(4):
            sums, counts = torch.zeros(chunks + offset, dtype=torch.float64), torch.zeros(2, chunks + offset).int()
            diff_add.launch(base, diff, out, sums[offset:], counts[:, offset:])


def add_segments(weight: quantized.Weight, dtype: torch.dtype) -> None:
    """The products that several devices share: of a step and of a prompt, of segments and of one that is left."""
    for rows, segments in ((1, 8), (16, 4), (100, 2), (64, 1)):
        x, out = torch.zeros(rows, segments * weight.shape[1], dtype=dtype), torch.zeros(rows, 32)
        matrices = quantized.rows(weight, 0, 32 * segments)
        product.segment_sums(x, matrices, segments=segments, out=out)
        sums.add_sums(torch.zeros(8 // segments, rows, 32), out=torch.zeros(rows, 32, dtype=dtype))


def main() -> None:
    dependent, quantize = sys.argv[1] == "pdl", {"none": None}.get(sys.argv[2], sys.argv[2])
    dtype = getattr(torch, sys.argv[3])
    launches: list[dict[str, Any]] = []
    triton.runtime.driver.set_active(Driver())
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        compiled = run(self, *args, grid=grid, warmup=True, **kwargs)
        launches.append(
            {
                "kernel": self.fn.__name__,
                "grid": list(grid),
                "pdl": bool(compiled.metadata.launch_pdl),
                "waits": "griddepcontrol.wait" in compiled.asm["ptx"],
                "tensor_cores": "mma" in compiled.asm["ptx"],
                "shared": compiled.metadata.shared,
                "compiled": id(compiled),
            }
        )

    JITFunction.run = compile_only
    launch.check_device = lambda *_: None
    launch.dependent_launch = lambda _: dependent
    product.check_device = attention.check_device = dequantize.check_device = diff_add.check_device = (
        launch.check_device
    )
    product.dependent_launch = launch.dependent_launch
    cfg = tiny.config(
        vocab_size=1000, hidden_size=256, intermediate_size=704, num_attention_heads=2, num_key_value_heads=1,
        num_hidden_layers=1, max_position_embeddings=512,
    )  # fmt: skip
    made = decoders.make(cfg, dtype, quantize, joined=True)
    ops = choose.Ops("cuda", {op: choose.table(op)[0] for op in choose.DECODER_OPS})
    model = Llama(made.config, made.weights, ops, "cpu", dtype)
    decoder = decoders.Decoder(model, 1024)
    for rows in (1, 8, 16, 32, 64):
        for call in ops.compile(StepState(model, decoder.cache, rows).ops(512)):
            call()
    with torch.inference_mode():
        decoder.prefill(decoders.prompt(100), decoder.sequence())
        decoder.prefill(decoders.prompt(5), decoder.sequence())
        one = torch.ones(1)
        ops.sample(torch.zeros(1, 1000), one, one.long(), one, one, one.long(), one.long(), one.int())
        add_all_sizes()
        add_segments(model.layers[0].qkv[0], dtype)
    print(json.dumps(launches))


if __name__ == "__main__":
    main()
