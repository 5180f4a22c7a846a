"""Team: the ranks that hold one model together, and what those other than rank 0 do: load their part, and follow.

Rank 0 is the engine that a user calls; `on_all_ranks` returns only there. The others are processes of the same program, which
torchrun starts; they come here by the same call, and serve whatever engines rank 0 makes, one after another, until it ends.
"""

from __future__ import annotations

import atexit
import gc
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Concatenate, NoReturn, ParamSpec

from baize_engine import __version__
from baize_engine.backend.choose import DECODER_OPS, implementation
from baize_engine.backend.devices import resolve_device
from baize_engine.distributed.agreement import NOTHING
from baize_engine.distributed.world import World
from baize_engine.errors import BackendError, BaizeWarning, RequestError
from baize_engine.model.config import ModelConfig
from baize_engine.model.share import Share
from baize_engine.options import AUTO, EXACT, EngineOptions

if TYPE_CHECKING:
    from baize_engine.distributed.ranks import Ranks
    from baize_engine.loaded_model import LoadedModel

P = ParamSpec("P")
ERROR = "the error"  # that a rank has met before the ranks agree
OF_EACH_RANK = ("device", "threads")  # options that may differ between ranks


@dataclass(frozen=True)
class Team:
    """share: the part of the model that is loaded here, None for a whole one. ranks: all ranks, if there is another."""

    share: Share | None = None
    ranks: Ranks | None = None

    @property
    def follows(self) -> bool:
        """Whether this is a rank other than 0."""
        return self.share is not None and self.share.rank > 0

    def config(self, config: ModelConfig) -> ModelConfig:
        """The sizes of what is loaded here. ConfigError where the model cannot be split so."""
        if self.share is None:
            return config
        self.share.check(config)
        return self.share.config(config)

    def memory_share(self, free: int | None, device: str) -> int | None:
        """This rank's part of free memory, in bytes: the ranks of one host share that of its CPUs."""
        if free is None or self.ranks is None or device != "cpu":
            return free
        return free // self.ranks.world.local_size

    @property
    def memory_note(self) -> str:
        """What a message on the memory of CPUs says after "this machine": that `memory_share` has divided it."""
        here = 1 if self.ranks is None else self.ranks.world.local_size
        return f", for each of its {here} ranks," if here > 1 else ""

    @contextmanager
    def checking(self) -> Iterator[None]:
        """For all that may be refused before `agree`: rank 0 reports the other ranks' errors, unless it has one of its own."""
        try:
            yield
        except Exception as error:
            if self.follows and self.ranks is not None:
                self.ranks.agree({ERROR: str(error)})
            raise

    def agree(self, options: EngineOptions, config: ModelConfig, model: str) -> None:
        """Compares the ranks: version, backend, options, the whole model's `config`, and `model`, which tells weights apart.

        DistributedError on rank 0 names the rank that differs, or the error that it met in `checking`.
        """
        if self.ranks is None:
            return
        import torch

        with self.checking():
            backend = {f"backend of {op}": implementation(op, options.device).name for op in DECODER_OPS}
        device = "cpu" if options.device == "cpu" else torch.cuda.get_device_name(options.device)
        asked = {f"--{name}": str(value) for name, value in asdict(options).items() if name not in OF_EACH_RANK}
        sizes = {f"config's {name}": str(value) for name, value in asdict(config).items()}
        versions = {"version of baize_engine": __version__, "version of torch": torch.__version__}
        self.ranks.agree(
            {
                ERROR: NOTHING,
                **versions,
                "device": device,
                **backend,
                **asked,
                **sizes,
                "fingerprint of the model's files": model,
            }
        )

    def minimum(self, number: int) -> int:
        """The least of the ranks' numbers."""
        if self.ranks is None:
            return number
        import torch

        size = self.ranks.world.size
        numbers = torch.empty(size, 1, dtype=torch.int64)
        self.ranks.all_gather(torch.tensor([number]), numbers)
        return int(numbers.min())

    @contextmanager
    def serving(self) -> Iterator[None]:
        """For all that follows `agree`: an error of a rank other than 0 ends the run, and rank 0 prints it."""
        try:
            yield
        except Exception as error:
            if self.follows and self.ranks is not None:
                self.ranks.fail(error)
            raise


Loader = Callable[Concatenate[Team, EngineOptions, P], "LoadedModel"]


@dataclass(frozen=True)
class Load:
    """Rank 0 loads another model: load(team, options, *arguments)."""

    load: Callable[..., LoadedModel]
    options: EngineOptions
    arguments: tuple[Any, ...]


class Closed:
    """Rank 0 has closed its engine."""


class _Run:
    """This process's ranks, once it has joined them, and what stands for the engine that holds a model there."""

    ranks: Ranks | None = None
    holder: object | None = None


def on_all_ranks(load: Loader[P], options: EngineOptions, *arguments: P.args, **none: P.kwargs) -> LoadedModel:
    """load(team, options, *arguments), on each rank that options.tensor_parallel asks for. Returns on rank 0 only."""
    world = World.of_environment()
    try:
        size = ranks_asked(options, world)
    except RequestError:
        if world is not None and world.rank > 0:
            raise SystemExit(1) from None  # rank 0 says it
        raise
    if world is None or size == 1:
        return load(Team(Share() if options.tensor_parallel == EXACT else None), options, *arguments, **none)
    request = Load(load, options, arguments)
    if world.rank == 0:
        return _lead(world, request)
    _follow(world, request)


def ranks_asked(options: EngineOptions, world: World | None) -> int:
    """How many ranks hold the model. RequestError where torchrun has started another number of them."""
    asked, there = options.tensor_parallel, 1 if world is None else world.size
    if asked in (AUTO, EXACT):
        return there
    if asked != 1 and asked != there:
        raise RequestError(
            f"tensor_parallel is {asked}, but this run has {there} rank(s): wanted {AUTO!r}, or to be started with "
            f"torchrun --nproc-per-node {asked}"
        )
    return int(asked)


def device_of(options: EngineOptions, world: World) -> str:
    """The device of this rank: the CPU, or GPU number LOCAL_RANK of those that CUDA_VISIBLE_DEVICES shows."""
    if ":" in options.device:
        raise RequestError(f"device is {options.device!r} for {world.size} ranks, wanted 'cuda' or 'cpu'")
    device = resolve_device(options.device)
    return device if device == "cpu" else resolve_device(f"cuda:{world.local_rank}")


def _lead(world: World, request: Load) -> LoadedModel:
    if _Run.ranks is not None and not _Run.ranks.here:
        raise BackendError(
            "the other ranks have ended, because a step failed or a model could not be loaded: start the run again"
        )
    if _Run.holder is not None:
        raise RequestError(
            "the ranks still hold another engine's model, and can hold only one: close that engine first"
        )
    first = _Run.ranks is None
    try:
        options = replace(request.options, device=device_of(request.options, world))
    except BackendError:
        if first:  # the others do not wait for this rank to come
            _joined(world, "cpu").leave(failed=True)
        raise
    ranks = _joined(world, options.device)
    try:
        if not first:
            ranks.tell(request)
            ranks.flush()
        loaded = request.load(Team(Share(0, world.size), ranks), options, *request.arguments)
        for text, others in _warnings_of_others(ranks, []).items():
            warnings.warn(f"{others}: {text}", BaizeWarning, stacklevel=5)  # of the caller of Engine's constructor
    except BaseException:
        ranks.leave(failed=True)
        raise
    _Run.holder = object()
    return replace(loaded, on_close=partial(_closed, ranks, _Run.holder))


def _closed(ranks: Ranks, holder: object) -> None:
    """The engine that `holder` stands for is closed, maybe once more."""
    if _Run.holder is holder and ranks.here:
        _Run.holder = None
        ranks.tell(Closed())
        ranks.flush()


def _joined(world: World, device: str) -> Ranks:
    from baize_engine.distributed.ranks import Ranks

    if _Run.ranks is None:
        _Run.ranks = Ranks.join(world, device)
        if device != "cpu":
            from baize_engine.model import graphs

            atexit.register(graphs.release)  # before the ranks leave, which they have registered in `join`
    return _Run.ranks


def _follow(world: World, request: Load) -> NoReturn:
    """What a rank other than 0 does, until rank 0 ends."""
    try:
        device = device_of(request.options, world)
    except RequestError:
        raise SystemExit(1) from None  # rank 0 says it
    except BackendError as error:
        _joined(world, "cpu").fail(error)
    ranks = _joined(world, device)
    while True:
        options = replace(request.options, device=device)
        team = Team(Share(world.rank, world.size), ranks)
        with warnings.catch_warnings(record=True) as noted:
            warnings.simplefilter("always", BaizeWarning)
            loaded = request.load(team, options, *request.arguments)
        with team.serving():
            _warnings_of_others(ranks, [str(each.message) for each in noted if issubclass(each.category, BaizeWarning)])
            _serve(ranks, loaded)
        del loaded
        gc.collect()
        request = _asked(ranks)


def _warnings_of_others(ranks: Ranks, own: list[str]) -> dict[str, str]:
    """Exchanges what ranks were warned of while they loaded: {text: the ranks other than 0 that have it}."""
    import torch

    texts = json.dumps(own).encode()
    lengths = torch.empty(ranks.world.size, 1, dtype=torch.int64)
    ranks.all_gather(torch.tensor([len(texts)]), lengths)
    longest = int(lengths.max())
    brought = torch.empty(ranks.world.size, longest, dtype=torch.uint8)
    ranks.all_gather(torch.frombuffer(bytearray(texts.ljust(longest)), dtype=torch.uint8), brought)
    found: dict[str, list[str]] = {}
    for rank in range(1, ranks.world.size):
        for text in json.loads(brought[rank].numpy().tobytes()):
            found.setdefault(text, []).append(f"rank {rank}")
    return {text: ", ".join(those) for text, those in found.items()}


def _serve(ranks: Ranks, loaded: LoadedModel) -> None:
    """Makes the calls that rank 0 makes on its model, until it closes the engine."""
    from baize_engine.generation.loop import MAX_ROWS
    from baize_engine.model.followers import follow, runners
    from baize_engine.model.mirrored import MirroredCall

    objects = runners(loaded.loop.decoder.model, loaded.loop.cache, MAX_ROWS)
    closed = False
    while not closed:
        messages = _told(ranks)
        follow((message for message in messages if isinstance(message, MirroredCall)), objects)
        closed = any(isinstance(message, Closed) for message in messages)


def _asked(ranks: Ranks) -> Load:
    """Waits for another model that rank 0 loads."""
    while True:
        for message in _told(ranks):
            if isinstance(message, Load):
                return message


def _told(ranks: Ranks) -> Sequence[object]:
    """The next messages of rank 0. Ends this process if rank 0 has ended."""
    if (messages := ranks.receive()) is not None:
        return messages
    from baize_engine.model import graphs

    graphs.release()
    ranks.leave()
    raise SystemExit(ranks.exit_code)
