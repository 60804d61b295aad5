"""The engines of this process: opened from the configuration, lent out call by call, exchanged without a restart."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from events.base import EngineId
from events.engine import EngineKind, EngineRegistered
from services.engines import simulated, vllm
from services.engines.base import InferenceBackend
from services.engines.simulated import SimulatedBackend
from services.engines.vllm import VLLMBackend
from services.runtime.config import ConfigError, EngineConfig
from services.runtime.pool_clock import PoolClock


class Reloaded(NamedTuple):
    """What an exchange of the engine list changed; an engine whose settings changed stands in `added` (the new
    backend) alone."""

    added: tuple[EngineId, ...]
    removed: tuple[EngineId, ...]


def open_engine(
    config: EngineConfig, *, clock: PoolClock, others: Callable[[EngineId], InferenceBackend | None] = lambda _id: None
) -> InferenceBackend:
    """The backend for one engine; nothing is sent yet. `others` finds the engines of this process by id. Raises
    ConfigError for what cannot be opened."""
    if config.kind is EngineKind.SIMULATED:
        return SimulatedBackend(config, clock=clock, others=others)
    where = f"engines.{config.id}"
    if not config.url.startswith(("http://", "https://")):
        raise ConfigError("no address", where="config", key=f"{where}.url", allowed="http://... or https://...")
    try:
        return VLLMBackend(config)
    except OSError as error:
        message = f"cannot be read ({error.strerror or error})"
        raise ConfigError(message, where="config", key=f"{where}.tls_ca", allowed="a PEM file") from error


def as_configured(config: EngineConfig) -> EngineRegistered:
    """What is known of an engine before it was asked. Raises ConfigError for a `step_model` that does not exist."""
    return simulated.registered(config) if config.kind is EngineKind.SIMULATED else vllm.registered(config)


class Engines(Mapping[EngineId, InferenceBackend]):
    """Engines by id. A removed one finishes the calls that it has and is closed after the last."""

    def __init__(self, open_one: Callable[[EngineConfig], InferenceBackend]) -> None:
        self._open_one = open_one
        self._configs: dict[EngineId, EngineConfig] = {}
        self._backends: dict[EngineId, InferenceBackend] = {}
        self._calls: Counter[InferenceBackend] = Counter()
        self._retired: list[InferenceBackend] = []

    def __getitem__(self, engine_id: EngineId) -> InferenceBackend:
        return self._backends[engine_id]

    def __iter__(self) -> Iterator[EngineId]:
        return iter(self._backends)

    def __len__(self) -> int:
        return len(self._backends)

    def config(self, engine_id: EngineId) -> EngineConfig:
        """How an engine is configured. KeyError when it is not here."""
        return self._configs[engine_id]

    def calls(self, engine_id: EngineId) -> int:
        """Calls in flight on an engine."""
        backend = self._backends.get(engine_id)
        return 0 if backend is None else self._calls[backend]

    @contextmanager
    def lend(self, engine_id: EngineId) -> Iterator[InferenceBackend | None]:
        """The engine for one call (None when it is not here); it is not closed before the call is over."""
        backend = self._backends.get(engine_id)
        if backend is None:
            yield None
            return
        self._calls[backend] += 1
        try:
            yield backend
        finally:
            self._calls[backend] -= 1
            if not self._calls[backend]:
                del self._calls[backend]

    async def reload(self, configs: Sequence[EngineConfig]) -> Reloaded:
        """Exchange the list: new ones are opened, missing ones retired, changed ones replaced, the rest untouched.
        Raises ConfigError, having changed nothing, when one of them cannot be opened."""
        wanted = {EngineId(config.id): config for config in configs}
        fresh = [engine_id for engine_id, config in wanted.items() if self._configs.get(engine_id) != config]
        opened = {engine_id: self._open_one(wanted[engine_id]) for engine_id in fresh}
        removed = tuple(engine_id for engine_id in self._configs if engine_id not in wanted)
        self._retired += [self._backends[each] for each in (*removed, *fresh) if each in self._backends]
        self._backends = {engine_id: opened.get(engine_id) or self._backends[engine_id] for engine_id in wanted}
        self._configs = wanted
        await self.close_retired()
        return Reloaded(tuple(fresh), removed)

    async def close_retired(self) -> None:
        """Close those that left and have no calls any more; whoever beats time calls this."""
        idle = [backend for backend in self._retired if not self._calls[backend]]
        self._retired = [backend for backend in self._retired if self._calls[backend]]
        for backend in idle:
            await backend.close()

    async def close(self) -> None:
        """Close all of them, calls or not."""
        for backend in (*self._backends.values(), *self._retired):
            await backend.close()
