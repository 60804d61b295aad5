"""The search for a knee ends at the peak, wherever it is."""

from hypothesis import given
from hypothesis import strategies as st

from replay.bench.memory.knees import STEPS_MAX, knee_of, peak, scale_at, wanted


def searched(goodput: dict[int, float]) -> dict[int, float]:
    found: dict[int, float] = {}
    while steps := wanted(found):
        assert not found.keys() & set(steps), "nothing is tried twice"
        found.update({step: goodput[step] for step in steps})
    return found


@given(top=st.integers(-STEPS_MAX, STEPS_MAX), fall=st.floats(0.1, 3.0))
def test_a_single_peak_is_found_in_few_runs(top: int, fall: float) -> None:
    found = searched({step: -fall * abs(step - top) for step in range(-STEPS_MAX, STEPS_MAX + 1)})
    assert peak(found) == top
    assert len(found) <= 6 + abs(top) // 2
    knee = knee_of(1.0, found)
    assert knee.scale == scale_at(1.0, top)
    assert knee.at_edge == (abs(top) == STEPS_MAX)


@given(st.lists(st.floats(0, 100), min_size=2 * STEPS_MAX + 1, max_size=2 * STEPS_MAX + 1))
def test_whatever_the_goodput_the_search_ends_at_a_step_above_its_neighbours(goodputs: list[float]) -> None:
    found = searched(dict(zip(range(-STEPS_MAX, STEPS_MAX + 1), goodputs, strict=True)))
    top = peak(found)
    assert all(found[top] >= found[step] for step in (top - 1, top + 1) if step in found)


def test_of_equals_the_lower_scale_is_the_knee() -> None:
    assert peak({0: 2.0, 2: 2.0, 4: 1.0}) == 0


def test_a_knee_shows_what_was_tried_in_order_of_scale() -> None:
    knee = knee_of(2.0, {2: 3.0, 0: 4.0, -2: 1.0})
    assert knee.scales == (round(2.0 * 1.1**-2, 4), 2.0, round(2.0 * 1.1**2, 4))
    assert knee.goodputs == (1.0, 4.0, 3.0)
