"""Output length, peak memory, first token and pace: small numbers that a person can check."""

import math

import msgspec
import pytest
from hypothesis import given, strategies

from events.base import NS_PER_MS
from policies.predictors import output_length, ttft
from policies.predictors.output_length import KEYS_MAX, LENGTHS_MIN, Histograms, bucket_of, bucket_top
from policies.predictors.peak_memory import Growing, peak_blocks, peak_tokens
from policies.predictors.step_time import prefill_ns, step_ns
from policies.predictors.tpot import Decoding, Pace, breaks_pace
from tests.policies.words import FS_PER_MS, STEP

MS = NS_PER_MS

# -------------------------------------------------------------------------------------------------- output length


def seen(*lengths: int, key: str = "m\nt") -> Histograms:
    histograms: Histograms = {}
    for length in lengths:
        output_length.observe(histograms, key, length)
    return histograms


def predicted(histograms: Histograms, *, q: int = 80, tokens_max: int = 0, so_far: int = 0, key: str = "m\nt") -> int:
    return output_length.predict(
        histograms, key, quantile_ppm=q * 10_000, tokens_max=tokens_max, default=512, so_far=so_far
    )


@given(strategies.integers(0, 2**20 - 1))
def test_a_bucket_holds_its_length_and_is_at_most_an_eighth_wider(length: int) -> None:
    top = bucket_top(bucket_of(length))
    assert length <= top <= length + length // 8
    assert bucket_of(top) == bucket_of(length)


@given(strategies.integers(0, 2**22))
def test_longer_never_falls_into_a_lower_bucket(length: int) -> None:
    assert bucket_of(length) <= bucket_of(length + 1)


@pytest.mark.parametrize(
    ("tokens_max", "so_far", "expected"), [(300, 0, 300), (0, 0, 512), (0, 400, 800), (300, 300, 301)]
)
def test_without_history_it_is_the_cap_or_the_default(tokens_max: int, so_far: int, expected: int) -> None:
    assert predicted({}, tokens_max=tokens_max, so_far=so_far) == expected
    assert predicted(seen(*[10] * (LENGTHS_MIN - 1)), tokens_max=tokens_max, so_far=so_far) == expected


@pytest.mark.parametrize(("q", "low"), [(10, 10), (50, 10), (80, 10), (81, 200), (100, 200)])
def test_a_quantile_of_what_was_seen(q: int, low: int) -> None:
    assert predicted(seen(*[10] * 80, *[200] * 20), q=q) == bucket_top(bucket_of(low))


def test_as_tokens_arrive_only_longer_answers_count() -> None:
    histograms = seen(*[10] * 80, *[200] * 20)
    assert predicted(histograms, so_far=11) == 207
    assert predicted(histograms, so_far=207) == 512, "nothing longer was seen"


def test_the_clients_cap_holds() -> None:
    assert predicted(seen(*[200] * 20), tokens_max=50) == 50


def test_tenants_and_models_do_not_mix() -> None:
    histograms = seen(*[10] * 20)
    assert predicted(histograms, key=output_length.key_of("m", "other"), tokens_max=99) == 99


def test_the_old_fades() -> None:
    assert predicted(seen(*[1_000] * 3_000, *[10] * 6_000), q=80) == 10


def test_the_number_of_keys_is_bounded_and_the_silent_go_first() -> None:
    histograms = seen(5, key="first")
    for n in range(KEYS_MAX - 1):
        output_length.observe(histograms, f"k{n}", 5)
    output_length.observe(histograms, "first", 5)
    output_length.observe(histograms, "new", 5)
    assert len(histograms) == KEYS_MAX
    assert "first" in histograms
    assert "k0" not in histograms


# --------------------------------------------------------------------------------------------------- peak memory

RUNNING = strategies.lists(
    strategies.builds(Growing, strategies.integers(1, 60), strategies.integers(1, 80)), min_size=1, max_size=8
)


def test_the_example_of_the_rule() -> None:
    assert peak_tokens([Growing(5, 10), Growing(1, 10)]) == 22
    assert peak_tokens([]) == 0


@given(RUNNING)
def test_the_peak_is_that_of_stepping_one_by_one(running: list[Growing]) -> None:
    def held_at(step: int) -> int:
        return sum(one.held + step for one in running if one.remaining >= step)

    assert peak_tokens(running) == max(held_at(step) for step in range(1, max(one.remaining for one in running) + 1))


@given(RUNNING, strategies.integers(1, 16))
def test_the_peak_in_blocks_is_never_below_the_truth(running: list[Growing], block_tokens: int) -> None:
    truth = max(
        sum(math.ceil((one.held + step) / block_tokens) for one in running if one.remaining >= step)
        for step in range(1, max(one.remaining for one in running) + 1)
    )
    predicted_blocks = peak_blocks(running, block_tokens=block_tokens)
    assert truth <= predicted_blocks <= truth + len(running)


# ---------------------------------------------------------------------------------------------------- first token


@given(
    prompt=strategies.integers(1, 5_000),
    cached_of_prompt=strategies.integers(0, 100),
    seqs=strategies.integers(0, 90),
    context=strategies.integers(0, 10_000),
)
def test_one_prompt_alone_takes_as_long_as_its_prefill(
    prompt: int, cached_of_prompt: int, seqs: int, context: int
) -> None:
    cached = (prompt - 1) * cached_of_prompt // 100
    model = msgspec.structs.replace(STEP, above_fs=10**10, qk_fs=10**6, context_fs=10**8, seq_fs=10**9)
    got = ttft.work_ns(
        model, tokens=prompt - cached, pairs=ttft.prefill_pairs(prompt=prompt, cached=cached), batch_tokens=100,
        context=context, seqs=seqs,
    )  # fmt: skip
    assert got == prefill_ns(model, prompt=prompt, cached=cached, batch_tokens=100 - seqs, context=context, seqs=seqs)


def test_the_ratio_weighs_long_waits_more_and_stays_within_bounds() -> None:
    correction = ttft.Correction()
    ttft.take_in(correction, seen_ns=10 * MS, predicted_ns=1 * MS, modelled=True)
    assert correction.ratio_ppm == (2_010 * 1_000_000) // 2_001
    for _ in range(400):
        ttft.take_in(correction, seen_ns=100_000 * MS, predicted_ns=1 * MS, modelled=True)
    assert correction.ratio_ppm == 16_000_000
    for _ in range(900):
        ttft.take_in(correction, seen_ns=0, predicted_ns=100_000 * MS, modelled=True)
    assert correction.ratio_ppm == 250_000


# ------------------------------------------------------------------------------------------------------------ pace


@pytest.mark.parametrize(
    ("one", "before", "after", "own_limit", "breaks"),
    [
        (None, Pace(10, 0, 0), Pace(10, 0, 0), 10, False),
        (None, Pace(10, 0, 0), Pace(11, 0, 0), 10, True),
        (None, Pace(10, 0, 0), Pace(11, 0, 0), 0, False),
        # 11 tokens at 12: 120 for ten; at 10 a step 100 are needed, so 20 may be lost.
        (Decoding(12, 1, 11, 0), Pace(10, 0, 0), Pace(10, 2, 40), 0, False),
        (Decoding(12, 1, 11, 0), Pace(10, 0, 0), Pace(10, 3, 51), 0, True),
        (Decoding(12, 1, 11, 0), Pace(10, 0, 0), Pace(12, 0, 0), 0, False),
        (Decoding(12, 1, 11, 0), Pace(10, 0, 0), Pace(13, 0, 0), 0, True),
        # Late already: nobody else's fault.
        (Decoding(12, 1, 11, 21), Pace(10, 0, 0), Pace(13, 0, 0), 0, False),
        # Its two last tokens meet only two of the twenty long steps.
        (Decoding(12, 9, 11, 80), Pace(10, 0, 0), Pace(10, 20, 400), 0, False),
        (Decoding(12, 9, 11, 80), Pace(10, 0, 0), Pace(10, 20, 420), 0, True),
        # No limit of its own.
        (Decoding(0, 1, 11, 0), Pace(10, 0, 0), Pace(99, 9, 9_999), 0, False),
    ],
)
def test_pace(one: Decoding | None, before: Pace, after: Pace, own_limit: int, breaks: bool) -> None:
    decoding = [] if one is None else [one]
    got = breaks_pace(decoding, before=before, after=after, own_limit_ns=own_limit, margin_ppm=1_000_000)
    assert got is breaks


def test_a_margin_widens_the_limit() -> None:
    assert not breaks_pace([], before=Pace(1, 0, 0), after=Pace(11, 0, 0), own_limit_ns=10, margin_ppm=1_100_000)


def test_the_round_model_is_round() -> None:
    assert step_ns(STEP, tokens=100) == 10 * MS == STEP.base_fs // FS_PER_MS * MS
