"""Profiles of traffic: what is drawn is what was asked for, the same everywhere, and bad ones are refused."""

import os
import subprocess
import sys
from pathlib import Path
from random import Random
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from events.base import NS_PER_MS, NS_PER_S, RequestKind
from replay.belady import ideal_share
from replay.workloads.drawn import UNIT_TOKENS, draw
from replay.workloads.fit import dispersion, distance, fit
from replay.workloads.lengths import Lengths, fitted
from replay.workloads.profile import ProfileError, load, parse, shipped, written

CHAT = """
name: chat
seconds: 200
tenants:
  free: {weight: 3, system_tokens: 512}
  paid: {weight: 1, priority: 1, system_tokens: 1024}
streams:
- name: talk
  starts_per_s: 2
  turns: {between: [1, 4]}
  opening_tokens: {between: [50, 900]}
  message_tokens: {between: [10, 200]}
  answer_tokens: {quantiles: {0: 5, 50: 100, 100: 400}}
  think_ms: {between: [500, 4000]}
  slo: {ttft_min_ms: 700, tpot_ms: 40}
- name: jobs
  kind: embedding
  starts_per_s: 0.5
  tenants: [free]
  cluster: {size: 10, within_ms: 500}
  inputs: 8
  input_tokens: {between: [64, 128]}
"""

spreads = st.one_of(
    st.tuples(st.integers(0, 500), st.integers(0, 500)).map(lambda ends: Lengths(between=(min(ends), max(ends)))),
    st.lists(st.integers(0, 10_000), min_size=2, max_size=6).map(
        lambda values: Lengths(
            quantiles={100 * at / (len(values) - 1): value for at, value in enumerate(sorted(values))}
        )
    ),
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 99), st.integers(99, 500)), min_size=1, max_size=4).map(
        lambda parts: Lengths(parts=tuple(parts))
    ),
)


@settings(max_examples=60, deadline=None)
@given(spreads, st.integers(0, 2**32))
def test_draws_stay_within_and_their_mean_is_the_mean(spread: Lengths, seed: int) -> None:
    rng = Random(seed)
    drawn = [spread.draw(rng) for _ in range(2_000)]
    assert min(drawn) >= 0
    assert max(drawn) <= spread.most()
    assert abs(fmean(drawn) - spread.mean()) <= 0.12 * spread.most() + 1


@given(st.lists(st.integers(0, 10**6), min_size=50, max_size=300))
def test_what_is_fitted_has_the_ends_and_the_middle_of_what_was_seen(values: list[int]) -> None:
    spread = fitted(values)
    rng = Random(1)
    drawn = [spread.draw(rng) for _ in range(200)]
    assert min(values) <= min(drawn)
    assert spread.most() == max(values)


def test_a_profile_says_who_asks_what() -> None:
    arrivals = draw(parse(CHAT.encode(), where="test"), seed=1)
    talk = [one for one in arrivals if one.kind is RequestKind.LLM]
    jobs = [one for one in arrivals if one.kind is RequestKind.EMBEDDING]

    assert arrivals == sorted(arrivals, key=lambda one: one.at_ns)
    assert len({one.request_id for one in arrivals}) == len(arrivals)
    assert len({one.session for one in talk}) == 400, "two sessions a second over 200 s"
    assert len(jobs) == 100
    assert {one.tenant for one in jobs} == {"free"}
    assert {(one.tenant, one.priority) for one in talk} == {("free", 0), ("paid", 1)}
    assert 2 < sum(one.tenant == "free" for one in talk) / sum(one.tenant == "paid" for one in talk) < 4.5
    assert all(one.slo is not None and one.slo.ttft_min_ns == 700 * NS_PER_MS for one in talk)
    assert all(one.at_ns < 200 * NS_PER_S for one in arrivals)


def test_turns_grow_on_each_other_and_wait_for_answers() -> None:
    talk = [one for one in draw(parse(CHAT.encode(), where="test"), seed=3) if one.session]
    by_id = {one.request_id: one for one in talk}
    followed = [one for one in talk if one.after]
    assert followed
    for one in followed:
        before = by_id[one.after]
        assert before.session == one.session
        assert one.prompt_tokens >= before.prompt_tokens + before.output_tokens + 10
        assert one.prefix[: len(before.prefix)] == before.prefix
        assert 500 * NS_PER_MS <= one.think_ns <= 4_000 * NS_PER_MS
        assert one.at_ns >= before.at_ns + one.think_ns
    firsts = {one.tenant: one.prefix[0] for one in talk if one.prompt_tokens >= UNIT_TOKENS}
    assert len(set(firsts.values())) == 2, "tenants share their system prompt, and nothing with each other"
    assert all(one.prefix[0] == firsts[one.tenant] for one in talk if one.prefix)


def test_documents_are_shared_the_first_more_often_than_the_last() -> None:
    text = CHAT.replace("  starts_per_s: 2\n", "  starts_per_s: 2\n  documents: {count: 20, tokens: 2560}\n")
    openings = [one for one in draw(parse(text.encode(), where="test"), seed=1) if one.session and not one.after]
    seen: dict[int, int] = {}
    for one in openings:
        unit = one.prefix[1_024 // UNIT_TOKENS if one.tenant == "paid" else 512 // UNIT_TOKENS]
        seen[unit] = seen.get(unit, 0) + 1
    ranked = sorted(seen.values(), reverse=True)
    assert len(ranked) == 20
    assert ranked[0] > 5 * ranked[-1]


def test_pace_makes_all_streams_busy_at_the_same_time() -> None:
    calm = parse(CHAT.encode(), where="test")
    busy = parse((CHAT + "pace: {calm_s: 40, busy_s: 5, busy_factor: 20}\n").encode(), where="test")
    starts = [[one.at_ns for one in draw(each, seed=1) if not one.after] for each in (calm, busy)]
    assert len(starts[0]) == len(starts[1]), "there are as many"
    assert dispersion(starts[1]) > 3 * dispersion(starts[0])


def test_another_stream_changes_nothing_of_the_first() -> None:
    both = parse(CHAT.encode(), where="test")
    alone = parse(CHAT[: CHAT.index("- name: jobs")].encode(), where="test")
    talk = [one for one in draw(both, seed=5) if one.kind is RequestKind.LLM]
    assert talk == draw(alone, seed=5)


def test_scale_is_more_sessions_of_the_same_pace() -> None:
    profile = parse(CHAT.encode(), where="test")
    once, twice = (len([one for one in draw(profile, seed=1, scale=scale) if not one.after]) for scale in (1.0, 2.0))
    assert twice == 2 * once


def test_a_seed_gives_one_workload_under_two_hash_seeds() -> None:
    script = (
        "from replay.workloads.profile import load; from replay.workloads.drawn import draw;"
        "print(draw(load('mixed_waves'), seed=7, seconds=60))"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", script], env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": "."},
            check=True, capture_output=True, text=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(seen) == 1
    profile = load("mixed_waves")
    assert draw(profile, seed=7, seconds=60) != draw(profile, seed=8, seconds=60)


@pytest.mark.parametrize("name", shipped())
def test_shipped_profiles_are_whole_and_what_they_state_of_their_fit_is_so(name: str) -> None:
    profile = load(name)
    assert profile.name == name
    assert profile.about
    assert parse(written(profile).encode(), where=name) == profile
    drawn = draw(profile, seed=1, seconds=60)
    assert drawn
    assert bool(profile.fit) == bool(profile.source)
    if profile.fit is not None and profile.seconds < 2_000:
        asked = draw(profile, seed=profile.fit.seed, seconds=profile.fit.seconds)
        assert round(ideal_share(asked), 4) == profile.fit.ideal_hit_share[1]
        assert max(profile.fit.prompt_ks, profile.fit.answer_ks) < 0.15


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("seconds: 200", "seconds: -1"), r"seconds"),
        (("starts_per_s: 2", "starts_per_s: fast"), r"streams\[0\]\.starts_per_s"),
        (("  kind: embedding", "  kind: vision"), r"kind"),
        (("tenants: [free]", "tenants: [gratis]"), r"no tenant 'gratis': free, paid"),
        (("name: jobs", "name: talk"), r"two of them have one name"),
        (("{between: [50, 900]}", "{between: [900, 50]}"), r"900, 50"),
        (("{between: [50, 900]}", "{quantiles: {0: 9, 50: 3, 100: 10}}"), r"never fall"),
        (("{between: [50, 900]}", "{quantiles: {10: 9, 100: 10}}"), r"from 0 to 100"),
        (("{between: [50, 900]}", "{}"), r"one of between, parts, quantiles"),
        (("  input_tokens: {between: [64, 128]}", ""), r"need input_tokens"),
        (("think_ms:", "thinking_ms:"), r"thinking_ms"),
        (("seconds: 200", "seconds: ["), r"not YAML"),
        (("seconds: 200", "seconds: &a [*a]"), r"recursion"),
        (("slo: {ttft_min_ms: 700", "slo: {ttft_min_ms: 0"), r"ttft_min_ms"),
    ],
)
def test_bad_profiles_are_refused_with_what_and_where(change: tuple[str, str], says: str) -> None:
    with pytest.raises(ProfileError, match=says) as refused:
        parse(CHAT.replace(*change).encode(), where="file.yaml")
    assert str(refused.value).startswith("file.yaml")
    assert "docs/workloads.md" in str(refused.value)


def test_a_profile_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="mixed_waves"):
        load("mixed_wave")
    with pytest.raises(ProfileError, match="cannot be read"):
        load(str(tmp_path / "none.yaml"))


def test_what_is_drawn_from_a_profile_is_fitted_by_one_like_it() -> None:
    arrivals = [one for one in draw(parse(CHAT.encode(), where="test"), seed=1) if one.output_tokens]
    found = fit(arrivals, name="again", source="test")
    assert found.fit is not None
    assert found.fit.prompt_ks < 0.1
    assert found.fit.answer_ks < 0.1
    assert abs(found.fit.requests_per_s[1] / found.fit.requests_per_s[0] - 1) < 0.1
    with pytest.raises(ValueError, match="no request"):
        fit(
            [one for one in draw(parse(CHAT.encode(), where="test"), seed=1) if not one.output_tokens],
            name="x",
            source="x",
        )


def test_distance_is_that_of_two_step_functions() -> None:
    assert distance([1, 2, 3], [1, 2, 3]) == 0
    assert distance([1, 1], [2, 2]) == 1
    assert distance([1, 2], [1, 1]) == 0.5
