"""Whether the decisions that stand in a log are the ones that follow from it.

The log is read in order; for every record each actor's decider says what it decides, and what the log says that
was decided is held against it, per cause. One `Report` comes out: a digest over every byte, the owners of every
actor (epochs), and the first difference with the chain of causes that led there.

What cannot be compared is not called identical: decisions of another code version are taken in as they stand and
counted apart, and what an owner had not yet written when the log ended is `pending`.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from events import codec
from events.base import Cause, Event, LogDamaged, PoolId, Recorded, Unknown
from events.log import digest
from events.log.base import Message
from policies.decider import Decider
from replay.chain import Link, chain_of
from replay.replayer import BEFORE_ALL, ActorReplay, Source, foresee, position_of

RECENT_MAX = 65_536
"""How many answered causes are remembered, to tell a decision said twice from one that nobody asked for."""
PROGRESS_EVERY = 4_096


class Divergence(msgspec.Struct, frozen=True, kw_only=True):
    """One place where the log and the deciders differ.

    `kind`: changed, missing (recomputed, not in the log), extra (in the log, not recomputed), twice (a cause
    answered again), stranger (written by an instance that does not own the actor), watermark (an owner's start
    names another last answer than the log holds), failed (the policy broke on the record). `at` is the record
    where it shows, `cause` what was answered; `fields` are the names that differ in a changed decision.
    """

    kind: str
    actor: str
    at: str
    cause: str
    owner: str
    recorded: dict[str, Any] | None = None
    recomputed: dict[str, Any] | None = None
    fields: tuple[str, ...] = ()
    error: str = ""
    chain: tuple[Link, ...] = ()


class EpochReport(msgspec.Struct, kw_only=True):
    """What one owner decided. `status`: identical, diverged, or decided by another version."""

    actor: str
    owner: str
    code_version: str
    policy_digest: str
    seq: int
    causes: int = 0
    decisions: int = 0
    status: str = "identical"


class Report(msgspec.Struct, kw_only=True):
    """The outcome. `identical`: nothing differs, and something could be compared (or nothing was decided)."""

    identical: bool
    pool: str
    messages: int
    events: int
    decisions: int
    digest: str
    compared: int = 0
    taken_in: int = 0
    pending: int = 0
    unknown: int = 0
    differences: dict[str, int] = msgspec.field(default_factory=dict)
    two_owners: int = 0
    unverified: dict[str, int] = msgspec.field(default_factory=dict)
    epochs: list[EpochReport] = msgspec.field(default_factory=list)
    first_divergence: Divergence | None = None


DIVERGED = "diverged"
OTHER_VERSION = "decided by another version"


def verify(
    source: Source,
    pool: PoolId,
    deciders: Mapping[str, Decider[Any]],
    *,
    code_version: str = "",
    on_progress: Callable[[int], None] | None = None,
) -> Report:
    """Hold a whole log against its deciders. `code_version` as in `ActorReplay`; `on_progress` gets the messages
    read so far, now and then. Raises LogDamaged (naming the record) where the log itself cannot be trusted."""
    foreseen = foresee(source)
    actors = {
        decider.name: _Compared(ActorReplay(decider, source, foreseen, code_version=code_version))
        for decider in deciders.values()
    }
    report = Report(identical=True, pool=pool, messages=0, events=0, decisions=0, digest="")
    running = digest.start(pool)
    for message in source:
        report.messages += 1
        if message.seq != report.messages:
            raise LogDamaged(
                f"record {message.seq} follows record {report.messages - 1}", where=f"record {message.seq}"
            )
        running = digest.extend(running, message)
        _compare(message, report, actors)
        if on_progress is not None and report.messages % PROGRESS_EVERY == 0:
            on_progress(report.messages)
    report.digest = running.hex()
    return _conclude(report, list(actors.values()), source)


def _compare(message: Message, report: Report, actors: "dict[str, _Compared]") -> None:
    records = codec.decode(message.seq, message.subject, message.body)
    report.events += len(records)
    for recorded in records:
        if type(recorded.event) is Unknown:
            report.unknown += 1
        for actor in actors.values():
            actor.take(recorded)
        if recorded.actor and recorded.cause and recorded.actor not in actors:
            report.unverified[recorded.actor] = report.unverified.get(recorded.actor, 0) + 1


class _Compared:
    """One actor's recomputed decisions, waiting for the recorded ones."""

    def __init__(self, replayed: ActorReplay) -> None:
        self.name = replayed.decider.name
        self.first: Divergence | None = None
        self.differences: dict[str, int] = {}
        self.compared = self.taken_in = self.two_owners = self.decisions = 0
        self.epochs = [
            EpochReport(
                actor=self.name, owner=epoch.owner, code_version=epoch.code_version,
                policy_digest=epoch.policy_digest, seq=epoch.seq,
                status=OTHER_VERSION if replayed.is_of_another_version(index) else "identical",
            )
            for index, epoch in enumerate(replayed.epochs)
        ]  # fmt: skip
        self._replayed = replayed
        self._computed: deque[tuple[str, Event]] = deque()
        self._answered = BEFORE_ALL
        self._recent: OrderedDict[str, tuple[str, int]] = OrderedDict()
        self._present = -1
        self._broken = False

    def take(self, recorded: Recorded) -> None:
        """Take one record in; compare, where it is a decision of this actor."""
        if not self._broken:
            try:
                decisions = self._replayed.take(recorded)
            except LogDamaged:
                raise
            except Exception as error:
                self._break(recorded, error)
            else:
                if decisions:
                    self._owe(recorded, decisions)
        if recorded.actor == self.name:
            self._check_owner(recorded)
            if recorded.cause:
                self._hear(recorded)

    def finish(self) -> int:
        """How many decisions were not yet written when the log ended; the others that are left are missing. Where the
        actor never said a word, nobody ran it: nothing is owed."""
        while self._computed and Cause.parse(self._computed[0][0]) <= self._answered:
            cause, event = self._computed.popleft()
            self._miss(cause, event, at=cause)
        silent = self._present < 0 and not self.decisions
        return 0 if self._broken or silent else len(self._computed)

    def _break(self, recorded: Recorded, error: Exception) -> None:
        """A policy that breaks on a record of a log is the answer, not an accident: nothing after it follows."""
        self._broken = True
        self._differ("failed", recorded, cause=str(recorded.at), error=f"{type(error).__name__}: {error}")
        for epoch in self.epochs[self._replayed.epoch_of(recorded.at) :]:
            epoch.status = DIVERGED

    def _owe(self, recorded: Recorded, decisions: list[Event]) -> None:
        index = self._replayed.epoch_of(recorded.at)
        if self.epochs[index].status != OTHER_VERSION:
            at = str(recorded.at)
            self._computed.extend((at, decision) for decision in decisions)

    def _check_owner(self, recorded: Recorded) -> None:
        epochs = self._replayed.epochs
        following = self._present + 1
        if not recorded.cause and following < len(epochs) and epochs[following].seq == recorded.seq:
            self._present = following
            self._check_watermark(recorded)
            return
        owner = epochs[self._present].owner if self._present >= 0 else ""
        if epochs[0].seq and recorded.owner != owner:
            self._differ("stranger", recorded, cause=recorded.cause, error=f"the owner is {owner or 'nobody yet'}")

    def _check_watermark(self, recorded: Recorded) -> None:
        watermark = self._replayed.epochs[self._present].watermark
        if watermark != self._answered and not self._broken:
            said = f"the log's last answer is to {self._answered}" if self._answered.seq else "nothing was answered"
            self._differ("watermark", recorded, cause=str(watermark) if watermark.seq else "", error=said)

    def _hear(self, recorded: Recorded) -> None:
        self.decisions += 1
        self._count(recorded)
        if self._repeats(recorded):
            return
        if self._broken:
            return
        if self._is_taken_in(recorded):
            self.taken_in += 1
            return
        while self._computed:
            cause, event = self._computed[0]
            if cause == recorded.cause:
                self._computed.popleft()
                self.compared += 1
                if event != recorded.event and not _same(event, recorded.event):
                    self._differ("changed", recorded, cause=cause, recomputed=event)
                return
            if Cause.parse(cause) > Cause.parse(recorded.cause):
                break
            self._computed.popleft()
            self._miss(cause, event, at=str(recorded.at), owner=recorded.owner)
        self._differ("extra", recorded, cause=recorded.cause)

    def _repeats(self, recorded: Recorded) -> bool:
        """Whether this cause was answered in an earlier message; notes that it is answered now."""
        before = self._recent.get(recorded.cause)
        if before is None:
            self._note_answer(recorded)
            return False
        owner, seq = before
        if seq == recorded.seq:
            return False
        self.two_owners += owner != recorded.owner
        self._differ("twice", recorded, cause=recorded.cause, error=f"answered before in record {seq} by {owner}")
        return True

    def _note_answer(self, recorded: Recorded) -> None:
        if len(self._recent) >= RECENT_MAX:
            self._recent.popitem(last=False)
        self._recent[recorded.cause] = (recorded.owner, recorded.seq)
        self.epochs[self._epoch_index(recorded)].causes += 1
        self._answered = max(self._answered, position_of(recorded.cause, recorded))

    def _epoch_index(self, recorded: Recorded) -> int:
        return self._replayed.epoch_of(position_of(recorded.cause, recorded)) if len(self.epochs) > 1 else 0

    def _count(self, recorded: Recorded) -> None:
        self.epochs[self._epoch_index(recorded)].decisions += 1

    def _is_taken_in(self, recorded: Recorded) -> bool:
        return self.epochs[self._epoch_index(recorded)].status == OTHER_VERSION

    def _miss(self, cause: str, event: Event, *, at: str, owner: str = "") -> None:
        self._note(
            Divergence(
                kind="missing", actor=self.name, at=at, cause=cause, owner=owner, recomputed=msgspec.to_builtins(event)
            )
        )

    def _differ(
        self, kind: str, recorded: Recorded, *, cause: str, recomputed: Event | None = None, error: str = ""
    ) -> None:
        said = msgspec.to_builtins(recorded.event)
        ours = None if recomputed is None else msgspec.to_builtins(recomputed)
        names = tuple(sorted(n for n in said.keys() | ours.keys() if said.get(n) != ours.get(n))) if ours else ()
        self._note(
            Divergence(
                kind=kind, actor=self.name, at=str(recorded.at), cause=cause, owner=recorded.owner,
                recorded=said, recomputed=ours, fields=names, error=error,
            )
        )  # fmt: skip

    def _note(self, divergence: Divergence) -> None:
        self.differences[divergence.kind] = self.differences.get(divergence.kind, 0) + 1
        self.first = self.first or divergence
        if divergence.kind == "watermark":
            self.epochs[self._present].status = DIVERGED
        else:
            self.epochs[self._replayed.epoch_of(Cause.parse(divergence.cause or divergence.at))].status = DIVERGED


def _same(computed: Event, recorded: Event) -> bool:
    """Equal as written: a list where the type says tuple is the same word in the log."""
    return msgspec.json.encode(computed) == msgspec.json.encode(recorded)


def _conclude(report: Report, actors: list[_Compared], source: Source) -> Report:
    for actor in actors:
        report.pending += actor.finish()
        report.decisions += actor.decisions
        report.compared += actor.compared
        report.taken_in += actor.taken_in
        report.two_owners += actor.two_owners
        report.epochs += [epoch for epoch in actor.epochs if epoch.seq or epoch.decisions]
        for kind, count in actor.differences.items():
            report.differences[kind] = report.differences.get(kind, 0) + count
    report.decisions += sum(report.unverified.values())
    found = [actor.first for actor in actors if actor.first is not None]
    if found:
        first = min(found, key=lambda divergence: (Cause.parse(divergence.at), divergence.actor))
        about = str((first.recorded or first.recomputed or {}).get("request_id", ""))
        start = first.cause if first.kind == "missing" else first.at
        chain = chain_of(start, source, request_id=about)
        report.first_divergence = msgspec.structs.replace(first, chain=chain)
    report.identical = not found and (report.compared > 0 or report.taken_in == 0)
    return report
