"""How much memory embedding jobs will want some ticks from now: Holt's level and trend, with an interval.

Once per tick the bytes of embedding workspace in use are observed. The level follows what is seen by a quarter of the
error, the trend by an eighth of that, so a wave is seen coming and a single job is not taken for one. Beyond the first
step ahead the trend fades by an eighth per step: a wave that rises now will not rise for ever (after the damped trend
of Gardner and McKenzie, 1985; here in the forecast only, so that a steady rise is followed without a lag).

How wrong one step ahead has been gives the interval's width, wider for more steps ahead by the state-space formula for
Holt's method (Hyndman, Koehler, Ord and Snyder, "Forecasting with Exponential Smoothing", 2008, table 6.1). Fixed
point, 8 bits below the byte: no floats, so replay is exact.

Example: 100, 200, 300, ... bytes per tick. After a while the level is what is seen, the trend 100 per tick, the error
small: one step ahead is one hundred more, eight steps ahead some five hundred more, not eight.
"""

from math import isqrt

import msgspec

from events.base import PPM
from policies.predictors.base import Interval

STEPS_MAX = 120
"""No forecast looks further ahead than that many ticks."""

_SHIFT = 8
_LEVEL_PART, _TREND_PART, _ERROR_PART, _FADE = 4, 8, 16, 8
_WIDTH_PPM = 2_060_000
"""An interval of 90 % is that many mean absolute errors to each side, if errors are normal: 1.645 / 0.798."""
_ALPHA_PPM, _BETA_PPM = PPM // _LEVEL_PART, PPM // (_LEVEL_PART * _TREND_PART)


class EmbeddingLoad(msgspec.Struct):
    """Fixed point: bytes times 256. `error` is the decayed mean absolute error of one step ahead."""

    level: int = 0
    trend: int = 0
    error: int = 0
    samples: int = 0


def observe(load: EmbeddingLoad, workspace_bytes: int) -> None:
    """One tick's embedding workspace. The first sets the level; what is below 0 counts as 0."""
    seen = max(workspace_bytes, 0) << _SHIFT
    if not load.samples:
        load.level, load.samples = seen, 1
        return
    ahead = load.level + load.trend
    wrong = seen - ahead
    # While few were seen the mean error is a plain mean, so that the interval is not too narrow at the beginning.
    load.error += _part(abs(wrong) - load.error, min(load.samples, _ERROR_PART))
    moved = _part(wrong, _LEVEL_PART)
    load.level = ahead + moved
    load.trend += _part(moved, _TREND_PART)
    load.samples = min(load.samples + 1, _ERROR_PART)


def forecast(load: EmbeddingLoad, steps: int) -> Interval:
    """Workspace in bytes `steps` ticks from now (1 to STEPS_MAX; beyond is cut). Never below 0."""
    steps = min(max(steps, 1), STEPS_MAX)
    expected, trend = load.level, load.trend
    for _ in range(steps):
        expected += trend
        trend -= _part(trend, _FADE)
    width = load.error * _WIDTH_PPM // PPM * _spread_ppm(steps) // PPM
    low, middle, high = (max(value, 0) >> _SHIFT for value in (expected - width, expected, expected + width))
    return Interval(low, middle, high)


def _part(amount: int, of: int) -> int:
    """A part of an amount, rounded towards 0 on both sides, so that nothing creeps one way."""
    return amount // of if amount >= 0 else -(-amount // of)


def _spread_ppm(steps: int) -> int:
    """How much wider the error is so many steps ahead: sqrt(1 + (h-1)(a^2 + a*b*h + b^2*h(2h-1)/6))."""
    grows = _ALPHA_PPM**2 + _ALPHA_PPM * _BETA_PPM * steps + _BETA_PPM**2 * steps * (2 * steps - 1) // 6
    return isqrt(PPM**2 + (steps - 1) * grows)
