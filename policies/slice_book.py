"""What is known of the pool's slices from requests alone: how often each is asked for, behind which one it stands, how
likely it comes back.

A request's arrival counts as one use of each of its slices, let go at once: what engines do with them is theirs, and
counted by them. Slices that are alike come back alike (`policies.memory.reuse`). Those used longest ago are forgotten
first; what is not known here is taken never to come back.

Names come from clients. A fingerprint names all that stands before it, so of real ones none stands behind itself; of
invented ones it may seem so, and what stands before a slice is then known as far as depths fall.

Example: prompts [s, a], [s, b], [s, a]: s was used three times, a twice; a stands behind s, at depth 1.
"""

from collections.abc import Container, Iterable, Mapping
from itertools import islice

import msgspec

from events.base import ModelId, SliceId
from events.request import RequestArrived
from policies.memory import hottest, reuse
from policies.memory.hottest import Hottest
from policies.memory.reuse import Group, Past, Use

KNOWN_MAX = 32_768
"""Slices known at a time."""
CHAIN_MAX = 1_024
"""Slices of one prompt that are looked at, the first ones."""


class Known(msgspec.Struct, array_like=True):
    """One slice: its uses, the one that it stands behind ("" = it is the first), how many stand before it, and whose KV
    it is."""

    use: Use
    parent: SliceId
    depth: int
    model: ModelId


class SliceBook(msgspec.Struct):
    """All that are known, used longest ago first, and which of them are hot; `slice_tokens` is what the last request
    said that a slice has."""

    known: dict[SliceId, Known] = msgspec.field(default_factory=dict)
    hottest: Hottest = msgspec.field(default_factory=Hottest)
    groups: dict[int, Group] = msgspec.field(default_factory=dict)
    slice_tokens: int = 256


def chain_of(request: RequestArrived) -> tuple[SliceId, ...]:
    """The slices that a prompt begins with, each once: a name that comes twice is no fingerprint."""
    return tuple(dict.fromkeys(request.slices[:CHAIN_MAX]))


def asked(book: SliceBook, request: RequestArrived, now_ns: int, *, horizon_ns: int, hot_uses_min: int) -> None:
    """A request came with these slices. What was used `hot_uses_min` times of late is hot."""
    chain = chain_of(request)
    past, length = Past(groups=book.groups), len(chain)
    for place in reversed(range(length)):  # The first is then the one used last.
        slice_id = chain[place]
        known = book.known.pop(slice_id, None)
        if known is None:
            use = reuse.stored(past, slice_id, now_ns, cost_ns=0, size=1, horizon_ns=horizon_ns)
            known = Known(use, chain[place - 1] if place else SliceId(""), place, request.model)
        else:
            reuse.used(past, known.use, now_ns, let_go=True, horizon_ns=horizon_ns)
            hottest.used(book.hottest, slice_id, known.use.heat, uses_min=hot_uses_min)
        reuse.let_go(past, known.use, now_ns, from_end=length - 1 - place, length=length)
        book.known[slice_id] = known
    # All at one go: a dictionary passes over what has left it whenever it is asked for its first one.
    for oldest in list(islice(book.known, max(0, len(book.known) - KNOWN_MAX))):
        del book.known[oldest]
        hottest.forgotten(book.hottest, oldest)
    if chain:
        book.slice_tokens = max(1, request.slice_tokens)


def forerunner(book: SliceBook, known: Known) -> Known | None:
    """What is known of the slice that stands before it; None where nothing does, or it is not known."""
    before = book.known.get(known.parent)
    return before if before is not None and before.depth < known.depth else None


def come_back_ppm(book: SliceBook, slice_id: SliceId) -> int:
    """How likely it is asked for again within the horizon."""
    known = book.known.get(slice_id)
    return 0 if known is None else reuse.come_back_ppm(Past(groups=book.groups), known.use)


def depth(book: SliceBook, slice_id: SliceId) -> int:
    """How many slices stand before it; 0 where it is not known."""
    known = book.known.get(slice_id)
    return 0 if known is None else known.depth


def configured(book: SliceBook, *, hot_uses_min: int) -> None:
    """Other settings than before."""
    heats = ((slice_id, known.use.heat) for slice_id, known in book.known.items())
    book.hottest = hottest.anew(heats, uses_min=hot_uses_min)


def hot(book: SliceBook, now_ns: int, *, uses_min: int, most: int, horizon_ns: int) -> list[SliceId]:
    """Those used most of late, at least `uses_min` times (as `asked` was told): the hottest first, and of equals those
    that stand before. What has cooled is left out from now on."""
    known = book.known
    hottest.cool(
        book.hottest, lambda slice_id: known[slice_id].use.heat, now_ns, uses_min=uses_min, horizon_ns=horizon_ns
    )
    foremost = hottest.foremost(book.hottest.order, most)
    places = [(order, -known[slice_id].depth, slice_id) for slice_id, order in foremost.items()]
    places.sort(reverse=True)
    return [slice_id for _, _, slice_id in places[:most]]


def children_first(
    book: SliceBook, worth: Iterable[tuple[SliceId, int]], staying: Iterable[SliceId] = ()
) -> list[SliceId]:
    """Slices by what each is worth, the least first; but none before one that stands behind it, for without what stands
    before them those are worth nothing. So what stands before one that is `staying` is left out."""
    values = dict(worth)
    for slice_id in staying:
        known = book.known.get(slice_id)
        while known is not None and values.pop(known.parent, None) is not None:
            known = forerunner(book, known)
    deepest = sorted(values, key=lambda slice_id: -depth(book, slice_id))
    for slice_id in deepest:
        known = book.known.get(slice_id)
        if known is not None and known.parent in values:
            values[known.parent] = max(values[known.parent], values[slice_id])
    return sorted(deepest, key=lambda slice_id: values[slice_id])


def reachable(
    book: SliceBook, wanted: Iterable[SliceId], tiers_of: Mapping[SliceId, int], *, exactly: int,
    models: tuple[ModelId, ...], left_alone: Container[SliceId], most: int,
) -> tuple[SliceId, ...]:  # fmt: skip
    """Of slices that are in `exactly` these tiers of an engine, those whose forerunners are all there, or come along:
    at most so many, and none before one that it stands behind."""
    found: dict[SliceId, None] = {}
    for slice_id in sorted(wanted, key=lambda slice_id: depth(book, slice_id)):
        known = book.known.get(slice_id)
        if len(found) >= most or known is None or known.model not in models or slice_id in left_alone:
            continue
        if tiers_of.get(slice_id, 0) == exactly and _is_rooted(book, known, tiers_of, found):
            found[slice_id] = None
    return tuple(found)


def _is_rooted(
    book: SliceBook, known: Known | None, tiers_of: Mapping[SliceId, int], found: Container[SliceId]
) -> bool:
    """Whether all before it are on the engine, or come along; what is before an unknown one is not known either."""
    while known is not None and known.parent:
        if known.parent in found:
            return True
        if known.parent not in tiers_of:
            return False
        known = forerunner(book, known)
    return known is not None
