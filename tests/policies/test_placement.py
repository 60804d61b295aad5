"""Placements: what each kind scores, and which engine it picks."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from events.base import PPM, EngineId
from policies.admission_settings import Placement
from policies.placement import KINDS, TURNS_MAX, count_turn, ranked
from policies.placement.affinity import drawn_ppm
from policies.placement.candidate import Asked, Candidate
from policies.placement.dynamo_kv import cost_ppm


def engine(name: str, load: int = 0, cached: int = 0, ttft: int = 0, **more: Any) -> Candidate:
    """An engine; its place is the number in its name."""
    return Candidate(EngineId(name), int(name[1:]) - 1, load, cached, ttft, **more)


def asked(candidates: Sequence[Candidate], prompt: int = 1_000, **more: Any) -> Asked:
    """A request for these engines, with everything that follows from them."""
    nearest = max(candidates, key=lambda one: one.cached_tokens)
    given: dict[str, Any] = {
        "turn": 0, "affinity_tokens_min": 100, "affinity_load_ppm": 1_500_000,
        "load_tokens": sum(one.load_tokens for one in candidates),
        "ttft_max_ns": max(one.ttft_ns for one in candidates),
        "work_max_ns": max(one.work_ns for one in candidates),
        "cached_max_tokens": nearest.cached_tokens, "home": nearest.labels,
    }  # fmt: skip
    return Asked(prompt_tokens=prompt, candidates=len(candidates), **(given | more))


def order(kind: Placement, *candidates: Candidate, **more: Any) -> list[str]:
    return [one.engine_id for one in ranked(kind, candidates, asked(candidates, **more))]


NEAR = {"nvlink": "a", "numa": "0", "host": "h1", "rack": "r1"}
PICKS = [
    (Placement.SLO_AWARE, (engine("e1", ttft=90), engine("e2", ttft=40)), {}, ["e2", "e1"]),
    (Placement.SLO_AWARE, (engine("e1", 50, ttft=40), engine("e2", 10, ttft=40)), {}, ["e2", "e1"]),
    (Placement.SLO_AWARE, (engine("e1", ttft=40, work_ns=40), engine("e2", ttft=70, work_ns=10)), {}, ["e2", "e1"]),
    (Placement.SLO_AWARE, (engine("e1", ttft=40, work_ns=40), engine("e2", ttft=110, work_ns=10)), {}, ["e1", "e2"]),
    (Placement.ROUND_ROBIN, (engine("e1"), engine("e2", 90), engine("e3")), {"turn": 4}, ["e2", "e3", "e1"]),
    (Placement.LEAST_LOADED, (engine("e1", 30), engine("e2", 20), engine("e3", 20)), {}, ["e2", "e3", "e1"]),
    (Placement.PREFIX_AFFINITY, (engine("e1", 500, 300), engine("e2", 400, 200), engine("e3")), {}, ["e1", "e2", "e3"]),
    (Placement.PREFIX_AFFINITY, (engine("e1", 5_000, 300), engine("e2")), {}, ["e2", "e1"]),
    (Placement.PREFIX_AFFINITY, (engine("e1", 50, 99), engine("e2")), {}, ["e2", "e1"]),
    (Placement.LOAD_BALANCED, (engine("e1", budget_left_ppm=200_000), engine("e2", budget_left_ppm=700_000)), {},
     ["e2", "e1"]),
    (Placement.LOAD_BALANCED, (engine("e1", cached=900, conflict=True), engine("e2", cached=500)), {}, ["e2", "e1"]),
    (Placement.LOAD_BALANCED, (engine("e1", cached=900), engine("e2", cached=500)), {}, ["e1", "e2"]),
    (Placement.LOCALITY, (engine("e1", 9_000, 500), engine("e2", 0, 400)), {}, ["e1", "e2"]),
    (Placement.LOCALITY, (engine("e1", budget_left_ppm=100_000), engine("e2")), {}, ["e2", "e1"]),
    (Placement.LOCALITY, (engine("e1", cached=500, conflict=True), engine("e2", cached=400)), {}, ["e2", "e1"]),
    (Placement.TOPOLOGY_AWARE, (
        engine("e1", 90, 500, labels=NEAR), engine("e2", labels={"rack": "r2"}), engine("e3", labels={"rack": "r1"}),
        engine("e4", labels={"host": "h1", "rack": "r1"}), engine("e5", labels={"nvlink": "a"}),
        engine("e6", labels={"numa": "0", "host": "h1"}), engine("e7", labels={"numa": "0", "host": "h2"}),
     ), {}, ["e1", "e5", "e6", "e4", "e3", "e2", "e7"]),
    (Placement.TOPOLOGY_AWARE, (engine("e1", 90, 99, labels=NEAR), engine("e2")), {}, ["e2", "e1"]),
    (Placement.TOPOLOGY_AWARE, (engine("e1", 90, 500, labels=NEAR, conflict=True), engine("e2", labels=NEAR)), {},
     ["e2", "e1"]),
    (Placement.DYNAMO_KV, (
        engine("e1", 7_000, 0, prefill_tokens=600, block_tokens=16),
        engine("e2", 3_000, 0, prefill_tokens=3_800, block_tokens=16),
     ), {}, ["e2", "e1"]),
    (Placement.DYNAMO_KV, (
        engine("e1", 7_000, 0, prefill_tokens=600, block_tokens=16),
        engine("e2", 3_000, 0, prefill_tokens=3_800, block_tokens=16),
     ), {"overlap_ppm": 2 * PPM}, ["e1", "e2"]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "engines", "more", "expected"), PICKS)
def test_the_best_comes_first(
    kind: Placement, engines: tuple[Candidate, ...], more: dict[str, Any], expected: list[str]
) -> None:
    assert order(kind, *engines, **more) == expected


def test_a_session_stays_where_it_is_drawn_unless_that_engine_is_busy_or_full() -> None:
    engines = [engine(f"e{n}", 100) for n in range(1, 5)]
    first, second = order(Placement.AFFINITY, *engines, key="s7")[:2]
    assert order(Placement.AFFINITY, *reversed(engines), key="s7")[0] == first, "not by place"
    busy = [one._replace(load_tokens=9_000) if one.engine_id == first else one for one in engines]
    assert order(Placement.AFFINITY, *busy, key="s7")[0] == second
    taken = [one._replace(conflict=True) if one.engine_id == first else one for one in engines]
    assert order(Placement.AFFINITY, *taken, key="s7")[0] == second
    left = [one for one in engines if one.engine_id != first]
    assert order(Placement.AFFINITY, *left, key="s7")[0] == second, "only its own keys move when an engine leaves"


def test_without_a_key_affinity_goes_by_load() -> None:
    assert order(Placement.AFFINITY, engine("e1", 20), engine("e2", 10)) == ["e2", "e1"]


def test_keys_are_spread_over_engines() -> None:
    engines = [engine(f"e{n}", 100) for n in range(1, 5)]
    firsts = [order(Placement.AFFINITY, *engines, key=f"s{n}")[0] for n in range(400)]
    assert all(60 <= firsts.count(f"e{n}") <= 140 for n in range(1, 5))
    assert drawn_ppm("s7", "e1") == drawn_ppm("s7", "e1") != drawn_ppm("s7", "e2")


def test_dynamo_counts_what_is_in_line_and_what_is_held() -> None:
    one = engine("e1", 320, 160, prefill_tokens=480, block_tokens=16)
    assert cost_ppm(one, asked([one], 800)) == (70 + 70) * PPM, "480 + 800 - 160 to compute, 320 + 800 held"


amounts = some.integers(0, 10**6)


@given(
    some.lists(some.tuples(amounts, amounts, amounts, amounts, some.integers(0, PPM), some.booleans()), min_size=1,
               max_size=8),
    some.integers(1, 10**6), some.integers(0, 99), some.sampled_from(["", "s1"]),
)  # fmt: skip
def test_every_score_is_between_0_and_1(drawn: list[Any], prompt: int, turn: int, key: str) -> None:
    engines = [
        engine(
            f"e{n}", load, min(cached, prompt), ttft, prefill_tokens=prefill, budget_left_ppm=left, conflict=conflict
        )
        for n, (load, cached, ttft, prefill, left, conflict) in enumerate(drawn, start=1)
    ]
    question = asked(engines, prompt, turn=turn, key=key)
    for kind, score in KINDS.items():
        assert all(0 <= score(one, question) <= PPM for one in engines), kind
        assert sorted(ranked(kind, engines, question)) == sorted(engines), "nobody is lost"


def test_every_kind_that_can_be_set_is_there() -> None:
    assert set(KINDS) == set(Placement)


def test_turns_are_counted_of_a_bounded_number_of_lines() -> None:
    turns: dict[str, int] = {}
    for number in range(2 * TURNS_MAX):
        count_turn(turns, f"llm:m{number}")
        count_turn(turns, "llm:m")
    assert len(turns) == TURNS_MAX
    assert turns["llm:m"] == 2 * TURNS_MAX
