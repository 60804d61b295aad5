"""Strategies: in which order those that wait are looked at."""

from typing import Any

import pytest

from events.base import PPM
from events.request import RequestArrived
from policies.admission_settings import AdmissionSettings, Strategy
from policies.ordering import STRATEGIES, Ordering, adaptive, decided, lags, name_of, rule_of
from policies.ordering.fairness import HALVE_AT, TENANTS_MAX, UNIT, Standing, Standings, class_of, served_ppm
from policies.ordering.long_lane import is_full, width_ppm
from policies.predictors.output_question import Foretold
from policies.waiting import Lines, Waiting, put, reorder, take
from tests.policies.words import MS, arrived, embedding


def one(
    name: str, prompt: int = 100, *, at: int = 0, until: int = 0, work: int = 0, out: int = 0, **more: Any
) -> Waiting:
    return Waiting(
        request=arrived(name, prompt, **more), arrived_ns=at, until_ns=until, work_ns=work,
        foretold=Foretold(expected=out),
    )  # fmt: skip


ORDERS = [
    (Strategy.FIFO, (one("b", at=2, until=1), one("a", at=1, until=9)), "a b"),
    (Strategy.PRIORITY, (one("a", until=5), one("b", until=9, priority=1), one("c", until=3)), "b c a"),
    (Strategy.SLO_AWARE, (one("a", until=5, work=6), one("b", until=9, work=1), one("c", until=3, work=9)), "b a c"),
    (Strategy.COST_OPTIMIZED, (one("a", 8_000, work=MS), one("b", 999, work=2 * MS), one("c", 9, out=900)), "b a c"),
    (Strategy.HYBRID, (one("a", until=5, work=6), one("b", until=9, work=1)), "b a"),
]  # fmt: skip


@pytest.mark.parametrize(("strategy", "waiting", "expected"), ORDERS)
def test_the_order_of_a_strategy(strategy: Strategy, waiting: tuple[Waiting, ...], expected: str) -> None:
    lines = Lines()
    for each in waiting:
        each.key = STRATEGIES[strategy].key(each)
        put(lines, each)
    [line] = lines.by_group.values()
    assert " ".join(each.request.request_id for each in line.ordered()) == expected


def test_equals_go_in_the_order_in_which_they_were_deferred_and_a_new_strategy_sorts_anew() -> None:
    lines = Lines()
    for name, until in (("z", 5), ("a", 5), ("m", 1)):
        put(lines, one(name, until=until))
    [line] = lines.by_group.values()
    assert [each.request.request_id for each in line.ordered()] == ["z", "a", "m"]
    reorder(lines, STRATEGIES[Strategy.SLO_AWARE].key)
    assert [each.request.request_id for each in line.ordered()] == ["m", "z", "a"]
    assert take(lines, arrived("z").request_id) is not None
    assert [each.request.request_id for each in line.ordered()] == ["m", "a"]


def test_every_strategy_that_can_be_set_is_there() -> None:
    assert {*STRATEGIES, Strategy.ADAPTIVE} == set(Strategy)


def test_adaptive_changes_over_with_hysteresis() -> None:
    settings, ordering = AdmissionSettings(strategy=Strategy.ADAPTIVE), Ordering()
    seen = []
    for served, refused in ((100, 0), (0, 4), (0, 2), (40, 0), (400, 0)):
        for n in range(served + refused):
            decided(ordering, arrived(f"r{n}"), served=n < served)
        seen.append((name_of(ordering, settings), rule_of(ordering, settings)))
    calm, pressed = ("adaptive", adaptive.CALM), ("adaptive:pressed", adaptive.PRESSED)
    assert seen == [calm, calm, pressed, pressed, calm], "100, 96, 94, 96 and 99 %"


def offered(standings: Ordering, request: RequestArrived, *, served: int, refused: int) -> None:
    for n in range(served + refused):
        decided(standings, request, served=n < served)


FAIR = AdmissionSettings(fairness_ppm=600_000)


def test_a_class_that_is_served_far_less_than_all_lags_behind_until_it_has_caught_up() -> None:
    ordering, short, long = Ordering(), arrived("s", 100, tenant="s"), arrived("l", 20_000, tenant="l")
    offered(ordering, short, served=90, refused=10)
    assert not lags(ordering, long, FAIR), "nothing is known of it yet"
    offered(ordering, long, served=8, refused=22)
    assert lags(ordering, long, FAIR)
    assert not lags(ordering, short, FAIR)
    assert not lags(ordering, long, AdmissionSettings(fairness_ppm=0))
    offered(ordering, long, served=30, refused=0)
    assert not lags(ordering, long, FAIR)


def test_a_tenant_lags_behind_on_its_own() -> None:
    ordering = Ordering()
    offered(ordering, arrived("a", tenant="a"), served=90, refused=0)
    offered(ordering, arrived("b", tenant="b"), served=4, refused=16)
    assert lags(ordering, arrived("b", tenant="b"), FAIR)
    assert not lags(ordering, arrived("a", tenant="a"), FAIR)


@pytest.mark.parametrize(
    ("request_", "place"),
    [(arrived("a", 4_095), 0), (arrived("a", 4_096), 1), (arrived("a", 16_384), 2), (arrived("a", 32_768), 3),
     (embedding("v", 9_999), 4)],
)  # fmt: skip
def test_classes_by_length(request_: RequestArrived, place: int) -> None:
    assert class_of(request_) == place


def test_what_is_counted_fades_and_is_bounded() -> None:
    ordering = Ordering()
    for n in range(5_000):
        decided(ordering, arrived(f"r{n}", tenant=f"t{n}"), served=n % 2 == 0)
    standings: Standings = ordering.standings
    assert standings.overall.offered < HALVE_AT
    assert len(standings.tenants) == TENANTS_MAX
    half = Standing(standings.overall.offered, standings.overall.offered // 2)
    assert abs(standings.overall.served - half.served) <= 8 * UNIT


LANES = [
    ("short ones need no lane", [900, 900], 99, 100, PPM // 4, False),
    ("a free lane", [49, 0, 0, 0], 100, 100, PPM // 4, False),
    ("a taken one", [50, 0, 0, 0], 100, 100, PPM // 4, True),
    ("two lanes, one taken", [50, 0, 0, 0], 100, 100, PPM // 2, False),
    ("at least one lane", [0], 100, 100, 1, False),
    ("nothing is long", [900], 10**9, 0, 1, False),
]


@pytest.mark.parametrize(("why", "backlogs", "work", "long", "lane", "full"), LANES, ids=[row[0] for row in LANES])
def test_the_long_lane(why: str, backlogs: list[int], work: int, long: int, lane: int, full: bool) -> None:
    assert is_full(backlogs, work_ns=work, long_prefill_ns=long, long_lane_ppm=lane) is full


WIDTHS = [
    ("nothing was refused", PPM, 250_000, 500_000, 500_000),
    ("nearly nothing", 980_000, 250_000, 500_000, 500_000),
    ("half way to pressure", 965_000, 250_000, 500_000, 375_000),
    ("under pressure", 950_000, 250_000, 500_000, 250_000),
    ("far under it", 0, 250_000, 500_000, 250_000),
    ("wide under pressure, so wide when calm", PPM, 750_000, 500_000, 750_000),
]


@pytest.mark.parametrize(("why", "served", "pressed", "calm", "width"), WIDTHS, ids=[row[0] for row in WIDTHS])
def test_the_lane_narrows_as_less_is_served(why: str, served: int, pressed: int, calm: int, width: int) -> None:
    assert width_ppm(served, pressed_ppm=pressed, calm_ppm=calm) == width


def test_before_anything_was_decided_all_counts_as_served() -> None:
    ordering = Ordering()
    assert served_ppm(ordering.standings) == PPM
    offered(ordering, arrived("a"), served=3, refused=1)
    assert served_ppm(ordering.standings) == 750_000
