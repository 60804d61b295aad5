"""What is hot is known without a look at all that is not."""

from hypothesis import given as drawn
from hypothesis import strategies as st

from events.base import NS_PER_S, SliceId
from policies.memory import hottest
from policies.memory.hottest import Hottest
from policies.memory.reuse import Heat, half_life_ns, uses_of_late

HORIZON = 40 * NS_PER_S
A = SliceId("a")

WORDS = ("used", "used", "used", "forgotten", "cool", "anew")

steps = st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from("abcd"), st.integers(0, 25)), max_size=60)


@drawn(steps, st.integers(2, 4))
def test_hot_is_what_a_walk_over_all_finds(taken: list[tuple[str, str, int]], uses_min: int) -> None:
    heats: dict[SliceId, Heat] = {}
    kept, now_ns = Hottest(), 0
    for step, name, wait_s in taken:
        slice_id, now_ns = SliceId(name), now_ns + wait_s * NS_PER_S
        match step:
            case "used":
                heat = heats.setdefault(slice_id, Heat())
                heat.add(now_ns, half_life_ns(HORIZON))
                hottest.used(kept, slice_id, heat, uses_min=uses_min)
            case "forgotten":
                heats.pop(slice_id, None)
                hottest.forgotten(kept, slice_id)
            case "cool":
                hottest.cool(kept, heats.__getitem__, now_ns, uses_min=uses_min, horizon_ns=HORIZON)
            case _:
                kept = hottest.anew(heats.items(), uses_min=uses_min)
        walked = {
            one: heat.order()
            for one, heat in heats.items()
            if uses_of_late(heat, now_ns, half_life_ns(HORIZON)) >= uses_min
        }
        found = hottest.hot(kept, heats.__getitem__, now_ns, uses_min=uses_min, horizon_ns=HORIZON)
        assert found == walked


@drawn(st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 3)), st.integers(0, 7))
def test_foremost_are_as_many_as_asked_for_and_their_equals(heats: dict[str, int], most: int) -> None:
    order = {SliceId(name): heat for name, heat in heats.items()}
    found = hottest.foremost(order, most)
    others = [heat for one, heat in order.items() if one not in found]
    assert len(found) >= min(most, len(order))
    assert max(others, default=-1) < min(found.values(), default=0)
    assert len([heat for heat in found.values() if heat > min(found.values())]) < max(1, most)


def test_what_cooled_stands_there_until_a_half_life_is_over() -> None:
    heat, kept = Heat(), Hottest()
    for second in (0, 1):
        heat.add(second * NS_PER_S, half_life_ns(HORIZON))
        hottest.used(kept, A, heat, uses_min=2)
    heats = {A: heat}
    hottest.cool(kept, heats.__getitem__, 9 * NS_PER_S, uses_min=2, horizon_ns=HORIZON)
    assert list(kept.order) == [A]
    hottest.cool(kept, heats.__getitem__, 30 * NS_PER_S, uses_min=2, horizon_ns=HORIZON)
    assert not kept.order
    heat.add(30 * NS_PER_S, half_life_ns(HORIZON))
    hottest.used(kept, A, heat, uses_min=2)
    assert not kept.order
