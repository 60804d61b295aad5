"""How a benchmark's numbers are said, in pages and in terminals: one way each."""

from events.base import NS_PER_MS, NS_PER_S, PPM

NOTHING = "-"
NEVER = "never"
"""A percentile over all requests that has no answer in it: infinite."""
_BYTES_PER_GIB = 1024**3


def number(value: float | None, digits: int = 2) -> str:
    """A plain number, `-` where there is none."""
    return NOTHING if value is None else f"{value:,.{digits}f}"


def share(value: float | None) -> str:
    """A share in percent."""
    return NOTHING if value is None else f"{value * 100:.1f} %"


def attained(value: float, retried: float) -> str:
    """The share of requests in time, and how many of all those are that came back after they were refused."""
    return f"{share(value)} ({share(retried)} retried)" if retried else share(value)


def ppm(value: int) -> str:
    """A share in millionths, in percent."""
    return f"{value * 100 / PPM:g} %"


def span(ns: float | None) -> str:
    """A time that something took; None is infinite."""
    if ns is None:
        return NEVER
    return f"{ns / NS_PER_S:,.2f} s" if ns >= NS_PER_S else f"{ns / NS_PER_MS:,.1f} ms"


def gib(count: int) -> str:
    """Bytes as GiB."""
    return f"{count / _BYTES_PER_GIB:,.1f} GiB"


def seconds(value: float) -> str:
    """A time that people wait for."""
    if value < 120:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 7_200 else f"{value / 3_600:.1f} h"
