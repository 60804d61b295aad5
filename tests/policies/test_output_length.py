"""Output length: histograms that lean on coarser ones, quantiles whose coverage is kept, averages, outside words, and
what happens when a predictor fails."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings, strategies

from events.base import PPM, HolderId, ModelId, RequestId, SessionId, SliceId, TenantId
from events.decisions import MiscoverageNoticed
from events.request import OutputPredicted, RequestArrived
from policies.predictors import external, length_histogram, moving_average, output_length, quantile
from policies.predictors.base import Interval
from policies.predictors.calibration import ANSWERS_MIN, Calibration, bias_ppm, coverage_ppm
from policies.predictors.length_histogram import (
    LENGTHS_MAX,
    TOKENS_MAX,
    Lengths,
    add,
    bucket_of,
    bucket_top,
)
from policies.predictors.output_length import KINDS, OutputPredictor, Outputs
from policies.predictors.output_question import Foretold, Question

LENGTH = strategies.integers(0, TOKENS_MAX - 1)
DEFAULT = 512


def asked(name: str = "r", *, tokens_max: int = 0, **more: Any) -> RequestArrived:
    described: dict[str, Any] = {"tenant": TenantId("t"), "model": ModelId("m"), "prompt_tokens": 1_000} | more
    return RequestArrived(
        request_id=RequestId(name),
        holder=HolderId("h"),
        tokens_max=tokens_max,
        slo_ttft_ns=1,
        deadline_ns=1,
        **described,
    )


def foretold(
    outputs: Outputs, request: RequestArrived, *, kind: str = "quantile", q: int = 80, **more: Any
) -> Foretold:
    return output_length.foretell(
        outputs, request, kind=kind, target_ppm=q * 10_000, tokens_default=DEFAULT, **more
    )  # fmt: skip


def answered(outputs: Outputs, *lengths: int, q: int = 80, kind: str = "quantile", **request: Any) -> Outputs:
    """Each is asked about, sent, and ends before the next is asked about."""
    for length in lengths:
        one = asked(**request)
        said = foretold(outputs, one, q=q, kind=kind)
        output_length.sent(outputs, one.request_id, said)
        output_length.ended(outputs, one, said, length)
    return outputs


def state_of(outputs: Outputs) -> bytes:
    return msgspec.json.encode(outputs)


# -------------------------------------------------------------------------------------------------------- histogram


def filled(*lengths: int) -> Lengths:
    one = Lengths()
    for length in lengths:
        add(one, length, None)
    return one


@given(LENGTH)
def test_a_bucket_holds_its_length_and_is_at_most_an_eighth_wider(length: int) -> None:
    top = bucket_top(bucket_of(length))
    assert length <= top <= length + length // 8
    assert bucket_of(top) == bucket_of(length)


@given(strategies.integers(0, 2**22))
def test_longer_never_falls_into_a_lower_bucket(length: int) -> None:
    assert bucket_of(length) <= bucket_of(length + 1)


@pytest.mark.parametrize(
    ("ppm", "low", "high"),
    [(10_000, 1, 10), (500_000, 10, 10), (800_000, 10, 10), (850_000, 192, 207), (PPM, 207, 207)],
)
def test_a_quantile_of_what_was_seen(ppm: int, low: int, high: int) -> None:
    assert low <= length_histogram.quantile(filled(*[10] * 80, *[200] * 20), ppm) <= high


@given(strategies.lists(LENGTH, min_size=1, max_size=40), strategies.integers(0, PPM), strategies.integers(0, PPM))
def test_a_higher_quantile_is_never_shorter(lengths: list[int], one: int, other: int) -> None:
    histogram = filled(*lengths)
    low, high = sorted((one, other))
    assert length_histogram.quantile(histogram, low) <= length_histogram.quantile(histogram, high)
    assert length_histogram.quantile(histogram, PPM) <= max(bucket_top(bucket_of(max(lengths))), 1)


@given(strategies.lists(LENGTH, min_size=1, max_size=40), strategies.integers(1, PPM), LENGTH, LENGTH)
def test_the_longer_an_answer_is_already_the_longer_it_will_be(
    lengths: list[int], ppm: int, one: int, other: int
) -> None:
    histogram = filled(*lengths)
    early, late = sorted((one, other))
    before, after = (length_histogram.quantile(histogram, ppm, so_far=so_far) for so_far in (early, late))
    assert after == 0 or before <= after
    assert after == 0 or after > late


def test_the_old_fades() -> None:
    assert length_histogram.quantile(filled(*[1_000] * 3_000, *[10] * 6_000), 800_000) == 10


def test_the_weight_is_bounded() -> None:
    histogram = filled(*[10] * (3 * LENGTHS_MAX))
    assert sum(histogram.weights) == histogram.total < LENGTHS_MAX * length_histogram.LENGTH_WEIGHT


def test_few_answers_lean_on_the_coarser_ones_and_many_do_not() -> None:
    parent, child = filled(*[1_000] * 200), Lengths()
    add(child, 10, parent)
    assert length_histogram.quantile(child, 500_000) > 900
    for _ in range(400):
        add(child, 10, parent)
    assert length_histogram.quantile(child, 900_000) == 10


# --------------------------------------------------------------------------------------------------------- quantile


@pytest.mark.parametrize(
    ("tokens_max", "so_far", "expected"), [(300, 0, 300), (0, 0, 512), (0, 400, 800), (300, 300, 301), (300, 310, 311)]
)
def test_without_history_it_is_the_cap_or_the_default(tokens_max: int, so_far: int, expected: int) -> None:
    for outputs in (Outputs(), answered(Outputs(), *[10] * (quantile.ANSWERS_MIN - 1))):
        got = foretold(outputs, asked(tokens_max=tokens_max), so_far=so_far)
        assert got.high == expected
        assert got.predictor == "constant"
        assert not got.failed, "to know nothing is no failure"


def test_the_example_of_the_rule() -> None:
    outputs = answered(Outputs(), *[10] * 80, *[200] * 20)
    assert foretold(outputs, asked(), q=79).high == 10
    assert 192 <= foretold(outputs, asked(), so_far=11).low <= foretold(outputs, asked(), so_far=11).high <= 207
    assert foretold(outputs, asked(), so_far=207).high == 512, "nothing longer was seen"


def test_the_clients_cap_holds() -> None:
    got = foretold(answered(Outputs(), *[200] * 20), asked(tokens_max=50))
    assert (got.low, got.expected, got.high, got.predictor) == (50, 50, 50, "quantile")


@pytest.mark.parametrize(
    "other",
    [{"tenant": TenantId("u")}, {"objective": "batch"}, {"prompt_tokens": 100_000}, {"session": SessionId("s")}],
)
def test_what_is_not_known_by_itself_is_taken_from_a_coarser_key(other: dict[str, Any]) -> None:
    outputs = answered(Outputs(), *[10] * 100)
    assert foretold(outputs, asked(**other)).high == 10
    answered(outputs, *[300] * 100, **other)
    assert foretold(outputs, asked(**other)).high > 250, "and then by itself"
    assert foretold(outputs, asked()).high < 30
    assert foretold(outputs, asked(model=ModelId("n"))).predictor == "constant", "models do not mix"


def test_a_turn_is_predicted_by_the_answer_before_it() -> None:
    outputs = Outputs()
    for number in range(60):
        for length in (20, 20, 20) if number % 2 else (400, 400, 400):
            answered(outputs, length, session=SessionId(f"s{number}"))
    answered(outputs, 400, session=SessionId("long"))
    answered(outputs, 20, session=SessionId("short"))
    assert foretold(outputs, asked(session=SessionId("long"))).low > 300
    assert foretold(outputs, asked(session=SessionId("short"))).high < 40
    assert foretold(outputs, asked(session=SessionId("new"))).high > 300
    other = asked(session=SessionId("short"), tenant=TenantId("u"))
    assert foretold(outputs, other).high > 40, "sessions of another tenant are others"


@pytest.mark.parametrize(
    ("slices", "found"), [(("a", "b", "c"), True), (("a", "x"), False), (("b",), True), ((), False)]
)
def test_without_a_session_a_turn_is_known_by_the_prompt_that_it_goes_on_with(
    slices: Sequence[str], found: bool
) -> None:
    outputs = answered(Outputs(), 77, slices=(SliceId("a"), SliceId("b")))
    key = quantile.key_of(outputs.quantiles, asked(slices=tuple(map(SliceId, slices))))
    assert (key.rpartition("\n")[2][0] == "a") is found


def test_how_far_is_looked_back_is_bounded() -> None:
    outputs = answered(Outputs(), 77, slices=(SliceId("first"),))
    for many, found in ((quantile.LOOK_BACK_SLICES_MAX - 1, True), (quantile.LOOK_BACK_SLICES_MAX, False)):
        slices = (SliceId("first"), *(SliceId(f"s{n}") for n in range(many)))
        assert ("\na" in quantile.key_of(outputs.quantiles, asked(slices=slices))) is found


def test_all_that_is_kept_is_bounded_and_the_silent_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantile, "KEYS_MAX", 20)
    monkeypatch.setattr(quantile, "CONVERSATIONS_MAX", 10)
    monkeypatch.setattr(moving_average, "KEYS_MAX", 5)
    outputs = Outputs()
    for number in range(50):
        answered(outputs, 5, tenant=TenantId(f"t{number}"), session=SessionId(f"s{number}"))
        answered(outputs, 5, tenant=TenantId("always"))
    kept = outputs.quantiles
    assert (len(kept.lengths), len(kept.groups), len(kept.conversations)) == (20, 20, 10)
    assert len(outputs.averages) == 5
    assert "m\nalways" in kept.lengths
    assert "m\nt0" not in kept.lengths
    assert "m\nt49" in kept.lengths


@settings(max_examples=20, deadline=None)
@given(
    strategies.lists(strategies.integers(1, 3_000), min_size=60, max_size=60),
    strategies.integers(0, 3_000),
    strategies.integers(1, 99),
    strategies.sampled_from(list(OutputPredictor)),
)
def test_an_interval_is_whole_ordered_and_longer_than_so_far(
    lengths: list[int], so_far: int, q: int, kind: OutputPredictor
) -> None:
    outputs = answered(Outputs(), *lengths, q=q)
    output_length.heard(outputs, predicted_outside("r", 10, 2_000))
    before = state_of(outputs)
    for tokens_max in (0, 500):
        got = foretold(outputs, asked(tokens_max=tokens_max), kind=kind, q=q, so_far=so_far)
        assert 0 <= got.low <= got.expected <= got.high
        assert got.high > so_far
        assert all(type(value) is int for value in (got.low, got.expected, got.high))
        assert not tokens_max or got.high <= max(tokens_max, so_far + 1)
    assert state_of(outputs) == before, "asking changes nothing"


# ---------------------------------------------------------------------------------------------------------- coverage


def drawn(seed: int, count: int) -> list[int]:
    """Lengths with a long tail, independent of each other, from a fixed generator."""
    lengths, draw = [], seed * 2 + 1
    for _ in range(count):
        draw = (draw * 6_364_136_223_846_793_005 + 1_442_695_040_888_963_407) % (1 << 64)
        lengths.append(10 + 2_000_000 // ((draw >> 44) % 100_000 + 500))
    return lengths


def covered(outputs: Outputs, lengths: Sequence[int], *, q: int) -> float:
    within = 0
    for length in lengths:
        within += length <= foretold(outputs, asked(), q=q).high
        answered(outputs, length, q=q)
    return within / len(lengths)


@pytest.mark.parametrize("q", [50, 80, 90])
@pytest.mark.parametrize("seed", [1, 2])
def test_coverage_converges_to_the_target_where_answers_are_exchangeable(seed: int, q: int) -> None:
    outputs = answered(Outputs(), *drawn(seed, 300), q=q)
    assert covered(outputs, drawn(seed + 10, 2_000), q=q) == pytest.approx(q / 100, abs=0.025)


def test_coverage_comes_back_after_answers_have_become_longer() -> None:
    outputs = answered(Outputs(), *drawn(1, 2_000), q=90)
    longer = [2 * length for length in drawn(2, 3_000)]
    covered(outputs, longer[:1_500], q=90)
    assert covered(outputs, longer[1_500:], q=90) == pytest.approx(0.9, abs=0.03)


def test_the_level_steps_up_by_the_target_and_down_by_the_rest_of_it() -> None:
    outputs = answered(Outputs(), *[100] * 50, q=90)
    group = outputs.quantiles.groups["m\nt\n"]
    before = group.offset_ppm
    answered(outputs, 5_000, q=90)
    assert group.offset_ppm - before == 900_000 // quantile.STEPS
    answered(outputs, 1, q=90)
    assert group.offset_ppm - before == 900_000 // quantile.STEPS - 100_000 // quantile.STEPS


def test_an_answer_that_the_client_cuts_moves_no_level_and_is_not_judged() -> None:
    outputs = answered(Outputs(), *[100] * 50, q=90)
    before = msgspec.to_builtins(outputs.quantiles.groups), msgspec.to_builtins(outputs.calibrations)
    answered(outputs, *[50] * 20, q=90, tokens_max=50)
    assert (msgspec.to_builtins(outputs.quantiles.groups), msgspec.to_builtins(outputs.calibrations)) == before


def test_under_a_new_target_the_level_begins_anew() -> None:
    outputs = answered(Outputs(), *[100] * 50, q=90)
    answered(outputs, 1, q=50)
    group = outputs.quantiles.groups["m\nt\n"]
    assert (group.target_ppm, group.offset_ppm) == (500_000, -(500_000 // quantile.STEPS))


# -------------------------------------------------------------------------------------------------------- calibration


def test_the_alarm_rings_once_and_is_cleared_once() -> None:
    outputs = answered(Outputs(), *[10] * (2 * ANSWERS_MIN), kind="constant", q=90)
    rung = []
    for length in [*[5_000] * 100, *[10] * 1_500]:
        answered(outputs, length, kind="constant", q=90)
        for alarm in output_length.alarms(outputs):
            assert isinstance(alarm, MiscoverageNoticed)
            output_length.noticed(outputs, alarm)
            assert output_length.alarms(outputs) == []
            rung.append((alarm.cleared, alarm.predictor, alarm.coverage_ppm < 870_000, alarm.target_ppm))
    assert rung == [(False, "constant", True, 900_000), (True, "constant", False, 900_000)]


def test_few_answers_ring_no_alarm() -> None:
    outputs = answered(Outputs(), *[5_000] * (ANSWERS_MIN - 1), kind="constant", q=90)
    assert output_length.alarms(outputs) == []
    answered(outputs, *[5_000] * (ANSWERS_MIN // 4), kind="constant", q=90)  # Those before have faded a little.
    assert len(output_length.alarms(outputs)) == 1


def test_coverage_and_bias_of_the_late_answers() -> None:
    outputs = answered(Outputs(), *[1_026] * 3_000, kind="constant", q=90)
    calibration = outputs.calibrations["constant"]
    assert coverage_ppm(calibration) == 0
    assert bias_ppm(calibration) == pytest.approx(PPM, rel=0.01), "512 expected, 1,026 seen"
    assert (coverage_ppm(Calibration()), bias_ppm(Calibration())) == (PPM, 0)


# ------------------------------------------------------------------------------------------------------ other kinds


def test_a_moving_average_follows_and_is_as_wide_as_it_is_wrong() -> None:
    outputs = answered(Outputs(), *[100] * 200)
    still = foretold(outputs, asked(), kind="moving_average", q=90)
    assert (still.low, still.expected, still.high) == (100, 100, 100)
    answered(outputs, *[50, 150] * 100)
    wide = foretold(outputs, asked(), kind="moving_average", q=90)
    assert wide.low < 40 < 80 < wide.expected < 120 < 160 < wide.high
    assert foretold(outputs, asked(), kind="moving_average", q=50).high < wide.high
    assert foretold(outputs, asked(), kind="moving_average", so_far=5_000).predictor == "constant"
    assert foretold(outputs, asked(tenant=TenantId("u")), kind="moving_average").predictor == "constant"


def predicted_outside(name: str, low: int, high: int) -> OutputPredicted:
    return OutputPredicted(request_id=RequestId(name), source="model", output_tokens_low=low, output_tokens_high=high)


def test_what_was_said_outside_is_used_once() -> None:
    outputs = answered(Outputs(), *[10] * 20)
    output_length.heard(outputs, predicted_outside("r", 100, 300))
    got = foretold(outputs, asked(), kind="external")
    assert (got.low, got.expected, got.high, got.predictor) == (100, 200, 300, "external")
    assert foretold(outputs, asked(tokens_max=150), kind="external").high == 150
    assert foretold(outputs, asked(), kind="external", so_far=300).predictor == "constant"
    assert foretold(outputs, asked("other"), kind="external").predictor == "quantile"
    output_length.sent(outputs, RequestId("r"), got)
    assert foretold(outputs, asked(), kind="external").predictor == "quantile"


@pytest.mark.parametrize(("low", "high"), [(0, 0), (-1, 5), (9, 8), (1, TOKENS_MAX + 1), (-5, -1)])
def test_nonsense_from_outside_is_counted_and_the_quantile_answers(low: int, high: int) -> None:
    outputs = answered(Outputs(), *[10] * 20)
    output_length.heard(outputs, predicted_outside("r", low, high))
    assert foretold(outputs, asked(), kind="external").predictor == "quantile"
    assert outputs.external.refused == 1


def test_what_is_remembered_from_outside_is_bounded_and_the_oldest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external, "SAID_MAX", 3)
    outputs = Outputs()
    for name in ("a", "b", "a", "c", "d"):
        output_length.heard(outputs, predicted_outside(name, 1, 2))
    assert list(outputs.external.said) == ["a", "c", "d"]


# ---------------------------------------------------------------------------------------------------------- failures


def raises(_outputs: Outputs, _question: Question) -> Interval:
    raise ZeroDivisionError("a mistake")


@pytest.mark.parametrize(
    "answer",
    [
        Interval(0, 0, 0), Interval(-1, 5, 9), Interval(5, 4, 9), Interval(1, 9, 8), Interval(1, 2, TOKENS_MAX + 1),
        (1.0, 2.0, 3.0), (True, True, True), (1, 2), "abc", 7,
    ],
)  # fmt: skip
def test_nonsense_falls_back_to_the_constant_and_is_counted(monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    monkeypatch.setitem(KINDS, "quantile", lambda _outputs, _question: answer)
    outputs = Outputs()
    got = foretold(outputs, asked(tokens_max=99))
    assert (got.predictor, got.high, got.failed) == ("constant", 99, "quantile")
    output_length.sent(outputs, RequestId("r"), got)
    assert outputs.calibrations["quantile"].failures == 1


def test_a_predictor_that_raises_falls_back_to_the_constant_and_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "moving_average", raises)
    outputs = answered(Outputs(), *[10] * 20, kind="moving_average")
    assert outputs.calibrations["moving_average"].failures == 20
    assert foretold(outputs, asked(), kind="moving_average", so_far=40).high == 512


def test_one_that_is_not_there_fails_too() -> None:
    assert foretold(Outputs(), asked(), kind="none such").failed == "none such"


def test_a_state_comes_back_from_a_snapshot_and_says_the_same() -> None:
    outputs = answered(Outputs(), *drawn(3, 200), q=90)
    again = msgspec.json.decode(state_of(outputs), type=Outputs)
    assert state_of(again) == state_of(outputs)
    assert foretold(again, asked(), q=90) == foretold(outputs, asked(), q=90)
