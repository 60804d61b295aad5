"""One tier's slices as the engine's delegate knows them: what vLLM says in offload keys goes on in names.

The delegate (policies/memory/delegate.py) decides what leaves a tier. It is told here what is in it, who holds it and
how it was used, and asked here. A slice keeps the name it was stored under for as long as it stays.
"""

import time
from collections.abc import Callable, Collection, Iterable

from events.base import SliceId
from events.slice import Tier
from policies.memory.delegate_ops import AnyOp, Choice, Cleared, EvictAsked, Held, LetGo, Removed, Stored, Used
from services.vllm_plugin.naming import Naming
from services.vllm_plugin.prompt import Prompt

Choose = Callable[[AnyOp], Choice | None]
"""Tells the delegate something, or asks it (`bridge.choose`)."""


class TierChoices:
    """All calls come from the scheduler's thread. `cost_ns`: what one slice takes to compute."""

    def __init__(
        self, tier: Tier, naming: Naming, choose: Choose, *, slice_bytes: int, cost_ns: Callable[[], int]
    ) -> None:
        self._tier, self._naming, self._choose = tier, naming, choose
        self._slice_bytes, self._cost_ns = slice_bytes, cost_ns
        self.evictions = 0
        self._names: dict[bytes, SliceId] = {}
        self._keys: dict[SliceId, bytes] = {}
        self._parents: dict[bytes, bytes] = {}

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, key: bytes) -> bool:
        return key in self._names

    def stored(self, key: bytes, prompt: Prompt | None, parent: bytes | None = None) -> None:
        """It is being put in, by this prompt (None: nobody's; `parent` is the slice before it, where known). It is held
        until let go."""
        name = self._naming.hold(key)
        self._names[key], self._keys[name] = name, key
        place, length = 0, 1
        if prompt is not None and key in prompt.places:
            place, length, parent = prompt.places[key], prompt.length, prompt.parent(key)
        if parent is not None:
            self._parents[key] = parent
        self._choose(
            Stored(
                at_ns=time.monotonic_ns(),
                tier=self._tier,
                slice_id=name,
                cost_ns=self._cost_ns(),
                parent=self._naming.name(parent) if parent is not None else "",
                size=self._slice_bytes,
                from_end=length - 1 - place,
                length=length,
            )
        )

    def parent(self, key: bytes) -> bytes | None:
        """The slice before it in its prompt, as far as that was said."""
        return self._parents.get(key)

    def held(self, keys: Iterable[bytes]) -> None:
        """They are being read or written."""
        self._choose(Held(tier=self._tier, slices=self._told(keys)))

    def let_go(self, keys: Iterable[bytes]) -> None:
        """Nobody reads or writes them."""
        self._choose(LetGo(at_ns=time.monotonic_ns(), tier=self._tier, slices=self._told(keys)))

    def used(self, keys: Iterable[bytes], prompt: Prompt) -> None:
        """A request used these slices of its prompt."""
        known = sorted((prompt.places[key], key) for key in keys if key in prompt.places)
        for first, run in _runs(known):
            slices = self._told(run)
            self._choose(
                Used(at_ns=time.monotonic_ns(), tier=self._tier, slices=slices, first=first, length=prompt.length)
            )

    def removed(self, keys: Collection[bytes]) -> None:
        """They are gone, and nobody chose them."""
        told = [key for key in keys if key in self._names]
        if told:
            self._choose(Removed(tier=self._tier, slices=self._told(told)))
            self._forget(told)

    def cleared(self) -> None:
        """Everything is gone."""
        self._choose(Cleared(tier=self._tier))
        self._forget(list(self._names))

    def evict(self, count: int, protected: Iterable[bytes] = ()) -> list[bytes] | None:
        """Who leaves, so that `count` are gone; None if that cannot be."""
        choice = self._choose(
            EvictAsked(
                at_ns=time.monotonic_ns(),
                tier=self._tier,
                count=count,
                protected=tuple(sorted(self._names[key] for key in protected if key in self._names)),
            )
        )
        assert choice is not None, "a question has an answer"
        if not choice.chosen:
            return None
        keys = [self._keys[SliceId(name)] for name in choice.chosen]
        self._forget(keys)
        self.evictions += len(keys)
        return keys

    def renamed(self, key: bytes, *, held: bool) -> None:
        """It has another name now; `held`: somebody reads or writes it."""
        if key in self._names and self._names[key] != self._naming.name(key):
            parent = self.parent(key)
            self.removed([key])
            self.stored(key, None, parent)
            if not held:
                self.let_go([key])

    def _told(self, keys: Iterable[bytes]) -> tuple[SliceId, ...]:
        return tuple(self._names[key] for key in keys if key in self._names)

    def _forget(self, keys: Iterable[bytes]) -> None:
        for key in keys:
            del self._keys[self._names.pop(key)]
            self._parents.pop(key, None)
            self._naming.release(key)


def _runs(known: list[tuple[int, bytes]]) -> Iterable[tuple[int, list[bytes]]]:
    """Keys at places, in order, as runs of neighbours: where each begins, and who is in it."""
    run: list[bytes] = []
    first = 0
    for place, key in known:
        if run and place != first + len(run):
            yield first, run
            run = []
        if not run:
            first = place
        run.append(key)
    if run:
        yield first, run
