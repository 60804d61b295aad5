"""The day with tiers shows all that tiers do; that it replays is what `test_golden_journals` says."""

from collections import Counter

from events import codec
from events.base import Event
from events.decisions import TransferOrdered
from events.request import RequestFinished
from events.slice import SlicesCleared, SlicesHit, SlicesRemoved, SlicesStored, Tier, TierMeasured, TransferFinished
from replay.journal_source import JournalSource
from tests.golden.tiered_day import FILE


def said() -> list[Event]:
    return [
        recorded.event
        for message in JournalSource(FILE)
        for recorded in codec.decode(message.seq, message.subject, message.body)
    ]


def test_every_tier_is_stored_to_removed_from_hit_and_measured() -> None:
    events = said()
    for kind in (SlicesStored, SlicesRemoved, SlicesHit, TierMeasured, SlicesCleared):
        assert {event.tier for event in events if isinstance(event, kind)} == {*Tier}


def test_every_order_is_answered_once() -> None:
    events = said()
    ordered = Counter(event.order for event in events if isinstance(event, TransferOrdered))
    answered = Counter(event.order for event in events if isinstance(event, TransferFinished))
    last_end = max(number for number, event in enumerate(events) if isinstance(event, RequestFinished))
    too_late = Counter(event.order for event in events[last_end:] if isinstance(event, TransferOrdered))
    assert set(ordered.values()) == {1}
    assert answered + (too_late - answered) == ordered, "but for the orders that the day ended before"


def test_what_the_facts_say_is_what_the_tiers_hold_each_second() -> None:
    held: dict[tuple[str, Tier], set[str]] = {}
    for event in said():
        match event:
            case SlicesStored():
                there = held.setdefault((event.engine_id, event.tier), set())
                assert not there & set(event.slices), "what is there is not stored again"
                there |= set(event.slices)
            case SlicesRemoved():
                there = held[event.engine_id, event.tier]
                assert there >= set(event.slices), "only what is there is removed"
                there -= set(event.slices)
            case SlicesCleared():
                held[event.engine_id, event.tier] = set()
            case TierMeasured() if event.tier is not Tier.HBM:
                there = held[event.engine_id, event.tier]
                coming = event.bytes_used - len(there) * event.slice_bytes
                assert 0 <= coming <= 2 * event.slice_bytes, "a slice or two may be on their way"
                assert event.bytes_used <= event.bytes_max
            case _:
                pass
