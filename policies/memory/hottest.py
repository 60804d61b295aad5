"""Which slices are hot: used often enough of late, kept up with every use, so that nobody walks all that are known.

How hot a slice is changes only when it is used, and whether that is enough only then and when a half-life is over. So
slices stand here from the use that makes them hot until a half-life after which they are not hot any more.

Example: hot means twice of late. a is used twice: it stands here. Three half-lives later a quarter of a use is left of
that, and it stands here no more; used once now, it does not stand here either.
"""

from collections.abc import Callable, Iterable

import msgspec

from events.base import SliceId
from policies.memory.reuse import HEAT_ONE, Heat, half_life_ns, uses_of_late


class Hottest(msgspec.Struct):
    """`order` by slice: larger is hotter, at any time. What had cooled was left out when half-life `epoch` began."""

    order: dict[SliceId, int] = msgspec.field(default_factory=dict)
    epoch: int = 0


def is_hot(heat: Heat, *, uses_min: int) -> bool:
    """Whether what was used just now is hot."""
    return heat.amount >= uses_min * HEAT_ONE


def used(hottest: Hottest, slice_id: SliceId, heat: Heat, *, uses_min: int) -> None:
    """It was used just now."""
    if is_hot(heat, uses_min=uses_min):
        hottest.order[slice_id] = heat.order()
    else:
        hottest.order.pop(slice_id, None)


def forgotten(hottest: Hottest, slice_id: SliceId) -> None:
    """Nothing is known of it any more."""
    hottest.order.pop(slice_id, None)


def anew(heats: Iterable[tuple[SliceId, Heat]], *, uses_min: int) -> Hottest:
    """What stands here when something else is called hot from now on."""
    hottest = Hottest()
    for slice_id, heat in heats:
        used(hottest, slice_id, heat, uses_min=uses_min)
    return hottest


def hot(
    hottest: Hottest, heat_of: Callable[[SliceId], Heat], now_ns: int, *, uses_min: int, horizon_ns: int
) -> dict[SliceId, int]:
    """What is hot now, each with its order. Not to be changed."""
    half_life = half_life_ns(horizon_ns)
    if now_ns // half_life == hottest.epoch:
        return hottest.order
    return {
        slice_id: order
        for slice_id, order in hottest.order.items()
        if uses_of_late(heat_of(slice_id), now_ns, half_life) >= uses_min
    }


def foremost(order: dict[SliceId, int], most: int) -> dict[SliceId, int]:
    """Of these the `most` that are hottest, and all that are as hot as the last of them."""
    if len(order) <= most:
        return order
    least = sorted(order.values(), reverse=True)[max(0, most - 1)]
    return {slice_id: heat for slice_id, heat in order.items() if heat >= least}


def cool(hottest: Hottest, heat_of: Callable[[SliceId], Heat], now_ns: int, *, uses_min: int, horizon_ns: int) -> None:
    """Time went on: leave out what is not hot any more."""
    hottest.order = hot(hottest, heat_of, now_ns, uses_min=uses_min, horizon_ns=horizon_ns)
    hottest.epoch = now_ns // half_life_ns(horizon_ns)
