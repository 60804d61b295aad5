"""Shares and orders in a house of real processes: a crash changes nothing, and an order needs no restart."""

import json
from pathlib import Path
from typing import Final

import pytest

from events.base import TenantId
from events.control import ActorStarted
from events.decisions import ShareReason, SharesSet, TenantQuotaSet
from services.runtime.embedded import EmbeddedNats
from tests.e2e.house import House, running
from tests.e2e.settings import house_settings

pytestmark = pytest.mark.integration

DECIDING: Final = "admission quota eviction"
"""One process, so that all who decide end last."""


async def test_shares_outlive_a_crash_and_an_order_goes_through_while_everything_runs(
    own_nats: EmbeddedNats, tmp_path: Path
) -> None:
    config = house_settings(tmp_path, nats_url=own_nats.url, speed=10)
    workers = ("clock", DECIDING, "desk")
    async with running(tmp_path, config, workers=workers) as house:
        await house.witness.until(lambda: set_for(house, "e2", ShareReason.ARMED), "shares are set")
        order = ("quota", "set", "--engine", "e1", "--embedding-min", "30%", "--embedding-max", "40%")
        told = json.loads(await house.run(*order, "--json", "--config", str(house.file)))
        assert told["taken_in"] == {"quota": True}
        await house.witness.until(lambda: set_for(house, "e1", ShareReason.BOUNDS_ASKED), "bounds hold")
        (bound,) = set_for(house, "e1", ShareReason.BOUNDS_ASKED)
        assert bound.embedding_ppm == 300_000
        owners = len(house.witness.all(ActorStarted))
        await house.kill(DECIDING)
        await house.witness.comes(ActorStarted, count=owners + 3)
        limit = ("quota", "set", "--tenant", "acme", "--kv-bytes", "1GiB")
        await house.run(*limit, "--config", str(house.file))
        assert await house.witness.comes(TenantQuotaSet) == [
            TenantQuotaSet(tenant=TenantId("acme"), kv_bytes_max=2**30)
        ]
        standing = json.loads(await house.run("quota", "show", "--json", "--config", str(house.file)))
        await house.settle()
        report = await house.verify()

    by_engine = {one["engine"]: one for one in standing["engines"]}
    assert by_engine["e1"]["embedding_ppm"] >= 300_000
    assert standing["tenants"] == {"acme": 2**30}
    assert len(set_for(house, "e1", ShareReason.ARMED)) == 1, "what was set before the crash is not set anew"
    assert report["identical"], report["first_divergence"]
    assert report["pending"] == report["two_owners"] == 0


def set_for(house: House, engine: str, reason: ShareReason) -> list[SharesSet]:
    """What was set for an engine, for that reason."""
    return [one for one in house.witness.all(SharesSet) if one.engine_id == engine and one.reason is reason]
