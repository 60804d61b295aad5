"""What a tried policy says beside what was recorded, step by step: counted by outcome, rule and tenant.

The unit is a word: all that one step says of one subject (a request, an engine, an order). Of each word either both
said the same, or the same outcome with another reason, amount or time (`amounts`), or another outcome (`outcomes`). An
outcome that differs in the same way as it did when the subject was last spoken of is not counted again (`standing`): a
request that another policy would have let go at once would else count once with every tick that it waits. When the
actor wants to be woken is nobody's outcome (`wakes`).
"""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from events.base import Event, Recorded, RequestId
from events.decisions import WakeAsked
from events.request import RequestArrived
from replay.chain import Link
from replay.outcome import NOTHING, Subject, Word, outcome, subject_of, word_of
from replay.rule_words import Rule, rule_of

REQUESTS_MAX = 65_536
"""Requests, and other subjects, that are remembered: the newest ones. Of an older one a difference may count again."""
TENANTS_MAX = 1_024
OTHERS = "others"
"""Where tenants beyond those are counted; decisions that are about no tenant are counted under ""."""


class Change(msgspec.Struct, kw_only=True):
    """Where another rule fired, or led elsewhere: its code as recorded and as tried ("nothing": nothing was said), with
    the verb where the code does not tell. `elsewhere`: the same on another engine. `first`: at which cause first."""

    recorded: str
    tried: str
    elsewhere: bool = False
    count: int = 0
    first: str = ""


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One word that differs. `at` is the place of what was recorded (of its cause, where nothing was), `about` whom it
    is about; the rules are those that fired (None: nothing was said); `fields` are the names that differ where both
    said one thing. `chain` leads back to the arrival."""

    actor: str
    at: str
    cause: str
    ts_ns: int
    about: str
    tenant: str
    recorded: tuple[Word, ...]
    tried: tuple[Word, ...]
    recorded_rule: Rule | None
    tried_rule: Rule | None
    recorded_decisions: tuple[dict[str, Any], ...]
    tried_decisions: tuple[dict[str, Any], ...]
    fields: tuple[str, ...] = ()
    chain: tuple[Link, ...] = ()


class TenantDifference(msgspec.Struct, kw_only=True):
    """The words about a tenant's requests, and those of them with another outcome."""

    words: int = 0
    outcomes: int = 0


class Differences(msgspec.Struct, kw_only=True):
    """One actor under one policy beside the log: words = same + amounts + outcomes + standing + wakes.

    `causes` are the records at which either said anything; `requests` those with another outcome at least once.
    `fields` counts, by `kind.field`, where amounts differ. `failed`: the policy broke on a record; nothing behind it
    is compared.
    """

    actor: str
    causes: int = 0
    words: int = 0
    same: int = 0
    amounts: int = 0
    outcomes: int = 0
    standing: int = 0
    wakes: int = 0
    requests: int = 0
    changes: list[Change] = msgspec.field(default_factory=list)
    fields: dict[str, int] = msgspec.field(default_factory=dict)
    tenants: dict[str, TenantDifference] = msgspec.field(default_factory=dict)
    first: Difference | None = None
    first_amounts: Difference | None = None
    failed: str = ""

    @property
    def differ(self) -> int:
        """Words that are not the same, however little."""
        return self.amounts + self.outcomes + self.standing + self.wakes


class TenantBook:
    """Whose requests are whose, of the newest ones."""

    def __init__(self) -> None:
        self._tenants: dict[str, str] = {}

    def note(self, event: Event) -> None:
        """Take an arrival in; whatever else is none."""
        if isinstance(event, RequestArrived):
            _remember(self._tenants, event.request_id, event.tenant, REQUESTS_MAX)

    def of(self, request_id: str) -> str:
        """The tenant of a request; "" where it is not known."""
        return self._tenants.get(request_id, "")


class Tally:
    """Holds steps of one actor against each other; `found` at any time says how things stand."""

    def __init__(self, actor: str, tenants: TenantBook) -> None:
        self.found = Differences(actor=actor)
        self._tenants = tenants
        self._changes: dict[tuple[str, str], Change] = {}
        self._standing: dict[Subject, tuple[tuple[str, ...], tuple[str, ...]]] = {}
        self._requests: dict[RequestId, None] = {}

    def compare(self, cause: Recorded, recorded: Sequence[Recorded], tried: Sequence[Event]) -> list[Difference]:
        """One step: what the log says that was decided because of `cause`, and what the tried policy says. The
        outcomes that differ and were not counted before."""
        if not (recorded or tried):
            return []
        self.found.causes += 1
        said = [one.event for one in recorded]
        subjects = dict.fromkeys(subject_of(one) for one in (*said, *tried))
        return [new for subject in subjects if (new := self._word(cause, subject, recorded, tried)) is not None]

    def _word(
        self, cause: Recorded, subject: Subject, recorded: Sequence[Recorded], tried: Sequence[Event]
    ) -> Difference | None:  # fmt: skip
        found, places = self.found, [one for one in recorded if subject_of(one.event) == subject]
        ours = [one for one in tried if subject_of(one) == subject]
        theirs = [one.event for one in places]
        found.words += 1
        tenant = self._tenant(subject)
        tenant.words += 1
        if theirs == ours or _same(theirs, ours):
            found.same += 1
            self._standing.pop(subject, None)
            return None
        if subject.kind == WakeAsked.event_kind():
            found.wakes += 1
            return None
        words = outcome(theirs, subject), outcome(ours, subject)
        if words[0] == words[1]:
            self._amounts(cause, subject, places, ours)
            return None
        return self._outcome(cause, subject, places, ours, tenant)

    def _amounts(self, cause: Recorded, subject: Subject, places: Sequence[Recorded], ours: Sequence[Event]) -> None:
        found = self.found
        found.amounts += 1
        self._standing.pop(subject, None)
        for place, one in zip(places, ours, strict=True):
            for name in _fields(place.event, one):
                key = f"{one.event_kind()}.{name}"
                found.fields[key] = found.fields.get(key, 0) + 1
        self._change(cause, places, ours, elsewhere=False)
        found.first_amounts = found.first_amounts or self._difference(cause, subject, places, ours)

    def _outcome(
        self, cause: Recorded, subject: Subject, places: Sequence[Recorded], ours: Sequence[Event],
        tenant: TenantDifference,
    ) -> Difference | None:  # fmt: skip
        found = self.found
        new = self._difference(cause, subject, places, ours)
        verbs = tuple(one.verb for one in new.recorded), tuple(one.verb for one in new.tried)
        if self._standing.get(subject) == verbs:
            found.standing += 1
            return None
        _remember(self._standing, subject, verbs, REQUESTS_MAX)
        found.outcomes += 1
        tenant.outcomes += 1
        self._change(cause, places, ours, elsewhere=True)
        if subject.field == "request_id" and subject.name not in self._requests:
            _remember(self._requests, RequestId(subject.name), None, REQUESTS_MAX)
            found.requests += 1
        found.first = found.first or new
        return new

    def _change(self, cause: Recorded, places: Sequence[Recorded], ours: Sequence[Event], *, elsewhere: bool) -> None:
        said = [one.event for one in places]
        theirs, tried = _code(said), _code(ours)
        if theirs == tried and said and _verbs(said) != _verbs(ours):
            theirs, tried = f"{theirs} ({_verbs(said)})", f"{tried} ({_verbs(ours)})"
        same = theirs == tried
        if same and not elsewhere:
            return
        key = (theirs, tried)
        if key not in self._changes:
            self._changes[key] = Change(recorded=theirs, tried=tried, elsewhere=same, first=str(cause.at))
            self.found.changes.append(self._changes[key])
        self._changes[key].count += 1

    def _difference(
        self, cause: Recorded, subject: Subject, places: Sequence[Recorded], ours: Sequence[Event]
    ) -> Difference:  # fmt: skip
        theirs = [one.event for one in places]
        pairs = zip(theirs, ours, strict=True) if [*map(type, theirs)] == [*map(type, ours)] else ()
        return Difference(
            actor=self.found.actor, at=str(places[-1].at if places else cause.at), cause=str(cause.at),
            ts_ns=cause.ts_ns, about=subject.name, tenant=self._tenants.of(subject.name),
            recorded=outcome(theirs, subject), tried=outcome(ours, subject),
            recorded_rule=_rule(theirs), tried_rule=_rule(ours),
            recorded_decisions=tuple(map(_plain, theirs)), tried_decisions=tuple(map(_plain, ours)),
            fields=tuple(dict.fromkeys(name for one, other in pairs for name in _fields(one, other))),
        )  # fmt: skip

    def _tenant(self, subject: Subject) -> TenantDifference:
        name = self._tenants.of(subject.name) or (subject.name if subject.field == "tenant" else "")
        tenants = self.found.tenants
        if name not in tenants and len(tenants) >= TENANTS_MAX:
            name = OTHERS
        return tenants.setdefault(name, TenantDifference())


def _remember(kept: dict[Any, Any], key: Any, value: Any, most: int) -> None:
    """Keep it as the newest one; beyond `most` the oldest is forgotten."""
    kept.pop(key, None)
    kept[key] = value
    if len(kept) > most:
        del kept[next(iter(kept))]


def _rule(said: Sequence[Event]) -> Rule | None:
    """The rule of the last word said."""
    return rule_of(said[-1], said) if said else None


def _code(said: Sequence[Event]) -> str:
    rule = _rule(said)
    return rule.code if rule is not None else NOTHING


def _verbs(said: Sequence[Event]) -> str:
    return ", ".join(word_of(one).verb for one in said)


def _plain(event: Event) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(event))
    return plain


def _same(theirs: Iterable[Event], ours: Iterable[Event]) -> bool:
    """Equal as written: a list where the type says tuple is the same word in the log."""
    return [*map(_plain, theirs)] == [*map(_plain, ours)]


def _fields(one: Event, other: Event) -> list[str]:
    """The names of the fields in which two decisions of a kind differ."""
    mine, its = _plain(one), _plain(other)
    return sorted(name for name in mine.keys() | its.keys() if mine.get(name) != its.get(name))
