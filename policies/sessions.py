"""Which sessions are active, so that their working set fits: session slots as leases.

Agentic sessions come back to the same growing prefix turn after turn. When more of them are active than the engines'
KV can hold, each pushes the others' prefixes out, and all recompute; one after another they finish sooner. So a session
without a slot begins only while the prefixes of those that have one, with its own, stay within `session_kv_ppm` of the
KV that the model has in the pool.

- A slot is a lease. While a turn runs it does not end; after it, it is held for twice the time that the tenant's
  sessions have taken of late until their next turn, and at most `session_lease_max_ns`. A turn that comes later is a
  new beginning. Leases that have run out are taken back with the ticks.
- A turn waits for a slot (`session_slot`) at most `session_wait_max_ns`, and at most half of what its deadline gives
  it; then it goes on without asking. So slots bound what is active, and starve nobody.
- Requests without a session need no slot.

Example: 100,000 tokens of KV, nine sessions of 10,000 are active, `session_kv_ppm` 900,000. A tenth waits until one of
them has been silent for its lease.

The time until the next turn is a decayed mean in whole numbers. The lease is the idea of TTL leases on session KV
(Continuum, 2025); the limit on active sessions is working-set admission as in Denning (1968).
"""

import msgspec

from events.base import NS_PER_S, ModelId, RequestId, SessionId, TenantId
from events.request import RequestArrived

LEASES_MAX = 16_384
"""Sessions known at a time; beyond, the one that was heard of longest ago is forgotten."""
TENANTS_MAX = 512
SCAN_MAX = 256
"""Leases looked at per tick, in turn."""
GAP_DEFAULT_NS = 10 * NS_PER_S
_FADE = 8
_LEASE_GAPS = 2


class Lease(msgspec.Struct, array_like=True):
    """One active session of a tenant with a model. `tokens` is the prefix that its next turn will want, `turns` what
    runs of it; `until_ns` is when it ends, and `ended_ns` when its last turn did, while none runs."""

    tenant: TenantId
    model: ModelId
    tokens: int
    turns: list[RequestId]
    until_ns: int = 0
    ended_ns: int = 0


class Sessions(msgspec.Struct):
    """The leases, heard of last at the end; their tokens by model; and the mean time until the next turn by tenant."""

    leases: dict[str, Lease] = msgspec.field(default_factory=dict)
    tokens: dict[ModelId, int] = msgspec.field(default_factory=dict)
    gap_ns: dict[TenantId, int] = msgspec.field(default_factory=dict)


def key_of(request: RequestArrived) -> str:
    """A session is its tenant's own. Empty: the request belongs to none."""
    return f"{request.tenant}\n{request.model}\n{request.session}" if request.session != SessionId("") else ""


def needs_slot(sessions: Sessions, request: RequestArrived, *, tokens_max: int, promised: int) -> bool:
    """Whether it has to wait for a slot: its session has none, and with it more than `tokens_max` tokens would be
    active. `promised` are those of sessions that begin with the decision being made. The first one always fits."""
    key = key_of(request)
    if not key or key in sessions.leases:
        return False
    active = sessions.tokens.get(request.model, 0) + promised
    return active > 0 and active + request.prompt_tokens > tokens_max


def waits_until_ns(request: RequestArrived, *, wait_max_ns: int) -> int:
    """From when on it goes without a slot."""
    arrived_ns = request.deadline_ns - request.slo_ttft_ns
    return arrived_ns + min(wait_max_ns, request.slo_ttft_ns // 2)


def turn_began(sessions: Sessions, request: RequestArrived, now_ns: int) -> None:
    """A turn was admitted: its session is active."""
    key = key_of(request)
    if not key:
        return
    lease = sessions.leases.pop(key, None) or Lease(request.tenant, request.model, 0, [])
    if lease.ended_ns and not lease.turns:
        _learn(sessions, request.tenant, max(0, now_ns - lease.ended_ns))
    if request.request_id not in lease.turns:
        lease.turns.append(request.request_id)
    sessions.leases[key] = lease
    _resize(sessions, lease, max(lease.tokens, request.prompt_tokens))
    if len(sessions.leases) > LEASES_MAX:
        _drop(sessions, next(iter(sessions.leases)))


def turn_ended(sessions: Sessions, request: RequestArrived, *, tokens: int, now_ns: int, lease_max_ns: int) -> None:
    """A turn ended, with that many tokens in all: the lease runs until the next one is due."""
    lease = sessions.leases.get(key_of(request))
    if lease is None or request.request_id not in lease.turns:
        return
    lease.turns.remove(request.request_id)
    _resize(sessions, lease, max(lease.tokens, tokens))
    if not lease.turns:
        gap_ns = sessions.gap_ns.get(lease.tenant, GAP_DEFAULT_NS)
        lease.ended_ns, lease.until_ns = now_ns, now_ns + min(_LEASE_GAPS * gap_ns, lease_max_ns)


def expire(sessions: Sessions, now_ns: int) -> None:
    """Take back leases that have run out, of the next SCAN_MAX in turn."""
    for _ in range(min(SCAN_MAX, len(sessions.leases))):
        key = next(iter(sessions.leases))
        lease = sessions.leases[key]
        if not lease.turns and lease.until_ns <= now_ns:
            _drop(sessions, key)
        else:
            sessions.leases[key] = sessions.leases.pop(key)


def clear(sessions: Sessions) -> None:
    """Slots were switched off: nobody has one."""
    sessions.leases.clear()
    sessions.tokens.clear()


def _learn(sessions: Sessions, tenant: TenantId, gap_ns: int) -> None:
    mean_ns = sessions.gap_ns.pop(tenant, gap_ns)
    sessions.gap_ns[tenant] = mean_ns + (gap_ns - mean_ns) // _FADE
    if len(sessions.gap_ns) > TENANTS_MAX:
        del sessions.gap_ns[next(iter(sessions.gap_ns))]


def _resize(sessions: Sessions, lease: Lease, tokens: int) -> None:
    sessions.tokens[lease.model] = sessions.tokens.get(lease.model, 0) + tokens - lease.tokens
    lease.tokens = tokens


def _drop(sessions: Sessions, key: str) -> None:
    lease = sessions.leases.pop(key)
    _resize(sessions, lease, 0)
    if not sessions.tokens[lease.model]:
        del sessions.tokens[lease.model]
