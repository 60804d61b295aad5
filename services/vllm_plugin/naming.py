"""Names of slices inside an engine: vLLM's offload keys on one side, the log's slice ids on the other.

An offload key is vLLM's hash of a chunk's last block and the number of its cache group. The name in the log is the
slice's fingerprint: known for prompts whose tokens were seen (by hints of the gateway, or because the engine computed
it), else made up from the key. A key keeps its first name until it is told the true one. While a tier holds the slice,
that is done by the scheduler's thread alone, which tells the log and the delegate: they know it by its name.
"""

import threading
from collections.abc import Iterable
from typing import Final

from events.base import SliceId

NAMES_MAX: Final = 1 << 19
"""Names that are kept beyond those of slices that a tier holds. The oldest goes first."""
MADE_UP: Final = "k"
"""Begins a name that no fingerprint stands behind."""
NAME_DIGITS: Final = 32


class Naming:
    """Thread-safe. What is resident (`hold`) keeps its name; the rest is bounded by NAMES_MAX."""

    def __init__(self, names_max: int = NAMES_MAX) -> None:
        self._names_max = names_max
        self._lock = threading.Lock()
        self._names: dict[bytes, SliceId] = {}
        self._keys: dict[SliceId, bytes] = {}
        self._held: dict[bytes, int] = {}
        self._loose: dict[bytes, None] = {}
        self._heard: dict[bytes, SliceId] = {}

    def learn(self, key: bytes, name: SliceId) -> SliceId | None:
        """The true name of a key. The name that it had until now, if it had another.

        A name that another slice of a tier bears is not given twice: equal tokens can have different KV (an image in
        their place, an adapter), and no fingerprint says so."""
        with self._lock:
            return self._learn(key, name)

    def hear(self, key: bytes, name: SliceId) -> None:
        """As `learn`, from another thread than the scheduler's: what a tier holds is among `heard` instead."""
        with self._lock:
            if key not in self._held:
                self._learn(key, name)
            elif self._names[key] != name:
                self._heard[key] = name

    def heard(self) -> list[tuple[bytes, SliceId]]:
        """What to `learn` of what tiers hold, since the last call."""
        if not self._heard:
            return []
        with self._lock:
            taken, self._heard = self._heard, {}
        return list(taken.items())

    def name(self, key: bytes) -> SliceId:
        """The name of a key; from now on it has one."""
        with self._lock:
            return self._names.get(key) or self._name(key, made_up(key))

    def names(self, keys: Iterable[bytes]) -> tuple[SliceId, ...]:
        """The names of keys, in their order."""
        return tuple(map(self.name, keys))

    def key(self, name: SliceId) -> bytes | None:
        """The key behind a name; None for one that was never heard here, or long ago."""
        with self._lock:
            return self._keys.get(name)

    def hold(self, key: bytes) -> SliceId:
        """A tier holds it from now on: its name, which is kept until `release` was called as often."""
        with self._lock:
            name = self._names.get(key) or self._name(key, made_up(key))
            self._held[key] = self._held.get(key, 0) + 1
            self._loose.pop(key, None)
            return name

    def release(self, key: bytes) -> None:
        """A tier let go of it."""
        with self._lock:
            left = self._held.pop(key) - 1
            if left:
                self._held[key] = left
            else:
                self._heard.pop(key, None)
                self._loosen(key)

    def _learn(self, key: bytes, name: SliceId) -> SliceId | None:
        before, other = self._names.get(key), self._keys.get(name, key)
        if before == name or (other != key and other in self._held):
            return None
        self._name(key, name)
        return before

    def _name(self, key: bytes, name: SliceId) -> SliceId:
        before = self._names.get(key)
        if before is not None:
            del self._keys[before]
        other = self._keys.get(name, key)
        if other != key:
            # Nobody holds it: whoever meets it again gives it another name.
            del self._names[other]
            self._loose.pop(other, None)
        self._names[key] = name
        self._keys[name] = key
        if key not in self._held:
            self._loosen(key)
        return name

    def _loosen(self, key: bytes) -> None:
        self._loose.pop(key, None)
        self._loose[key] = None
        if len(self._loose) > self._names_max:
            oldest = next(iter(self._loose))
            del self._loose[oldest]
            del self._keys[self._names.pop(oldest)]


naming: Final = Naming()
"""The one of this process."""


def made_up(key: bytes) -> SliceId:
    """The name of a key that nobody named: it says that it is none, and is the same in every run."""
    return SliceId((MADE_UP + key.hex())[:NAME_DIGITS])
