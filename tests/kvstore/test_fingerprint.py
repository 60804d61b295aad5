"""Equal fingerprints mean equal prefixes in the same cache domain, and nothing else is equal."""

from array import array

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvstore.fingerprint import FINGERPRINT_BYTES, SLICE_TOKENS, domain_key, fingerprints, salted_key

KEY = domain_key(b"secret", "tenant-a")
TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=40)


def of(tokens: list[int], *, key: bytes = KEY, slice_tokens: int = 4) -> tuple[str, ...]:
    return fingerprints(tokens, key=key, slice_tokens=slice_tokens)


def test_the_fingerprints_of_known_tokens_never_change_from_version_to_version() -> None:
    assert of([1, 2, 3, 4, 5, 6, 7, 8]) == ("4b7af91d52e3b4f1451bfecdd3f0b997", "884409c712997acde648730cd15a2430")
    assert {len(name) for name in of(list(range(8)))} == {2 * FINGERPRINT_BYTES}


@given(TOKENS, st.integers(1, 6))
def test_only_full_slices_have_a_fingerprint(tokens: list[int], slice_tokens: int) -> None:
    assert len(of(tokens, slice_tokens=slice_tokens)) == len(tokens) // slice_tokens


@given(TOKENS, TOKENS, st.integers(1, 6))
def test_what_comes_later_changes_nothing_before_it(tokens: list[int], more: list[int], slice_tokens: int) -> None:
    short, long = of(tokens, slice_tokens=slice_tokens), of(tokens + more, slice_tokens=slice_tokens)
    assert long[: len(short)] == short


@given(TOKENS, TOKENS)
@example([1, 2, 3, 4, 9, 9, 9, 9], [5, 6, 7, 8, 9, 9, 9, 9])
def test_two_prompts_share_exactly_the_fingerprints_of_their_common_prefix(one: list[int], two: list[int]) -> None:
    common = 0
    while common < min(len(one), len(two)) and one[common] == two[common]:
        common += 1
    shared = [a == b for a, b in zip(of(one), of(two), strict=False)]
    assert shared == [4 * (index + 1) <= common for index in range(len(shared))]


@given(TOKENS.filter(lambda tokens: len(tokens) >= 4))
def test_the_same_prompt_has_other_names_in_another_domain(tokens: list[int]) -> None:
    mine, theirs = of(tokens), of(tokens, key=domain_key(b"secret", "tenant-b"))
    assert not set(mine) & set(theirs)


def test_a_domain_has_another_key_in_a_pool_with_another_secret() -> None:
    keys = {domain_key(secret, domain) for secret in (b"s1", b"s2") for domain in ("a", "b")}
    assert len(keys) == 4
    assert domain_key(b"s1", "a") == domain_key(b"s1", "a")


def test_where_a_slice_ends_is_part_of_its_name() -> None:
    assert not set(of(list(range(8)), slice_tokens=4)) & set(of(list(range(8)), slice_tokens=2))


def test_a_slice_has_256_tokens_unless_said_otherwise() -> None:
    assert SLICE_TOKENS == 256
    assert len(fingerprints(list(range(1000)), key=KEY)) == 3


@given(TOKENS)
def test_the_same_tokens_have_the_same_names_however_they_are_held(tokens: list[int]) -> None:
    packed = array("I", tokens)
    held = (tuple(tokens), packed, memoryview(packed), memoryview(array("Q", tokens)), memoryview(array("I", [
        word for token in tokens for word in (token, 7)
    ]))[::2])  # fmt: skip
    assert {fingerprints(each, key=KEY, slice_tokens=4) for each in held} == {of(tokens)}


def test_the_key_that_follows_from_a_salt_never_changes_and_takes_any_salt() -> None:
    assert salted_key("salt").hex() == "1a9625c6cc70b8d669f5b49322bd4d84aae41be3945f58974f09d5dd510ef160"
    assert len({salted_key(salt) for salt in ("", "a", "b", "a" * 1_000, "\ud800")}) == 5


@pytest.mark.parametrize("token", [-1, 2**32])
def test_a_token_id_that_does_not_fit_is_refused(token: int) -> None:
    with pytest.raises(OverflowError):
        of([token] * 4)
