"""What a log says over time, and what of it becomes a number: steps, totals that begin anew, and where tokens came
from."""

from itertools import pairwise

import pytest
from msgspec.structs import replace

from events import codec
from events.base import NS_PER_S, PPM, EngineId, Event, SliceId
from events.decisions import Move, MoveReason, ShareReason, SharesSet, TransferOrdered
from events.engine import EngineKind, EngineMeasured, EngineRegistered
from events.slice import SlicesHit, SlicesRemoved, Tier, TransferEnd, TransferFinished
from replay.cluster import Run, simulate
from replay.score import Life, Scorer, fluctuation, score
from replay.series import series
from replay.workloads.base import Arrival
from replay.workloads.mixed import Mixed, engines, mixed
from tests.replay.test_score import admitted, arrived, finished, log

S = 1_000
"""A second in ms, the unit of `log`."""
E1, E2 = EngineId("e1"), EngineId("e2")
UNIT = 256
"""Tokens per slice of `arrived`."""


def registered(engine_id: EngineId = E1) -> EngineRegistered:
    return EngineRegistered(
        engine_id=engine_id, kind=EngineKind.SIMULATED, models=(), kv_blocks=100, block_tokens=16, block_bytes=10
    )


def measured(
    used: int, *, engine: EngineId = E1, waiting: int = 0, prompts: int = 0, output: int = 0, embedding: int = -1
) -> EngineMeasured:
    return EngineMeasured(
        engine_id=engine, running=0, waiting=waiting, kv_used_ppm=used, prompt_tokens_total=prompts,
        output_tokens_total=output, embedding_bytes=embedding,
    )  # fmt: skip


def hit(tier: Tier, *slices: str, engine: EngineId = E1) -> SlicesHit:
    return SlicesHit(engine_id=engine, tier=tier, slices=tuple(SliceId(one) for one in slices))


def ordered(
    order: str, reason: MoveReason, *, move: Move = Move.PROMOTE, slices: tuple[str, ...] = ()
) -> TransferOrdered:
    return TransferOrdered(
        order=order, engine_id=E1, move=move, reason=reason, slices=tuple(SliceId(one) for one in slices),
        from_tier=Tier.DRAM, to_engine=E2 if move is Move.REPLICATE else EngineId(""),
    )  # fmt: skip


def ended(order: str, end: TransferEnd = TransferEnd.DONE, done: int = 1) -> TransferFinished:
    return TransferFinished(order=order, engine_id=E1, end=end, slices_done=done)


def of(name: str, *said: tuple[int, Event], engine: str = "", every_s: int = 10) -> list[tuple[float, float]]:
    found = [one for one in series(log(*said), every_s=every_s) if (one.name, one.engine) == (name, engine)]
    return [point for one in found for point in zip(one.at_s, one.values, strict=True)]


def test_occupancy_is_the_mean_of_each_step_by_engine() -> None:
    said = [
        (0, registered()), (4 * S, measured(100)), (10 * S, measured(300)), (11 * S, measured(800)),
        (5 * S, measured(7, engine=E2)),
    ]  # fmt: skip
    assert of("occupancy", *said, engine="e1") == [(10.0, 200.0), (20.0, 800.0)]
    assert of("occupancy", *said, engine="e2") == [(10.0, 7.0)]
    assert of("occupancy", *said, engine="e1", every_s=5) == [(5.0, 100.0), (10.0, 300.0), (15.0, 800.0)]


def test_points_count_from_the_first_record() -> None:
    assert of("occupancy", (3 * S, measured(100)), (14 * S, measured(200)), engine="e1") == [
        (7.0, 100.0),
        (17.0, 200.0),
    ]


def test_throughput_is_what_engines_computed_since_they_were_measured_last() -> None:
    said = [
        (1 * S, measured(0, prompts=5_000, output=500)),  # Before the log began, or in no step of it.
        (9 * S, measured(0, prompts=6_000, output=600)),
        (12 * S, measured(0, prompts=100, output=20)),  # It started anew.
        (15 * S, measured(0, prompts=150, output=20)),
    ]
    assert of("throughput", *said) == [(9.0, 110.0), (19.0, 17.0)]


def test_attainment_is_of_those_who_arrived_in_the_step() -> None:
    said = [
        (2 * S, arrived("a")), (4 * S, arrived("b")), (12 * S, arrived("c")), (13 * S, finished("b")),
        (30 * S, finished("c")),
    ]  # fmt: skip
    assert of("slo_attainment", *said) == [(8.0, PPM / 2), (18.0, PPM)]


def test_who_waits_is_held_before_the_engines_or_queues_in_one() -> None:
    said = [
        (1 * S, arrived("a")), (2 * S, arrived("b")), (5 * S, admitted("a")), (6 * S, measured(0, waiting=2)),
        (8 * S, measured(0, waiting=4)), (12 * S, admitted("b")), (13 * S, measured(0, waiting=1)),
    ]  # fmt: skip
    assert of("waiting", *said) == [(9.0, 1 + 3.0), (19.0, 1.0)]


def test_a_quota_is_used_by_its_own_kind() -> None:
    shares = SharesSet(
        engine_id=E1, llm_ppm=800_000, embedding_ppm=200_000, reason=ShareReason.ARMED, llm_urgency=0
    )  # fmt: skip
    lifted = SharesSet(engine_id=E1, llm_ppm=PPM, embedding_ppm=0, reason=ShareReason.LIFTED)
    said = [
        (0, registered()), (1 * S, measured(500_000, embedding=100)), (2 * S, shares),
        (3 * S, measured(500_000, embedding=100)), (11 * S, lifted), (12 * S, measured(500_000, embedding=100)),
    ]  # fmt: skip
    assert of("llm_quota_utilisation", *said, engine="e1") == [(10.0, 500_000.0)], "400,000 of 800,000"
    assert of("embedding_quota_utilisation", *said, engine="e1") == [(10.0, 500_000.0)], "100 of 1,000 bytes, of 20 %"


def test_a_log_without_measurements_has_no_series_of_them() -> None:
    assert {one.name for one in series(log((0, arrived("a")), (10, finished("a"))))} == {"slo_attainment"}
    assert series([]) == ()


def test_a_run_has_every_series_of_what_it_does() -> None:
    shape = Mixed(seconds=20, sessions=30, bursts=0, waves=1, wave_requests=4)
    # What is done before engines are first measured is in no step.
    later = [replace(one, at_ns=one.at_ns + 2 * NS_PER_S) for one in mixed(2, shape)]
    run = simulate(later, engines())
    found = series(run.messages, every_s=5)
    assert {(one.name, one.engine) for one in found} >= {
        ("slo_attainment", ""), ("throughput", ""), ("waiting", ""), ("hit_share_device", ""),
        ("occupancy", "e1"), ("occupancy", "e2"), ("llm_quota_utilisation", "e1"),
    }  # fmt: skip
    assert all(before < after for one in found for before, after in pairwise(one.at_s))
    tokens = next(one for one in found if one.name == "throughput")
    answers = [one.finished for one in lives(run) if one.finished is not None]
    computed = sum(one.prompt_tokens - one.cached_tokens + one.output_tokens for one in answers)
    assert sum(tokens.values) * 5 == pytest.approx(computed)


def lives(run: Run) -> list[Life]:
    scorer = Scorer()
    for message in run.messages:
        for recorded in codec.decode(message.seq, message.subject, message.body):
            scorer.take(recorded)
    return scorer.lives


# Numbers of a whole log.


def test_reused_tokens_stand_by_where_they_came_from() -> None:
    copy = ordered("m1", MoveReason.SPREAD, move=Move.REPLICATE, slices=("p", "q"))
    request = replace(arrived("a"), slices=(SliceId("x"),))
    scores = score(
        log(
            (0, request), (1, copy), (2, ended("m1", done=2)),
            (3, hit(Tier.DRAM, "x")), (4, hit(Tier.SSD, "y", "z")), (5, hit(Tier.HBM, "p", "w", engine=E2)),
            (6, SlicesRemoved(engine_id=E2, tier=Tier.HBM, slices=(SliceId("p"),))), (7, hit(Tier.HBM, "p", engine=E2)),
            (9, finished("a", cached=7 * UNIT)),
        )
    )  # fmt: skip
    assert scores.hit_tokens_by_tier == {"device": 3 * UNIT, "dram": UNIT, "ssd": 2 * UNIT, "peer": UNIT}
    assert sum(scores.hit_tokens_by_tier.values()) == 7 * UNIT


def test_orders_are_counted_by_who_gave_them() -> None:
    scores = score(
        log(
            (0, arrived("a")), (1, ordered("m1", MoveReason.PRESSURE)), (1, ordered("m2", MoveReason.HOT)),
            (1, ordered("p1", MoveReason.NEXT_TURN)), (2, ended("m1", TransferEnd.FAILED, 0)),
            (2, ended("p1", TransferEnd.FAILED, 0)), (3, ended("m2", TransferEnd.PARTLY)),
        )
    )  # fmt: skip
    assert (scores.migrations, scores.migrations_failed, scores.prefetches) == (2, 1, 1)


@pytest.mark.parametrize(("reason", "moves"), [
    (ShareReason.ARMED, 0), (ShareReason.LOAD_MOVED, 1), (ShareReason.BOUNDS_ASKED, 1), (ShareReason.LIFTED, 0)
])  # fmt: skip
def test_a_quota_moves_when_load_or_an_operator_moves_it(reason: ShareReason, moves: int) -> None:
    said = SharesSet(engine_id=E1, llm_ppm=PPM, embedding_ppm=0, reason=reason)
    assert score(log((0, arrived("a")), (1, said))).quota_moves == moves


def test_rates_are_over_the_window_and_cost_is_of_what_met_its_slo() -> None:
    said = [
        (0, registered(E1)), (0, registered(E2)), (0, arrived("a")), (0, arrived("b")), (10 * S, arrived("c")),
        (1 * S, finished("a")), (2 * S, finished("b", ttft_ms=5_000)), (30 * S, finished("c")),
    ]  # fmt: skip
    scores = score(log(*said))
    assert scores.window_ns == 10 * NS_PER_S
    assert scores.tokens_per_s == 2 * 111 / 10, "what finished later is none of the window's"
    assert scores.slo_tokens == 2 * 111
    assert scores.device_ns == 2 * 10 * NS_PER_S
    assert scores.device_hours_per_million == pytest.approx(20 / 3_600 / 222e-6)
    wide = score(log(*said), window_ns=100 * NS_PER_S)
    assert (wide.window_ns, wide.goodput_per_s) == (100 * NS_PER_S, 0.02)
    assert score(log((0, arrived("a")))).device_hours_per_million is None


def unsent(name: str, *, tenant: str = "a", prompt: int = 20_000) -> Arrival:
    return Arrival(at_ns=0, request_id=name, tenant=tenant, prompt_tokens=prompt, output_tokens=5)


def test_what_was_never_sent_is_missed_everywhere() -> None:
    scores = score(
        log((0, arrived("a")), (100, finished("a"))), unsent=[unsent("b"), unsent("c", tenant="z")]
    )  # fmt: skip
    assert (scores.requests, scores.unsent, scores.slo_met, scores.unfinished) == (3, 2, 1, 0)
    assert scores.slo_attainment == pytest.approx(1 / 3)
    assert (scores.ttft_p50_ns, scores.tpot_p50_ns) == (None, None)
    assert {name: (part.requests, part.slo_met) for name, part in scores.tenants.items()} == {"a": (2, 1), "z": (1, 0)}
    assert (scores.prompts["16-32K"].requests, scores.kinds["llm"].requests) == (2, 3)
    assert scores.fairness_jain < 1


def test_who_refuses_what_is_not_cached_has_reused_no_more() -> None:
    """Both have 40 tokens from a cache; one of them has never sent the longest prompt."""
    all_of_it = score(log((0, arrived("a")), (100, finished("a", cached=40))))
    a_part = score(log((0, arrived("a")), (100, finished("a", cached=40))), unsent=[unsent("b", prompt=900)])
    assert all_of_it.cached_token_share == a_part.cached_token_share == all_of_it.hit_share
    assert a_part.prompt_tokens_asked == all_of_it.prompt_tokens_asked + 900
    assert a_part.hit_share == pytest.approx(40 / a_part.prompt_tokens_asked)


def test_occupancy_and_throughput_fluctuate_over_the_middle_of_the_window() -> None:
    said: list[tuple[int, Event]] = [(0, registered()), (0, arrived("a")), (100 * S, arrived("b"))]
    total = 0
    for second in range(1, 101):
        edge = second <= 10 or second > 90
        total += 7_000 if edge else (100 if second % 20 < 10 else 300)
        said.append((second * S, measured(900_000 if edge else 400_000, prompts=total)))
    scores = score(log(*sorted(said, key=lambda one: one[0])))
    assert scores.occupancy_fluctuation == 0.0
    assert scores.throughput_fluctuation == pytest.approx(0.4), "steps of 2,800 and 1,200"
    assert (scores.occupancy_mean_ppm, scores.occupancy_max_ppm) == (500_000, 900_000)


def test_tokens_are_counted_when_they_are_produced_and_prompts_apart() -> None:
    """Output is even but for one step; prompts come in lumps."""
    said: list[tuple[int, Event]] = [(0, registered()), (0, arrived("a")), (100 * S, arrived("b"))]
    outputs = prompts = 0
    for second in range(1, 101):
        outputs += 5 if 40 < second <= 50 else 10
        prompts += 5_000 if second % 25 == 0 else 0
        said.append((second * S, measured(400_000, prompts=prompts, output=outputs)))
    scores = score(log(*sorted(said, key=lambda one: one[0])))
    steps = [100.0] * 7 + [50.0]
    assert scores.output_fluctuation == pytest.approx(fluctuation(steps))
    assert scores.output_least == pytest.approx(50 * 8 / 750)
    assert scores.throughput_fluctuation is not None
    assert scores.throughput_fluctuation > 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [([], None), ([1.0, 1.0], None), ([0.0, 0.0, 0.0], None), ([2.0, 2.0, 2.0], 0.0), ([1.0, 2.0, 3.0], 0.40825)],
)
def test_fluctuation_is_deviation_over_mean(values: list[float], expected: float | None) -> None:
    assert fluctuation(values) == (expected if expected is None else pytest.approx(expected, abs=1e-4))
