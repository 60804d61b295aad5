"""When a session's next turn is expected."""

import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from events.base import NS_PER_S
from policies.predictors.next_turn import Pauses, Window, learn, window


def paused(*seconds: int) -> Pauses:
    pauses = Pauses()
    for one in seconds:
        learn(pauses, one * NS_PER_S)
    return pauses


def test_the_example_of_the_page() -> None:
    expected = window(paused(10, 12, 11), None)
    assert expected is not None
    assert [round(end / 10**8) / 10 for end in expected] == [3.6, 23.8]


@pytest.mark.parametrize(
    ("own", "tenants", "expected"),
    [
        (Pauses(), None, None),
        (Pauses(), Pauses(), None),
        (Pauses(), Pauses(100, 10, 3), Window(80, 140)),
        (Pauses(50, 5, 1), Pauses(100, 10, 3), Window(40, 70)),
        (Pauses(10, 20, 2), None, Window(0, 90)),
    ],
    ids=["nobody knows", "a tenant without pauses", "its tenant's", "its own", "not before the end"],
)
def test_whose_pauses_it_goes_by(own: Pauses, tenants: Pauses | None, expected: Window | None) -> None:
    assert window(own, tenants) == expected


@drawn(st.integers(0, 3_600), st.integers(20, 60))
def test_regular_pauses_are_met_ever_closer(seconds: int, times: int) -> None:
    found = window(paused(*[seconds] * times), None)
    assert found is not None
    pause_ns = seconds * NS_PER_S
    assert found.from_ns <= pause_ns <= found.to_ns
    assert found.to_ns - found.from_ns <= pause_ns // 20 + 64
