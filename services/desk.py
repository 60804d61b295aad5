"""The desk worker: an operator's orders over NATS, as a micro service beside the log.

    tg.rpc.<pool>.policy.show     {} or {"actor": "admission"}
    tg.rpc.<pool>.policy.set      {"actor": "quota", "settings": {"deadband_ppm": 30000}}
    tg.rpc.<pool>.policy.preset   {"preset": "default"}
    tg.rpc.<pool>.quota.show      {}
    tg.rpc.<pool>.quota.set       {"tenant": "acme", "kv_bytes_max": 8589934592}, or
                                  {"engine": "e1", "embedding_min_ppm": 100000, "embedding_max_ppm": 400000}
    tg.rpc.<pool>.cache.pin       {"slices": ["<32 hex digits>"], "for_ns": 600000000000}, 0 lets go

An order is judged first, then written as a fact: the answer has `ok` and the `seq` at which it stands. One that does
not hold is answered with `ok` false and an `error` that says what is allowed, and nothing is written.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
from nats.micro import add_service
from nats.micro.request import Request
from prometheus_client import CollectorRegistry

from events import subjects
from events.base import LogError
from events.log.jetstream import JetStreamLog
from replay.code_version import RELEASE
from services.runtime.config import Config
from services.runtime.health import served
from services.runtime.orders import Orders, Refused, taking_orders

NAME: Final = "tidegate-desk"
ORDER_BYTES_MAX: Final = 64 * 1024


class _Asked(msgspec.Struct, forbid_unknown_fields=True):
    """An order with nothing in it."""


class _PolicyShow(msgspec.Struct, forbid_unknown_fields=True):
    actor: str = ""


class _PolicySet(msgspec.Struct, forbid_unknown_fields=True):
    actor: str
    settings: dict[str, Any]


class _PolicyPreset(msgspec.Struct, forbid_unknown_fields=True):
    preset: str


class _QuotaSet(msgspec.Struct, forbid_unknown_fields=True):
    """Of a tenant, or of an engine's shares ("" = of every engine without bounds of its own)."""

    tenant: str = ""
    kv_bytes_max: int | None = None
    engine: str = ""
    embedding_min_ppm: int | None = None
    embedding_max_ppm: int | None = None


class _CachePin(msgspec.Struct, forbid_unknown_fields=True):
    """Slices that stay where they are for so long of pool time (0 = no longer)."""

    slices: list[str]
    for_ns: int


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """The order stands in the log, in this message."""

    ok: bool = True
    seq: int


class NotWritten(msgspec.Struct, frozen=True, kw_only=True):
    """The order does not hold, or the log does not take it."""

    ok: bool = False
    error: str


async def run(config: Config, *, log: JetStreamLog, stop: asyncio.Event) -> None:
    """Take orders until `stop`. Raises LogError."""
    async with taking_orders(log, speed=config.speed) as orders:
        service = await add_service(
            log.client, name=NAME, version=RELEASE, description="Tidegate desk: policies, quotas and pins",
            metadata={"pool": log.pool},
        )  # fmt: skip
        for name, answer in answers(orders).items():
            await service.add_endpoint(
                name=name.replace(".", "-"), subject=subjects.rpc(log.pool, name), handler=_answering(answer)
            )
        await log.client.flush()
        try:
            with served(config, "desk", CollectorRegistry()):
                await stop.wait()
        finally:
            await service.stop()


Answer = Callable[[bytes], Awaitable[Any]]


def answers(orders: Orders) -> dict[str, Answer]:
    """What the desk answers, by the end of its subject."""

    async def policy_show(body: bytes) -> Any:
        asked = _read(body, _PolicyShow)
        return {"ok": True, "policies": await orders.policies(asked.actor)}

    async def policy_set(body: bytes) -> Any:
        asked = _read(body, _PolicySet)
        return Written(seq=await orders.configure(asked.actor, asked.settings))

    async def policy_preset(body: bytes) -> Any:
        return Written(seq=await orders.preset(_read(body, _PolicyPreset).preset))

    async def quota_show(body: bytes) -> Any:
        _read(body, _Asked)
        quotas = await orders.quotas()
        return {"ok": True, "engines": quotas.engines, "tenants": quotas.tenants}

    async def quota_set(body: bytes) -> Any:
        asked = _read(body, _QuotaSet)
        bounds = (asked.embedding_min_ppm, asked.embedding_max_ppm)
        if asked.tenant and asked.kv_bytes_max is not None and not asked.engine and bounds == (None, None):
            return Written(seq=await orders.limit_tenant(asked.tenant, asked.kv_bytes_max))
        low_ppm, high_ppm = bounds
        if low_ppm is not None and high_ppm is not None and not asked.tenant and asked.kv_bytes_max is None:
            return Written(seq=await orders.bound_shares(asked.engine, low_ppm, high_ppm))
        raise Refused("allowed: tenant and kv_bytes_max; or engine, embedding_min_ppm and embedding_max_ppm")

    async def cache_pin(body: bytes) -> Any:
        asked = _read(body, _CachePin)
        return Written(seq=await orders.pin(asked.slices, asked.for_ns))

    return {
        "policy.show": policy_show, "policy.set": policy_set, "policy.preset": policy_preset,
        "quota.show": quota_show, "quota.set": quota_set, "cache.pin": cache_pin,
    }  # fmt: skip


def _read(body: bytes, kind: type[Any]) -> Any:
    """The order in a body. Raises Refused."""
    if len(body) > ORDER_BYTES_MAX:
        raise Refused(f"the order has {len(body)} bytes (allowed: at most {ORDER_BYTES_MAX})")
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except msgspec.DecodeError as error:
        fields = ", ".join(field.name for field in msgspec.structs.fields(kind))
        allowed = f"JSON with the fields {fields}" if fields else "nothing, or {}"
        raise Refused(f"{error} (allowed: {allowed})") from error


def _answering(answer: Answer) -> Callable[[Request], Awaitable[None]]:
    async def handle(request: Request) -> None:
        try:
            said = await answer(request.data)
        except (Refused, LogError) as error:
            said = NotWritten(error=str(error))
        await request.respond(msgspec.json.encode(said))

    return handle
