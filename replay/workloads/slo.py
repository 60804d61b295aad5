"""What an SLO asks of an answer, and what that is for a prompt on an engine."""

import msgspec

from events.base import NS_PER_MS, NS_PER_S
from events.engine import EngineRegistered, StepModel
from policies.predictors.step_time import unloaded_ttft_ns


class Slo(msgspec.Struct, frozen=True, kw_only=True):
    """SLO met = TTFT <= max(`ttft_min_ns`, `ttft_factor` x the unloaded, uncached TTFT of that prompt) and mean
    TPOT <= `tpot_ns`. For an embedding the vector counts as first token. The unloaded TTFT is that of an engine with a
    chunk budget of `batch_tokens` (0 = its own), so that a limit need not move with how the engine is run."""

    ttft_min_ns: int = NS_PER_S
    ttft_factor: int = 2
    tpot_ns: int = 50 * NS_PER_MS
    batch_tokens: int = 0

    def ttft_ns(self, prompt_tokens: int, engine: EngineRegistered) -> int:
        """The TTFT limit of a prompt on an engine."""
        model: StepModel | None = engine.step
        if model is None:
            return self.ttft_min_ns
        batch_tokens = self.batch_tokens or engine.capability.batch_tokens_max
        unloaded = unloaded_ttft_ns(model, prompt=prompt_tokens, batch_tokens=batch_tokens)
        return max(self.ttft_min_ns, self.ttft_factor * unloaded)


SLO_DEFAULT = Slo()
