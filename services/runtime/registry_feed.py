"""Keeps the registry of slices up to date with the log, beside the projector's views and from the same reading.

Nothing is kept between starts: the log tells all of it. The registry away: tried again, reading goes on. The registry
emptied, or set back to what it was a while ago: noticed within LOOK_EVERY_S, and all is written anew from what is held
here, a piece at a time; what is not there yet reads as a miss.
"""

import asyncio
import contextlib
import logging
from collections import deque
from typing import Final, assert_never

from events.base import PoolId, Recorded
from kvstore.registry.base import Registry, RegistryError, Table, Write, Written
from services.runtime.projection import Replaced
from services.runtime.registry_book import RegistryBook

WRITE_EVERY_S: Final = 0.05
LOOK_EVERY_S: Final = 1.0
"""A registry that has nothing to be told is written to so often, to notice that it was emptied."""
RETRY_S: Final = 0.5
ITEMS_MAX: Final = 1_000
"""Of one write: the server does nothing else for a millisecond or two."""

logger = logging.getLogger(__name__)


class RegistryFeed:
    """Folds what `take` is given, and writes what changed. `epoch` grows from feed to feed; among feeds of one epoch
    `owner` does.

    Nothing is written before `from_seq` is reached, so that the registry never goes back in time.
    """

    def __init__(
        self, registry: Registry, *, book: RegistryBook, pool: PoolId, epoch: int, owner: str, from_seq: int
    ) -> None:
        self._registry, self._book, self._pool = registry, book, pool
        self._epoch, self._owner, self._from_seq = epoch, owner, from_seq
        self._moved = asyncio.Event()
        self._number = 0
        self._waiting: deque[tuple[Table, bytes]] = deque()
        self._anew = True
        self._unanswered: Write | None = None
        self._failing = False

    def take(self, recorded: Recorded) -> None:
        """One more record of the log."""
        self._book.take(recorded)
        self._moved.set()

    async def write(self) -> None:
        """Write what changed. Never ends. Raises Replaced."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._moved.wait()
            self._moved.clear()
            if self._book.seq < self._from_seq:
                continue
            complete = await self._write_once()
            if not complete:
                self._moved.set()
            await asyncio.sleep(RETRY_S if self._failing else WRITE_EVERY_S if complete else 0)

    async def _write_once(self) -> bool:
        """Whether the registry now holds all that is known here."""
        write = self._unanswered or self._next()
        # The server may have taken a write although its answer did not come: the same is sent until one does.
        self._unanswered = write
        try:
            written = await self._registry.write(write)
        except RegistryError as error:
            if not self._failing:
                logger.warning("the registry stands still: %s", error)
            self._failing = True
            return False
        self._unanswered = None
        if self._failing:
            logger.warning("the registry goes on")
        self._failing = False
        match written:
            case Written.WRITTEN | Written.BEFORE:
                return not (self._waiting or self._book.changed)
            case Written.LOST:
                logger.warning("Redis does not hold the registry any more: it is written anew")
                self._anew = True
                return False
            case Written.REPLACED:
                raise Replaced("another projector writes the registry of slices", where=f"pool {self._pool}")
            case _:
                assert_never(written)

    def _next(self) -> Write:
        """The next piece of what is to be written, as it stands now."""
        anew, self._anew = self._anew, False
        book = self._book
        if anew:
            book.changed.clear()
            self._waiting = deque((table, name) for table in Table for name in book.fields(table))
        elif not self._waiting:
            self._waiting.extend(book.changed)
            book.changed.clear()
        piece = [self._waiting.popleft() for _ in range(min(ITEMS_MAX, len(self._waiting)))]
        self._number += 1
        return Write(
            epoch=self._epoch, owner=self._owner, number=self._number, seq=book.seq, now_ns=book.now_ns, anew=anew,
            complete=not (self._waiting or book.changed),
            items=[(table, name, book.value(table, name)) for table, name in piece],
        )  # fmt: skip


def all_of(book: RegistryBook) -> Write:
    """A book as one write: how a log at rest gets into a registry in memory."""
    return Write(epoch=1, owner="", number=1, seq=book.seq, now_ns=book.now_ns, anew=True, items=list(book.items()))
