"""What each tenant holds of the pool's KV, and what it may hold: byte books and quotas.

A request costs its tenant what it will hold at its reserved length, from its admission to its end, whatever kind it
is and on whichever engine. The book is changed by what stands in the request's own account and by nothing else, so
the sum over tenants is the sum over residents, to the byte.

A request that would bring its tenant above its quota waits (`tenant_quota`) for the tenant's own requests to end, in a
line of its own tenant, so that it holds up nobody else; one that is above the quota all alone is refused.

Example: quota 10,000 bytes, 8,000 held. A request of 3,000 waits, one of 2,000 goes, one of 11,000 is refused.

Charging at the start and refunding whatever happens is Mooncake's strict quota (reserve, refund on failure).
"""

import msgspec

from events.base import TenantId

QUOTAS_MAX = 4_096
"""Quotas kept; the one set longest ago goes first."""


class Tenants(msgspec.Struct):
    """Bytes held by tenant (only tenants that hold some), and the quotas (only tenants that have one)."""

    held: dict[TenantId, int] = msgspec.field(default_factory=dict)
    quota: dict[TenantId, int] = msgspec.field(default_factory=dict)


def charge(tenants: Tenants, tenant: TenantId, amount: int) -> None:
    """It holds that many bytes more (less, below 0)."""
    held = tenants.held.get(tenant, 0) + amount
    assert held >= 0, "nobody is refunded what was never charged"
    if held:
        tenants.held[tenant] = held
    else:
        tenants.held.pop(tenant, None)


def set_quota(tenants: Tenants, tenant: TenantId, bytes_max: int) -> None:
    """It may hold that many bytes from now on (0 = as many as it likes). What it holds already stays."""
    tenants.quota.pop(tenant, None)
    if bytes_max:
        tenants.quota[tenant] = bytes_max
        if len(tenants.quota) > QUOTAS_MAX:
            del tenants.quota[next(iter(tenants.quota))]
