"""What a vLLM says of itself on /metrics, in the house's words."""

import re
from typing import Final, NamedTuple

from events.base import PPM, EngineId
from events.engine import EngineMeasured

_LINE: Final = re.compile(r"^(vllm:[a-z_]+)(?:\{([^}]*)\})? (\S+)$", re.MULTILINE)
_LABEL: Final = re.compile(r'(\w+)="([^"]*)"')
_SUMMED: Final = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:num_preemptions_total": "preemptions_total",
    "vllm:prefix_cache_queries_total": "prefix_queries_total",
    "vllm:prefix_cache_hits_total": "prefix_hits_total",
    "vllm:prompt_tokens_total": "prompt_tokens_total",
    "vllm:generation_tokens_total": "output_tokens_total",
    "vllm:kv_block_lifetime_seconds_count": "evictions_total",
}
"""Names by vLLM -> fields of EngineMeasured; over several inner engines they add up. Evictions are there only where the
server runs with `--kv-cache-metrics`, and count the blocks that it samples (`--kv-cache-metrics-sample`)."""
_KV_USAGE: Final = "vllm:kv_cache_usage_perc"
_CACHE_CONFIG: Final = "vllm:cache_config_info"


class CacheConfig(NamedTuple):
    """KV blocks of all inner engines together, and tokens per block; 0 where it does not say."""

    kv_blocks: int = 0
    block_tokens: int = 0


def measured(engine_id: EngineId, text: str) -> EngineMeasured:
    """Read the gauges and totals; what is not there counts as 0."""
    values = dict.fromkeys(_SUMMED.values(), 0)
    kv_used_ppm = 0
    for name, _labels, value in _LINE.findall(text):
        if name in _SUMMED:
            values[_SUMMED[name]] += int(_number(value))
        elif name == _KV_USAGE:
            # The fullest inner engine: it is the one that preempts.
            kv_used_ppm = max(kv_used_ppm, int(_number(value) * PPM))
    return EngineMeasured(engine_id=engine_id, kv_used_ppm=min(kv_used_ppm, PPM), **values)


def cache_config(text: str) -> CacheConfig:
    """Read `cache_config_info{block_size, num_gpu_blocks}`."""
    kv_blocks = block_tokens = 0
    for name, labels, _value in _LINE.findall(text):
        if name == _CACHE_CONFIG:
            named = dict(_LABEL.findall(labels))
            kv_blocks += _count(named.get("num_gpu_blocks", ""))
            block_tokens = _count(named.get("block_size", ""))
    return CacheConfig(kv_blocks, block_tokens)


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        return 0.0
    return number if 0 <= number < float("inf") else 0.0


def _count(text: str) -> int:
    return int(text) if text.isdecimal() else 0
