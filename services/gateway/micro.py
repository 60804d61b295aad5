"""The gateway as a NATS micro service, so that `nats micro ls` shows it: small questions, no requests."""

from collections.abc import Callable
from typing import Any, Final

import msgspec
from nats.aio.client import Client
from nats.micro import add_service
from nats.micro.request import Request
from nats.micro.service import Service

from events import subjects
from events.base import PoolId
from replay.code_version import RELEASE

NAME: Final = "tidegate"


async def serve(client: Client, pool: PoolId, *, status: Callable[[], Any], models: Callable[[], list[str]]) -> Service:
    """Answer `tg.rpc.<pool>.status` and `tg.rpc.<pool>.models` until the service is stopped. Raises
    nats.errors.Error."""
    service = await add_service(
        client, name=NAME, version=RELEASE, description="Tidegate gateway", metadata={"pool": pool}
    )
    for name, answer in (("status", status), ("models", models)):
        await service.add_endpoint(name=name, subject=subjects.rpc(pool, name), handler=_answering(answer))
    await client.flush()
    return service


def _answering(answer: Callable[[], Any]) -> Callable[[Request], Any]:
    async def handle(request: Request) -> None:
        await request.respond(msgspec.json.encode(answer()))

    return handle
