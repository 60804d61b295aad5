"""What can be asked of an actor about one of its decisions, beside what `explain` says of the whole step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from events.base import Event
from policies.levers import Lever, with_settings


@dataclass(slots=True, frozen=True)
class Inquiry:
    """`knew(state, event, now_ns, decision, before)`: what the decision was made from, in plain values; `before` are
    the decisions that were made before it in the same step. `inputs(state, event, now_ns, decision)`: the inputs of
    that decision that could have been otherwise. `tuned(state, changes)`: the state with other settings, and whatever
    it keeps that follows from those named in `kept`. None of them changes the state that it is given."""

    knew: Callable[[Any, Event, int, Event, Sequence[Event]], dict[str, Any]]
    inputs: Callable[[Any, Event, int, Event], list[Lever]]
    tuned: Callable[[Any, dict[str, Any]], Any] = with_settings
    kept: frozenset[str] = frozenset()
