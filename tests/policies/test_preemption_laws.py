"""Laws of preemption, shares and quotas: what holds whatever happens."""

from dataclasses import replace

from hypothesis import example, given, settings, strategies

from events.base import PPM, Event
from events.decisions import RequestAdmitted, RequestPreempted
from policies import accounts
from policies.accounts import Load, has_begun
from policies.admission import ADMISSION
from policies.admission_settings import Preemption
from policies.forecast import expected_tokens
from policies.whereabouts import State
from tests.policies import words
from tests.policies.world import WILD, World, live, numbers

DAYS = strategies.lists(strategies.integers(0, 2**20), max_size=80)
few = settings(max_examples=40, deadline=None)
PRESSED = (*(("arrive",) * 4), "step", "step", "tick", "race", "abort", "beat")
"""More than the engines can hold."""


def checked(state: State, event: Event, now_ns: int) -> list[Event]:
    """What admission decides, held against the rules of who may be preempted, for whom."""
    asking = {one.request.request_id: one.request for line in state.lines.by_group.values() for one in line.ordered()}
    if state.fresh is not None:
        asking[state.fresh.request.request_id] = state.fresh.request
    decisions = ADMISSION.decide(state, event, now_ns)
    orders = [one for one in decisions if isinstance(one, RequestPreempted)]
    assert len(orders) <= state.settings.preempt_victims_max
    for order in orders:
        account = state.accounts[order.engine_id]
        victim = account.residents[order.request_id]
        urgent, begun = asking[order.for_request], has_begun(victim)
        more_important = urgent.priority > victim.request.priority
        assert more_important or (state.settings.preemption is Preemption.SLACK and not begun), "strictly more urgent"
        assert account.can_preempt if begun else account.can_abort, "no policy pretends"
        assert victim.preemptions < state.settings.preemptions_max, "nobody is preempted for ever"
        protected = victim.output_tokens * PPM >= state.settings.protect_ppm * expected_tokens(victim)
        assert not (begun and protected), "who is nearly done is left alone"
        goes = [(one.request_id, one.engine_id) for one in decisions if isinstance(one, RequestAdmitted)]
        assert (order.for_request, order.engine_id) in goes, "the room is for one that goes there"
    return decisions


def watched(**more: object) -> World:
    world = World(decider=replace(ADMISSION, decide=checked), **more)  # type: ignore[arg-type]
    world.say(words.settings(preemption="slack", ttft_margin_ppm=PPM, tpot_margin_ppm=0, backlog_max_ns=0))
    return world


def check_books(state: State) -> None:
    """Each tenant holds what its residents hold, to the byte, and every request is in one place."""
    held: dict[str, int] = {}
    for account in state.accounts.values():
        for resident in account.residents.values():
            tenant = resident.request.tenant
            held[tenant] = held.get(tenant, 0) + accounts.bytes_of(account, resident)
        assert sum(account.priorities.values()) == len(account.residents)
        assert account.load.embedding_blocks <= account.load.blocks_final
    assert state.tenants.held == {tenant: amount for tenant, amount in held.items() if amount}
    parked = [name for account in state.accounts.values() for name in account.parked]
    assert sorted(parked) == sorted(state.parked_on)
    assert not [name for name in parked if name in state.running or name in state.lines.group_of]


@few
@given(DAYS)
def test_only_who_may_be_preempted_is_and_the_books_are_exact_on_any_day(day: list[int]) -> None:
    world = watched()
    for number in day:
        live([number], WILD, world)
        check_books(world.state)
        assert sorted(world.state.parked_on) == sorted(world.parked)


def test_so_it_is_on_a_long_day_under_pressure_and_there_is_something_to_see() -> None:
    world = watched()
    for number in numbers(2_500, 3):
        live([number], PRESSED, world)
        check_books(world.state)
    said = [event for decisions in world.said for event in decisions]
    orders = [event for event in said if isinstance(event, RequestPreempted)]
    assert len(orders) > 25
    assert any(order.output_tokens for order in orders)
    assert any(event.resumed for event in said if isinstance(event, RequestAdmitted))


@few
@given(DAYS)
def test_whoever_was_preempted_ends_and_nothing_is_left(day: list[int]) -> None:
    world = live(day, PRESSED, watched())
    for _ in range(400):
        if not (world.running or world.waiting or world.parked):
            break
        world.step(0)
        world.tick(0)
    assert {**world.running, **world.waiting, **world.parked} == {}, "every request ends"
    state = world.state
    assert (state.running, state.parked_on, state.tenants.held) == ({}, {}, {})
    assert all(account.load == Load() and not account.priorities for account in state.accounts.values())


@few
@given(DAYS)
def test_one_that_is_parked_goes_on_within_the_stated_bound(day: list[int]) -> None:
    world = watched()
    bound_ns = world.state.settings.resume_max_ns
    for number in day:
        live([number], PRESSED, world)
        for account in world.state.accounts.values():
            since = [one.arrived_ns for one in account.parked.values()]
            assert all(world.progress.tick_ns - one < bound_ns for one in since), "at the latest with the next tick"


@few
@given(DAYS)
@example([363, 183, 3258, 21093, 3258, 3258])
def test_with_exact_predictions_the_budget_holds_under_preemption_too(day: list[int]) -> None:
    engines = (words.engine("e1", seqs_max=100, can_preempt=True), words.engine("e2", seqs_max=100, blocks=50))
    world = watched(own_tenants=True, engines=engines)
    world.say(words.settings(safety_ppm=0, output_quantile_ppm=PPM, ttft_margin_ppm=100_000))
    world.say(words.settings(resume_max_ns=600 * words.S))
    for number in [*day, *numbers(40, 3)]:
        live([number], ("arrive", "arrive", "step"), world)
        for engine in engines:
            assert world.blocks_held(engine.engine_id) <= engine.kv_blocks
