"""The light engine keeps what every engine in virtual time keeps; vLLM's scheduler: tests/engine_env."""

from events.engine import EngineRegistered
from replay.engines.light import LightEngine
from replay.engines.tiers import TierSizes
from tests.replay.contract_engines import EngineContract


class TestLightEngine(EngineContract):
    def make(self, registered: EngineRegistered, *, tiers: TierSizes | None = None) -> LightEngine:
        return LightEngine(registered, tell_tokens=False, tiers=tiers)
