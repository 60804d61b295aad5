"""Admission: what would miss its first token is not started."""

import msgspec

from events.decisions import (
    DeferReason,
    RejectReason,
    RequestAdmitted,
    WakeAsked,
)
from tests.policies.house import admitted, deferred, house, rejected
from tests.policies.words import (
    FS_PER_MS,
    MS,
    START_NS,
    STEP,
    S,
    aborted,
    arrived,
    beat,
    engine,
    finished,
    first_token,
    settings,
    tick,
)
from tests.spec import at, said


def test_a_deadline_that_the_work_before_it_makes_unreachable_is_refused_at_once() -> None:
    spec = house(settings(backlog_max_ns=0), arrived("a", 400, slack=S, out=1))
    spec.when(arrived("b", 100, slack=45 * MS)).then(rejected("b", RejectReason.SLO_INFEASIBLE, retry_after_ns=S))
    spec.when(arrived("c", 100, slack=50 * MS)).then(admitted("c", ttft_predicted_ns=50 * MS, slo_slack_ns=0))


def test_what_no_engine_could_ever_do_in_time_gets_no_advice_to_retry() -> None:
    house().when(arrived("r", 500, slack=40 * MS)).then(rejected("r", RejectReason.SLO_INFEASIBLE, retry_after_ns=0))


def test_the_margin_is_held_against_the_slack() -> None:
    house(settings(ttft_margin_ppm=2_000_000)).when(arrived("r", 500, slack=99 * MS)).then(
        rejected("r", RejectReason.SLO_INFEASIBLE)
    )


def test_what_the_head_of_the_line_has_done_already_is_not_counted_again() -> None:
    spec = house(settings(backlog_max_ns=0), arrived("a", 400, out=1))
    spec.when(at(30 * MS, arrived("b", 100, slack=20 * MS, now=30 * MS))).then(admitted("b"))


def test_resident_decode_context_makes_first_tokens_later() -> None:
    slow_context = msgspec.structs.replace(STEP, context_fs=FS_PER_MS // 10)
    spec = house(engines=(engine("e1", step=slow_context),), decoding=arrived("a", 300, out=10))
    spec.when(arrived("b", 99)).then(admitted("b", ttft_predicted_ns=10 * MS + 301 * MS // 10))


def test_the_prediction_learns_from_what_was_seen() -> None:
    spec = house()
    for n in range(60):
        now = n * 400 * MS
        spec.after(at(now, arrived(f"r{n}", 1, now=now, out=1)), at(now + 300 * MS, first_token(f"r{n}")))
        spec.after(finished(f"r{n}"), tick(n), beat())
    now = 24 * S
    spec.when(at(now, arrived("r", 100, now=now))).then(said(RequestAdmitted))
    predicted_ns = spec.decisions[0].ttft_predicted_ns
    assert 40 * MS <= predicted_ns <= 160 * MS, "300 ms seen where the model says 10: bounded, and by and by"


def test_an_engine_without_a_model_is_judged_by_its_rate_once_that_is_known() -> None:
    spec = house(engines=(engine("e1", step=None),))
    spec.when(arrived("r", 500, slack=1)).then(admitted("r", ttft_predicted_ns=0, slo_slack_ns=1))
    spec.after(aborted("r"))
    for n in range(8):
        now = n * 200 * MS
        spec.after(at(now, arrived(f"r{n}", 100, now=now)), at(now + 100 * MS, first_token(f"r{n}")), finished(f"r{n}"))
    spec.when(arrived("a", 500, now=1_500 * MS, slack=490 * MS)).then(rejected("a", RejectReason.SLO_INFEASIBLE))
    spec.when(arrived("b", 500, now=1_500 * MS, slack=510 * MS)).then(admitted("b"))
    assert abs(spec.decisions[0].ttft_predicted_ns - 500 * MS) < MS


def test_it_waits_here_while_the_prefill_backlog_there_is_long() -> None:
    spec = house(settings(backlog_max_ns=30 * MS), arrived("a", 400, out=1))
    spec.when(arrived("b", 100, out=1)).then(deferred("b", DeferReason.PREFILL_BACKLOG), said(WakeAsked))
    spec.when(at(40 * MS, first_token("a"))).then(admitted("b"))


def test_it_is_looked_at_again_just_before_the_backlog_there_is_done() -> None:
    """Sent only when the first token is seen, it would find an engine that has stood idle for the way there."""
    spec = house(settings(backlog_max_ns=20 * MS), arrived("a", 600, out=1))
    spec.when(arrived("b", 100, out=1)).then(deferred("b", DeferReason.PREFILL_BACKLOG), said(WakeAsked))
    *_, wake = spec.decisions
    assert isinstance(wake, WakeAsked)
    assert START_NS + 20 * MS < wake.at_ns < START_NS + 60 * MS
    spec.when(at(wake.at_ns - START_NS, tick(2))).then(admitted("b"))


def test_after_each_that_goes_a_look_is_asked_for_while_others_wait() -> None:
    spec = house(settings(backlog_max_ns=20 * MS), arrived("a", 600, out=1), engines=(engine(blocks=1_000),))
    spec.after(arrived("b", 600, out=1), arrived("c", 600, out=1))
    spec.when(at(60 * MS, first_token("a"))).then(admitted("b"), said(WakeAsked))
    spec.after(at(120 * MS, first_token("b"))).when(at(120 * MS, tick(3)))
    assert not any(isinstance(one, WakeAsked) for one in spec.decisions), "nobody waits for a turn"


def test_steps_that_are_scheduled_ahead_go_first() -> None:
    """A prompt for an engine that decodes waits for those, and is predicted to."""
    predicted = []
    for ahead in (0, 1):
        spec = house(arrived("a", 100, out=50), engines=(engine(steps_ahead=ahead),))
        spec.after(at(10 * MS, first_token("a"))).when(at(20 * MS, arrived("b", 100, now=20 * MS)))
        predicted.append(spec.decisions[0].ttft_predicted_ns)
    assert predicted[1] > predicted[0]
    idle = [house(engines=(engine(steps_ahead=ahead),)).when(arrived("a", 100)).decisions for ahead in (0, 1)]
    assert idle[0] == idle[1], "where nothing decodes, nothing was scheduled"
