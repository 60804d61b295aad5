"""What engines report of their slices, filed with their accounts; of those that are not registered yet, kept for it."""

from events.base import EngineId
from policies import tier_index
from policies.accounts import Account
from policies.tier_index import SliceFact, TierIndex

UNREGISTERED_MAX = 64
"""Engines of which reports are kept before they are registered, those heard of first."""


def heed(
    accounts: dict[EngineId, Account], unregistered: dict[EngineId, TierIndex], event: SliceFact, now_ns: int
) -> None:
    """Take a report in. An engine's agent starts with it, so its inventory may be there before the engine is known."""
    account = accounts.get(event.engine_id)
    if account is not None:
        tier_index.heed(account.tiers, event, now_ns)
        return
    if event.engine_id not in unregistered and len(unregistered) >= UNREGISTERED_MAX:
        return
    tier_index.heed(unregistered.setdefault(event.engine_id, TierIndex()), event, now_ns)
