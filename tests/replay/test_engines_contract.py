"""The light engine keeps what every engine in virtual time keeps; vLLM's scheduler: tests/engine_env."""

from events.engine import EngineRegistered
from replay.engines.light import LightEngine
from replay.engines.tiers import TierSizes
from tests.replay.contract_engines import EngineContract, LoadsContract


class TestLightEngine(EngineContract):
    def make(self, registered: EngineRegistered, *, tiers: TierSizes | None = None) -> LightEngine:
        return LightEngine(registered, tell_tokens=False, tiers=tiers)


class TestLightLoads(LoadsContract):
    def make(self, registered: EngineRegistered, tiers: TierSizes, *, is_stock: bool) -> LightEngine:
        assert bool(tiers.eviction) is is_stock, "whose rule it is decides"
        return LightEngine(registered, tell_tokens=False, tiers=tiers)
