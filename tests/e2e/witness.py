"""Follows a pool's log from outside, and waits for what should come to stand in it."""

import asyncio
from collections.abc import Callable
from typing import Final, TypeVar

from events import codec
from events.base import Event, Recorded
from events.decisions import HolderLost, RequestRejected
from events.log.base import Log
from events.request import RequestAborted, RequestArrived, RequestExpired, RequestFinished

APPEAR_TIMEOUT_S: Final = 30.0
E = TypeVar("E", bound=Event)
T = TypeVar("T")


class Witness:
    """Keeps every record of a log, in order; which requests arrived, and which ended, whichever way."""

    def __init__(self) -> None:
        self.records: list[Recorded] = []
        self.arrived: set[str] = set()
        self.ended: set[str] = set()
        self._more = asyncio.Event()

    async def follow(self, log: Log) -> None:
        """Read for ever."""
        async for batch in log.read(follow=True):
            for message in batch:
                for recorded in codec.decode(message.seq, message.subject, message.body):
                    self._take(recorded)
            self._more.set()

    async def until(self, holds: Callable[[], T], what: str, *, timeout_s: float = APPEAR_TIMEOUT_S) -> T:
        """What `holds` gives as soon as that is true, asked whenever the log grew. AssertionError if not in time."""
        try:
            async with asyncio.timeout(timeout_s):
                while not (found := holds()):
                    self._more.clear()
                    await self._more.wait()
        except TimeoutError:
            raise AssertionError(f"not in the log within {timeout_s:.0f} s: {what}") from None
        return found

    async def comes(self, kind: type[E], *, count: int = 1) -> list[E]:
        """The events of a kind, as soon as there are at least `count` of them."""
        what = f"{count} x {kind.__name__}"
        return await self.until(lambda: found if len(found := self.all(kind)) >= count else [], what)

    def all(self, kind: type[E]) -> list[E]:
        """The events of a kind, in order."""
        return [each.event for each in self.records if isinstance(each.event, kind)]

    def answered_twice(self) -> dict[tuple[str, str], set[int]]:
        """(Actor, cause) -> the messages that answer it, where those are several."""
        messages: dict[tuple[str, str], set[int]] = {}
        for each in self.records:
            if each.actor and each.cause:
                messages.setdefault((each.actor, each.cause), set()).add(each.seq)
        return {answered: seqs for answered, seqs in messages.items() if len(seqs) > 1}

    def _take(self, recorded: Recorded) -> None:
        self.records.append(recorded)
        match recorded.event:
            case RequestArrived() as event:
                self.arrived.add(event.request_id)
            case RequestFinished() | RequestAborted(final=True) | RequestRejected() | RequestExpired() as event:
                self.ended.add(event.request_id)
            case HolderLost() as event:
                self.ended.update(event.requests)
            case _:
                pass
