"""Holds the log against itself while it grows: is it still what was written, and do the decisions follow from it?

The digest runs over every message from the first on. A checkpoint (seq, digest) is stored outside the stream every
second; a log that ends before it, or has another digest there, is damaged. What was acknowledged after the last
checkpoint and lost before anybody read it cannot be noticed.
"""

import asyncio
import logging
from collections import deque
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from events import codec
from events.base import Cause, Event, LogDamaged, LogError, Recorded
from events.control import EventQuarantined
from events.log import digest
from events.log.base import Log, Message
from policies.decider import Decider, advance, begin
from replay.replayer import position_of
from services.runtime.history import History, Recall, read_history
from services.runtime.metrics import AuditMetrics
from services.runtime.snapshot import replace_file

CHECKPOINT_EVERY_S: Final = 1.0
RETRY_S: Final = 0.5
EXPECTED_MAX: Final = 65_536
"""Causes that an actor may be behind before its decisions are no longer held against the log."""
MEND: Final = "stop all workers and restore the log from its archive; `tidegate replay verify` names the place"

logger = logging.getLogger(__name__)


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Up to message `seq` the log had this digest (hex)."""

    pool: str
    seq: int
    digest: str


class CheckpointFile:
    """Where the checkpoint of a pool is kept: synced, replaced whole."""

    def __init__(self, file: Path) -> None:
        self.file = file

    async def load(self) -> Checkpoint | None:
        """The newest checkpoint; None when none was stored. Raises LogDamaged when it cannot be read."""
        try:
            return msgspec.json.decode(await asyncio.to_thread(self.file.read_bytes), type=Checkpoint)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as error:
            mend = "delete it once `tidegate replay verify` finds the log in order"
            raise LogDamaged("the checkpoint cannot be read", where=str(self.file), mend=mend) from error

    async def save(self, checkpoint: Checkpoint) -> None:
        """Keep it. Raises OSError."""
        await asyncio.to_thread(replace_file, self.file, msgspec.json.encode(checkpoint))


class CheckpointCopy(Protocol):
    """Another place for checkpoints, which may fail: then it is left out."""

    async def save(self, checkpoint: Checkpoint) -> None:
        """Keep it."""
        ...


class Audit:
    """See the module. `deciders` are held against the decisions of their actors, as far as this code made them."""

    def __init__(
        self, log: Log, *, deciders: dict[str, Decider[Any]], code_version: str, kept: CheckpointFile,
        metrics: AuditMetrics, copy: CheckpointCopy | None = None,
    ) -> None:  # fmt: skip
        self._log, self._deciders, self._code_version = log, deciders, code_version
        self._kept, self._copy, self._metrics = kept, copy, metrics
        self._checkpoint: Checkpoint | None = None
        self._seq = 0
        self._digest = digest.start(log.pool)
        self.actors: dict[str, HeldActor] = {}

    async def start(self) -> None:
        """Raises LogDamaged when the log ends before the checkpoint, LogError."""
        self._checkpoint = await self._kept.load()
        newest = await self._log.last()
        last_seq = newest.seq if newest is not None else 0
        if self._checkpoint is not None and last_seq < self._checkpoint.seq:
            what = f"the log ends at {last_seq} and was {self._checkpoint.seq} messages long"
            raise LogDamaged(what, where=f"pool {self._log.pool}", mend=MEND)
        await self._read_histories()

    async def read(self) -> None:
        """Follow the log. Never ends. Raises LogDamaged."""
        while True:
            try:
                async for batch in self._log.read(after=self._seq, follow=True):
                    for message in batch:
                        await self._take(message)
                    self._metrics.read(self._seq)
            except LogDamaged:
                raise
            except LogError as error:
                logger.warning("the auditor cannot read the log: %s", error)
                await asyncio.sleep(RETRY_S)

    async def store(self) -> None:
        """Store a checkpoint every second. Never ends."""
        while True:
            await asyncio.sleep(CHECKPOINT_EVERY_S)
            await self.store_once()

    async def store_once(self) -> None:
        """Store where the log is now, if it has grown beyond the last checkpoint."""
        if self._seq <= (self._checkpoint.seq if self._checkpoint is not None else 0):
            return
        checkpoint = Checkpoint(pool=self._log.pool, seq=self._seq, digest=self._digest.hex())
        try:
            await self._kept.save(checkpoint)
        except OSError as error:
            logger.error("no checkpoint was stored: %s", error)
            return
        self._checkpoint = checkpoint
        if self._copy is not None:
            await self._copy.save(checkpoint)

    async def _take(self, message: Message) -> None:
        self._digest = digest.extend(self._digest, message)
        self._seq = message.seq
        checkpoint = self._checkpoint
        if checkpoint is not None and checkpoint.seq == message.seq and checkpoint.digest != self._digest.hex():
            what = f"up to message {message.seq} the log is not what was written"
            raise LogDamaged(what, where=f"pool {self._log.pool}", mend=MEND)
        records = codec.decode(message.seq, message.subject, message.body)
        for actor in self.actors.values():
            await actor.take(message.seq, records)

    async def _read_histories(self) -> None:
        for name, decider in self._deciders.items():
            history = await read_history(self._log, actor=name, code_version=self._code_version)
            self.actors[name] = HeldActor(self._log, decider, history=history, metrics=self._metrics)


class _Expected(NamedTuple):
    cause: Cause
    decisions: list[Event]


class HeldActor:
    """One actor's recorded decisions, held against what its decider says.

    Causes that an owner with other code answered are taken in as recorded. When that happens while this runs, or the
    decider fails, or the actor is too far behind, holding ends with a word why (`replay verify` and the next start
    do better); the digest goes on.
    """

    def __init__(self, log: Log, decider: Decider[Any], *, history: History, metrics: AuditMetrics) -> None:
        self._decider, self._history, self._metrics = decider, history, metrics
        self._progress = begin(decider)
        self._recall = Recall(log, actor=decider.name, after=0) if history.any_other_code else None
        self._expected: deque[_Expected] = deque()
        self.divergences = 0
        self.ended = ""
        metrics.holds(decider.name, verified=True)
        if history.now_other_code:
            self._end(f"{history.epochs[-1].owner} decides with another version of the code")

    async def take(self, seq: int, records: list[Recorded]) -> None:
        """Take one message in."""
        if self.ended:
            return
        said: dict[Cause, list[Event]] = {}
        if self._recall is not None and seq <= self._history.watermark.seq:
            said = await self._recall.of(seq)
        if records and records[0].actor == self._decider.name:
            self._hold(records)
        for recorded in records:
            if not self._advance(recorded, said):
                return
        if len(self._expected) > EXPECTED_MAX:
            self._end(f"{len(self._expected)} causes have no answer yet")

    def _advance(self, recorded: Recorded, said: dict[Cause, list[Event]]) -> bool:
        """Whether the actor can still be held against the log after this record."""
        history, name = self._history, self._decider.name
        if recorded.actor == name and recorded.seq > history.read_to and self._changes_the_past(recorded):
            return False
        other_code = history.was_other_code(recorded.at)
        try:
            decisions = advance(
                self._decider, self._progress, recorded,
                quarantined=history.quarantined, said=said.get(recorded.at, []) if other_code else None,
            )  # fmt: skip
        except Exception as error:
            # The policy fails here as it failed for the actor, which will quarantine the record: see _end.
            self._end(f"the policy failed on record {recorded.at}: {type(error).__name__}")
            return False
        if decisions and not other_code:
            self._expected.append(_Expected(recorded.at, decisions))
        return True

    def _changes_the_past(self, recorded: Recorded) -> bool:
        """Whether what an owner says now changes how records before it are to be read."""
        if self._history.is_of_other_code(recorded):
            self._end(f"{recorded.owner} decides with another version of the code")
        elif isinstance(recorded.event, EventQuarantined):
            self._end(f"record {recorded.event.position} was quarantined")
        return bool(self.ended)

    def _hold(self, records: list[Recorded]) -> None:
        answers: dict[str, list[Event]] = {}
        for recorded in records:
            if recorded.cause:
                answers.setdefault(recorded.cause, []).append(recorded.event)
        for text, recorded_decisions in answers.items():
            cause = position_of(text, records[0])
            if not self._history.was_other_code(cause):
                self._compare(cause, recorded_decisions)

    def _compare(self, cause: Cause, recorded: list[Event]) -> None:
        while self._expected and self._expected[0].cause < cause:
            missing = self._expected.popleft()
            self._diverged(missing.cause, f"{len(missing.decisions)} decisions are missing")
        if not self._expected or self._expected[0].cause != cause:
            self._diverged(cause, f"{len(recorded)} decisions were not asked for")
        elif self._expected.popleft().decisions != recorded:
            self._diverged(cause, "the decisions are others")

    def _diverged(self, cause: Cause, what: str) -> None:
        self.divergences += 1
        self._metrics.diverged(self._decider.name)
        logger.error("%s does not follow from the log at cause %s: %s", self._decider.name, cause, what)

    def _end(self, why: str) -> None:
        self.ended = why
        self._expected.clear()
        self._metrics.holds(self._decider.name, verified=False)
        logger.warning("decisions of %s are no longer held against the log: %s", self._decider.name, why)
