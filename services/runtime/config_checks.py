"""What must hold between settings, beyond the type of each one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from events import subjects
from events.engine import EngineKind
from services.runtime.config_sources import ConfigError, Key, meant

if TYPE_CHECKING:
    from services.runtime.config import Config, EngineConfig

Complain = Callable[..., ConfigError]
"""`complain(key, what, allowed="")` makes the ConfigError that names the place of a key."""

PORT_MAX = 65_535
MINIMA: dict[Key, int] = {
    ("speed",): 1, ("metrics_port",): 0, ("nats", "replicas"): 1, ("gateway", "port"): 0,
    ("gateway", "requests_max"): 1, ("gateway", "body_bytes_max"): 1, ("gateway", "tokenizer_threads"): 1,
    ("gateway", "log_down_after_ms"): 0,
}  # fmt: skip
ENGINE_MINIMA = {
    "kv_blocks": 0, "block_tokens": 1, "seqs_max": 1, "batch_tokens_max": 1, "context_tokens_max": 1,
    "connect_timeout_ms": 1, "first_byte_timeout_ms": 1, "dram_bytes": 0, "ssd_bytes": 0,
    "dram_bytes_per_s": 1, "ssd_read_bytes_per_s": 1, "ssd_write_bytes_per_s": 1, "peer_bytes_per_s": 1,
}  # fmt: skip
MODEL_MINIMA = {"slo_ttft_ms": 1, "slo_ttft_factor": 1, "slo_tpot_ms": 1, "tokens_max_default": 1}


def check(config: Config, complain: Complain) -> None:
    """Raise the ConfigError of the first thing that does not hold."""
    _check_numbers(config, complain)
    _check_token(config.pool, ("pool",), "pool", complain)
    _check_tenants(config, complain)
    _check_models(config, complain)
    _check_engines(config, complain)
    _check_tls(config, complain)
    _check_policies(config, complain)


def _check_numbers(config: Config, complain: Complain) -> None:
    for key, least in MINIMA.items():
        holder = config if len(key) == 1 else getattr(config, str(key[0]))
        _check_least(getattr(holder, str(key[-1])), least, key, complain)
    for key, port in ((("gateway", "port"), config.gateway.port), (("metrics_port",), config.metrics_port)):
        if port > PORT_MAX:
            raise complain(key, f"{port} is no port", allowed=f"0 to {PORT_MAX}")


def _check_least(value: int, least: int, key: Key, complain: Complain) -> None:
    if value < least:
        raise complain(key, f"{value} is too small", allowed=f"{least} or more")


def _check_token(text: str, key: Key, what: str, complain: Complain) -> None:
    try:
        subjects.token(text, what=what)
    except ValueError as error:
        raise complain(key, str(error)) from error


def _check_once(names: Sequence[str], section: str, field: str, complain: Complain) -> None:
    for index, name in enumerate(names):
        if name in names[:index]:
            first = names.index(name)
            raise complain((section, index, field), f"{name!r} is also the {field} of {section}[{first}]")


def _check_tenants(config: Config, complain: Complain) -> None:
    _check_once([tenant.name for tenant in config.tenants], "tenants", "name", complain)
    owner_of: dict[str, str] = {}
    for index, tenant in enumerate(config.tenants):
        _check_token(tenant.name, ("tenants", index, "name"), "tenant", complain)
        for number, api_key in enumerate(tenant.api_keys):
            key: Key = ("tenants", index, "api_keys", number)
            if not api_key:
                raise complain(key, "an empty key would let everybody in")
            if api_key in owner_of:
                raise complain(key, f"this key is also a key of tenant {owner_of[api_key]!r}")
            owner_of[api_key] = tenant.name


def _check_models(config: Config, complain: Complain) -> None:
    _check_once([model.name for model in config.models], "models", "name", complain)
    for index, model in enumerate(config.models):
        if not model.name:
            raise complain(("models", index, "name"), "a model needs a name")
        for field, least in MODEL_MINIMA.items():
            _check_least(getattr(model, field), least, ("models", index, field), complain)


def _check_engines(config: Config, complain: Complain) -> None:
    _check_once([engine.id for engine in config.engines], "engines", "id", complain)
    for index, engine in enumerate(config.engines):
        _check_engine(config, engine, ("engines", index), complain)


def _check_engine(config: Config, engine: EngineConfig, key: Key, complain: Complain) -> None:
    _check_token(engine.id, (*key, "id"), "engine", complain)
    for field, least in ENGINE_MINIMA.items():
        _check_least(getattr(engine, field), least, (*key, field), complain)
    known = [model.name for model in config.models]
    for number, name in enumerate(engine.models):
        if name not in known:
            raise complain(
                (*key, "models", number),
                f"engine {engine.id!r} serves {name!r}, which [[models]] does not name{meant(name, known)}",
                allowed=", ".join(known) or "no model is named",
            )  # fmt: skip
    if not engine.models:
        raise complain((*key, "models"), f"engine {engine.id!r} serves no model", allowed=", ".join(known))
    if not (engine.llm or engine.embedding):
        raise complain((*key, "llm"), f"engine {engine.id!r} does nothing: both llm and embedding are false")
    match engine.kind:
        case EngineKind.VLLM:
            _check_vllm(config, engine, key, complain)
        case EngineKind.SIMULATED:
            if engine.url:
                raise complain((*key, "url"), "a simulated engine has no url: it runs in the gateway")
            if engine.agent or engine.vllm is not None:
                field = "agent" if engine.agent else "vllm"
                raise complain((*key, field), "only an engine of kind vllm has a plugin and a way to start it")
            if engine.ssd_bytes and not engine.dram_bytes:
                raise complain((*key, "ssd_bytes"), "what is in SSD goes by way of DRAM: dram_bytes is needed too")
            _check_step_model(engine.step_model, (*key, "step_model"), complain)


def _check_vllm(config: Config, engine: EngineConfig, key: Key, complain: Complain) -> None:
    if not engine.url:
        raise complain((*key, "url"), f"engine {engine.id!r} of kind vllm needs a url", allowed="http://host:port")
    url = urlsplit(engine.url)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise complain((*key, "url"), f"{engine.url!r} is no URL of an engine", allowed="http://host:port, https://...")
    if engine.agent and not engine.llm:
        raise complain((*key, "agent"), f"engine {engine.id!r} only embeds: it keeps no KV to look after")
    if config.speed > 1:
        what = f"engine {engine.id!r} is real (kind vllm) and runs at the wall's speed"
        raise complain(("speed",), what, allowed="1; more with simulated engines only")


def _check_step_model(name: str, key: Key, complain: Complain) -> None:
    if name:
        from replay.costmodel import PROFILES  # Only where engines are simulated.

        if name not in PROFILES:
            known = list(PROFILES)
            raise complain(key, f"{name!r} is not known{meant(name, known)}", allowed=", ".join(known))


def _check_tls(config: Config, complain: Complain) -> None:
    gateway = config.gateway
    if bool(gateway.tls_cert) != bool(gateway.tls_key):
        missing = "tls_key" if gateway.tls_cert else "tls_cert"
        raise complain(("gateway", missing), "tls_cert and tls_key are given together or not at all")


def _check_policies(config: Config, complain: Complain) -> None:
    if not config.policies:
        return
    from policies import catalog  # Only where there is something to check: commands start fast.

    known = list(catalog.ACTORS)
    for name, settings in config.policies.items():
        decider = catalog.ACTORS.get(name)
        if decider is None:
            raise complain(("policies", name), f"no such actor{meant(name, known)}", allowed=", ".join(known))
        try:
            decider.configure(decider.initial(), settings)
        except ValueError as error:
            raise complain(("policies", name), str(error)) from error
