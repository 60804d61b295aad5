"""Prompts that share their runs of tokens have near hashes; it is a hint, and says nothing across domains."""

import random
from hashlib import blake2b

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.fingerprint import domain_key
from kvstore.simhash import SHINGLE_TOKENS, SIMHASH_BITS, TOKENS_MAX, likeness_ppm, simhash

KEY = domain_key(b"secret", "tenant-a")
TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=60)


def text(seed: int, tokens: int = 600) -> list[int]:
    return random.Random(seed).choices(range(128_000), k=tokens)


def test_the_hash_of_known_tokens_never_changes_from_version_to_version() -> None:
    assert simhash(list(range(100)), key=KEY) == 0xCDAC90EDC4ACDD0


@settings(deadline=None)
@given(TOKENS)
def test_each_bit_is_the_majority_of_the_runs(tokens: list[int]) -> None:
    """Against the plain way, bit by bit."""
    runs = {tuple(tokens[at : at + SHINGLE_TOKENS]) for at in range(len(tokens) - SHINGLE_TOKENS + 1)}
    packed = [b"".join(token.to_bytes(4, "little") for token in run) for run in runs]
    hashes = [int.from_bytes(blake2b(run, digest_size=8, key=KEY).digest(), "little") for run in packed]
    expected = sum((2 * sum(one >> bit & 1 for one in hashes) > len(hashes)) << bit for bit in range(SIMHASH_BITS))
    assert simhash(tokens, key=KEY) == expected


@pytest.mark.parametrize("seed", range(8))
def test_a_prompt_with_a_few_other_words_is_near_and_another_prompt_is_not(seed: int) -> None:
    prompt = text(seed)
    edited = [*prompt[:200], 1, 2, 3, *prompt[203:]]
    moved = [*text(seed + 100, 30), *prompt]
    one = simhash(prompt, key=KEY)
    assert likeness_ppm(one, simhash(edited, key=KEY)) > 850_000
    assert likeness_ppm(one, simhash(moved, key=KEY)) > 750_000, "wherever the runs stand"
    assert likeness_ppm(one, simhash(text(seed + 50), key=KEY)) < 750_000
    assert likeness_ppm(one, one) == 1_000_000


def test_prompts_of_different_domains_are_not_alike() -> None:
    other = domain_key(b"secret", "tenant-b")
    assert likeness_ppm(simhash(text(1), key=KEY), simhash(text(1), key=other)) < 750_000


def test_a_prompt_shorter_than_a_run_gives_no_hint() -> None:
    assert simhash([1, 2, 3], key=KEY) == simhash([], key=KEY) == 0


def test_what_comes_late_in_a_long_prompt_is_not_looked_at() -> None:
    prompt = text(1, TOKENS_MAX)
    assert simhash(prompt, key=KEY) == simhash([*prompt, *text(2)], key=KEY)
