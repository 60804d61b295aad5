"""Amounts as people write them: 8GiB, 10%, 500ms; into whole numbers of the unit that a setting counts in."""

import re
from decimal import Decimal
from typing import Final

from events.base import NS_PER_MS, NS_PER_S, PPM

_AMOUNT = re.compile(r"(-?\d[\d_]*(?:\.\d+)?)\s*([A-Za-z%µ]*)")
BYTE_UNITS: Final = {
    "": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "kB": 10**3, "KB": 10**3, "MB": 10**6,
    "GB": 10**9, "TB": 10**12,
}  # fmt: skip
SHARE_UNITS: Final = {"ppm": 1, "%": PPM // 100}
TIME_UNITS: Final = {"": 1, "ns": 1, "us": 1_000, "µs": 1_000, "ms": NS_PER_MS, "s": NS_PER_S, "m": 60 * NS_PER_S}


def bytes_of(text: str) -> int:
    """`8GiB`, `500MB`, `4096`. Raises ValueError that names the units."""
    return _amount(text, BYTE_UNITS)


def ppm_of(text: str) -> int:
    """`10%`, `12.5%`, `100000ppm`. Raises ValueError that names the units."""
    return _amount(text, SHARE_UNITS)


def ns_of(text: str) -> int:
    """`500ms`, `30s`, `10m`. Raises ValueError that names the units."""
    return _amount(text, TIME_UNITS)


def setting_of(key: str, text: str) -> int | str:
    """A setting's value: a number, in the unit that the key's name ends in where none is written (`_ns`: `500ms`;
    `_ppm`: `10%`); whatever is no number stays as it is, for the policy to judge."""
    units = TIME_UNITS if key.endswith("_ns") else {"": 1, **SHARE_UNITS} if key.endswith("_ppm") else {"": 1}
    try:
        return _amount(text, units)
    except ValueError:
        return text


def _amount(text: str, units: dict[str, int]) -> int:
    found = _AMOUNT.fullmatch(text.strip())
    if found is None or found[2] not in units:
        named = ", ".join(unit for unit in units if unit)
        raise ValueError(f"{text!r} is no amount (a number with one of: {named})")
    exact = Decimal(found[1].replace("_", "")) * units[found[2]]
    if exact != int(exact):
        raise ValueError(f"{text!r} is no whole number")
    return int(exact)
