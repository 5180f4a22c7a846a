"""A GPU that is not here: launches that go nowhere, a clock instead of events, and the trace that a profiler would have made.

Runs what only a GPU runs as far as it is Python, and refuses the arguments that torch.cuda refuses. The trace's form (each
kernel of a graph carries the correlation id of its cudaGraphLaunch) is assumed, from public samples: none was recorded here. A
recorded trace is to replace it after the first run on a GPU.
"""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import attribution
import pytest
import torch
from attribution import Launch
from shapes import PRESETS
from triton.runtime.jit import JITFunction

from baize_engine.backend import choose
from baize_engine.kernels import launch, reference, sample
from baize_engine.kernels.quantized import empty, quantize
from baize_engine.model import names
from baize_engine.model.config import ModelConfig
from baize_engine.model.llama import Llama
from baize_engine.model.prompt_runner import new_cache
from baize_engine.model.step_state import StepState


class Properties:
    name = "NVIDIA H100 80GB HBM3"
    uuid = "7b2c1d0e-0000-4000-8000-000000000001"
    major, minor, multi_processor_count = 9, 0, 132


def without_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrappers of kernels do everything but to compile and launch."""
    monkeypatch.setattr(JITFunction, "run", lambda self, *arguments, grid, warmup, **options: None)
    for module in (
        launch,
        *(import_module(f"baize_engine.kernels.{name}") for name in {*choose.DECODER_OPS.values()}),
    ):
        if hasattr(module, "check_device"):
            monkeypatch.setattr(module, "check_device", lambda *_: None)


def triton_ops() -> Any:
    """A GPU's ops, of which `advance` also does its work, so that a step's context is as it should be."""
    ops = choose.Ops("cuda", {op: choose.table(op)[0] for op in choose.DECODER_OPS})

    def advance(tokens: torch.Tensor, *rest: Any, **more: Any) -> None:
        if tokens.device.type != "meta":
            reference.advance(tokens, *rest, **more)
        sample.advance(tokens, *rest, **more)

    ops.advance = advance
    return ops


def model(preset: str, kind: str = "float16", device: str = "meta") -> Llama:
    """A decoder of a preset's shape with a GPU's ops; on the device "meta" it takes no memory."""
    shape = PRESETS[preset]
    kept = "float16" if kind in ("int8", "int4") else kind
    config = ModelConfig.from_dict(shape.config(shape.vocabulary, kept))
    weights: dict[str, Any] = {}
    for name, dims in names.packed(config).items():
        made = torch.zeros(dims, dtype=getattr(torch, kept), device=device)
        if kept != kind and name in names.quantized(config):
            weights[name] = quantize(made, kind, out=empty(kind, *dims, device, panels=False))
        else:
            weights[name] = made
    return Llama(config, weights, triton_ops(), device, getattr(torch, kept))


def launches(preset: str, rows: int, kind: str = "float16", max_context: int = 256) -> list[Launch]:
    """What a step launches; `without_launches` must hold."""
    made = model(preset, kind, "meta" if kind == "float16" else "cpu")  # values are needed to quantise them
    plan = StepState(made, new_cache(made, rows * max_context), rows).ops(max_context)
    return attribution.launches([call for op in plan for call in made.ops.compile([op])], attribution.places(plan))


def trace(
    expected: Sequence[Launch],
    steps: int = 2,
    us: float = 10.0,
    gap: float = 1.0,
    bubble: float = 5.0,
    early: float = 0.0,
) -> dict[str, Any]:
    """The chrome trace of `steps` graphs of these kernels, as Kineto writes it: `us` each, `gap` between them.

    Kernels begin `early` before the end of the one before them and wait. After each step comes a copy of its tokens.
    """
    events: list[dict[str, Any]] = [{"ph": "M", "name": "process_name", "pid": 0, "args": {"name": "python"}}]
    now = 1000.0

    def add(cat: str, name: str, ts: float, dur: float, **more: Any) -> None:
        events.append({"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "pid": 0, "tid": 7, "args": more})

    for step in range(steps):
        call = 100 + 10 * step
        host = 40.0 * step
        add("user_annotation", "launch", host, 30.0)
        add("cuda_runtime", "cudaGraphLaunch", host + 5, 20.0, correlation=call)
        add("cuda_driver", "cuGraphLaunch", host + 6, 18.0, correlation=call + 2)
        add("cuda_runtime", "cudaMemcpyAsync", host + 26, 2.0, correlation=call + 1)
        add("user_annotation", "wait", host + 31, 8.0)
        for number, each in enumerate(expected):
            begin = now - early if number else now
            add(
                "kernel",
                each.kernel,
                begin,
                now - begin + us,
                grid=list(each.grid),
                correlation=call,
                **{"graph node id": number},
            )
            now += us + gap
        now += bubble - gap
        add("gpu_memcpy", "Memcpy DtoH (Device -> Pinned)", now, 2.0, correlation=call + 1)
        now += 2.0 + bubble
    return {"schemaVersion": 1, "traceEvents": events}


class Clock:
    """Seconds that pass only by replays."""

    def __init__(self) -> None:
        self.now = 0.0


def device_index(device: Any, demanded: bool = False) -> int:
    """The index of a GPU, as torch.cuda reads its arguments: ValueError for the CPU, and where one is demanded and absent."""
    if device is None or isinstance(device, str | torch.device):
        found = None if device is None else torch.device(device)
        if found is not None and found.type != "cuda":
            raise ValueError(f"Expected a cuda device, but got: {found}")
        device = found.index if found is not None else None
    if device is None and demanded:
        raise ValueError("Expected a torch.device with a specified index or an integer")
    return device or 0


def install(monkeypatch: pytest.MonkeyPatch, replay_s: float = 1e-3) -> Clock:
    """torch.cuda as the benchmarks use it. A graph holds nothing, and its replay takes `replay_s` of the clock."""
    clock = Clock()

    class Event:
        def __init__(self, enable_timing: bool = False) -> None:
            self.timing, self.at = enable_timing, None

        def record(self, stream: Stream | None = None) -> None:
            self.at = clock.now

        def elapsed_time(self, other: Event) -> float:
            if not (self.timing and other.timing):
                raise ValueError("Both events must be created with argument 'enable_timing=True'.")
            if self.at is None or other.at is None:
                raise ValueError("Both events must be recorded before calculating elapsed time.")
            return (other.at - self.at) * 1e3

    class Graph:
        captured = False

        def replay(self) -> None:
            if not self.captured:
                raise RuntimeError("Called CUDAGraph::replay without a preceding successful capture.")
            clock.now += replay_s

    class Stream:
        def __init__(self, device: Any = None) -> None:
            device_index(device)

        def wait_stream(self, other: Stream) -> None:
            if not isinstance(other, Stream):
                raise TypeError(f"wait_stream of {other!r}")

    @contextmanager
    def capture(graph: Graph, pool: Any = None, stream: Stream | None = None) -> Iterator[None]:
        yield
        graph.captured = True

    @contextmanager
    def on_stream(stream: Stream | None) -> Iterator[None]:
        if not isinstance(stream, Stream | None):
            raise TypeError(f"stream of {stream!r}")
        yield

    @contextmanager
    def on_device(device: Any) -> Iterator[None]:
        device_index(device)
        yield

    held, peaks = 26 * 10**9, [27 * 10**9]

    def reset_peak(device: Any = None) -> None:
        device_index(device)
        peaks.append(held)

    def set_device(device: Any) -> None:
        device_index(device, demanded=True)

    def of_device(value: Any) -> Callable[..., Any]:
        """A function of a device, with an index or without."""

        def told(device: Any = None) -> Any:
            device_index(device)
            return value

        return told

    fakes: dict[str, Any] = {
        "Event": Event, "CUDAGraph": Graph, "Stream": Stream, "graph": capture, "stream": on_stream, "device": on_device,
        "current_stream": Stream, "synchronize": of_device(None), "empty_cache": lambda: None,
        "set_device": set_device, "reset_peak_memory_stats": reset_peak,
        "memory_allocated": of_device(held), "max_memory_allocated": lambda device=None: device_index(device) or peaks[-1],
        "max_memory_reserved": of_device(28 * 10**9), "get_device_name": of_device(Properties.name),
        "get_device_properties": of_device(Properties),
    }  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return clock


def install_profiler(monkeypatch: pytest.MonkeyPatch, found: Callable[[], dict[str, Any]]) -> None:
    """torch.profiler.profile, whose chrome trace is `found()`."""

    class Profiler:
        def __init__(self, activities: Sequence[Any]) -> None:
            assert torch.profiler.ProfilerActivity.CUDA in activities

        def __enter__(self) -> Profiler:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def export_chrome_trace(self, path: str) -> None:
            Path(path).write_text(json.dumps(found()))

    monkeypatch.setattr(torch.profiler, "profile", Profiler)


def install_ranges(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """NVTX and cudaProfiler, whose calls are written down."""
    said: list[str] = []
    monkeypatch.setattr(torch.cuda.nvtx, "range_push", lambda name: said.append(f"> {name}"))
    monkeypatch.setattr(torch.cuda.nvtx, "range_pop", lambda: said.append("<"))
    monkeypatch.setattr(torch.cuda.profiler, "start", lambda: said.append("start"))
    monkeypatch.setattr(torch.cuda.profiler, "stop", lambda: said.append("stop"))
    return said


class NVMLError(Exception):
    """As pynvml's."""


def nvml(**changes: Any) -> types.ModuleType:
    """A module like pynvml that knows one GPU, at full load. `changes`: functions to put in place of its own, or None."""
    made = types.ModuleType("pynvml")

    def handle_of(identity: str) -> str:
        if identity != f"GPU-{Properties.uuid}":
            raise NVMLError(f"no GPU {identity}")
        return "handle"

    clocks = {1: (1755, 1980), 2: (2619, 2619)}
    functions: dict[str, Any] = {
        "NVMLError": NVMLError, "NVML_CLOCK_SM": 1, "NVML_CLOCK_MEM": 2, "NVML_TEMPERATURE_GPU": 0,
        "nvmlInit": lambda: None, "nvmlDeviceGetHandleByUUID": handle_of,
        "nvmlDeviceGetClockInfo": lambda handle, kind: clocks[kind][0],
        "nvmlDeviceGetMaxClockInfo": lambda handle, kind: clocks[kind][1],
        "nvmlDeviceGetPowerUsage": lambda handle: 512_300, "nvmlDeviceGetEnforcedPowerLimit": lambda handle: 700_000,
        "nvmlDeviceGetTemperature": lambda handle, sensor: 61,
        "nvmlDeviceGetCurrentClocksEventReasons": lambda handle: 0x4 | 0x20,
        "nvmlSystemGetDriverVersion": lambda: "580.159.04",
    }  # fmt: skip
    for name, value in {**functions, **changes}.items():
        if value is not None:
            setattr(made, name, value)
    return made
