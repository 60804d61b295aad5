"""How slices are used over time, from a log: hits by tier, and what had to be computed. What heatmaps are made of.

A hit is what an engine says (`slices_hit`). A miss is a slice that appears in device memory or DRAM of an engine that
held it nowhere: it was computed there. Slices found on SSD when an engine starts are neither.
"""

from collections.abc import Callable, Iterable
from typing import Final

from events import codec
from events.base import Recorded
from events.log.base import Message
from events.slice import SlicesHit, SlicesStored, Tier
from kvstore.stats import AccessExport, AccessStats
from services.runtime.registry_book import RegistryBook

COLUMNS: Final = 240
"""Windows of time in a picture, at most."""
PAIRS_MAX: Final = 4_096
"""Slices that are told apart in one window."""
_NOTES: Final = (b'"slices_hit.v', b'"slices_stored.v')
"""What the body of a message holds that is worth decoding in the first reading, whatever the version."""


def book_of(
    source: Iterable[Message], *, on_record: Callable[[Recorded, RegistryBook], None] | None = None
) -> RegistryBook:
    """All that the registry of slices would hold at the log's end. `on_record` sees each record before it is taken."""
    book = RegistryBook()
    for message in source:
        for recorded in codec.decode(message.seq, message.subject, message.body):
            if on_record is not None:
                on_record(recorded, book)
            book.take(recorded)
    return book


def accesses_of(source: Iterable[Message], *, columns: int = COLUMNS) -> AccessExport:
    """The accesses of a whole log, in about as many windows. Reads the source twice."""
    window_ns = _window_ns(source, columns)
    stats = AccessStats(window_ns=window_ns, windows_max=columns + 2, slices_max=PAIRS_MAX)

    def note(recorded: Recorded, book: RegistryBook) -> None:
        match recorded.event:
            case SlicesHit(tier=tier, slices=slices):
                for slice_id in slices:
                    stats.record_access(slice_id, tier=tier, is_hit=True, now_ns=recorded.ts_ns)
            case SlicesStored(engine_id=engine_id, tier=Tier.HBM | Tier.DRAM as tier, slices=slices):
                for slice_id in slices:
                    if not book.held(engine_id, slice_id):
                        stats.record_access(slice_id, tier=tier, is_hit=False, now_ns=recorded.ts_ns)
            case _:
                pass

    book_of(source, on_record=note)
    return stats.export_stats()


def _window_ns(source: Iterable[Message], columns: int) -> int:
    """A window such that the slices' facts fit into so many."""
    first_ns = last_ns = None
    for message in source:
        if any(note in message.body for note in _NOTES):
            at_ns = codec.decode(message.seq, message.subject, message.body)[0].ts_ns
            first_ns = at_ns if first_ns is None else min(first_ns, at_ns)
            last_ns = at_ns if last_ns is None else max(last_ns, at_ns)
    if first_ns is None or last_ns is None:
        return 1
    return (last_ns - first_ns) // columns + 1
