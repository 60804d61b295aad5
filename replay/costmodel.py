"""What a step costs and how much KV fits, per model and device: the numbers that simulated engines run on.

Step times come from public kernel and layer tables, fitted to the form of `events.engine.StepModel`. Two kinds:

- composed (H100, H200, A100; vLLM 0.24 / 0.14 kernel tables of aiconfigurator): sums of kernel times. No launch,
  sampler or scheduler time is in them, prefill on top of a cached context and mixed-batch attention were not
  measured, so a real engine is slower. Error on held-out steps: 2 % mean, 5 % at the 95th percentile.
- layers (RTX PRO 6000, RTX 4090; vLLM 0.19 per-layer times of LLMServingSim): kernel time as well, measured in mixed
  batches. Error on held-out steps: 8 to 10 % mean, 33 to 37 % at the 95th percentile. A mixed step pays about twice as
  much per context token there, so steps that only decode have a fit of their own: 1 % mean, 3 % at the 95th percentile.
  On top of either comes HOST_FS a step. These are the ones that measured runs of vLLM stand beside
  (`replay.calibration`).

KV left = `gpu_memory_utilization` of the device memory less the weights (bf16); activations are not taken off.
"""

from collections.abc import Sequence

import msgspec

from events.base import EngineId, ModelId
from events.engine import STEPS_AHEAD, Capability, EngineKind, EngineRegistered, StepModel
from kvstore.schema import KVCacheSchema

GPU_MEMORY_UTILIZATION_PERCENT = 90
BF16_BYTES = 2
LLAMA_8B_PARAMS = 8_030_000_000
QWEN3_32B_PARAMS = 32_760_000_000
LLAMA_8B_KV = KVCacheSchema(layers=32, kv_heads=8, head_dim=128)
QWEN3_32B_KV = KVCacheSchema(layers=64, kv_heads=8, head_dim=128)
HOST_FS = 10**12
"""What a step takes beside its kernels (launches, sampling, the scheduler): 1 ms, on the boards with layer tables. From
the seconds of the measured RTX PRO 6000 run in which 128 sequences did nothing but decode; see docs/calibration.md."""
_COMPOSED = "aiconfigurator kernel tables @095f58a5, composed, kernel time only"
_LAYERS = "LLMServingSim layer tables @5daddb2, vllm 0.19, kernel time, and 1 ms a step for the host"


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """A model on a device: step time, shape of its KV, and the memory that both share."""

    step: StepModel
    kv: KVCacheSchema
    weight_bytes: int
    hbm_bytes: int

    def kv_tokens(self) -> int:
        """Tokens of KV that fit beside the weights. H100 80 GB with Llama-3-8B: 426,788."""
        budget = self.hbm_bytes * GPU_MEMORY_UTILIZATION_PERCENT // 100
        return max(0, budget - self.weight_bytes) // self.kv.token_bytes()


def _llama_8b(step: StepModel, hbm_bytes: int) -> Profile:
    return Profile(step=step, kv=LLAMA_8B_KV, weight_bytes=LLAMA_8B_PARAMS * BF16_BYTES, hbm_bytes=hbm_bytes)


def _hosted(step: StepModel) -> StepModel:
    return msgspec.structs.replace(step, base_fs=step.base_fs + HOST_FS, decode_base_fs=step.decode_base_fs + HOST_FS)


PROFILES: dict[str, Profile] = {
    "llama-3-8b_h100": _llama_8b(
        StepModel(
            base_fs=6_037_482_731_146, above_fs=19_740_412_135, below_fs=11_689_306_693, knee_tokens=512,
            qk_fs=935_465, context_fs=44_385_941, seq_fs=0, source=f"llama-3-8b bf16 H100 vllm 0.24: {_COMPOSED}",
        ),
        hbm_bytes=80_000_000_000,
    ),
    "llama-3-8b_h200": _llama_8b(
        StepModel(
            base_fs=4_646_742_735_123, above_fs=19_679_576_423, below_fs=11_288_748_981, knee_tokens=384,
            qk_fs=1_007_664, context_fs=30_596_976, seq_fs=1_983_694_350,
            source=f"llama-3-8b bf16 H200 vllm 0.24: {_COMPOSED}",
        ),
        hbm_bytes=141_000_000_000,
    ),
    "llama-3-8b_a100": _llama_8b(
        StepModel(
            base_fs=10_482_166_723_516, above_fs=54_245_805_626, below_fs=29_867_937_889, knee_tokens=192,
            qk_fs=3_143_932, context_fs=83_389_337, seq_fs=1_778_571_037,
            source=f"llama-3-8b bf16 A100 vllm 0.14: {_COMPOSED}",
        ),
        hbm_bytes=80_000_000_000,
    ),
    "llama-3.1-8b_rtxpro6000": _llama_8b(
        _hosted(StepModel(
            base_fs=12_344_044_886_685, above_fs=32_947_143_609, below_fs=10_226_006_055, knee_tokens=192,
            qk_fs=2_461_547, context_fs=167_520_101, seq_fs=10_413_678_127,
            decode_base_fs=11_165_675_572_245, decode_context_fs=87_233_151,
            decode_seq_fs=19_375_100_667, source=f"llama-3.1-8b bf16 RTX PRO 6000: {_LAYERS}",
        )),
        hbm_bytes=96_000_000_000,
    ),
    "llama-3.1-8b_rtx4090": _llama_8b(
        _hosted(StepModel(
            base_fs=18_635_687_395_936, above_fs=85_496_070_997, below_fs=19_199_343_802, knee_tokens=160,
            qk_fs=4_780_848, context_fs=306_461_359, seq_fs=36_065_885_468,
            decode_base_fs=16_948_600_590_792, decode_context_fs=139_239_850,
            decode_seq_fs=42_082_181_978, source=f"llama-3.1-8b bf16 RTX 4090: {_LAYERS}",
        )),
        hbm_bytes=24_000_000_000,
    ),
    "qwen3-32b_rtxpro6000": Profile(
        step=_hosted(StepModel(
            base_fs=47_708_446_775_782, above_fs=154_603_339_709, below_fs=81_128_665_100, knee_tokens=256,
            qk_fs=8_709_938, context_fs=566_757_660, seq_fs=47_418_847_202,
            decode_base_fs=45_868_823_568_640, decode_context_fs=173_695_553,
            decode_seq_fs=81_232_894_782, source=f"qwen3-32b bf16 RTX PRO 6000: {_LAYERS}",
        )),
        kv=QWEN3_32B_KV, weight_bytes=QWEN3_32B_PARAMS * BF16_BYTES, hbm_bytes=96_000_000_000,
    ),
}  # fmt: skip
"""Name -> profile: what `step_model` in a configuration may say."""

STEP_MODELS: dict[str, StepModel] = {name: profile.step for name, profile in PROFILES.items()}
PROFILE_DEFAULT = "llama-3-8b_h100"


def registered(
    engine_id: str, models: Sequence[str], *, profile: str = PROFILE_DEFAULT, kv_tokens: int = 0,
    capability: Capability | None = None, reports_slices: bool = False,
) -> EngineRegistered:  # fmt: skip
    """A simulated engine as it says what it is. `kv_tokens` 0 means all that the profile leaves; one with tiers behind
    its memory `reports_slices`. KeyError for a profile that is not there."""
    chosen = PROFILES[profile]
    able = capability or Capability(embedding=True, can_preempt=True, steps_ahead=STEPS_AHEAD)
    return EngineRegistered(
        engine_id=EngineId(engine_id),
        kind=EngineKind.SIMULATED,
        models=tuple(ModelId(model) for model in models),
        kv_blocks=(kv_tokens or chosen.kv_tokens()) // chosen.kv.block_tokens,
        block_tokens=chosen.kv.block_tokens,
        block_bytes=chosen.kv.block_bytes(),
        capability=msgspec.structs.replace(able, reports_slices=reports_slices or able.reports_slices),
        step=chosen.step,
    )
