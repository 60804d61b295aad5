"""The times of a trace's rows: they never go back, and all are in one unit.

A file in which some times are in another unit (milliseconds among seconds) goes back somewhere, or ends after one leap.
So a time is refused

- when it is below the one before it. If that one, divided by 1,000, 1,000,000 or 1,000,000,000, stood between its
  neighbours, or this one, multiplied so, would follow on it, then the units are said to be mixed;
- when it is more than `SPAN_DAYS_MAX` behind the first: a trace in the wrong unit from end to end, or one wrong row;
- when it leaps: divided so it would follow on the row before it, and undivided it is further away than
  `LEAP` times all that came before. This is asked after `ROWS_MIN` rows, or at once where times count from an epoch.

"Follow on" means: not before the last row, and at most `NEAR` times the longest gap so far behind it.

Example: rows at 1, 2, 3, ... 40 and then 41,000 (ms among s): 41 would follow on 40, and 41,000 is 1,000 spans away.
"""

from fractions import Fraction
from pathlib import Path

from events.base import NS_PER_S
from replay.traces.base import TraceError

ROWS_MIN = 32
NEAR = 10
LEAP = 100
EPOCH_MIN = 10**8
"""Counted from an epoch in any unit, times are above this: seconds since 1970 were in 1973."""
SPAN_DAYS_MAX = 366
_DAY_NS = 86_400 * NS_PER_S
_FACTORS = (1_000, 1_000_000, 1_000_000_000)

Number = int | float | Fraction


class Times:
    """Checks the times of one column (or field), row by row, in units of `unit_ns`."""

    def __init__(self, path: Path, column: str, *, unit_ns: int) -> None:
        self._path, self._column, self._unit_ns = path, column, unit_ns
        self._rows = 0
        self._first: Number = 0
        self._last: Number = 0
        self._before: Number = 0
        self._gap: Number = 0

    def check(self, number: int, time: Number) -> None:
        """Take the time of line `number` in. Raises TraceError."""
        if not self._rows:
            self._first = self._last = self._before = time
        elif time < self._last:
            raise self._back(number, time)
        elif self._leaps(time):
            what = f"{self._column} {_said(time)} leaps from {_said(self._last)}, as in a smaller unit"
            raise self._refused(number, what, "give all times in one unit, or cut the trace here")
        check_span(self._path, number, self._column, round((time - self._first) * self._unit_ns))
        self._rows += 1
        self._gap = max(self._gap, time - self._last)
        self._before, self._last = self._last, time

    def _back(self, number: int, time: Number) -> TraceError:
        mixed = any(
            self._before <= Fraction(self._last) / factor <= time or self._follows(time * factor) for factor in _FACTORS
        )
        what = f"{self._column} {_said(time)} comes after {_said(self._last)}"
        if mixed and self._rows > 1:
            return self._refused(number, f"{what}, as if units were mixed", "give all times in one unit")
        return self._refused(number, what, f"sort the trace by {self._column}")

    def _leaps(self, time: Number) -> bool:
        if self._rows < ROWS_MIN and self._first < EPOCH_MIN:
            return False
        if time - self._last <= LEAP * (self._last - self._first):
            return False
        return any(self._follows(Fraction(time) / factor) for factor in _FACTORS)

    def _follows(self, time: Number) -> bool:
        return self._last <= time <= self._last + NEAR * self._gap

    def _refused(self, number: int, what: str, mend: str) -> TraceError:
        return TraceError(what, file=str(self._path), line=number, mend=mend)


def check_span(path: Path, number: int, column: str, span_ns: int) -> None:
    """Raises TraceError when line `number` is so far behind the first row of the trace."""
    if span_ns > SPAN_DAYS_MAX * _DAY_NS:
        what = f"{column} is {span_ns // _DAY_NS:,} days behind the first"
        mend = f"a trace is {SPAN_DAYS_MAX} days long at most: is it in another unit, or is this row wrong?"
        raise TraceError(what, file=str(path), line=number, mend=mend)


def _said(time: Number) -> str:
    return f"{float(time):.15g}"
