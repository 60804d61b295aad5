"""What the parts of the memory inside one engine have in common."""

from dataclasses import dataclass

from events.base import EngineId
from events.slice import Tier
from services.vllm_plugin.bridge import Bridge
from services.vllm_plugin.choices import TierChoices
from services.vllm_plugin.naming import Naming, naming
from services.vllm_plugin.pace import Pace, pace
from services.vllm_plugin.residency import Residency
from services.vllm_plugin.settings import PluginSettings


@dataclass(frozen=True)
class Memory:
    """One per engine core. A slice takes `slice_bytes` in the DRAM tier, padding included."""

    settings: PluginSettings
    bridge: Bridge
    naming: Naming
    pace: Pace
    residency: Residency
    slice_bytes: int

    @property
    def engine_id(self) -> EngineId:
        """The engine's name in the log."""
        return self.settings.engine_id

    def recompute_ns(self, slices: int) -> int:
        """What computing so many slices takes."""
        return self.pace.recompute_ns(slices * self.settings.slice_tokens)

    def choices(self, tier: Tier) -> TierChoices:
        """The delegate's view of a tier."""
        return TierChoices(
            tier, self.naming, self.bridge.choose, slice_bytes=self.slice_bytes, cost_ns=lambda: self.recompute_ns(1)
        )


def memory_of(settings: PluginSettings, bridge: Bridge, *, slice_bytes: int) -> Memory:
    """That of this process."""
    bridge.engine_id = settings.engine_id
    if settings.prefill_tokens_per_s:
        pace.fix(settings.prefill_tokens_per_s)
    residency = Residency(settings.engine_id, naming, bridge.tell, slice_bytes=slice_bytes)
    return Memory(settings, bridge, naming, pace, residency, slice_bytes)
