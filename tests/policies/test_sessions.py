"""Session slots: which sessions are active, for how long, and how long the others wait."""

from hypothesis import given, strategies

from events.base import ModelId, SessionId
from events.decisions import DeferReason, RequestAdmitted, WakeAsked
from events.request import RequestArrived
from policies import sessions
from policies.sessions import GAP_DEFAULT_NS, LEASES_MAX, TENANTS_MAX, Sessions
from tests.policies.house import admitted, deferred, house
from tests.policies.words import MS, S, aborted, arrived, beat, finished, settings, tick
from tests.spec import START_NS, Spec, at, said

SLOTS = settings(session_slots="on", session_kv_ppm=1_000_000, backlog_max_ns=0, tpot_margin_ppm=0)
MODEL = ModelId("m")


def turn(name: str, session: str, prompt: int = 400, **more: object) -> RequestArrived:
    return arrived(name, prompt, session=SessionId(session), **({"out": 10, "slack": 20 * S} | more))


def two_active(*more: object) -> Spec:
    """Two sessions of 400 tokens each have slots, of 1,000."""
    return house(SLOTS, *more, turn("a1", "a"), turn("b1", "b"))


def seconds(first: int, last: int) -> list[object]:
    return [at(n * S, event) for n in range(first, last + 1) for event in (beat(), tick(n))]


def test_a_session_begins_only_while_those_that_are_active_fit_with_it() -> None:
    spec = two_active()
    spec.after(finished("a1"), finished("b1"))  # All memory is free, but the sessions are expected back.
    spec.when(turn("c1", "c")).then(deferred("c1", DeferReason.SESSION_SLOT))
    spec.when(turn("d1", "d", 180)).then(admitted("d1"))


def test_an_active_session_goes_on_and_who_has_no_session_needs_no_slot() -> None:
    spec = two_active().after(finished("a1"), finished("b1"))
    spec.when(turn("a2", "a", 500)).then(admitted("a2"))
    spec.when(arrived("plain", 300, out=10)).then(admitted("plain"))


def test_a_session_is_its_tenants_own() -> None:
    spec = two_active().after(finished("a1"), finished("b1"))
    spec.when(turn("x1", "a", tenant="other")).then(deferred("x1", DeferReason.SESSION_SLOT))


def test_a_slot_is_free_when_its_lease_has_run_out() -> None:
    spec = two_active(settings(session_wait_max_ns=60 * S, session_lease_max_ns=3 * S))
    spec.after(finished("a1"), finished("b1"), turn("c1", "c"), *seconds(1, 2))
    assert "c1" in spec.state.lines.group_of
    spec.when(at(3 * S, tick(3))).then(admitted("c1"))
    assert list(spec.state.sessions.leases) == ["t\nm\nc"]


def test_while_a_turn_runs_its_slot_is_not_free() -> None:
    spec = two_active(settings(session_wait_max_ns=60 * S, session_lease_max_ns=1 * S))
    spec.after(finished("b1"), *seconds(1, 3))
    assert list(spec.state.sessions.leases) == ["t\nm\na"]
    spec.after(aborted("a1"), *seconds(4, 5))
    assert not spec.state.sessions.leases


def test_nobody_waits_longer_for_a_slot_than_stated() -> None:
    spec = two_active().after(finished("a1"), finished("b1"), turn("c1", "c"), *seconds(1, 4))
    spec.when(at(5 * S, tick(5))).then(admitted("c1"))


def test_nor_longer_than_half_of_what_the_deadline_gives() -> None:
    spec = two_active().after(finished("a1"), finished("b1"))
    spec.when(turn("c1", "c", slack=600 * MS)).then(
        deferred("c1", DeferReason.SESSION_SLOT), said(WakeAsked, at_ns=START_NS + 300 * MS)
    )
    spec.when(at(300 * MS, tick(2))).then(admitted("c1"))


def test_those_that_wait_for_a_slot_hold_up_nobody() -> None:
    spec = two_active(settings(passes_max=0)).after(finished("a1"), finished("b1"), turn("c1", "c"))
    spec.when(turn("a2", "a")).then(admitted("a2"))
    spec.when(arrived("plain", 100, out=10)).then(admitted("plain"))


def test_the_first_session_may_be_larger_than_all_slots() -> None:
    house(SLOTS, settings(session_kv_ppm=1)).when(turn("a1", "a")).then(admitted("a1"))


def test_two_that_begin_with_one_decision_count_each_other() -> None:
    spec = two_active(settings(session_wait_max_ns=60 * S, session_lease_max_ns=2 * S, passes_max=8))
    spec.after(finished("a1"), finished("b1"), turn("c1", "c", 600), turn("d1", "d", 600), *seconds(1, 1))
    spec.when(at(2 * S, tick(2))).then(admitted("c1"))


def test_switched_off_nobody_needs_one() -> None:
    spec = two_active().after(finished("a1"), finished("b1"), turn("c1", "c"), settings(session_slots="off"))
    spec.when(at(100 * MS, tick(2))).then(said(RequestAdmitted, request_id="c1"))
    assert spec.state.sessions == Sessions()


def test_a_lease_is_twice_the_time_that_the_tenants_sessions_take() -> None:
    book, now_ns = Sessions(), 100 * S
    for n in range(40):
        one = turn(f"r{n}", "a")
        sessions.turn_began(book, one, now_ns)
        sessions.turn_ended(book, one, tokens=500, now_ns=now_ns, lease_max_ns=600 * S)
        now_ns += 2 * S
    (lease,) = book.leases.values()
    assert (lease.until_ns - lease.ended_ns, lease.tokens) == (4 * S, 500)
    assert GAP_DEFAULT_NS > 4 * S


SESSIONS = strategies.lists(strategies.tuples(strategies.integers(0, 9), strategies.integers(0, 3)), max_size=80)


@given(SESSIONS)
def test_the_tokens_are_those_of_the_leases_and_every_lease_ends(day: list[tuple[int, int]]) -> None:
    book, running = Sessions(), dict[str, RequestArrived]()
    for now_ns, (n, what) in enumerate(day, start=1):
        one = turn(f"r{n}", f"s{n % 5}", 10 + n)
        if what == 0:
            running[one.request_id] = one
            sessions.turn_began(book, one, now_ns * S)
        elif what == 1 and running.pop(one.request_id, None):
            sessions.turn_ended(book, one, tokens=20 + n, now_ns=now_ns * S, lease_max_ns=5 * S)
        else:
            sessions.expire(book, now_ns * S)
        assert sum(lease.tokens for lease in book.leases.values()) == book.tokens.get(MODEL, 0)
    for one in running.values():
        sessions.turn_ended(book, one, tokens=1, now_ns=1_000 * S, lease_max_ns=5 * S)
    sessions.expire(book, 1_005 * S)
    assert (book.leases, book.tokens) == ({}, {})


def test_what_is_known_of_sessions_is_bounded() -> None:
    book = Sessions()
    for n in range(LEASES_MAX + 10):
        one = turn(f"r{n}", f"s{n}", tenant=f"t{n}")
        sessions.turn_began(book, one, S)
        sessions.turn_ended(book, one, tokens=1, now_ns=S, lease_max_ns=S)
        sessions.turn_began(book, one, 2 * S)
    assert len(book.leases) == LEASES_MAX
    assert len(book.gap_ns) == TENANTS_MAX
    assert book.tokens[MODEL] == LEASES_MAX * 400
