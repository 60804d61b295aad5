"""The shell around a decider: reads the log, lets `advance` decide, writes the decisions down.

Reading, publishing and saving go on side by side. One message is in flight; while it is, reading goes on (up to
`ahead_max` unanswered causes), and everything decided meanwhile makes up the next message. Nothing here decides:
whatever is lost by a crash at any moment is decided again, the same way, by the next start.
"""

import asyncio
import logging
import time
import traceback
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Generic, NamedTuple, TypeVar

import msgspec
from prometheus_client import CollectorRegistry

from events import codec
from events.base import NS_PER_S, Cause, Event, Fenced, LogDamaged, LogError, Recorded, Unknown
from events.log import digest
from events.log.base import Log, Message
from policies.decider import Decider, Progress, advance, begin
from replay.code_version import policy_digest
from replay.replayer import BEFORE_ALL
from services.runtime import snapshot
from services.runtime.facts import BODY_BYTES_MAX
from services.runtime.history import Recall
from services.runtime.metrics import ActorMetrics
from services.runtime.ownership import RETRY_FIRST_S, RETRY_MAX_S, Ownership
from services.runtime.side_by_side import CANCEL_AGAIN_S
from services.runtime.snapshot import CrashNote, Snapshot, SnapshotStore

FAILED_STARTS_MAX: Final = 2
"""After so many starts that failed on one record, the next one quarantines it."""
STOP_WAIT_S: Final = 10.0

S = TypeVar("S", bound=msgspec.Struct)

logger = logging.getLogger(__name__)


class PolicyFailed(Exception):
    """The policy raised on the record at `position`. `error` says what and where, without any payload."""

    exit_code: ClassVar[int] = 1

    def __init__(self, position: Cause, error: str) -> None:
        super().__init__(position, error)
        self.position, self.error = position, error

    def __str__(self) -> str:
        return f"the policy failed on record {self.position}: {self.error}"


@dataclass(frozen=True, kw_only=True)
class ActorLimits:
    """`causes_max` causes in one message; `ahead_max` causes decided and not yet stored; a snapshot after
    `snapshot_every` messages or `snapshot_span_ns` of pool time; LogError after `log_down_max_s` without the log."""

    causes_max: int = 64
    ahead_max: int = 4_096
    snapshot_every: int = 20_000
    snapshot_span_ns: int = 30 * NS_PER_S
    log_down_max_s: float = 86_400.0
    """Long: a restart does not bring the log back, and one that fails again and again takes the others down with it."""


class _Answer(NamedTuple):
    """What was decided because of one record, at what pool time."""

    cause: Cause
    decisions: list[Event]
    now_ns: int


class _Held(NamedTuple):
    """A snapshot that may be kept once `causes` causes are stored: not before what led to it stands in the log."""

    snapshot: Snapshot
    causes: int


class Actor(Generic[S]):
    """One decider on one pool's log.

    `owner` names this start (unique among starts). `settings` are the actor's from its start on. `snapshots`
    None: every start reads the whole log.
    """

    def __init__(
        self, decider: Decider[S], log: Log, *, owner: str, settings: Mapping[str, Any], code_version: str,
        snapshots: SnapshotStore | None = None, limits: ActorLimits | None = None,
        metrics: ActorMetrics | None = None,
    ) -> None:  # fmt: skip
        self._decider, self._log = decider, log
        self._settings, self._code_version = dict(settings), code_version
        self._snapshots: SnapshotStore = snapshots or snapshot.MemorySnapshots()
        self._limits = limits or ActorLimits()
        self._metrics = metrics or ActorMetrics(decider.name, CollectorRegistry())
        self._own = Ownership(log, actor=decider.name, owner=owner, log_down_max_s=self._limits.log_down_max_s)
        self._progress: Progress[S] = begin(decider)
        self._seq = 0
        self._digest = self._digest_before = digest.start(log.pool)
        self._undigested: list[Message] = []
        self._answered = BEFORE_ALL
        self._recall: Recall | None = None
        self._waiting: deque[_Answer] = deque()
        self._decided = self._stored = 0
        self._something = asyncio.Event()
        self._room = asyncio.Event()
        self._held: _Held | None = None
        self._to_save = asyncio.Event()
        self._saved_seq = self._saved_ns = 0
        self._draining = False

    @property
    def progress(self) -> Progress[S]:
        """Where the actor stands. Read only."""
        return self._progress

    @property
    def is_settled(self) -> bool:
        """Whether all that was decided stands in the log."""
        return self._decided == self._stored

    async def run(self, stop: asyncio.Event) -> None:
        """Take the actor over and work until `stop`; then store what is decided, keep a snapshot, and return.

        Raises Fenced when another instance took over, PolicyFailed (after what was decided before is stored and
        the failure is noted), LogDamaged, and LogError when the log was away for too long; ValueError for bad
        settings, before anything is written.
        """
        self._decider.configure(self._decider.initial(), self._settings)
        await self._start()
        reading = asyncio.create_task(self._read(), name="reading")
        publishing = asyncio.create_task(self._publish(), name="publishing")
        saving = asyncio.create_task(self._save(), name="saving")
        stopping = asyncio.create_task(stop.wait(), name="stopping")
        try:
            await asyncio.wait((reading, publishing, stopping), return_when=asyncio.FIRST_COMPLETED)
            failed = await _ended(reading)
            await self._drain(publishing, saving)
            if failed is not None:
                await self._note(failed)
                raise failed
            await self._keep(self._snapshot())
        finally:
            for task in (reading, publishing, saving, stopping):
                task.cancel()
            await asyncio.gather(reading, publishing, saving, stopping, return_exceptions=True)

    async def _drain(self, publishing: "asyncio.Task[None]", saving: "asyncio.Task[None]") -> None:
        """Nothing more is read: store what is decided, finish the snapshot that is being written."""
        self._draining = True
        self._something.set()
        self._to_save.set()
        try:
            async with asyncio.timeout(STOP_WAIT_S):
                await publishing
                await saving
        except TimeoutError as error:
            what = f"{self._decider.name} could not store its last decisions: its next start decides them again"
            raise LogError(what, where=f"pool {self._log.pool}") from error

    # Starting ------------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        name = self._decider.name
        kept = await self._restore()
        await self._own.take_over(
            code_version=self._code_version, policy_digest=policy_digest(self._settings), snapshot_seq=self._seq,
            settings=self._settings, tags=self._decider.tags(), answered=self._answered,
        )  # fmt: skip
        if kept is not None and self._own.history.has_other_code_answered(kept):
            self._start_over()
        note = await self._snapshots.crash_note(name)
        if note is not None and note.starts >= FAILED_STARTS_MAX and note.code_version == self._code_version:
            await self._quarantine(note)
        self._metrics.quarantined(len(self._own.history.quarantined))
        answered = self._own.history.watermark
        before = "nothing was answered before" if answered == BEFORE_ALL else f"answered up to {answered}"
        logger.info("%s takes over at %d, %s", name, self._own.started_seq, before)

    async def _restore(self) -> Snapshot | None:
        """Stand where the newest snapshot of this code version stood, if this is still the log it was taken of."""
        kept = await self._snapshots.load(self._decider.name)
        if kept is None or kept.code_version != self._code_version:
            return None  # Other code would have built another state.
        try:
            progress = snapshot.restore(self._decider, kept)
        except msgspec.DecodeError as error:
            logger.warning("the snapshot of %s does not fit and is passed over: %s", kept.actor, error)
            return None
        self._digest_before, self._digest = bytes.fromhex(kept.digest_before), bytes.fromhex(kept.digest)
        message = await self._log.get(kept.seq)
        if message is None or digest.extend(self._digest_before, message) != self._digest:
            found = "is missing" if message is None else "is another one"
            raise LogDamaged(
                f"message {kept.seq}, up to which {kept.actor} had read, {found}", where=f"pool {self._log.pool}",
                mend="restore the log from its archive; to start over on purpose, delete the pool's state folder",
            )  # fmt: skip
        self._progress, self._seq = progress, kept.seq
        self._answered = Cause.parse(kept.watermark) if kept.watermark else BEFORE_ALL
        self._saved_seq, self._saved_ns = kept.seq, progress.now_ns
        return kept

    def _start_over(self) -> None:
        """Pass the snapshot over and read the log from its first message."""
        self._progress, self._seq, self._answered = begin(self._decider), 0, BEFORE_ALL
        self._digest = self._digest_before = digest.start(self._log.pool)
        self._saved_seq = self._saved_ns = 0

    async def _quarantine(self, note: CrashNote) -> None:
        position = Cause.parse(note.position)
        if position not in self._own.history.quarantined:
            logger.error("record %s is skipped by %s from now on: %s", position, self._decider.name, note.error)
            await self._own.quarantine(position, note.error, ts_ns=self._progress.now_ns)
        await self._snapshots.note_crash(self._decider.name, None)

    # Reading and deciding ------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        away_s: float | None = None
        pause_s = RETRY_FIRST_S
        while True:
            try:
                self._recall = self._new_recall()
                async for batch in self._log.read(after=self._seq, follow=True):
                    away_s, pause_s = None, RETRY_FIRST_S
                    await self._take_batch(batch)
            except (LogDamaged, Fenced):
                raise
            except LogError as error:
                away_s = away_s or time.monotonic()
                if time.monotonic() - away_s > self._limits.log_down_max_s:
                    raise
                logger.warning("%s cannot read the log: %s", self._decider.name, error)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, RETRY_MAX_S)

    async def _take_batch(self, batch: list[Message]) -> None:
        for count, message in enumerate(batch, start=1):
            said: dict[Cause, list[Event]] | None = None
            if self._recall is not None and message.seq <= self._own.history.watermark.seq:
                said = await self._recall.of(message.seq)
            self._take(message, said)
            if count % self._limits.causes_max == 0:
                await self._make_way()
        # The answer goes out first; the rest of the work is done while it is on its way.
        await self._make_way(yields=bool(self._waiting))
        self._extend_digest()
        self._metrics.took(self._seq, len(self._waiting))
        self._hold_snapshot()

    def _take(self, message: Message, said: dict[Cause, list[Event]] | None) -> None:
        """One whole message, with what the log says that was decided because of it (None: nobody with other code has
        answered it). No await, so that whoever stops this stops it between messages."""
        for recorded in codec.decode(message.seq, message.subject, message.body):
            if self._own.is_foreign(recorded):
                raise Fenced(f"{recorded.owner} owns {self._decider.name}", where=f"record {recorded.at}")
            if type(recorded.event) is Unknown:
                self._metrics.unknown()
            decisions = self._advance(recorded, said)
            if decisions:
                self._answered = recorded.at
                if recorded.at > self._own.history.watermark:
                    self._waiting.append(_Answer(recorded.at, decisions, self._progress.now_ns))
                    self._decided += 1
        self._seq = message.seq
        self._undigested.append(message)

    def _advance(self, recorded: Recorded, said: dict[Cause, list[Event]] | None) -> list[Event]:
        recorded_decisions: list[Event] | None = None
        if said is not None and self._own.history.was_other_code(recorded.at):
            recorded_decisions = said.get(recorded.at, [])
        try:
            return advance(
                self._decider, self._progress, recorded,
                quarantined=self._own.history.quarantined, said=recorded_decisions,
            )  # fmt: skip
        except Exception as error:
            # Whatever it is, the state is unusable now: note where, so that the third start passes it by.
            raise PolicyFailed(recorded.at, _place_of(error)) from error

    def _new_recall(self) -> Recall | None:
        if self._seq > self._own.history.watermark.seq or not self._own.history.any_other_code:
            return None
        return Recall(self._log, actor=self._decider.name, after=self._seq)

    async def _make_way(self, *, yields: bool = True) -> None:
        """Let the publisher work; wait for it when it is too far behind."""
        if self._waiting:
            self._something.set()
        if len(self._waiting) >= self._limits.ahead_max:
            self._room.clear()
            await self._room.wait()
        elif yields:
            await asyncio.sleep(0)

    def _extend_digest(self) -> None:
        for message in self._undigested:
            self._digest_before, self._digest = self._digest, digest.extend(self._digest, message)
        self._undigested.clear()

    # Publishing ----------------------------------------------------------------------------------------------------

    async def _publish(self) -> None:
        while await self._something_waits():
            group, said = self._take_group()
            sent_s = time.perf_counter()
            await self._own.say(said, ts_ns=group[-1].now_ns, name=str(group[0].cause))
            self._stored += len(group)
            self._metrics.stored([each.event for each in said], time.perf_counter() - sent_s)
            if len(self._waiting) < self._limits.ahead_max:
                self._room.set()
            if self._held is not None:
                self._to_save.set()

    async def _something_waits(self) -> bool:
        while not self._waiting:
            if self._draining:
                return False
            self._something.clear()
            await self._something.wait()
        return True

    def _take_group(self) -> tuple[list[_Answer], list[codec.Said]]:
        """As many causes as fit into one message; all decisions of one cause stay together."""
        group = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._limits.causes_max))]
        while True:
            said = [codec.Said(cause=str(answer.cause), event=event) for answer in group for event in answer.decisions]
            if len(group) == 1 or len(codec.encode(owner="", ts_ns=0, said=said)) <= BODY_BYTES_MAX:
                return group, said
            half = len(group) // 2
            self._waiting.extendleft(reversed(group[half:]))
            del group[half:]

    # Snapshots -----------------------------------------------------------------------------------------------------

    def _hold_snapshot(self) -> None:
        """Take a snapshot when one is due; it is kept once all that was decided up to here is stored."""
        limits = self._limits
        grown = self._seq - self._saved_seq >= limits.snapshot_every
        if self._held is None and (grown or self._progress.now_ns - self._saved_ns >= limits.snapshot_span_ns):
            self._saved_seq, self._saved_ns = self._seq, self._progress.now_ns
            self._held = _Held(self._snapshot(), self._decided)
            self._to_save.set()

    async def _save(self) -> None:
        while not self._draining:
            await self._to_save.wait()
            self._to_save.clear()
            if self._held is not None and self._stored >= self._held.causes:
                await self._keep(self._held.snapshot)
                self._held = None

    async def _keep(self, taken: Snapshot) -> None:
        if taken.seq == 0:
            return
        if len(taken.state) > snapshot.STATE_BYTES_MAX:
            logger.error("the state of %s outgrew its limit: no snapshot is kept", taken.actor)
            return
        try:
            await self._snapshots.save(taken)
        except OSError as error:
            logger.warning("no snapshot of %s was kept, its next start takes longer: %s", taken.actor, error)

    def _snapshot(self) -> Snapshot:
        self._extend_digest()
        return snapshot.take(
            self._decider, self._progress, code_version=self._code_version, owner_seq=self._own.started_seq,
            seq=self._seq, digest=self._digest, digest_before=self._digest_before,
            watermark="" if self._answered == BEFORE_ALL else str(self._answered),
        )  # fmt: skip

    async def _note(self, failed: PolicyFailed) -> None:
        name, position = self._decider.name, str(failed.position)
        before = await self._snapshots.crash_note(name)
        again = before is not None and (before.position, before.code_version) == (position, self._code_version)
        starts = 1 + (before.starts if again and before is not None else 0)
        note = CrashNote(position=position, code_version=self._code_version, starts=starts, error=failed.error)
        try:
            await self._snapshots.note_crash(name, note)
        except OSError as error:
            logger.warning("the failure of %s on record %s could not be noted: %s", name, position, error)


async def _ended(task: "asyncio.Task[None]") -> PolicyFailed | None:
    """Stop a task and wait for its end. What it raised is raised here, but for PolicyFailed, which is given back."""
    while not task.done():
        # Once is not enough: a reader that is just being set up may swallow it, in a client library's `wait_for`.
        task.cancel()
        await asyncio.wait((task,), timeout=CANCEL_AGAIN_S)
    if task.cancelled():
        return None
    failed = task.exception()
    if isinstance(failed, PolicyFailed):
        return failed
    if failed is not None:
        raise failed
    return None


def _place_of(error: Exception) -> str:
    """What was raised and where: no message, because that may hold payload."""
    frames = traceback.extract_tb(error.__traceback__)
    where = frames[-1]
    return f"{type(error).__name__} at {'/'.join(Path(where.filename).parts[-2:])}:{where.lineno} in {where.name}"
