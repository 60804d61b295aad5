"""How far an actor has read: answered by whoever runs it, asked by whoever wants to see that a word was taken in."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from events import subjects
from events.base import PoolId

ASK_TIMEOUT_S: Final = 1.0
TAKE_TIMEOUT_S: Final = 5.0
ASK_EVERY_S: Final = 0.02


class Position(msgspec.Struct, frozen=True, kw_only=True):
    """Which owner runs an actor, and the last message that it took in with all that it decided because of it stored."""

    actor: str
    owner: str
    seq: int


@asynccontextmanager
async def answering(
    client: Client, pool: PoolId, position: Callable[[], Position], *, actor: str
) -> AsyncIterator[None]:
    """Answer `tg.rpc.<pool>.actor.<actor>` for as long as the block runs."""

    async def answer(message: Msg) -> None:
        await message.respond(msgspec.json.encode(position()))

    subscription = await client.subscribe(_subject(pool, actor), cb=answer)
    try:
        yield
    finally:
        if client.is_connected:
            await subscription.unsubscribe()


async def position_of(client: Client, pool: PoolId, actor: str) -> Position | None:
    """Where an actor is; None when nobody runs it, or it does not answer in time."""
    try:
        answer = await client.request(_subject(pool, actor), b"", timeout=ASK_TIMEOUT_S)
        return msgspec.json.decode(answer.data, type=Position)
    except (NatsError, TimeoutError, msgspec.DecodeError):
        return None


async def taken_in(client: Client, pool: PoolId, actor: str, seq: int) -> bool:
    """Whether an actor has taken message `seq` in; waits for it up to TAKE_TIMEOUT_S where somebody runs it."""
    deadline_s = time.monotonic() + TAKE_TIMEOUT_S
    while (found := await position_of(client, pool, actor)) is not None and found.seq < seq:
        if time.monotonic() > deadline_s:
            return False
        await asyncio.sleep(ASK_EVERY_S)
    return found is not None


def _subject(pool: PoolId, actor: str) -> str:
    return subjects.rpc(pool, f"actor.{actor}")
