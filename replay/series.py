"""Quantities over time, from a log: what a report draws."""

import msgspec


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """One quantity over time: `unit` is ppm, tokens/s, requests/s..., `engine` "" = the whole pool."""

    name: str
    unit: str
    engine: str = ""
    at_s: tuple[float, ...] = ()
    values: tuple[float, ...] = ()
