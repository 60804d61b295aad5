"""What other policies would have decided at every step of a log, with the same facts and the same past.

Open loop. A policy that is tried decides about every record as its actor did; what it says is compared, and then not
its own but the recorded decision is taken into its state: nobody knows which facts would have followed from its own,
and facts that answer decisions that were never made would be nonsense. So each difference stands by itself: "in exactly
this situation it would have said that". Differences do not add up over time, and say nothing of what would have become
of them; for that see `replay.whatif_closed`.

Several policies are tried in one reading, each with a state of its own under its own settings; the recorded one is
always among them, as the control: under the same code and settings it has no difference. The other actors' decisions
are those that were recorded, too.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from events import codec
from events.base import Cause, LogDamaged, Recorded
from policies.catalog import ACTORS
from policies.decider import Decider
from replay.beside import Beside, broke
from replay.chain import chain_of
from replay.differences import Difference, Differences, TenantBook
from replay.replayer import ActorReplay, Foreseen, Recall, Source, foresee
from replay.tried import CONTROL, Candidate, tried

PROGRESS_EVERY = 4_096


class Tried(msgspec.Struct, kw_only=True):
    """One policy beside the log, by actor. `first` is the first outcome that differs, with its causes; where none does,
    the first amount that does."""

    policy: str
    settings: dict[str, dict[str, Any]]
    actors: list[Differences]
    first: Difference | None = None

    def total(self, name: str) -> int:
        """A count over all actors: `words`, `same`, `outcomes`..."""
        return sum(int(getattr(one, name)) for one in self.actors)


class OpenLoop(msgspec.Struct, kw_only=True):
    """What was compared. `not_run` are actors that never decided anything in this log; `other_version` counts the
    owners that ran other code than this: beside their decisions a difference may be the code's, not the policy's."""

    pool: str
    messages: int
    events: int
    tried: list[Tried]
    not_run: list[str] = msgspec.field(default_factory=list)
    other_version: int = 0


def open_loop(
    source: Source,
    pool: str,
    candidates: Sequence[Candidate],
    *,
    deciders: Mapping[str, Decider[Any]] = ACTORS,
    code_version: str = "",
    on_progress: Callable[[int], None] | None = None,
) -> OpenLoop:
    """Try policies on a log. The recorded one comes first, asked for or not. `code_version` is this program's ("" = do
    not count other code); `on_progress` gets the messages read so far, now and then. Raises what the source raises."""
    foreseen, tenants = foresee(source), TenantBook()
    wanted = [CONTROL, *(one for one in candidates if not one.is_control)]
    recalls = {actor: Recall(source, actor) for actor in deciders}
    running = {actor: recall for actor, recall in recalls.items() if not recall.ended}
    runs = {
        actor: [_Run(deciders[actor], one, source, foreseen, tenants) for one in wanted] for actor in running
    }  # fmt: skip
    found = OpenLoop(pool=pool, messages=0, events=0, tried=[])
    for message in source:
        found.messages += 1
        for recorded in codec.decode(message.seq, message.subject, message.body):
            found.events += 1
            tenants.note(recorded.event)
            for actor, recall in running.items():
                said = recall.at(recorded.at)
                # Behind its last word nobody knows whether it had read that far.
                for run in () if recall.ended else runs[actor]:
                    run.take(recorded, said)
        if on_progress is not None and found.messages % PROGRESS_EVERY == 0:
            on_progress(found.messages)
    for number, one in enumerate(wanted):
        actors = [runs[actor][number].found for actor in running]
        first = _first(actors, source)
        found.tried.append(Tried(policy=one.name, settings=dict(one.settings), actors=actors, first=first))
    found.not_run = [actor for actor in deciders if actor not in running]
    found.other_version = _other_owners(foreseen, code_version)
    return found


class _Run:
    """One actor under one policy on its way through the log."""

    def __init__(
        self, decider: Decider[Any], of: Candidate, source: Source, foreseen: Foreseen, tenants: TenantBook
    ) -> None:  # fmt: skip
        self._beside = Beside(tried(decider, of), tenants)
        self._replay = ActorReplay(self._beside.decider, source, foreseen)

    @property
    def found(self) -> Differences:
        """What differs so far."""
        return self._beside.tally.found

    def take(self, recorded: Recorded, said: list[Recorded]) -> None:
        """Take one record in, and what the log says that was decided because of it."""
        if self.found.failed:
            return
        self._beside.expect(recorded, said)
        try:
            self._replay.take(recorded)
        except LogDamaged:
            raise
        except Exception as error:
            # A policy that breaks on a record of a log is the answer, not an accident: see `verify`.
            self.found.failed = broke(recorded, error)


def _first(actors: Sequence[Differences], source: Source) -> Difference | None:
    """The first difference of all actors, with its causes."""
    found = [one.first for one in actors if one.first is not None]
    found = found or [one.first_amounts for one in actors if one.first_amounts is not None]
    if not found:
        return None
    first = min(found, key=lambda one: (Cause.parse(one.cause), one.actor))
    return msgspec.structs.replace(first, chain=chain_of(first.at, source, request_id=_request_of(first)))


def _request_of(difference: Difference) -> str:
    said = (*difference.recorded_decisions, *difference.tried_decisions)
    return str(said[0].get("request_id", "")) if said else ""


def _other_owners(foreseen: Foreseen, code_version: str) -> int:
    return sum(
        bool(code_version) and epoch.code_version not in ("", code_version)
        for epochs in foreseen.epochs.values()
        for epoch in epochs
    )
