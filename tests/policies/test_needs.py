"""Which requests still want their prompts, and which slices are wanted."""

from collections import Counter

from hypothesis import given as drawn
from hypothesis import strategies as st

from events.base import EngineId, Event, RequestId
from events.decisions import PreemptReason, RequestPreempted
from policies import needs
from policies.needs import OPEN_MAX, Needs
from tests.policies.tier_words import admitted, deferred
from tests.policies.words import aborted, arrived, embedding, finished, first_token, slices


def preempted(name: str) -> RequestPreempted:
    return RequestPreempted(
        request_id=RequestId(name), engine_id=EngineId("e1"), for_request=RequestId("u"),
        reason=PreemptReason.MORE_URGENT,
    )  # fmt: skip


def needs_of(*events: Event) -> Needs:
    known = Needs()
    for event in events:
        needs.heed(known, event, 1)
    return known


def test_what_waits_or_was_sent_is_wanted_until_its_first_token() -> None:
    came = arrived("a", 20, slices=slices("x", "y"))
    assert needs_of(came).slices == {}, "nothing was decided yet"
    assert needs_of(came, deferred("a")).slices == {"x": 1, "y": 1}
    assert needs_of(came, deferred("a"), admitted("a")).slices == {"x": 1, "y": 1}
    assert needs_of(came, admitted("a"), first_token("a")).slices == {}
    assert needs_of(came, admitted("a"), first_token("a"), preempted("a")).slices == {"x": 1, "y": 1}
    assert needs_of(embedding("v", slices=slices("x")), admitted("v")).slices == {}


def test_what_is_remembered_is_bounded() -> None:
    known = Needs()
    for number in range(OPEN_MAX + 9):
        needs.heed(known, arrived(f"r{number}", 20, slices=slices("x", f"y{number}")), 1)
        needs.heed(known, deferred(f"r{number}"), 1)
    assert (len(known.open), known.slices["x"], len(known.slices)) == (OPEN_MAX, OPEN_MAX, OPEN_MAX + 1)


def test_so_is_what_was_preempted() -> None:
    known = Needs()
    for number in range(OPEN_MAX):
        for event in (arrived(f"b{number}", 20, slices=slices("x")), admitted(f"b{number}"), first_token(f"b{number}")):
            needs.heed(known, event, 1)
    for number in range(OPEN_MAX):
        needs.heed(known, arrived(f"r{number}", 20, slices=slices("y")), 1)
    for number in range(OPEN_MAX):
        needs.heed(known, preempted(f"b{number}"), 1)
    assert (len(known.open), known.slices) == (OPEN_MAX, {"x": OPEN_MAX})


NAMES = st.sampled_from("abc")
WORDS = st.lists(
    st.one_of(
        st.builds(lambda name, chain: arrived(name, 40, slices=slices(*chain)), NAMES, st.text("xyz", max_size=3)),
        *(NAMES.map(word) for word in (deferred, admitted, preempted, first_token, finished, aborted)),
    ),
    max_size=40,
)


@drawn(WORDS)
def test_the_count_of_wanted_slices_is_that_of_the_requests(words: list[Event]) -> None:
    known = needs_of(*words)
    wanted = Counter(slice_id for _, need in needs.wanted(known) for slice_id in need.slices)
    assert known.slices == dict(wanted)
    assert known.open.keys().isdisjoint(known.begun)
