"""Every setting of the program: one schema, from a TOML or JSON file, the environment and the command line.

This file is the schema; `load` reads it. A wrong value is a ConfigError that names file, key and what is allowed.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec

from events.engine import EngineKind
from kvstore.schema import KVCacheSchema
from services.runtime import config_checks
from services.runtime.config_sources import ConfigError as ConfigError
from services.runtime.config_sources import Gathered, convert, default_file

Label = Literal["nvlink", "numa", "host", "rack"]
"""What can be said of where an engine is: what `policies.placement.topology_aware` goes by."""


class OnLogDown(StrEnum):
    """What the gateway does while the log takes nothing: pass requests to the engines undecided, or refuse."""

    PASS = "pass"  # noqa: S105
    REFUSE = "503"


class LogProfile(StrEnum):
    """`durable` syncs every message to disk; `fast` may lose up to two minutes at a power loss."""

    DURABLE = "durable"
    FAST = "fast"


class LogLevel(StrEnum):
    """What processes say on stderr."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class NatsConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Where the log is. No URL: a server is started as a child. `creds` is a NATS credentials file."""

    url: str = ""
    creds: str = ""
    profile: LogProfile = LogProfile.FAST
    replicas: int = 1
    store_dir: str = ""


class RedisConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Where the views are. No URL: a server is started as a child."""

    url: str = ""


class TenantConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Who may ask. A client shows one of the keys as bearer token; over NATS it is known by its client name (the
    tenant's own, or one of `clients`). `domain` is its cache domain (own if empty)."""

    name: str
    api_keys: list[str] = msgspec.field(default_factory=list)
    clients: list[str] = msgspec.field(default_factory=list)
    domain: str = ""
    priority: int = 0


class ModelConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A model that clients may name. `tokenizer` is a folder with tokenizer.json (and the chat template), or
    `engine` (ask /tokenize), or empty (count by bytes, marked as estimated).

    SLO of a request that names none: TTFT <= max(slo_ttft_ms, slo_ttft_factor x the unloaded TTFT of its
    prompt), mean TPOT <= slo_tpot_ms.
    """

    name: str
    tokenizer: str = ""
    slo_ttft_ms: int = 1000
    slo_ttft_factor: int = 2
    slo_tpot_ms: int = 50
    tokens_max_default: int = 1024


class LaunchConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`[engines.vllm]`: how `tidegate engine launch` starts the engine. `model` is what vLLM loads (a folder or a name;
    the engine's first model where empty), `python` the interpreter of vLLM's environment, `ssd_dir` the folder of its
    SSD tier (in the state dir where empty), `args` and `env` go to vLLM as they are. `lazy`: slices go to DRAM when the
    device is about to evict them, not when they are computed."""

    model: str = ""
    python: str = "python3"
    ssd_dir: str = ""
    lazy: bool = True
    args: list[str] = msgspec.field(default_factory=list)
    env: dict[str, str] = msgspec.field(default_factory=dict)


class EngineConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One engine. `url` for kind vllm; the simulated kind takes `step_model` (a name in replay.costmodel). `devices`:
    the GPUs of the sensor's host that it runs on, by NVML's index, where its processes cannot be told by their port.
    `labels` say where it is, for placement `topology_aware`: `nvlink` (its domain), `numa`, `host`, `rack`.

    `agent`: a vLLM with Tidegate's plugin in it (`vllm` says how it is started): it gets hints, and says which slices
    it holds. `dram_bytes` and `ssd_bytes` are its tiers below the device (0 = none). The speeds are a simulated
    engine's, where it has such tiers; `peer` is to other engines."""

    id: str
    kind: EngineKind = EngineKind.VLLM
    models: list[str]
    url: str = ""
    api_key: str = ""
    tls_ca: str = ""
    tls_verify: bool = True
    embedding: bool = False
    llm: bool = True
    priority: bool = False
    agent: bool = False
    vllm: LaunchConfig | None = None
    kv_schema: KVCacheSchema | None = None
    kv_blocks: int = 0
    block_tokens: int = 16
    dram_bytes: int = 0
    ssd_bytes: int = 0
    dram_bytes_per_s: int = 50_000_000_000
    ssd_read_bytes_per_s: int = 6_800_000_000
    ssd_write_bytes_per_s: int = 4_000_000_000
    peer_bytes_per_s: int = 12_000_000_000
    seqs_max: int = 256
    batch_tokens_max: int = 2048
    context_tokens_max: int = 131_072
    step_model: str = ""
    devices: list[Annotated[int, msgspec.Meta(ge=0)]] = msgspec.field(default_factory=list)
    labels: dict[Label, str] = msgspec.field(default_factory=dict)
    connect_timeout_ms: int = 2_000
    first_byte_timeout_ms: int = 120_000


class GatewayConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The HTTP front door and its limits."""

    host: str = "127.0.0.1"
    port: int = 8400
    on_log_down: OnLogDown = OnLogDown.REFUSE
    log_down_after_ms: int = 1_000
    requests_max: int = 4_096
    body_bytes_max: int = 16 * 1024 * 1024
    tokenizer_threads: int = 2
    tls_cert: str = ""
    tls_key: str = ""
    objectives: dict[str, int] = msgspec.field(default_factory=dict)
    """Priority by `x-llm-d-inference-objective` (higher goes first); a name that is not here has none."""
    workload_hints: bool = False
    """Take `x-tidegate-output-tokens` and `x-request-id` from the client: only for load generators against simulated
    engines."""


class Config(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """All of it. `speed` runs the pool's clock faster than the wall's: for simulated engines only."""

    pool: str = "default"
    state_dir: str = ".tidegate"
    secret: str = ""
    speed: int = 1
    nats: NatsConfig = msgspec.field(default_factory=NatsConfig)
    redis: RedisConfig = msgspec.field(default_factory=RedisConfig)
    gateway: GatewayConfig = msgspec.field(default_factory=GatewayConfig)
    tenants: list[TenantConfig] = msgspec.field(default_factory=list)
    models: list[ModelConfig] = msgspec.field(default_factory=list)
    engines: list[EngineConfig] = msgspec.field(default_factory=list)
    policies: dict[str, dict[str, Any]] = msgspec.field(default_factory=dict)
    """Actor -> its settings, as that actor's policy validates them."""
    log_level: LogLevel = LogLevel.INFO
    metrics_port: int = 0
    """Workers serve /metrics and /health from this port on upwards; 0 = off."""


MASK = "***"


def load(path: Path | None = None, env: Mapping[str, str] | None = None, overrides: Sequence[str] = ()) -> Config:
    """The settings of all sources (see `config_sources`), checked. With no `path`, $TIDEGATE_CONFIG or
    ./tidegate.toml is read where there is one. Raises ConfigError for the first thing that is wrong."""
    return gather(path, env or {}, overrides)[0]


def gather(path: Path | None, env: Mapping[str, str], overrides: Sequence[str]) -> tuple[Config, Gathered]:
    """As `load`, with who said what."""
    gathered = Gathered(Config)
    file = path or default_file(env)
    if file is not None:
        gathered.add_file(file)
    gathered.add_environment(env)
    gathered.add_overrides(overrides)
    config: Config = convert(gathered)
    config_checks.check(config, gathered.error)
    return config, gathered


def masked(config: Config) -> dict[str, Any]:
    """Every setting in plain values, fit to be shown: what is secret is there, but not readable."""
    plain: dict[str, Any] = msgspec.to_builtins(config)
    plain["secret"] = _hidden(config.secret)
    plain["nats"]["url"] = without_password(config.nats.url)
    plain["redis"]["url"] = without_password(config.redis.url)
    for tenant in plain["tenants"]:
        tenant["api_keys"] = [MASK for _ in tenant["api_keys"]]
    for engine in plain["engines"]:
        engine["api_key"] = _hidden(engine["api_key"])
        engine["url"] = without_password(engine["url"])
        if engine["vllm"]:
            engine["vllm"]["env"] = dict.fromkeys(engine["vllm"]["env"], MASK)
    return plain


def without_password(url: str) -> str:
    """A URL (or several, with commas) fit to be shown: user and password are hidden."""
    shown = []
    for each in url.split(","):
        parts = urlsplit(each)
        host = parts.netloc.rpartition("@")[2]
        shown.append(parts._replace(netloc=f"{MASK}@{host}").geturl() if "@" in parts.netloc else each)
    return ",".join(shown)


def _hidden(text: str) -> str:
    return MASK if text else ""
