"""Runs a shadow beside the log: what it would decide goes to subjects that nobody carries out, what differs is counted.

    tg.shadow.<pool>.decision.<actor>.<kind>     all that it would have said, enveloped as decisions are
    tg.shadow.<pool>.difference.<actor>          what of that is another outcome, and was not before
    tg.v1.<pool>.fact.shadow.shadow_compared     in the log: the counts, every REPORT_EVERY_S in which they moved

Beside the log, not in it: what nobody goes by must not fill it, and `replay whatif` makes all of it again from the log.
A lost message on those subjects costs nothing. Only the counts are facts: settings are promoted because of them.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from events import codec, subjects
from events.base import Event, LogDamaged, LogError
from events.control import ShadowChange, ShadowCompared, Ticked
from events.log.base import Message
from events.log.jetstream import JetStreamLog
from policies.decider import Decider
from replay.differences import Difference, Differences
from replay.shadow import Shadow
from replay.tried import Candidate
from services.runtime.answers import RETRY_S, Answers
from services.runtime.facts import FactWriter
from services.runtime.pool_clock import PoolClock
from services.runtime.side_by_side import run_until

REPORT_EVERY_S: Final = 10.0
CHANGES_SAID_MAX: Final = 16
"""Changes that a report names, the most frequent ones."""

logger = logging.getLogger(__name__)


class ActorStatus(msgspec.Struct, kw_only=True):
    """One actor's shadow: the last message that it took in, from which one on it compares, and what differs."""

    actor: str
    seq: int
    since_seq: int
    settings: dict[str, Any]
    found: Differences


class Shadowing:
    """One actor's shadow on one pool's log, compared from behind message `since_seq` on. `name` is unique among starts;
    `writer` writes its reports, at the time that `clock` has."""

    def __init__(
        self, log: JetStreamLog, decider: Decider[Any], of: Candidate, *, name: str, since_seq: int, code_version: str,
        writer: FactWriter, clock: PoolClock,
    ) -> None:  # fmt: skip
        self._log, self._actor, self._policy, self._name = log, decider.name, of.name, name
        self._settings = of.wanted(decider)
        self._since_seq, self._code_version = since_seq, code_version
        self._writer, self._clock = writer, clock
        self._shadow = Shadow(decider, of)
        self._answers = Answers(log, decider.name)
        self._seq = 0
        self._said: ShadowCompared | None = None

    @property
    def status(self) -> ActorStatus:
        """How things stand."""
        return ActorStatus(
            actor=self._actor, seq=self._seq, since_seq=self._since_seq, settings=self._settings,
            found=self._shadow.found,
        )  # fmt: skip

    def first_report(self) -> ShadowCompared:
        """What is said at its start, before anything is compared; whoever starts it writes it."""
        self._said = self._report_of(ended=False)
        return self._said

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop`, then say the last report. Raises LogDamaged."""
        if not self._since_seq:
            self._shadow.begin()
        try:
            await run_until(stop, self._answers.read(), self._read(), self._report())
        finally:
            self._say(ended=True)

    async def _read(self) -> None:
        while True:
            try:
                async for batch in self._log.read(after=self._seq, follow=True):
                    for message in batch:
                        await self._take(message)
            except LogDamaged:
                raise
            except LogError as error:
                logger.warning("the shadow of %s cannot read the log: %s", self._actor, error)
                await asyncio.sleep(RETRY_S)

    async def _take(self, message: Message) -> None:
        answers = await self._answers.of(message.seq)
        decided, differing = list[codec.Said](), list[Difference]()
        for recorded in codec.decode(message.seq, message.subject, message.body):
            if isinstance(recorded.event, Ticked) and message.seq > self._since_seq:
                self._clock.follow(recorded.ts_ns)
            said, new = self._shadow.take(
                recorded, answers.get(recorded.at, []), quarantined=self._answers.quarantined
            )  # fmt: skip
            decided += [codec.Said(cause=str(recorded.at), event=one) for one in said]
            differing += new
        self._seq = message.seq
        if message.seq == self._since_seq:
            self._shadow.begin()
        await self._publish(decided, differing)

    async def _publish(self, decided: list[codec.Said], differing: Sequence[Difference]) -> None:
        """Say it where nobody carries it out. What cannot be said now is not said later."""
        client = self._log.client
        if not decided or not client.is_connected:
            return
        first: Event = decided[0].event
        kind = first.event_kind() if len({type(one.event) for one in decided}) == 1 else subjects.SEVERAL
        subject = subjects.shadow_decision(self._log.pool, self._actor, kind)
        await client.publish(subject, codec.encode(owner=self._name, ts_ns=self._shadow.now_ns, said=decided))
        if differing:
            await client.publish(
                subjects.shadow_difference(self._log.pool, self._actor), msgspec.json.encode(differing)
            )

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(REPORT_EVERY_S)
            self._say()

    def _say(self, *, ended: bool = False) -> None:
        """Write how things stand, where that moved."""
        report = self._report_of(ended=ended)
        before = self._said
        if before is not None and msgspec.structs.replace(report, to_seq=before.to_seq) == before:
            return
        try:
            self._writer.say(report)
            self._said = report
        except LogError as error:
            logger.warning("the shadow of %s cannot say what it found: %s", self._actor, error)

    def _report_of(self, *, ended: bool) -> ShadowCompared:
        found = self._shadow.found
        changes = sorted(found.changes, key=lambda one: (-one.count, one.recorded, one.tried))[:CHANGES_SAID_MAX]
        return ShadowCompared(
            shadow=self._name, policy=self._policy, actor=self._actor, settings=self._settings,
            code_version=self._code_version, since_seq=self._since_seq, to_seq=self._seq, words=found.words,
            same=found.same, amounts=found.amounts, outcomes=found.outcomes, standing=found.standing,
            wakes=found.wakes, first=found.first.cause if found.first is not None else "", failed=found.failed,
            changes=tuple(ShadowChange(one.recorded, one.tried, one.count) for one in changes), ended=ended,
        )  # fmt: skip
