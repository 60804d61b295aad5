"""What an operator orders about policies, quotas and pins: judged first, then written as facts; and how things stand.

Nothing here is kept: how things stand is replayed from the log, by the deciders' own `configure`. An order that does
not hold is refused with what is allowed, and nothing is written. Whoever decides takes it in like any other record.
"""

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import msgspec

from events import codec, subjects
from events.base import NS_PER_S, PPM, EngineId, Event, Recorded, SliceId, TenantId
from events.control import ActorStarted, PolicyConfigured, ShadowCompared, Ticked
from events.decisions import ShareReason, SharesSet, TenantQuotaSet
from events.engine import EngineRegistered, EngineRemoved
from events.log.jetstream import JetStreamLog
from events.quota import ShareBoundsAsked, TenantQuotaAsked
from events.slice import SlicesPinned
from policies.catalog import ACTORS, PRESETS
from policies.decider import Decider
from policies.pins import PINS_MAX
from policies.quota_state import BOUNDS_MAX, TENANTS_MAX
from replay.code_version import code_version
from services.runtime.config_sources import meant
from services.runtime.facts import FactWriter
from services.runtime.pool_clock import PoolClock

SOURCE = "policy"
KV_BYTES_MAX = 2**60
PIN_NS_MAX = 30 * 24 * 3_600 * NS_PER_S
_SLICE = re.compile(r"[0-9a-f]{32}")


class Refused(Exception):
    """An order that does not hold. The text says what is wrong and what is allowed; nothing was written."""

    exit_code: ClassVar[int] = 2


class ActorPolicy(msgspec.Struct, kw_only=True):
    """An actor's settings as they stand. `changed` are those that are not the default; `owner` said last that it
    starts ("" = nobody ever did)."""

    actor: str
    owner: str = ""
    settings: dict[str, Any]
    changed: list[str] = msgspec.field(default_factory=list)


class Promoted(msgspec.Struct, frozen=True, kw_only=True):
    """A shadow's settings are its actors' now: they stand in message `seq`, because of these reports."""

    seq: int
    policy: str
    shadow: str
    reports: list[ShadowCompared]


class EngineShares(msgspec.Struct, kw_only=True):
    """How an engine is divided ("" = the pool): shares as they were set last (None = no cap holds), and the bounds that
    an operator asked for (None = none)."""

    engine: str
    llm_ppm: int | None = None
    embedding_ppm: int | None = None
    reason: str = ""
    embedding_min_ppm: int | None = None
    embedding_max_ppm: int | None = None


class Quotas(msgspec.Struct, kw_only=True):
    """All of it: engines, the pool, and the bytes of KV that tenants hold at most."""

    engines: list[EngineShares]
    tenants: dict[str, int]


class Orders:
    """Reads and writes the orders of one pool. Made by `taking_orders`."""

    def __init__(self, log: JetStreamLog, writer: FactWriter, clock: PoolClock) -> None:
        self.log, self._writer, self._clock = log, writer, clock

    async def policies(self, actor: str = "") -> list[ActorPolicy]:
        """The settings of one actor, or of all (""), as they stand. Raises Refused, LogError."""
        wanted = {actor: _decider(actor)} if actor else ACTORS
        states, owners = await self._configured()
        return [_policy(decider, states[name], owners.get(name, "")) for name, decider in wanted.items()]

    async def configure(self, actor: str, changes: Mapping[str, Any]) -> int:
        """Change settings of an actor, live; where the fact stands. Raises Refused, LogError."""
        decider = _decider(actor)
        if not changes:
            raise Refused(f"nothing to change of {actor}: name a setting and its value")
        states, _ = await self._configured()
        try:
            decider.configure(states[actor], changes)
        except ValueError as error:
            raise Refused(str(error)) from error
        return await self._write([PolicyConfigured(actor=actor, settings=dict(changes))])

    async def preset(self, name: str) -> int:
        """Every actor's settings as the preset has them, and its defaults where the preset is silent, in one message;
        where that stands. Raises Refused, LogError."""
        return await self._write(preset_facts(name))

    async def promote(self, *, words_min: int) -> Promoted:
        """Write what the pool's newest shadow tried as its actors' settings, in one message, each with the shadow's
        last report as its cause. Refused where it compared less than `words_min` (a subject that is still other in the
        same way, at every tick, counts once), or broke, or an actor runs other code than the one that judges the
        settings. Raises Refused, LogError."""
        reports = await self._shadow_reports()
        told = [one.event for one in reports if isinstance(one.event, ShadowCompared)]
        words = sum(one.words - one.standing for one in told)
        if words < words_min:
            raise Refused(
                f"the shadow compared {words} decisions until now (allowed: from {words_min} on; see --least)"
            )
        states, _ = await self._configured()
        for one in told:
            if one.failed:
                raise Refused(f"{one.policy} breaks {one.actor} at {one.failed}")
            await self._check_code(one.actor)
            try:
                _decider(one.actor).configure(states[one.actor], one.settings)
            except ValueError as error:
                raise Refused(str(error)) from error
        facts = [PolicyConfigured(actor=one.actor, settings=one.settings) for one in told]
        seq = await self._write(facts, causes=[str(one.at) for one in reports])
        return Promoted(seq=seq, policy=told[0].policy, shadow=told[0].shadow, reports=told)

    async def quotas(self) -> Quotas:
        """How things stand. Raises LogError."""
        rows: dict[str, EngineShares] = {}
        tenants: dict[str, int] = {}
        async for recorded in self._told():
            match recorded.event:
                case EngineRegistered(engine_id=engine_id):
                    rows.setdefault(engine_id, EngineShares(engine=engine_id))
                case EngineRemoved(engine_id=engine_id):
                    rows.pop(engine_id, None)
                case SharesSet() as shares if recorded.actor:
                    _note_shares(rows.setdefault(shares.engine_id, EngineShares(engine=shares.engine_id)), shares)
                case ShareBoundsAsked() as asked:
                    row = rows.setdefault(asked.engine_id, EngineShares(engine=asked.engine_id))
                    row.embedding_min_ppm, row.embedding_max_ppm = asked.embedding_min_ppm, asked.embedding_max_ppm
                case TenantQuotaSet(tenant=tenant, kv_bytes_max=most) if recorded.actor:
                    tenants.pop(tenant, None)
                    if most:
                        tenants[tenant] = most
                case _:
                    pass
        return Quotas(engines=[rows[name] for name in sorted(rows)], tenants=dict(sorted(tenants.items())))

    async def limit_tenant(self, tenant: str, kv_bytes_max: int) -> int:
        """A tenant holds at most so many bytes (0 = no limit); where the fact stands. Raises Refused, LogError."""
        _check_token(tenant, "tenant")
        if not 0 <= kv_bytes_max <= KV_BYTES_MAX:
            raise Refused(f"kv_bytes_max = {kv_bytes_max} (allowed: 0, for no limit, to {KV_BYTES_MAX} bytes)")
        known = (await self.quotas()).tenants
        if kv_bytes_max and tenant not in known and len(known) >= TENANTS_MAX:
            raise Refused(f"{TENANTS_MAX} tenants have a quota, and no more can: lift one first")
        return await self._write([TenantQuotaAsked(tenant=TenantId(tenant), kv_bytes_max=kv_bytes_max)])

    async def bound_shares(self, engine: str, low_ppm: int, high_ppm: int) -> int:
        """The embedding share of an engine ("" = of every engine without bounds of its own) stays within these bounds;
        where the fact stands. Raises Refused, LogError."""
        if not 0 <= low_ppm <= high_ppm <= PPM:
            given = f"embedding_min_ppm = {low_ppm}, embedding_max_ppm = {high_ppm}"
            raise Refused(f"{given} (allowed: 0 to {PPM} ppm, or 0% to 100%, the min not above the max)")
        if engine:
            standing = (await self.quotas()).engines
            known = [one.engine for one in standing if one.engine]
            if engine not in known:
                raise Refused(f"there is no engine {engine!r}{meant(engine, known)} (allowed: {', '.join(known)})")
            if sum(one.embedding_min_ppm is not None for one in standing) >= BOUNDS_MAX:
                raise Refused(f"{BOUNDS_MAX} engines have bounds of their own, and no more can")
        asked = ShareBoundsAsked(engine_id=EngineId(engine), embedding_min_ppm=low_ppm, embedding_max_ppm=high_ppm)
        return await self._write([asked])

    async def pin(self, slices: Sequence[str], for_ns: int) -> int:
        """These slices stay where they are for so long of pool time (0 = no longer); where the fact stands. Raises
        Refused, LogError."""
        wanted = list(dict.fromkeys(slices))
        if not 1 <= len(wanted) <= PINS_MAX:
            raise Refused(f"{len(wanted)} slices to pin (allowed: 1 to {PINS_MAX})")
        for name in wanted:
            if not _SLICE.fullmatch(name):
                raise Refused(f"{name!r} is no slice (32 hex digits, as `tidegate cache top` shows them)")
        if not 0 <= for_ns <= PIN_NS_MAX:
            raise Refused(f"{for_ns / NS_PER_S:g} s is no time to pin for (allowed: up to {PIN_NS_MAX // NS_PER_S} s)")
        if for_ns:
            pinned = await self._pinned()
            if len(pinned | set(wanted)) > PINS_MAX:
                raise Refused(f"{len(pinned)} slices are pinned, and no more than {PINS_MAX} can be: let one go first")
        return await self._write([SlicesPinned(slices=tuple(map(SliceId, wanted)), for_ns=for_ns)])

    async def _pinned(self) -> set[str]:
        """Slices that are pinned at the pool's last tick."""
        until_ns: dict[str, int] = {}
        pool, kind = self.log.pool, SlicesPinned.event_kind()
        for recorded in await _records(self.log, [subjects.fact(pool, SOURCE, kind)]):
            if isinstance(recorded.event, SlicesPinned):
                end_ns = recorded.ts_ns + recorded.event.for_ns if recorded.event.for_ns else 0
                until_ns |= dict.fromkeys(recorded.event.slices, end_ns)
        now_ns = await self._tick_ns() or 0
        return {name for name, end_ns in until_ns.items() if end_ns > now_ns}

    async def _tick_ns(self) -> int | None:
        """The pool's time at its last tick; None before the first."""
        tick = await self.log.last(subjects.fact(self.log.pool, "clock", Ticked.event_kind()))
        return codec.decode(tick.seq, tick.subject, tick.body)[-1].ts_ns if tick is not None else None

    async def _shadow_reports(self) -> list[Recorded]:
        """The last report of the newest shadow about each actor. Raises Refused when there is none."""
        kind = subjects.fact(self.log.pool, "shadow", ">")
        newest = await self.log.last(kind)
        if newest is None:
            raise Refused("no shadow was ever run here: tidegate policy shadow start --policy NAME")
        owner = codec.decode(newest.seq, newest.subject, newest.body)[-1].owner
        last: dict[str, Recorded] = {}
        for recorded in await _records(self.log, [kind]):
            if isinstance(recorded.event, ShadowCompared) and recorded.owner == owner:
                last[recorded.event.actor] = recorded
        return list(last.values())

    async def _check_code(self, actor: str) -> None:
        """Raises Refused where the actor runs another version of the code than this."""
        started = await self.log.last(subjects.decision(self.log.pool, actor, ActorStarted.event_kind()))
        for recorded in codec.decode(started.seq, started.subject, started.body) if started is not None else ():
            if isinstance(recorded.event, ActorStarted) and recorded.event.code_version not in ("", code_version()):
                raise Refused(f"{actor} runs code {recorded.event.code_version}, and this is {code_version()}")

    async def _write(self, facts: Sequence[Event], *, causes: Sequence[str] = ()) -> int:
        """All of them in one message, at the pool's time; its sequence."""
        tick_ns = await self._tick_ns()
        if tick_ns is not None:
            self._clock.follow(tick_ns)
        stored = [
            self._writer.store(fact, cause) for fact, cause in zip(facts, causes or [""] * len(facts), strict=True)
        ]
        places = await asyncio.gather(*stored)
        return places[-1].seq

    async def _configured(self) -> tuple[dict[str, Any], dict[str, str]]:
        """A state per actor that has nothing but its settings, as `configure` leaves them; and who started last. What
        an actor could not take in is quarantined there, and passed over here."""
        states = {actor: decider.initial() for actor, decider in ACTORS.items()}
        owners: dict[str, str] = {}
        pool = self.log.pool
        patterns = [subjects.decision(pool, "*", ActorStarted.event_kind()), subjects.fact(pool, SOURCE, ">")]
        for recorded in await _records(self.log, patterns):
            event, actor = recorded.event, recorded.actor
            if isinstance(event, ActorStarted) and actor in ACTORS:
                owners[actor] = event.instance
            elif isinstance(event, PolicyConfigured) and event.actor in ACTORS:
                actor = event.actor
            else:
                continue
            try:
                ACTORS[actor].configure(states[actor], event.settings)
            except ValueError:
                continue
        return states, owners

    async def _told(self) -> AsyncIterator[Recorded]:
        """What bears on quotas, in log order."""
        pool = self.log.pool
        engines = [subjects.fact(pool, "*", kind.event_kind()) for kind in (EngineRegistered, EngineRemoved)]
        patterns = [*engines, subjects.fact(pool, SOURCE, ">"), subjects.decisions_of(pool, "quota")]
        for recorded in await _records(self.log, patterns):
            yield recorded


@asynccontextmanager
async def taking_orders(log: JetStreamLog, *, speed: int) -> AsyncIterator[Orders]:
    """Orders on a pool's log, with a writer of facts that runs as long as the block. Raises LogError."""
    clock = PoolClock(speed=speed)
    writer = FactWriter(log, source=SOURCE, owner=f"{SOURCE}-{secrets.token_hex(6)}", clock=clock)
    writing = asyncio.create_task(writer.run(), name="writing")
    try:
        yield Orders(log, writer, clock)
    finally:
        await writer.close()
        await writing


def preset_facts(name: str) -> list[PolicyConfigured]:
    """One fact per actor, with every setting of it: as the preset has it, else its default. Raises Refused."""
    preset = PRESETS.get(name)
    if preset is None:
        raise Refused(f"there is no preset {name!r}{meant(name, list(PRESETS))} (allowed: {', '.join(PRESETS)})")
    facts = []
    for actor, decider in ACTORS.items():
        state = decider.initial()
        decider.configure(state, preset.get(actor, {}))
        facts.append(PolicyConfigured(actor=actor, settings=msgspec.to_builtins(state.settings)))
    return facts


def _decider(actor: str) -> Decider[Any]:
    if actor not in ACTORS:
        raise Refused(f"there is no actor {actor!r}{meant(actor, list(ACTORS))} (allowed: {', '.join(ACTORS)})")
    return ACTORS[actor]


def _policy(decider: Decider[Any], state: Any, owner: str) -> ActorPolicy:
    settings = msgspec.to_builtins(state.settings)
    defaults = msgspec.to_builtins(decider.initial().settings)
    changed = [key for key in settings if settings[key] != defaults[key]]
    return ActorPolicy(actor=decider.name, owner=owner, settings=settings, changed=changed)


def _note_shares(row: EngineShares, event: SharesSet) -> None:
    row.reason = event.reason.value
    if event.reason is ShareReason.LIFTED:
        row.llm_ppm = row.embedding_ppm = None
    else:
        row.llm_ppm, row.embedding_ppm = event.llm_ppm, event.embedding_ppm


def _check_token(text: str, what: str) -> None:
    try:
        subjects.token(text, what=what)
    except ValueError as error:
        raise Refused(str(error)) from error


async def _records(log: JetStreamLog, patterns: Sequence[str]) -> list[Recorded]:
    """What stands under these patterns, in log order."""
    messages = {
        message.seq: message for pattern in patterns async for batch in log.read(pattern=pattern) for message in batch
    }
    return [
        recorded
        for _, message in sorted(messages.items())
        for recorded in codec.decode(message.seq, message.subject, message.body)
    ]
