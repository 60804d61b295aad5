"""What could have been otherwise at a decision: one setting, or one input of it, with its bounds.

A lever says where a value stands, what it may be, and how state and event look with another value in its place. The
state that is given is never changed, and never copied deeply: only what lies on the way to the value is new.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from events.base import Event
from policies.settings import Settings, choices, ranges

S = TypeVar("S", bound=msgspec.Struct)
Put = Callable[[Any], tuple[Any, Event]]
"""A value in, state and event with it out. What it gives is good until it is called again."""

SETTING, REQUEST, ENGINE = KINDS = ("setting", "request", "engine")
"""Whose value a lever changes. In this order flips of one size are preferred."""


@dataclass(slots=True, frozen=True)
class Lever:
    """A value that could have been another. `kind` is one of KINDS; `of`: whose (an actor, a request, an engine).
    Numbers have bounds (`low`, `high`); picks have `picks`, every value that they may take."""

    kind: str
    of: str
    name: str
    value: Any
    put: Put
    low: int = 0
    high: int = 0
    picks: tuple[Any, ...] = ()


def with_settings(state: S, changes: Mapping[str, Any]) -> S:
    """The state with other settings. Everything else is shared with the one that was given."""
    other = copy.copy(state)
    other.settings = msgspec.structs.replace(state.settings, **changes)  # type: ignore[attr-defined]
    return other


def of_settings(
    actor: str, state: Any, event: Event, *, tuned: Callable[[Any, dict[str, Any]], Any] = with_settings
) -> list[Lever]:
    """Every setting of an actor, within what is allowed. `tuned(state, changes)` gives the state with other ones."""
    settings: Settings = state.settings
    numbers, lists = ranges(type(settings)), choices(type(settings))

    def put(name: str) -> Put:
        return lambda value: (tuned(state, {name: value}), event)

    return [
        Lever(SETTING, actor, name, getattr(settings, name), put(name), low=low, high=high)
        for name, (low, high) in numbers.items()
    ] + [
        Lever(SETTING, actor, name, getattr(settings, name), put(name), picks=tuple(kind))
        for name, kind in lists.items()
    ]  # fmt: skip


def settings_read(state: S, decide: Callable[[S], object]) -> frozenset[str]:
    """The settings that `decide` reads of this state. A change of one that it never reads cannot change what it
    says: it goes by nothing else."""
    settings = state.settings  # type: ignore[attr-defined]
    schema = type(settings)
    read: set[str] = set()

    class Watched(schema):  # type: ignore[valid-type, misc]
        def __getattribute__(self, name: str) -> Any:
            read.add(name)
            return super().__getattribute__(name)

    watched = copy.copy(state)
    watched.settings = Watched(**{name: getattr(settings, name) for name in schema.__struct_fields__})  # type: ignore[attr-defined]
    read.clear()
    decide(watched)
    return frozenset(read & set(schema.__struct_fields__))
