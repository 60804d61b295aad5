"""Facts about quotas: what an operator asks for. What follows from them stands in `events.decisions`."""

from events.base import EngineId, Event, TenantId


class TenantQuotaAsked(Event, frozen=True, kw_only=True, tag="tenant_quota_asked.v1"):
    """An operator wants a tenant to hold at most this many bytes of KV in the pool (0 = no limit)."""

    tenant: TenantId
    kv_bytes_max: int


class ShareBoundsAsked(Event, frozen=True, kw_only=True, tag="share_bounds_asked.v1"):
    """An operator wants the embedding share of an engine's KV memory within these bounds ("" = every engine that
    has none of its own). Equal bounds fix the share."""

    engine_id: EngineId = EngineId("")
    embedding_min_ppm: int
    embedding_max_ppm: int
