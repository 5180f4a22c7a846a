"""Tensors between ranks of gloo. NCCL's path is one call of torch's, which is called here on the host."""

from __future__ import annotations

import pytest

HEAD = """
import itertools, warnings
warnings.simplefilter("error")
import torch.distributed as dist
from baize_engine.distributed import exchange
dist.init_process_group("gloo")
group = dist.group.WORLD
tensors = exchange.Exchange(group, dist.new_group(backend="gloo"))

def made(shape, dtype, of):
    return torch.randint(-99, 99, shape, generator=torch.Generator().manual_seed(of)).to(dtype)

SHAPES = [(1,), (3, 5), (7, 0), (64, 4096), (1100, 1024)]
CASES = [*itertools.product(SHAPES, [torch.float32, torch.bfloat16, torch.int64, torch.uint8])]
"""


@pytest.mark.parametrize("size", [2, 3])
def test_all_gather_has_the_bits_of_every_rank_in_its_row(launch, size: int) -> None:
    code = """
for shape, dtype in CASES:
    out = torch.empty(size, *shape, dtype=dtype)
    tensors.all_gather(made(shape, dtype, rank), out)
    assert out.equal(torch.stack([made(shape, dtype, of) for of in range(size)])), (shape, dtype)
ready()
dist.destroy_process_group()
"""
    run = launch(HEAD + code, size)
    assert run.codes() == [0] * size, run.errors()
    run.ready()


def test_broadcast_has_the_bits_of_rank_0(launch) -> None:
    code = """
for shape, dtype in CASES:
    tensor = made(shape, dtype, rank)
    tensors.broadcast(tensor)
    assert tensor.equal(made(shape, dtype, 0)), (shape, dtype)
ready()
dist.destroy_process_group()
"""
    run = launch(HEAD + code, 3)
    assert run.codes() == [0] * 3, run.errors()
    run.ready()


def test_a_row_of_out_may_be_the_part_itself(launch) -> None:
    code = """
out = torch.empty(size, 4, 8)
out[rank] = rank
tensors.all_gather(out[rank], out)
assert out[:, 0, 0].tolist() == [0.0, 1.0]
dist.destroy_process_group()
"""
    run = launch(HEAD + code, 2)
    assert run.codes() == [0, 0], run.errors()


def test_torchs_own_gather_is_called_by_the_name_that_does_not_warn(launch) -> None:
    code = """
out = torch.empty(size, 4, 8)
exchange._all_gather(out.view(-1), torch.full((4, 8), float(rank)).view(-1), group=group)
assert out[:, 0, 0].tolist() == [0.0, 1.0]
dist.destroy_process_group()
"""
    run = launch(HEAD + code, 2)
    assert run.codes() == [0, 0], run.errors()
