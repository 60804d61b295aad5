"""The client's side of a decision: follows what admission says, and wakes who waits for a request."""

import asyncio

from events import codec
from events.base import RequestId
from events.control import ActorStarted
from events.decisions import RequestAdmitted
from events.log.base import Log
from events.subjects import decisions_of


class Follower:
    """`run` must be running. Counts admissions; anything else that is said about a request is a fault of the
    measurement and ends it."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._waited: dict[RequestId, asyncio.Future[RequestAdmitted]] = {}
        self._started = asyncio.Event()
        self._left = 0
        self._all = asyncio.Event()

    async def run(self) -> None:
        """Follow the decisions from the log's first message on."""
        async for batch in self._log.read(pattern=decisions_of(self._log.pool, "admission"), follow=True):
            for message in batch:
                for recorded in codec.decode(message.seq, message.subject, message.body):
                    self._take(recorded.event)

    def expect(self, request_id: RequestId) -> "asyncio.Future[RequestAdmitted]":
        """Done when the request is admitted. Ask before it arrives."""
        future = self._waited[request_id] = asyncio.get_running_loop().create_future()
        return future

    def expect_many(self, count: int) -> asyncio.Event:
        """Set when that many more were admitted."""
        self._left = count
        return self._all

    async def started(self) -> None:
        """Until admission has an owner."""
        await self._started.wait()

    def _take(self, event: object) -> None:
        match event:
            case RequestAdmitted(request_id=request_id):
                waited = self._waited.pop(request_id, None)
                if waited is not None:
                    waited.set_result(event)
                self._left -= 1
                if self._left == 0:
                    self._all.set()
            case ActorStarted():
                self._started.set()
            case _:
                raise AssertionError(f"only admissions are measured, not {event}")
