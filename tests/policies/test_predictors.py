"""Peak memory, first token and pace: small numbers that a person can check."""

import math

import msgspec
import pytest
from hypothesis import given, strategies

from events.base import NS_PER_MS
from policies.predictors import ttft
from policies.predictors.peak_memory import Grows, peak_blocks, peak_tokens
from policies.predictors.step_time import decode_grow_fs, prefill_ns, step_ns
from policies.predictors.tpot import Decoding, Pace, breaks_pace, would_hold
from tests.policies.words import FS_PER_MS, STEP

MS = NS_PER_MS

# --------------------------------------------------------------------------------------------------- peak memory

RUNNING = strategies.lists(
    strategies.tuples(strategies.integers(1, 60), strategies.integers(1, 80)), min_size=1, max_size=8
)


def test_the_example_of_the_rule() -> None:
    assert peak_tokens([(5, 10), (1, 10)]) == 22
    assert peak_tokens([]) == 0


@given(RUNNING)
def test_the_peak_is_that_of_stepping_one_by_one(running: list[Grows]) -> None:
    def held_at(step: int) -> int:
        return sum(held + step for left, held in running if left >= step)

    assert peak_tokens(running) == max(held_at(step) for step in range(1, max(left for left, _ in running) + 1))


@given(RUNNING, strategies.integers(1, 16))
def test_the_peak_in_blocks_is_never_below_the_truth(running: list[Grows], block_tokens: int) -> None:
    truth = max(
        sum(math.ceil((held + step) / block_tokens) for left, held in running if left >= step)
        for step in range(1, max(left for left, _ in running) + 1)
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
        # In prefill itself: what comes after that slows its answer, and nothing before it.
        (Decoding(12, 0, 11, 0), Pace(10, 5, 400), Pace(10, 7, 440), 0, False),
        (Decoding(12, 0, 11, 0), Pace(10, 5, 400), Pace(10, 8, 451), 0, True),
        # No limit of its own.
        (Decoding(0, 1, 11, 0), Pace(10, 0, 0), Pace(99, 9, 9_999), 0, False),
    ],
)
def test_pace(one: Decoding | None, before: Pace, after: Pace, own_limit: int, breaks: bool) -> None:
    answers = would_hold([] if one is None else [one], before, margin_ppm=1_000_000)
    got = breaks_pace(answers, before=before, after=after, own_limit_ns=own_limit, margin_ppm=1_000_000)
    assert got is breaks


def test_a_margin_widens_the_limit() -> None:
    assert not breaks_pace([], before=Pace(1, 0, 0), after=Pace(11, 0, 0), own_limit_ns=10, margin_ppm=1_100_000)


def test_a_step_that_only_decodes_has_its_own_time_where_the_model_brings_one() -> None:
    split = msgspec.structs.replace(
        STEP, context_fs=10**9, decode_base_fs=4 * FS_PER_MS, decode_context_fs=10**8, decode_seq_fs=10**9
    )
    only, mixed = (step_ns(split, tokens=tokens, context=1_000, seqs=8) for tokens in (8, 9))
    assert (only, mixed) == (4 * MS + 100_000 + 8_000, 10 * MS + 1_000_000)
    assert decode_grow_fs(split, 8) == 8 * 10**8
    assert decode_grow_fs(msgspec.structs.replace(split, decode_base_fs=0), 8) == 8 * 10**9


def test_a_model_without_a_decode_fit_is_written_as_before() -> None:
    assert b"decode" not in msgspec.json.encode(STEP)


def test_the_round_model_is_round() -> None:
    assert step_ns(STEP, tokens=100) == 10 * MS == STEP.base_fs // FS_PER_MS * MS
