"""What the scheduler's thread and the agent's thread pass to each other, and what happens when one does not take it."""

import msgspec
import pytest

from events.base import EngineId, Event, RequestId, SliceId
from events.decisions import EngineDirected
from events.slice import ChoiceMade, SlicesCleared, SlicesHit, SlicesStored, Tier, TierMeasured, TransferEnd
from policies.memory.delegate import Snapshot
from policies.memory.delegate_ops import Directed, EvictAsked, LetGo, Stored
from services.vllm_plugin.bridge import ENTRIES_MAX, FACTS_MAX, Bridge
from tests.services.vllm_plugin.test_orders import ordered

ENGINE = EngineId("e1")


def bridge(*, journals: bool = True) -> Bridge:
    made = Bridge()
    made.engine_id = ENGINE
    made.listen(lambda: None, journals=journals)
    return made


def hit(name: str = "a") -> SlicesHit:
    return SlicesHit(engine_id=ENGINE, tier=Tier.HBM, slices=(SliceId(name),))


def directive(version: int) -> EngineDirected:
    return EngineDirected(engine_id=ENGINE, version=version, eviction="lru", protect_ppm=0)


def fill(made: Bridge, name: str = "a") -> None:
    made.choose(Stored(at_ns=1, tier=Tier.DRAM, slice_id=name, cost_ns=1, size=1))
    made.choose(LetGo(at_ns=2, tier=Tier.DRAM, slices=(name,)))


ASKED = EvictAsked(at_ns=3, tier=Tier.DRAM, count=1)


def test_op_that_failed_leaves_no_hole_in_the_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    made = bridge()
    fill(made)
    made.entries()

    def fails(op: object) -> None:
        raise OverflowError("a mistake of ours")

    with monkeypatch.context() as patch:
        patch.setattr(made._delegate, "take", fails)
        with pytest.raises(OverflowError):
            made.choose(ASKED)
    made.choose(ASKED)

    snapshot, entry = made.entries()
    assert snapshot.snapshot, "another journal begins, with what is known now"
    assert (snapshot.number, entry.number) == (3, 4)


def test_choice_is_answered_journaled_and_told_with_the_same_number() -> None:
    made = bridge()
    fill(made)

    choice = made.choose(ASKED)

    snapshot, *entries = made.entries()
    assert msgspec.json.decode(snapshot.snapshot, type=Snapshot) == Snapshot()
    assert [entry.number for entry in entries] == [1, 2, 3]
    assert (entries[-1].op, entries[-1].choice) == (ASKED, choice)
    [fact] = made.facts(9)
    assert isinstance(fact, ChoiceMade)
    assert (fact.number, fact.chosen, fact.engine_id) == (3, ("a",), ENGINE)


def test_directive_counts_from_the_next_choice_on_and_stands_in_the_journal_before_it() -> None:
    made = bridge()
    made.direct(directive(5))
    assert made.directive is None
    assert made.directed_version == 5

    fill(made)

    assert made.directive == directive(5)
    _snapshot, first, *_rest = made.entries()
    assert first.op == Directed(directive=directive(5))
    choice = made.choose(ASKED)
    assert choice is not None
    assert choice.directive_version == 5


def test_older_directive_than_the_one_that_counts_is_passed_over() -> None:
    made = bridge()
    made.direct(directive(5))
    made.direct(directive(4))
    fill(made)
    made.direct(directive(3))

    made.choose(ASKED)

    assert made.directive == directive(5)


def test_facts_keep_their_order_and_are_given_out_in_parts() -> None:
    made = bridge()
    told = [hit(str(n)) for n in range(5)]
    for fact in told:
        made.tell(fact)

    assert made.facts(3) + made.facts(3) == told


def test_first_fact_that_waits_wakes_the_agent() -> None:
    woken: list[int] = []
    made = Bridge()
    made.listen(lambda: woken.append(1), journals=False)

    made.tell(hit())
    made.tell(hit())
    made.facts(9)
    made.tell(hit())

    assert len(woken) == 2


def test_too_many_facts_are_dropped_for_a_resync_but_answers_to_orders_are_kept() -> None:
    made = bridge()
    made.orders.give(ordered("m1"))
    [order] = made.orders.take()
    made.orders.finish(order, TransferEnd.DONE)
    for _ in range(FACTS_MAX):
        made.tell(hit())

    assert [fact.event_kind() for fact in made.facts(9)] == ["transfer_finished", "slices_hit"]
    assert made.facts_dropped == FACTS_MAX - 1
    assert made.resync_due()
    assert not made.resync_due()


def test_before_a_resync_what_waits_about_the_contents_of_tiers_is_forgotten() -> None:
    made = bridge()
    facts: list[Event] = [
        SlicesStored(engine_id=ENGINE, tier=Tier.DRAM, slices=(SliceId("a"),), slice_bytes=1),
        hit(),
        SlicesCleared(engine_id=ENGINE, tier=Tier.DRAM),
    ]
    for fact in facts:
        made.tell(fact)

    made.forget_facts()

    assert made.facts(9) == [hit()]


def test_how_tiers_are_is_told_again_after_what_they_hold() -> None:
    made = bridge()
    full = TierMeasured(engine_id=ENGINE, tier=Tier.DRAM, bytes_max=9, bytes_used=9, slice_bytes=1)
    made.tell(full)
    made.facts(9)
    made.forget_facts()

    made.tell_noted()

    assert made.facts(9) == [full]


def test_journal_with_a_hole_begins_anew_from_a_snapshot() -> None:
    made = bridge()
    for number in range(ENTRIES_MAX + 5):
        made.choose(Stored(at_ns=number, tier=Tier.DRAM, slice_id=f"s{number % 3}", cost_ns=1, size=1))

    entries = made.entries()

    assert made.entries_dropped > ENTRIES_MAX // 2
    assert entries[0].snapshot
    assert entries[1].number == entries[0].number + 1
    knew = msgspec.json.decode(entries[0].snapshot, type=Snapshot)
    assert sorted(knew.tiers[0].kept) == ["s0", "s1", "s2"]


def test_numbers_go_on_behind_those_of_the_journals_that_are_there() -> None:
    made = Bridge()
    made.number_from(41)
    made.listen(lambda: None, journals=True)

    fill(made)

    assert [entry.number for entry in made.entries()] == [41, 42, 43]


def test_without_an_agent_choices_are_made_and_nothing_is_kept() -> None:
    made = bridge()
    made.deafen()
    fill(made)

    choice = made.choose(ASKED)

    assert choice is not None
    assert choice.chosen == ("a",)
    assert (made.facts(9), made.entries()) == ([], [])


def test_what_was_measured_last_of_a_tier_is_known_to_whoever_chooses() -> None:
    made = bridge()
    slow = TierMeasured(engine_id=ENGINE, tier=Tier.DRAM, bytes_max=1, bytes_used=1, slice_bytes=1)
    made.tell(slow)

    assert made.measured == {Tier.DRAM: slow}


def test_how_a_tier_was_after_the_last_step_is_told_once_even_if_no_step_follows() -> None:
    made = bridge()
    empty = TierMeasured(engine_id=ENGINE, tier=Tier.DRAM, bytes_max=9, bytes_used=0, slice_bytes=1)
    full = msgspec.structs.replace(empty, bytes_used=9)
    made.tell(empty)
    made.note(full)

    made.tell_noted()
    made.tell_noted()

    assert made.facts(9) == [empty, full]
    assert made.measured == {Tier.DRAM: full}


def test_what_was_told_to_nobody_is_told_once_an_agent_listens() -> None:
    made = Bridge()
    full = TierMeasured(engine_id=ENGINE, tier=Tier.DRAM, bytes_max=9, bytes_used=9, slice_bytes=1)
    made.tell(full)
    made.listen(lambda: None, journals=False)

    made.tell_noted()

    assert made.facts(9) == [full]


def test_requests_of_a_lost_holder_are_given_up_once_and_an_idle_engine_makes_a_step_for_it() -> None:
    made, steps = bridge(), []
    made.wakes_by(lambda: steps.append(1))
    assert not made.something_to_do

    made.abort((RequestId("r1"), RequestId("r2")))

    assert made.something_to_do
    assert steps == [1]
    assert made.aborts() == (RequestId("r1"), RequestId("r2"))
    assert made.aborts() == ()
    assert not made.something_to_do
