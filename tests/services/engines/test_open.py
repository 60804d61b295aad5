"""The engine list: opened from the configuration, exchanged while calls run."""

import pytest

from events.base import EngineId
from events.engine import EngineKind
from services.engines.open import Engines, Reloaded, open_engine
from services.engines.simulated import SimulatedBackend
from services.engines.vllm import VLLMBackend
from services.runtime.config import ConfigError, EngineConfig
from services.runtime.pool_clock import PoolClock
from tests.services.gateway.rig import ScriptedEngine

E1, E2 = EngineId("e1"), EngineId("e2")


def config(engine_id: str, **settings: object) -> EngineConfig:
    return EngineConfig(id=engine_id, models=["tiny"], **settings)  # type: ignore[arg-type]


class Closing(ScriptedEngine):
    """An engine that remembers its end."""

    closed = False

    async def close(self) -> None:
        self.closed = True


async def test_each_kind_gets_its_backend() -> None:
    clock = PoolClock()
    simulated = open_engine(config("e1", kind=EngineKind.SIMULATED), clock=clock)
    real = open_engine(config("e2", url="http://127.0.0.1:1"), clock=clock)
    assert isinstance(simulated, SimulatedBackend)
    assert isinstance(real, VLLMBackend)


@pytest.mark.parametrize(
    ("settings", "key"),
    [({}, "engines.e1.url"), ({"url": "https://x", "tls_ca": "/nowhere/ca.pem"}, "engines.e1.tls_ca")],
)
async def test_engine_that_cannot_be_opened_names_its_key(settings: dict[str, str], key: str) -> None:
    with pytest.raises(ConfigError) as wrong:
        open_engine(config("e1", **settings), clock=PoolClock())
    assert wrong.value.key == key


async def test_reload_opens_replaces_and_retires() -> None:
    opened: list[Closing] = []

    def open_one(each: EngineConfig) -> Closing:
        opened.append(Closing(each.id, []))
        return opened[-1]

    engines = Engines(open_one)
    assert await engines.reload([config("e1"), config("e2")]) == Reloaded((E1, E2), ())
    assert await engines.reload([config("e1"), config("e2")]) == Reloaded((), ())
    first, second = opened
    with engines.lend(E1) as lent:
        assert lent is first
        assert engines.calls(E1) == 1
        assert await engines.reload([config("e1", seqs_max=9)]) == Reloaded((E1,), (E2,))
        assert second.closed
        assert not first.closed, "a call is in flight on it"
        assert engines[E1] is opened[2]
    await engines.close_retired()
    assert first.closed
    assert list(engines) == [E1]
    await engines.close()
    assert opened[2].closed


async def test_reload_that_fails_changes_nothing() -> None:
    engines = Engines(lambda each: open_engine(each, clock=PoolClock()))
    await engines.reload([config("e1", url="http://127.0.0.1:1")])
    with pytest.raises(ConfigError):
        await engines.reload([config("e2")])
    assert list(engines) == [E1]
    await engines.close()


async def test_engine_that_is_not_here_is_not_lent() -> None:
    with Engines(lambda each: Closing(each.id, [])).lend(E1) as lent:
        assert lent is None
