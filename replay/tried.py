"""A policy that is tried on a log: its settings, and deciders that go by them whatever settings stand in the log.

A candidate lies on top of what was recorded (every setting as it stood at each moment, but for those that are named),
or stands in place of it (a preset: what it does not name has its default).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from policies.catalog import ACTORS, PRESETS
from policies.decider import Decider

RECORDED = "recorded"
"""The policy that the log was decided by: the control of every comparison."""

S = TypeVar("S", bound=msgspec.Struct)


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """`settings` by actor; `whole`: in place of those that stand in the log, else on top of them."""

    name: str
    settings: dict[str, dict[str, Any]] = msgspec.field(default_factory=dict)
    whole: bool = False

    @property
    def is_control(self) -> bool:
        """Whether it is what was recorded, unchanged."""
        return not self.whole and not any(self.settings.values())

    def wanted(self, decider: Decider[Any]) -> dict[str, Any]:
        """What it would write as the settings of an actor with this decider: all of them where it is whole, else those
        that it names."""
        own = self.settings.get(decider.name, {})
        if not self.whole:
            return dict(own)
        state = decider.initial()
        decider.configure(state, own)
        settings: dict[str, Any] = msgspec.to_builtins(state.settings)
        return settings

    def actors(self) -> tuple[str, ...]:
        """The actors that it says anything about."""
        return tuple(ACTORS) if self.whole else tuple(actor for actor in ACTORS if self.settings.get(actor))


CONTROL = Candidate(name=RECORDED)


def candidate(policy: str, changes: Mapping[str, Mapping[str, Any]] | None = None) -> Candidate:
    """A preset, or `recorded`, with changes by actor on top. Raises ValueError for a name or a setting that is not
    there, with what is allowed."""
    if policy != RECORDED and policy not in PRESETS:
        raise ValueError(f"no policy {policy!r} (allowed: {', '.join([RECORDED, *PRESETS])})")
    changed = {actor: dict(own) for actor, own in (changes or {}).items() if own}
    base = PRESETS.get(policy, {})
    settings = {actor: {**base.get(actor, {}), **changed.get(actor, {})} for actor in {**base, **changed}}
    for actor, own in settings.items():
        if actor not in ACTORS:
            raise ValueError(f"no actor {actor!r} (allowed: {', '.join(ACTORS)})")
        ACTORS[actor].configure(ACTORS[actor].initial(), own)
    named = [f"{actor}.{key}={value}" for actor, own in changed.items() for key, value in own.items()]
    return Candidate(name=" ".join([policy, *named]), settings=settings, whole=policy != RECORDED)


def tried(decider: Decider[S], of: Candidate) -> Decider[S]:
    """The decider with the candidate's settings: what the log says of settings holds only where the candidate leaves it
    open."""
    own = of.settings.get(decider.name, {})
    if not (own or of.whole):
        return decider

    def configure(state: S, settings: Mapping[str, Any]) -> None:
        if not of.whole:
            decider.configure(state, settings)
            decider.configure(state, own)

    def initial() -> S:
        state = decider.initial()
        decider.configure(state, own)
        return state

    return dataclasses.replace(decider, initial=initial, configure=configure)
