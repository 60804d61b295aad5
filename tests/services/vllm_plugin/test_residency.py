"""What tiers hold, as the log is told it: removed by the name under which it was stored."""

from events.base import EngineId, Event, SliceId
from events.slice import SlicesCleared, SlicesHit, SlicesRemoved, SlicesStored, Tier
from services.vllm_plugin.naming import Naming, made_up
from services.vllm_plugin.residency import FACT_SLICES_MAX, Residency

A, B = b"a" * 36, b"b" * 36
ONE = SliceId("1" * 32)
E1 = EngineId("e1")


def made() -> tuple[Residency, Naming, list[Event]]:
    facts: list[Event] = []
    naming = Naming()
    return Residency(E1, naming, facts.append, slice_bytes=64), naming, facts


def stored(*names: str, tier: Tier = Tier.DRAM) -> SlicesStored:
    return SlicesStored(engine_id=E1, tier=tier, slices=tuple(map(SliceId, names)), slice_bytes=64)


def removed(*names: str, tier: Tier = Tier.DRAM) -> SlicesRemoved:
    return SlicesRemoved(engine_id=E1, tier=tier, slices=tuple(map(SliceId, names)))


def test_each_slice_is_told_once_per_stay() -> None:
    residency, naming, facts = made()
    naming.learn(A, ONE)
    residency.stored(Tier.DRAM, [A, B, A])
    residency.stored(Tier.DRAM, [A])
    residency.removed(Tier.DRAM, [A])
    residency.removed(Tier.DRAM, [A])
    assert facts == [stored(ONE, made_up(B)), removed(ONE)]
    assert residency.keys(Tier.DRAM) == [B]
    assert residency.holds(Tier.DRAM, B)
    assert not residency.holds(Tier.HBM, B)


def test_slice_that_gets_its_true_name_is_told_anew_wherever_it_is() -> None:
    residency, naming, facts = made()
    residency.stored(Tier.DRAM, [A])
    residency.stored(Tier.SSD, [A])
    facts.clear()
    naming.learn(A, ONE)
    residency.renamed(A)
    old = made_up(A)
    assert facts == [removed(old), stored(ONE), removed(old, tier=Tier.SSD), stored(ONE, tier=Tier.SSD)]


def test_inventory_is_what_was_told() -> None:
    residency, _, facts = made()
    residency.stored(Tier.SSD, [A])
    assert residency.inventory(Tier.SSD) == facts
    residency.cleared(Tier.SSD, "reset")
    assert facts[-1] == SlicesCleared(engine_id=E1, tier=Tier.SSD, reason="reset")
    assert residency.inventory(Tier.SSD) == []


def test_many_slices_are_several_facts() -> None:
    residency, _, facts = made()
    keys = [number.to_bytes(36, "big") for number in range(FACT_SLICES_MAX + 1)]
    residency.stored(Tier.DRAM, keys)
    residency.hit(Tier.DRAM, keys)
    sizes = [len(fact.slices) for fact in facts if isinstance(fact, SlicesStored | SlicesHit)]
    assert sizes == [FACT_SLICES_MAX, 1, FACT_SLICES_MAX, 1]
    assert residency.hits[Tier.DRAM] == FACT_SLICES_MAX + 1
