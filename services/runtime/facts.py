"""The one way a fact gets into the log: queued, stored in groups, in the order in which it was said.

While one message is on its way, whatever is said waits, and all of it makes up the next message (group commit:
under load one acknowledgement serves many facts, when idle a fact waits for nobody). A publish whose outcome is
unknown is said again with the same id until the log tells, so a fact stands once.
"""

import asyncio
import logging
import time
from collections import deque
from typing import Final, NamedTuple

from events import codec, subjects
from events.base import Cause, Event, LogError
from events.log.base import Log
from services.runtime.pool_clock import PoolClock

BODY_BYTES_MAX: Final = 512 * 1024
"""No message is larger, half of what NATS takes by default: a larger group is stored in parts."""
RETRY_FIRST_S: Final = 0.02
RETRY_MAX_S: Final = 0.5
KNOWN_S: Final = 60.0
"""The log knows message ids again for two minutes. Whatever was first said longer ago than this is looked for before it
is said again."""
SLOW_S: Final = 0.25
"""A publish that takes longer counts as "the log takes nothing", since its own start."""
CLOSE_WAIT_S: Final = 5.0

logger = logging.getLogger(__name__)


class _Waiting(NamedTuple):
    """A fact on its way, and who waits for it (nobody = None)."""

    said: codec.Said
    stored: asyncio.Future[Cause] | None


class FactWriter:
    """Writes the facts of one source of this process.

    `owner` names this start of the process (unique among starts: it is part of the message ids). `say` and
    `write` keep their order. Memory is bounded by `queue_max` facts.
    """

    def __init__(
        self,
        log: Log,
        *,
        source: str,
        owner: str,
        clock: PoolClock,
        batch_max: int = 256,
        queue_max: int = 65536,
    ) -> None:
        self._log, self._clock = log, clock
        self._source, self._owner = subjects.token(source, what="source"), owner
        self._batch_max, self._queue_max = batch_max, queue_max
        self._waiting: deque[_Waiting] = deque()
        self._wake = asyncio.Event()
        self._ended = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self._messages = 0
        self._stored_seq = 0
        self._sent_s: float | None = None
        self._failing = False

    @property
    def down_since(self) -> float | None:
        """`time.monotonic()` since when the log takes nothing: the start of the publish that failed or hangs.
        None = it took the last one, or nothing was said since."""
        if self._sent_s is None or not (self._failing or time.monotonic() - self._sent_s > SLOW_S):
            return None
        return self._sent_s

    @property
    def waiting(self) -> int:
        """Facts in the queue (those in flight are not counted)."""
        return len(self._waiting)

    def say(self, event: Event, cause: str = "") -> None:
        """Queue a fact and go on. Raises LogError when the queue is full or the writer has ended."""
        self._queue(event, cause, None)

    async def write(self, event: Event, cause: str = "") -> Cause:
        """Its place in the log once it is stored. A caller that stops waiting does not take the fact back.
        Raises LogError when the queue is full, the fact is too large, or the writer ends before it is stored."""
        return await self.store(event, cause)

    def store(self, event: Event, cause: str = "") -> "asyncio.Future[Cause]":
        """As `write`, for who waits for more than that. Raises LogError at once when the queue is full."""
        stored: asyncio.Future[Cause] = asyncio.get_running_loop().create_future()
        self._queue(event, cause, stored)
        return stored

    async def run(self) -> None:
        """The one publisher; ends after `close`. Whoever still waits when it is cancelled gets LogError."""
        self._task = asyncio.current_task()
        try:
            while await self._something_waits():
                group, body = self._take_group()
                await self._store(group, body)
        finally:
            self._closing = True
            self._fail(list(self._waiting), "the fact writer has ended")
            self._waiting.clear()
            self._ended.set()

    async def close(self, *, wait_s: float = CLOSE_WAIT_S) -> None:
        """Store what is queued, then end `run`; after `wait_s` the rest is given up with a warning."""
        self._closing = True
        self._wake.set()
        if self._task is None:
            return
        try:
            async with asyncio.timeout(wait_s):
                await self._ended.wait()
        except TimeoutError:
            logger.warning("facts of %s not stored at the end: %d and those in flight", self._source, self.waiting)
            self._task.cancel()

    def _queue(self, event: Event, cause: str, stored: asyncio.Future[Cause] | None) -> None:
        if self._closing:
            raise LogError("the fact writer has ended", where=self._source)
        if len(self._waiting) >= self._queue_max:
            raise LogError("the queue of facts is full", where=self._source, mend="the log takes too little")
        self._waiting.append(_Waiting(codec.Said(cause=cause, event=event), stored))
        self._wake.set()

    async def _something_waits(self) -> bool:
        while not self._waiting:
            if self._closing:
                return False
            self._wake.clear()
            await self._wake.wait()
        return True

    def _take_group(self) -> tuple[list[_Waiting], bytes]:
        group = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._batch_max))]
        while True:
            body = codec.encode(owner=self._owner, ts_ns=self._clock.now_ns(), said=[each.said for each in group])
            if len(body) <= BODY_BYTES_MAX or len(group) == 1:
                return group, body
            half = len(group) // 2
            self._waiting.extendleft(reversed(group[half:]))
            del group[half:]

    async def _store(self, group: list[_Waiting], body: bytes) -> None:
        kind = codec.kind_of([each.said for each in group])
        if len(body) > BODY_BYTES_MAX:
            logger.error("a fact of %s (%s) is too large and was dropped: %d bytes", self._source, kind, len(body))
            self._fail(group, f"the fact is too large: {len(body)} bytes, at most {BODY_BYTES_MAX}")
            return
        self._messages += 1
        msg_id = f"{self._source}:{self._owner}:{self._messages}"
        try:
            seq = await self._append(subjects.fact(self._log.pool, self._source, kind), body, msg_id)
        except asyncio.CancelledError:
            self._fail(group, "the fact writer has ended; whether the fact is stored is unknown")
            raise
        for item, each in enumerate(group):
            if each.stored is not None and not each.stored.done():
                each.stored.set_result(Cause(seq, item))

    async def _append(self, subject: str, body: bytes, msg_id: str) -> int:
        """Until the log tells the outcome; the same id makes saying it again harmless, for as long as it is known."""
        first_s = self._sent_s = time.monotonic()
        pause_s = RETRY_FIRST_S
        while True:
            try:
                seq = await self._found(subject, body) if time.monotonic() - first_s > KNOWN_S else 0
                seq = seq or await self._log.append(subject, body, msg_id=msg_id)
            except LogError as error:
                if not self._failing:
                    logger.warning("the log takes no facts of %s: %s", self._source, error)
                self._failing = True
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, RETRY_MAX_S)
                continue
            if self._failing:
                logger.warning("the log takes facts of %s again", self._source)
            self._failing, self._sent_s, self._stored_seq = False, None, seq
            return seq

    async def _found(self, subject: str, body: bytes) -> int:
        """Where the message stands in the log already; 0 = it does not. Owner and time make its body its own."""
        async for batch in self._log.read(after=self._stored_seq, pattern=subject):
            for message in batch:
                if message.body == body:
                    return message.seq
        return 0

    def _fail(self, group: list[_Waiting], what: str) -> None:
        for each in group:
            if each.stored is not None and not each.stored.done():
                each.stored.set_exception(LogError(what, where=self._source))
