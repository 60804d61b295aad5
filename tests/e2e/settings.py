"""Settings of a test's house: two simulated engines, and whatever the test needs to be different."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from events.base import NS_PER_S
from events.engine import EngineKind
from replay.costmodel import LLAMA_8B_KV, PROFILE_DEFAULT
from services.runtime.config import (
    Config,
    EngineConfig,
    GatewayConfig,
    ModelConfig,
    NatsConfig,
    OnLogDown,
    RedisConfig,
)
from tests.e2e.client import MODEL

BLOCK_TOKENS: Final = LLAMA_8B_KV.block_tokens
PATIENT_NS: Final = 60 * NS_PER_S
"""Silence that a busy test machine may bring about on an accelerated clock without anybody being lost."""


def house_settings(
    folder: Path, *, nats_url: str, redis_url: str = "", speed: int = 1, engines: int = 2, kv_tokens: int = 65_536,
    slo_ttft_ms: int = 1_000, on_log_down: OnLogDown = OnLogDown.REFUSE, admission: Mapping[str, Any] | None = None,
) -> Config:  # fmt: skip
    """A pool of its own on the test's servers."""
    pool = f"e2e-{secrets.token_hex(4)}"
    return Config(
        pool=pool, state_dir=str(folder / "state"), speed=speed, secret=secrets.token_hex(32),
        nats=NatsConfig(url=nats_url), redis=RedisConfig(url=redis_url),
        gateway=GatewayConfig(port=0, workload_hints=True, on_log_down=on_log_down),
        models=[ModelConfig(name=MODEL, slo_ttft_ms=slo_ttft_ms, slo_tpot_ms=200)],
        engines=[
            EngineConfig(
                id=f"e{number}", kind=EngineKind.SIMULATED, models=[MODEL], embedding=True,
                kv_blocks=kv_tokens // BLOCK_TOKENS, block_tokens=BLOCK_TOKENS, step_model=PROFILE_DEFAULT,
            )
            for number in range(1, engines + 1)
        ],
        policies={"admission": {"holder_timeout_ns": PATIENT_NS, **(admission or {})}},
    )  # fmt: skip
