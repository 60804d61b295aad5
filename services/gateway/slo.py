"""What a client asks for in time: SLO headers (llm-d's names, the older ones too), else the model's default."""

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from events.base import NS_PER_MS
from events.engine import EngineRegistered
from policies.predictors.step_time import unloaded_ttft_ns
from services.gateway.errors import Refusal, invalid
from services.runtime.config import ModelConfig

SLO_MS_MAX: Final = 86_400_000
TTFT: Final = ("x-llm-d-slo-ttft-ms", "x-slo-ttft-ms")
TPOT: Final = ("x-llm-d-slo-tpot-ms", "x-slo-tpot-ms")
OBJECTIVE: Final = ("x-llm-d-inference-objective", "x-gateway-inference-objective")
FAIRNESS: Final = ("x-llm-d-inference-fairness-id", "x-gateway-inference-fairness-id")
"""Checked for its form and then set aside: who a client is, its key says."""
_MILLISECONDS = re.compile(r"\d{1,8}(\.\d{1,6})?")
_NAME = re.compile(r"[A-Za-z0-9._:/-]{1,64}")


class Wish(NamedTuple):
    """What the headers say; 0 and "" where they say nothing."""

    ttft_ns: int = 0
    tpot_ns: int = 0
    objective: str = ""


def wish_of(headers: Mapping[str, str]) -> Wish:
    """Read the SLO headers (names in lower case). Refusal 400 names the header and the allowed form."""
    _name_of(headers, FAIRNESS)
    return Wish(_ns_of(headers, TTFT), _ns_of(headers, TPOT), _name_of(headers, OBJECTIVE))


def ttft_ns_of(model: ModelConfig, engine: EngineRegistered | None, *, prompt_tokens: int) -> int:
    """The default: max(slo_ttft_ms, factor x the prompt's TTFT on an idle engine), where the step time is known."""
    floor_ns = model.slo_ttft_ms * NS_PER_MS
    if engine is None or engine.step is None:
        return floor_ns
    batch_tokens = engine.capability.batch_tokens_max
    unloaded_ns = unloaded_ttft_ns(engine.step, prompt=prompt_tokens, batch_tokens=batch_tokens)
    return max(floor_ns, model.slo_ttft_factor * unloaded_ns)


def _ns_of(headers: Mapping[str, str], names: tuple[str, ...]) -> int:
    name, text = _first(headers, names)
    if not name:
        return 0
    if not _MILLISECONDS.fullmatch(text) or not 0 < float(text) <= SLO_MS_MAX:
        raise _bad(name, f"a number of milliseconds above 0, at most {SLO_MS_MAX}, such as 500")
    whole, _, part = text.partition(".")
    return int(whole) * NS_PER_MS + int(part.ljust(6, "0") or 0)


def _name_of(headers: Mapping[str, str], names: tuple[str, ...]) -> str:
    name, text = _first(headers, names)
    if name and not _NAME.fullmatch(text):
        raise _bad(name, "1 to 64 of A-Z a-z 0-9 . _ : / -")
    return text


def _first(headers: Mapping[str, str], names: tuple[str, ...]) -> tuple[str, str]:
    for name in names:
        if name in headers:
            return name, headers[name].strip()
    return "", ""


def _bad(name: str, allowed: str) -> Refusal:
    return invalid(f"header {name}: allowed is {allowed}", param=name, code="invalid_header")
