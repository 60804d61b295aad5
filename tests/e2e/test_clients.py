"""Holders that go away free what they held, and what a client says again has no effect."""

import asyncio
import json
from functools import partial
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from events.base import NS_PER_S
from events.decisions import HolderLost, RequestAdmitted, RequestRejected
from events.log.jetstream import connect
from events.request import FirstTokenSeen, RequestArrived, RequestFinished
from replay.costmodel import LLAMA_8B_KV
from services.runtime.config import Config
from services.runtime.embedded import EmbeddedNats
from tests.e2e.client import NO_ANSWER, ask
from tests.e2e.house import running
from tests.e2e.settings import house_settings

pytestmark = pytest.mark.integration

SPEED: Final = 4
KV_TOKENS: Final = 8_192
PROMPT_TOKENS: Final = 2_000
OUTPUT_TOKENS: Final = 3_500
KV_BYTES: Final = KV_TOKENS * LLAMA_8B_KV.token_bytes()
"""One such request fits the engine, two do not."""
CLIENT: Final = "planner"
REPLY_TIMEOUT_S: Final = 10.0


large = partial(ask, prompt_tokens=PROMPT_TOKENS, output_tokens=OUTPUT_TOKENS)


def narrow(folder: Path, nats: EmbeddedNats) -> Config:
    admission = {"holder_timeout_ns": 5 * NS_PER_S, "late_max_ns": 0}  # What cannot be in time is refused.
    return house_settings(
        folder, nats_url=nats.url, speed=SPEED, engines=1, kv_tokens=KV_TOKENS, admission=admission
    )  # fmt: skip


async def test_a_killed_gateway_is_given_up_and_what_it_held_is_free(nats_server: EmbeddedNats, tmp_path: Path) -> None:
    async with running(tmp_path, narrow(tmp_path, nats_server)) as house, aiohttp.ClientSession() as session:
        witness = house.witness
        first = asyncio.create_task(large(session, house.url, stream=True, request_id="first"))
        await witness.comes(FirstTokenSeen)
        second = await large(session, house.url, request_id="second")
        assert second.status == 429, "there is no room beside the first"

        await house.kill("gateway")
        broken = await first
        assert (broken.status, broken.complete) in ((200, False), (NO_ANSWER, False))
        [lost] = await witness.comes(HolderLost)
        assert lost.requests == ("first",)

        third = await large(session, await house.until_well(), request_id="third")
        assert third.status == 200
        before, after = witness.all(RequestAdmitted)
        assert (before.request_id, after.request_id) == ("first", "third")
        assert after.engine_id == before.engine_id
        assert after.kv_bytes_reserved > KV_BYTES // 2, "it has most of the engine, as the first had"
        await house.settle()
        report = await house.verify()
    assert report["identical"], report["first_divergence"]


async def test_what_a_client_says_twice_or_late_has_one_effect(nats_server: EmbeddedNats, tmp_path: Path) -> None:
    async with running(tmp_path, narrow(tmp_path, nats_server)) as house:
        witness = house.witness
        nats = await connect(nats_server.url, name=CLIENT)

        async def say(kind: str, request_id: str, **fields: Any) -> None:
            body = json.dumps({"request_id": request_id, **fields}).encode()
            reply = await nats.request(f"tg.in.{house.pool}.{CLIENT}.{kind}", body, timeout=REPLY_TIMEOUT_S)
            assert json.loads(reply.data)["ok"], reply.data

        arrival = {"model": "llama-3-8b", "prompt_tokens": PROMPT_TOKENS, "tokens_max": OUTPUT_TOKENS}
        amounts = {"prompt_tokens": PROMPT_TOKENS, "output_tokens": OUTPUT_TOKENS}
        finish = {"engine_id": "e1", "ttft_ns": NS_PER_S, "e2e_ns": NS_PER_S, **amounts}
        await say("request_finished", "one", **finish)  # Before it arrived.
        await say("request_arrived", "one", **arrival)
        await say("request_arrived", "one", **arrival)
        await witness.comes(RequestAdmitted)
        await say("request_arrived", "one", **arrival)
        await say("dispatch_started", "one", engine_id="e1")
        await say("request_finished", "one", **finish)
        await say("request_finished", "one", **finish)
        await say("first_token_seen", "one", engine_id="e1", ttft_ns=NS_PER_S)  # After its end.
        await say("request_arrived", "two", **arrival)
        await witness.comes(RequestAdmitted, count=2)
        await say("request_finished", "two", **finish)
        await house.settle()
        report = await house.verify()
        await nats.close()

    assert len(witness.all(RequestArrived)) == 4
    assert len(witness.all(RequestFinished)) == 4
    assert [each.request_id for each in witness.all(RequestAdmitted)] == ["planner/one", "planner/two"]
    assert witness.all(RequestRejected) == []
    assert report["identical"], report["first_divergence"]
