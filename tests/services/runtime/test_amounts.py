"""Amounts as people write them."""

import pytest

from services.runtime.amounts import bytes_of, ppm_of, setting_of


@pytest.mark.parametrize(
    ("text", "amount"),
    [("0", 0), ("4096", 4_096), ("8GiB", 8 * 2**30), ("1.5KiB", 1_536), ("2 MB", 2_000_000), ("1_000", 1_000)],
)
def test_bytes(text: str, amount: int) -> None:
    assert bytes_of(text) == amount


@pytest.mark.parametrize("text", ["", "8 gigs", "GiB", "1.5", "0.3B", "1e9", "--4"])
def test_what_is_no_number_of_bytes_is_refused_with_the_units(text: str) -> None:
    with pytest.raises(ValueError, match=r"B, KiB, MiB, GiB|no whole number"):
        bytes_of(text)


@pytest.mark.parametrize(("text", "amount"), [("10%", 100_000), ("12.5 %", 125_000), ("7ppm", 7)])
def test_shares(text: str, amount: int) -> None:
    assert ppm_of(text) == amount


def test_a_share_needs_its_unit() -> None:
    with pytest.raises(ValueError, match="ppm, %"):
        ppm_of("10")


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("period_ns", "1500ms", 1_500_000_000), ("period_ns", "2s", 2 * 10**9), ("period_ns", "5", 5),
        ("safety_ppm", "5%", 50_000), ("safety_ppm", "7", 7), ("queue_max", "12", 12), ("queue_max", "5%", "5%"),
        ("mode", "observe", "observe"), ("queue_max", "-1", -1),
    ],
)  # fmt: skip
def test_settings_take_the_unit_of_their_name(key: str, text: str, value: object) -> None:
    assert setting_of(key, text) == value
