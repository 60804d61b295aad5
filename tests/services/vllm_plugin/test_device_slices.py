"""What vLLM's KV events say of slices: whole ones only, by the names that the gateway gives them."""

import random
from collections import Counter
from hashlib import blake2b
from types import SimpleNamespace
from typing import Any

import pytest

from events.base import SliceId
from kvstore.fingerprint import fingerprints, salted_key
from services.vllm_plugin.device_slices import DeviceSlices
from services.vllm_plugin.naming import made_up

BLOCK, SLICE = 32, 128
PER_SLICE = SLICE // BLOCK


class Device:
    """Says of prompts what vLLM would: a block's hash is that of its tokens and all before it, and of the salt."""

    def __init__(self) -> None:
        self.learned: dict[bytes, SliceId] = {}
        self.slices = DeviceSlices(slice_tokens=SLICE, learn=self.learned.__setitem__)

    def store(self, tokens: list[int], *, first: int = 0, salt: str = "", **about: Any) -> list[SliceId]:
        """Blocks of the prompt from number `first` on."""
        hashes = blocks(tokens, salt)
        extra: list[Any] = [None] * len(hashes)
        extra[0] = (salt,) if salt else None
        known = {
            "block_hashes": hashes[first:], "parent_block_hash": hashes[first - 1] if first else None,
            "token_ids": tokens[first * BLOCK : len(hashes) * BLOCK], "block_size": BLOCK, "medium": "GPU",
            "extra_keys": extra[first:], "group_idx": 0, "lora_name": None,
        }  # fmt: skip
        return self.slices.stored(SimpleNamespace(**(known | about)))

    def remove(self, *hashes: bytes, medium: str = "GPU") -> list[SliceId]:
        return self.slices.removed(SimpleNamespace(block_hashes=list(hashes), medium=medium, group_idx=0))


def prompt(slices: int, *, seed: int = 1) -> list[int]:
    chance = random.Random(seed)
    return [chance.randrange(500) for _ in range(slices * SLICE + 5)]


def blocks(tokens: list[int], salt: str = "") -> list[bytes]:
    ends = range(BLOCK, len(tokens) + 1, BLOCK)
    return [blake2b(repr((salt, tokens[:end])).encode(), digest_size=32).digest() for end in ends]


def names(tokens: list[int], salt: str = "") -> list[SliceId]:
    return list(fingerprints(tokens, key=salted_key(salt), slice_tokens=SLICE))


@pytest.mark.parametrize("salt", ["", "acme"])
def test_slices_have_the_names_that_the_gateway_gives_them(salt: str) -> None:
    device, tokens = Device(), prompt(3)

    assert device.store(tokens, salt=salt) == names(tokens, salt)
    assert list(device.slices.inventory()) == names(tokens, salt)


def test_names_are_told_with_the_hash_of_the_last_block() -> None:
    device, tokens = Device(), prompt(2)

    device.store(tokens)

    hashes = blocks(tokens)
    assert device.learned == {hashes[PER_SLICE - 1]: names(tokens)[0], hashes[2 * PER_SLICE - 1]: names(tokens)[1]}


def test_slice_is_there_when_its_last_block_is() -> None:
    device, tokens = Device(), prompt(2)

    assert device.store(tokens[: SLICE - 1]) == []
    assert device.store(tokens, first=PER_SLICE - 1) == names(tokens)


def test_one_missing_block_and_the_slice_is_not_there() -> None:
    device, tokens = Device(), prompt(2)
    device.store(tokens)
    second = blocks(tokens)[1]

    assert device.remove(second) == names(tokens)[:1]
    assert device.remove(second) == []
    assert list(device.slices.inventory()) == names(tokens)[1:]


def test_slice_is_there_again_when_the_block_is() -> None:
    device, tokens = Device(), prompt(1)
    device.store(tokens)
    hashes = blocks(tokens)
    device.remove(hashes[1], hashes[2])

    assert device.store(tokens[: 2 * BLOCK]) == []
    assert device.store(tokens[: 3 * BLOCK], first=2) == names(tokens)


def test_slice_that_lost_its_last_block_is_an_eviction() -> None:
    device, tokens = Device(), prompt(2)
    device.store(tokens)

    assert device.remove(blocks(tokens)[PER_SLICE - 1]) == names(tokens)[:1]
    assert device.slices.evictions == 1
    assert device.store(tokens[:SLICE], first=PER_SLICE - 1) == names(tokens)[:1]


def test_block_that_two_slices_begin_with_takes_both_away() -> None:
    device, one = Device(), prompt(1)
    other = one[: 2 * BLOCK] + prompt(1, seed=2)[2 * BLOCK :]
    device.store(one)
    device.store(other, first=2)

    assert sorted(device.remove(blocks(one)[0])) == sorted(names(one) + names(other))
    assert sorted(device.store(one[:BLOCK])) == sorted(names(one) + names(other))


def test_slice_that_is_there_twice_is_there_until_its_second_copy_goes() -> None:
    device, tokens = Device(), prompt(2)
    device.store(tokens)
    last = blocks(tokens)[PER_SLICE - 1]

    assert device.store(tokens) == []
    assert device.remove(last) == []
    assert list(device.slices.inventory()) == names(tokens)
    assert device.slices.evictions == 0
    assert device.remove(last) == names(tokens)[:1]
    assert device.remove(last) == []
    assert device.slices.evictions == 1


def test_copy_that_came_before_its_place_was_known_counts_too() -> None:
    device, tokens = Device(), prompt(2)
    device.store(tokens, first=PER_SLICE)
    device.store(tokens)
    second = blocks(tokens)[2 * PER_SLICE - 1]

    assert device.remove(second) == []
    assert device.remove(second) == names(tokens)[1:]


def test_blocks_behind_one_that_is_not_known_have_no_place() -> None:
    device, tokens = Device(), prompt(3)

    assert device.store(tokens, first=PER_SLICE) == []
    assert device.slices.inventory() == ()


def test_other_salts_are_other_slices() -> None:
    device, tokens = Device(), prompt(1)

    assert device.store(tokens, salt="acme") != device.store(tokens, salt="other")


@pytest.mark.parametrize(
    "about",
    [{"lora_name": "adapter"}, {"extra_keys": [("image", 7)] + [None] * 9}, {"extra_keys": [("a", "b")] + [None] * 9}],
    ids=["adapter", "image", "two keys"],
)
def test_what_tokens_alone_do_not_name_is_named_after_its_last_block(about: dict[str, Any]) -> None:
    device, tokens = Device(), prompt(2)

    found = device.store(tokens, **about)

    assert found == [made_up(blocks(tokens)[place]) for place in (PER_SLICE - 1, 2 * PER_SLICE - 1)]


def test_other_places_of_kv_are_not_the_device() -> None:
    device, tokens = Device(), prompt(1)

    assert device.store(tokens, medium="CPU") == []
    assert device.store(tokens, group_idx=1) == []
    device.store(tokens)
    assert device.remove(*blocks(tokens), medium="CPU") == []


def test_short_hashes_name_blocks_as_well() -> None:
    device, tokens = Device(), prompt(1)
    numbers = list(range(1, PER_SLICE + 1))

    assert device.store(tokens, block_hashes=numbers) == names(tokens)
    assert device.slices.removed(SimpleNamespace(block_hashes=[2], medium="GPU", group_idx=None)) == names(tokens)


def test_nothing_is_left_when_it_is_cleared() -> None:
    device, tokens = Device(), prompt(2)
    device.store(tokens)

    device.slices.clear()

    assert device.slices.inventory() == ()
    assert device.store(tokens) == names(tokens)


@pytest.mark.parametrize("seed", range(5))
def test_whatever_comes_and_goes_a_slice_is_there_while_there_is_a_copy_of_all_of_its_blocks(seed: int) -> None:
    chance = random.Random(seed)
    prompts = [prompt(2, seed=seed) for seed in range(2)]
    prompts.append(prompts[0][: 5 * BLOCK] + prompts[1][5 * BLOCK :])
    device, copies, told = Device(), Counter[bytes](), set[SliceId]()
    for _ in range(1_000):
        tokens = chance.choice(prompts)
        hashes = blocks(tokens)
        if chance.random() < 0.4:
            # A request computes what is not there, or, beside another that does, what it found missing when it came.
            missing = next((n for n, each in enumerate(hashes) if not copies[each]), len(hashes) - 1)
            first = chance.randint(0, missing)
            found = device.store(tokens, first=first)
            assert not told & set(found)
            told |= set(found)
            copies.update(hashes[first:])
        else:
            gone = chance.sample(hashes, 2)
            left = device.remove(*gone)
            assert set(left) <= told
            told -= set(left)
            copies -= Counter(gone)  # None is removed that is not there.
        whole = {
            name
            for each in prompts
            for place, name in enumerate(names(each))
            if all(copies[part] for part in blocks(each)[place * PER_SLICE : (place + 1) * PER_SLICE])
        }
        assert told == set(device.slices.inventory()) == whole
    device.remove(*copies.elements())
    assert not device.slices.inventory()
    assert not device.slices._copies
    assert not device.slices._blocks
    assert not device.slices._parts
    assert not device.slices._slices
