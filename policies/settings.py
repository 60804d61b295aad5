"""How settings of an actor are declared, and the one way they are changed.

A settings struct has fields of two sorts: whole numbers, `Annotated[int, Meta(ge=low, le=high)]`, and choices from a
StrEnum. Everything else about them (errors, pages, flips that explain a decision) is read from the type.
"""

from collections.abc import Mapping
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import msgspec

S = TypeVar("S", bound=msgspec.Struct)


class Switch(StrEnum):
    """Whether a module takes part."""

    ON = "on"
    OFF = "off"


class Settings(msgspec.Struct, kw_only=True):
    """The settings of one actor, all with defaults."""


@cache
def ranges(schema: type[Settings]) -> dict[str, tuple[int, int]]:
    """The number settings, each with the least and the most that is allowed."""
    found: dict[str, tuple[int, int]] = {}
    for name, hint in get_type_hints(schema, include_extras=True).items():
        for meta in get_args(hint)[1:] if get_origin(hint) is not None else ():
            assert meta.ge is not None and meta.le is not None, "a number setting has both bounds"  # noqa: PT018
            found[name] = (int(meta.ge), int(meta.le))
    return found


@cache
def choices(schema: type[Settings]) -> dict[str, type[StrEnum]]:
    """The settings that are picked from a list."""
    hints = get_type_hints(schema)
    return {name: hint for name, hint in hints.items() if isinstance(hint, type) and issubclass(hint, StrEnum)}


def apply(actor: str, settings: Settings, changes: Mapping[str, Any]) -> None:
    """Change the named keys, all of them or none. Raises ValueError with actor, key, value and what is allowed."""
    schema = type(settings)
    checked = {key: _checked(actor, schema, key, value) for key, value in changes.items()}
    for key, value in checked.items():
        setattr(settings, key, value)


def _checked(actor: str, schema: type[Settings], key: str, value: object) -> int | StrEnum:
    picks, numbers = choices(schema), ranges(schema)
    if key in picks:
        allowed = [choice.value for choice in picks[key]]
        if value not in allowed:
            raise ValueError(f"{actor}.{key} = {value!r} (allowed: {', '.join(allowed)})")
        return picks[key](value)
    if key not in numbers:
        raise ValueError(f"{actor}.{key} = {value!r}: no such setting (allowed: {', '.join([*picks, *numbers])})")
    low, high = numbers[key]
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{actor}.{key} = {value!r} (allowed: a whole number from {low} to {high})")
    return value
