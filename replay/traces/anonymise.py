"""A trace that can be given away: every name in it becomes a keyed hash, and what was equal stays equal within it.

Requests, tenants, sessions, objectives and slices are renamed, so that prefixes are shared as before, but nobody who
guesses a prompt can find it: that takes the key. Without a key a fresh one is drawn and thrown away; with one, two
parts of a trace can be given away that still fit together. Lengths, times between requests, priorities, SLOs and the
names of models stay: they are what a trace is for, and they can tell something of whoever sent it.
"""

from collections.abc import Iterable, Iterator
from hashlib import blake2b

from msgspec.structs import replace

from events.base import RequestId, SessionId, SliceId, TenantId
from kvstore.fingerprint import FINGERPRINT_BYTES
from replay.workloads.facts import TraceRow

KEY_BYTES_MIN, KEY_BYTES_MAX = 16, 64
NAME_BYTES = 6


def anonymised(rows: Iterable[TraceRow], *, key: bytes, shift_ns: int = 0) -> Iterator[TraceRow]:
    """The same rows under other names, each `shift_ns` later. Two runs with one key give the same names."""
    assert KEY_BYTES_MIN <= len(key) <= KEY_BYTES_MAX, "a key is as long as it has to be"
    names = _Names(key)
    for row in rows:
        arrived, traced = row.arrived, row.traced
        request_id = RequestId(names.of("r", arrived.request_id))
        yield TraceRow(
            at_ns=row.at_ns + shift_ns,
            arrived=replace(
                arrived,
                request_id=request_id,
                tenant=TenantId(names.of("t", arrived.tenant)),
                session=SessionId(names.of("s", arrived.session)),
                objective=names.of("o", arrived.objective),
                slices=tuple(names.slice(name) for name in arrived.slices),
            ),
            traced=replace(traced, request_id=request_id, after=RequestId(names.of("r", traced.after))),
        )


class _Names:
    """New names by old ones; a name of one sort says nothing about an equal one of another."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._slices: dict[SliceId, SliceId] = {}

    def of(self, sort: str, name: str) -> str:
        """The new name; no name stays none."""
        return f"{sort}-{self._hash(sort, name, NAME_BYTES)}" if name else ""

    def slice(self, name: SliceId) -> SliceId:
        """The new fingerprint of a slice."""
        new = self._slices.get(name)
        if new is None:
            new = self._slices[name] = SliceId(self._hash("slice", name, FINGERPRINT_BYTES))
        return new

    def _hash(self, sort: str, name: str, size: int) -> str:
        return blake2b(name.encode(), digest_size=size, key=self._key, person=sort.encode()).hexdigest()
