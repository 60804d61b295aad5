"""Laws of quota, whatever the load: shares add up and stay in bounds, come to rest, and never cycle."""

from itertools import pairwise

from hypothesis import example, given, settings, strategies

from events.base import PPM, EngineId, Event, RequestKind
from events.decisions import SharesSet
from policies import share_control
from policies.quota import QUOTA
from policies.quota_settings import QuotaSettings
from policies.quota_state import IDLE_PERIODS, bounds_of
from policies.share_control import GAIN_MIN_PPM, Share, settle_periods
from tests.policies.quota_words import WIDE, admitted, asks, both, bounds, deferred, quota, second, tenant
from tests.policies.words import S, engine, expired, finished, measured, tick
from tests.spec import START_NS, Spec, at, restored, snapshot
from tests.spec import given as given_events

CHOSEN = QuotaSettings(**WIDE.settings)
SETTLE_PERIODS = 96
"""A share that has room to move (WIDE) has settled so many periods after the load has stopped changing: it moves at
most once more, by a deadband. Nearly all of it is the forecast's memory: of how wrong it was a sixteenth fades per
period, and no share falls below its upper end. With the load gone it is IDLE_PERIODS and what the steps take."""
BAND_PPM = CHOSEN.deadband_ppm + PPM // 1_000
SLOPE_MAX = PPM // GAIN_MIN_PPM - 2
"""How much the wanted share may fall for every unit of the share before swings are not promised to end."""
few = settings(max_examples=60, deadline=None)
PPMS = strategies.integers(0, PPM)
LOADS = strategies.tuples(strategies.integers(0, 100_000), strategies.integers(0, 100_000))
"""Bytes that LLM requests and embedding jobs hold in every period, of an engine that has 100,000."""


def period(n: int, llm: int, embedding: int) -> list[Event]:
    """A second in which requests of both kinds come, hold so much, and go."""
    out: list[Event] = []
    for kind, amount in ((RequestKind.LLM, llm), (RequestKind.EMBEDDING, embedding)):
        if amount:
            name = f"{kind}{n}"
            out += [asks(name, kind), admitted(name, amount), finished(name)]
    return out


def share_of(spec: Spec) -> int:
    share: Share = spec.progress.state.shares[EngineId("e1")]
    return share.embedding_ppm


def shares_of(spec: Spec) -> list[SharesSet]:
    return [one for one in spec.decisions if isinstance(one, SharesSet)]


@few
@given(strategies.lists(LOADS, min_size=1, max_size=12), LOADS)
@example([(0, 0)], (60_000, 40_000))
@example([(0, 26), (0, 1), (0, 1)], (91_028, 8_578))
@example([(60_000, 40_000)] * 12, (100_000, 0))
@example([(50_000, 100_000), (50_000, 0)] * 6, (90_000, 10_000))
def test_after_a_step_of_load_shares_settle_within_the_stated_periods(
    before: list[tuple[int, int]], after: tuple[int, int]
) -> None:
    spec = given_events(QUOTA, WIDE, both(), *second(0))
    for n, load in enumerate(before, start=1):
        spec.after(*second(n, *period(n, *load)))
    first = len(before) + 1
    for n in range(first, first + SETTLE_PERIODS):
        spec.after(*second(n, *period(n, *after)))
    settled, moves = share_of(spec), 0
    for n in range(first + SETTLE_PERIODS, first + 2 * SETTLE_PERIODS):
        spec.after(*second(n, *period(n, *after)))
        moves += bool(shares_of(spec))
    still = share_of(spec)
    assert moves <= 1
    assert abs(still - settled) <= BAND_PPM
    llm, embedding = after
    if not embedding:
        assert still == CHOSEN.embedding_min_ppm
    else:
        wanted = max(embedding * PPM // (llm + embedding), embedding * 10)
        nearest = min(max(wanted, CHOSEN.embedding_min_ppm), CHOSEN.embedding_max_ppm)
        assert still >= nearest - CHOSEN.deadband_ppm


DAYS = strategies.lists(strategies.integers(0, 10**6), max_size=60)


def happening(number: int, n: int) -> Event:
    """Something that may happen to quota, by a number."""
    kind, size, name = (RequestKind.LLM, RequestKind.EMBEDDING)[number % 2], number % 70_000, f"r{number % 7}"
    choices: list[Event] = [
        asks(name, kind, prompt=number % 900), admitted(name, size, on=("e1", "e2")[number % 3 % 2]), deferred(name),
        finished(name), expired(name), both("e2"), engine("e2"),
        bounds(number % 50, 50 + number % 50, ("", "e1")[n % 2]), bounds(number % 100, number % 70),
        tenant(f"t{number % 3}", number - 1_000),
        quota(enabled=("on", "off")[number % 2]), quota(step_max_ppm=10_000 + number % 400_000),
        quota(deadband_ppm=number % 200_000), measured("e2"),
    ]  # fmt: skip
    return choices[number // 7 % len(choices)]


@few
@given(LOADS)
def test_without_embedding_jobs_the_share_is_back_at_its_least_in_the_stated_periods(before: tuple[int, int]) -> None:
    spec = given_events(QUOTA, WIDE, both(), *second(0))
    for n in range(1, 9):
        spec.after(*second(n, *period(n, *before)))
    settles = IDLE_PERIODS + settle_periods(
        CHOSEN.embedding_min_ppm, CHOSEN.embedding_max_ppm, CHOSEN.step_max_ppm
    )  # fmt: skip
    for n in range(9, 9 + settles):
        spec.after(*second(n, *period(n, before[0], 0)))
    assert share_of(spec) == CHOSEN.embedding_min_ppm


@few
@given(DAYS)
def test_shares_add_up_and_stay_in_bounds_whatever_happens(day: list[int]) -> None:
    spec = given_events(QUOTA, WIDE, both(), *second(0))
    for n, number in enumerate(day, start=1):
        for event in (at(n * S, happening(number, n)), at(n * S, measured()), at(n * S, tick(n))):
            before = {name: one.embedding_ppm for name, one in spec.progress.state.shares.items()}
            spec.after(event)
            for one in shares_of(spec):
                assert one.llm_ppm + one.embedding_ppm == PPM
                assert 0 <= one.embedding_ppm <= PPM
                if one.engine_id and one.reason != "lifted":
                    bound = bounds_of(spec.progress.state, one.engine_id)
                    assert bound.low_ppm <= one.embedding_ppm <= bound.high_ppm
                    if one.reason == "load_moved" and bound.low_ppm <= before[one.engine_id] <= bound.high_ppm:
                        step = abs(one.embedding_ppm - before[one.engine_id])
                        assert step <= spec.progress.state.settings.step_max_ppm
    assert all(amount > 0 for amount in spec.progress.state.tenants.values())


@few
@given(DAYS)
def test_a_restart_from_a_snapshot_changes_no_decision(day: list[int]) -> None:
    spec, twin = given_events(QUOTA, WIDE, both(), *second(0)), given_events(QUOTA, WIDE, both(), *second(0))
    for n, number in enumerate(day, start=1):
        twin.progress = restored(QUOTA, twin.progress)
        for event in (at(n * S, happening(number, n)), at(n * S, measured()), at(n * S, tick(n))):
            assert spec.after(event).decisions == twin.after(event).decisions
    assert snapshot(spec.progress) == snapshot(twin.progress)
    assert spec.ns >= START_NS - S


# The controller by itself -------------------------------------------------------------------------------------------


def step(share: Share, wanted: int, low: int, high: int, *, deadband: int = 20_000, step_max: int = 100_000) -> bool:
    """One period; whether the share moved."""
    to_ppm = share_control.moved(
        share, wanted, low_ppm=low, high_ppm=high, deadband_ppm=deadband, step_max_ppm=step_max
    )
    has_moved = to_ppm != share.embedding_ppm
    share_control.note(share, to_ppm, learns=True)
    return has_moved


@given(PPMS, PPMS, PPMS, PPMS, strategies.integers(10_000, PPM), strategies.lists(PPMS, max_size=8))
def test_a_share_comes_to_what_is_wanted_in_the_stated_periods_whatever_was_before(
    a: int, b: int, start: int, wanted: int, step_max: int, before: list[int]
) -> None:
    low, high = min(a, b), max(a, b)
    share = Share(embedding_ppm=start)
    for each in before:
        step(share, each, low, high, step_max=step_max)
    for _ in range(settle_periods(low, high, step_max)):
        step(share, wanted, low, high, step_max=step_max)
    assert abs(share.embedding_ppm - min(max(wanted, low), high)) <= 20_000
    assert not step(share, wanted, low, high, step_max=step_max)


@given(
    PPMS,
    strategies.integers(PPM // 5, 4 * PPM // 5),
    strategies.integers(0, SLOPE_MAX),
    strategies.integers(1_000, PPM // 5),
)
@example(PPM, 500_000, SLOPE_MAX, 1_000)
@example(0, 300_000, 3, 20_000)
def test_no_limit_cycle_where_the_load_answers_to_the_share(start: int, rest: int, slope: int, deadband: int) -> None:
    """The more memory a kind has, the less urgent it becomes: `slope` times as much as the share has moved."""
    share = Share(embedding_ppm=start)
    moves = [
        step(share, rest - slope * (share.embedding_ppm - rest), 0, PPM, deadband=deadband, step_max=PPM // 5)
        for _ in range(200)
    ]
    assert not any(moves[-20:])


@given(PPMS, strategies.lists(strategies.booleans(), min_size=1, max_size=30))
def test_the_gain_falls_when_the_way_turns_and_comes_back_when_it_does_not(start: int, ways: list[bool]) -> None:
    share, at_ppm, gains = Share(embedding_ppm=start), start, [PPM]
    for up in ways:
        at_ppm += 1 if up else -1
        share_control.note(share, at_ppm, learns=True)
        gains.append(share.gain_ppm)
    for (was, now), (last, up) in zip(list(pairwise(gains))[1:], pairwise(ways), strict=True):
        assert now == max(was // 2, GAIN_MIN_PPM) if up != last else now in (was, min(2 * was, PPM))
    assert all(GAIN_MIN_PPM <= gain <= PPM for gain in gains)


def test_what_an_operator_sets_says_nothing_about_the_load() -> None:
    share = Share(embedding_ppm=100_000)
    share_control.note(share, 200_000, learns=True)
    share_control.note(share, 50_000, learns=False)
    assert (share.gain_ppm, share.way, share.embedding_ppm) == (PPM, 1, 50_000)


def test_the_example_of_the_page_holds() -> None:
    share = Share(embedding_ppm=50_000)
    for wanted, seen in (
        (400_000, [150_000, 250_000, 350_000, 400_000]),
        (100_000, [300_000, 200_000, 150_000, 125_000, 100_000]),
    ):
        for ppm in seen:
            assert step(share, wanted, 0, PPM)
            assert share.embedding_ppm == ppm
