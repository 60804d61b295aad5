"""A pool's log in virtual time: messages through the codec into a list, and the deciders that answer them at once.

What it holds is a journal like any live one: an owner's `actor_started` first, then facts and decisions, each
decision with its cause; `verify` accepts it.
"""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from events import codec, subjects
from events.base import Cause, Event, PoolId, Recorded
from events.control import ActorStarted
from events.log import digest
from events.log.base import Message
from policies.decider import Decider, advance, begin
from policies.settings import Switch
from replay.code_version import code_version, policy_digest


class VirtualLog:
    """`on_decision(event, place)` hears every decision when it stands in the log, `on_message` every message. `now_ns`
    is set by the owner of time. `settings_stay`: nobody changes settings after the start, so an actor that is off then
    decides nothing, and takes nothing in."""

    def __init__(
        self, pool: PoolId, deciders: Mapping[str, Decider[Any]], on_decision: Callable[[Event, Cause], None],
        *, on_message: Callable[[Message], None] | None = None, settings_stay: bool = False,
    ) -> None:  # fmt: skip
        self.pool = pool
        self.now_ns = 0
        self.messages: list[Message] = []
        self._actors = [(decider, begin(decider)) for decider in deciders.values()]
        self._on_decision, self._on_message = on_decision, on_message
        self._settings_stay = settings_stay
        self._unanswered: deque[list[Recorded]] = deque()
        self._answering = False
        self._digest = digest.start(pool)

    @property
    def digest(self) -> str:
        """The running digest over all messages."""
        return self._digest.hex()

    def start(self, settings: Mapping[str, Mapping[str, Any]]) -> None:
        """Every actor says that it starts, with its settings (by actor name)."""
        for decider, _ in self._actors:
            own = dict(settings.get(decider.name, {}))
            started = ActorStarted(
                instance=_owner(decider.name),
                code_version=code_version(),
                policy_digest=policy_digest(own),
                settings=own,
                tags=decider.tags(),
            )
            self._decided(decider.name, [codec.Said(event=started)])
        if self._settings_stay:
            self._actors = [one for one in self._actors if settings.get(one[0].name, {}).get("enabled") != Switch.OFF]

    def say(self, source: str, owner: str, event: Event, cause: str = "") -> Cause:
        """Write one fact and all that is decided because of it; the fact's place."""
        subject = subjects.fact(self.pool, source, event.event_kind())
        place = Cause(self._append(subject, owner, [codec.Said(event=event, cause=cause)]), 0)
        self._answer()
        return place

    def _answer(self) -> None:
        """Let every actor take in every record, in order, decisions that come of it included."""
        if self._answering:
            return
        self._answering = True
        while self._unanswered:
            records = self._unanswered.popleft()
            for decider, progress in self._actors:
                said = [
                    codec.Said(event=decision, cause=str(recorded.at))
                    for recorded in records
                    for decision in advance(decider, progress, recorded)
                ]
                if said:
                    self._decided(decider.name, said)
        self._answering = False

    def _decided(self, actor: str, said: list[codec.Said]) -> None:
        first: Event = said[0].event
        kind = first.event_kind() if len(said) == 1 else subjects.SEVERAL
        seq = self._append(subjects.decision(self.pool, actor, kind), _owner(actor), said)
        for item, one in enumerate(said):
            self._on_decision(one.event, Cause(seq, item))

    def _append(self, subject: str, owner: str, said: list[codec.Said]) -> int:
        body = codec.encode(owner=owner, ts_ns=self.now_ns, said=said)
        message = Message(len(self.messages) + 1, subject, body, {})
        self.messages.append(message)
        self._digest = digest.extend(self._digest, message)
        if self._on_message is not None:
            self._on_message(message)
        # Read back from its bytes: deciders get exactly what a replay will get.
        self._unanswered.append(codec.decode(message.seq, subject, body))
        return message.seq


def _owner(actor: str) -> str:
    return f"{actor}-sim"
