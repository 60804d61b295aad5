"""What the parts that run inside an engine are told: one object in vLLM's own configuration, the same for all of them.

It stands in `kv_connector_extra_config["tidegate"]`, which the offloading spec, the tiers and (by
`vllm_config.kv_transfer_config`) the scheduler see. A process list shows it, so nothing secret belongs there: where the
log is comes from the environment.
"""

import os
from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec

from events.base import EngineId, PoolId
from kvstore.fingerprint import SLICE_TOKENS

KEY: Final = "tidegate"
NATS_URL: Final = "TIDEGATE_NATS__URL"
NATS_CREDS: Final = "TIDEGATE_NATS__CREDS"
COMMON_NAMES: Final = {NATS_URL: "NATS_URL", NATS_CREDS: "NATS_CREDS"}
"""The names that count where ours is not set, as everywhere in the house."""


class PluginSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """`engine_id` and `pool` are the names in the log. `folder` is where the engine keeps its own journal of choices
    ("" = none is kept). `ssd_folder` and `ssd_bytes` are its SSD tier ("" = none), read by `ssd_readers` threads. A
    slice has `slice_tokens` tokens: vLLM's offload `block_size`. `lazy`: slices go to DRAM when the device is about to
    evict them, and leave it when they are loaded; else they are written through when they are computed. `lazy_ahead`
    blocks are looked at for that (0 = as many as a few steps can take). `prefill_tokens_per_s` is how fast prompts are
    computed, where that should not be measured (0 = measured). What vLLM calls a reset of the external cache voids the
    DRAM tier, and the SSD tier too unless `reset_keeps_ssd`: vLLM resets it when weights change. What is stored after
    that is not found by the next engine, which begins with the weights that lie on disk. A read of the SSD is
    given up on, and its slices are computed, after twice what it should take and `fetch_patience_ms`."""

    engine_id: EngineId
    pool: PoolId = PoolId("default")
    folder: str = ""
    ssd_folder: str = ""
    ssd_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0
    ssd_readers: Annotated[int, msgspec.Meta(ge=1, le=64)] = 4
    fetch_patience_ms: Annotated[int, msgspec.Meta(ge=0)] = 200
    reset_keeps_ssd: bool = False
    prefill_tokens_per_s: Annotated[int, msgspec.Meta(ge=0)] = 0
    slice_tokens: Annotated[int, msgspec.Meta(ge=1)] = SLICE_TOKENS
    lazy: bool = True
    lazy_ahead: Annotated[int, msgspec.Meta(ge=0)] = 0


def of(extra_config: Mapping[str, Any]) -> PluginSettings:
    """The settings in a `kv_connector_extra_config`. Raises ValueError that names what is missing or wrong."""
    try:
        return msgspec.convert(extra_config.get(KEY, {}), PluginSettings)
    except msgspec.ValidationError as error:
        raise ValueError(f"kv_connector_extra_config[{KEY!r}]: {error}") from None


def nats_url(env: Mapping[str, str] = os.environ) -> str:
    """Where the log is; "" = nobody said, and the engine runs without an agent."""
    return _said(NATS_URL, env)


def nats_creds(env: Mapping[str, str] = os.environ) -> str:
    """The NATS credentials file; "" = none."""
    return _said(NATS_CREDS, env)


def _said(name: str, env: Mapping[str, str]) -> str:
    return env.get(name) or env.get(COMMON_NAMES[name], "")
