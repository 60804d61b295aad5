"""Requests for measuring with: ordinary ones, that every engine here can take at once."""

from events.base import NS_PER_S, EngineId, HolderId, ModelId, RequestId, TenantId
from events.engine import EngineRegistered
from events.request import FirstTokenSeen, RequestArrived, RequestFinished
from kvstore.fingerprint import fingerprints
from replay.costmodel import registered

MODEL = "llama-3-8b"
HOLDER = HolderId("bench")
PROMPT_TOKENS, OUTPUT_TOKENS = 1_500, 200
PREFIXES = 64
SLO_NS = 60 * NS_PER_S
_SLICES = tuple(fingerprints([prefix] * PROMPT_TOKENS, key=b"bench") for prefix in range(PREFIXES))


def engines(count: int) -> list[EngineRegistered]:
    """That many simulated H100s."""
    return [registered(f"e{number}", (MODEL,)) for number in range(1, count + 1)]


def arrived(number: int, now_ns: int) -> RequestArrived:
    """The request with that number; every 64th shares its prompt with it."""
    return RequestArrived(
        request_id=RequestId(f"r{number}"), tenant=TenantId("bench"), model=ModelId(MODEL), holder=HOLDER,
        prompt_tokens=PROMPT_TOKENS, tokens_max=OUTPUT_TOKENS, stream=True,
        slo_ttft_ns=SLO_NS, deadline_ns=now_ns + SLO_NS, slices=_SLICES[number % PREFIXES],
    )  # fmt: skip


def first_token(request_id: RequestId, engine_id: EngineId) -> FirstTokenSeen:
    """Its prefill is over."""
    return FirstTokenSeen(request_id=request_id, engine_id=engine_id, ttft_ns=NS_PER_S // 10)


def finished(request_id: RequestId, engine_id: EngineId) -> RequestFinished:
    """Its answer is complete."""
    return RequestFinished(
        request_id=request_id, engine_id=engine_id, prompt_tokens=PROMPT_TOKENS, output_tokens=OUTPUT_TOKENS,
        kv_cache_tokens=PROMPT_TOKENS + OUTPUT_TOKENS, ttft_ns=NS_PER_S // 10, e2e_ns=NS_PER_S,
    )  # fmt: skip
