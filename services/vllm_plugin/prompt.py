"""The slices of a request's prompt, as the tiers meet them: their keys in order, and the places of keys."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from events.base import SliceId
from services.vllm_plugin.naming import Naming

if TYPE_CHECKING:
    from vllm.v1.kv_offload.base import ReqContext


class Prompt:
    """`keys` are the offload keys of all full slices so far, first to last; it grows with the request. `names` are what
    the first of them are called, as far as somebody knows; `named` of those were told on. Where only a part of a prompt
    of `length` slices is known, `keys` are that part, from the place `first` on, and `before` is the slice before it.
    """

    def __init__(
        self, keys: Sequence[bytes] = (), *, first: int = 0, length: int = 0, before: bytes | None = None
    ) -> None:
        self.keys: list[bytes] = list(keys)
        self.places: dict[bytes, int] = {key: place for place, key in enumerate(keys, first)}
        self.names: Sequence[SliceId] = ()
        self.named = 0
        self._first, self._length, self._before = first, length, before

    @property
    def length(self) -> int:
        """Slices."""
        return max(self._length, len(self.keys))

    def parent(self, key: bytes) -> bytes | None:
        """The slice before it; None for the first, and for one that is not of this prompt."""
        place = self.places.get(key)
        if place is None:
            return None
        return self.keys[place - self._first - 1] if place > self._first else self._before

    def in_order(self, keys: Iterable[bytes]) -> list[bytes]:
        """These, first to last; vLLM hands some of them around as sets. Those of no place come last, by themselves."""
        return sorted(keys, key=lambda key: (self.places.get(key, len(self.keys)), key))


def prompt_of(context: "ReqContext") -> Prompt:
    """The prompt of a request, up to date. It is kept with the request."""
    prompt: Prompt | None = context.get_state(Prompt)
    if prompt is None:
        prompt = Prompt()
        context.set_state(prompt)
    # vLLM notes each key's last token here, in order of places; its public way in asks for one key at a time.
    positions = context._offload_key_positions  # noqa: SLF001
    if len(positions) > len(prompt.keys):
        prompt.keys = list(positions)
        prompt.places = {key: place for place, key in enumerate(prompt.keys)}
    return prompt


def learn_names(prompt: Prompt, naming: Naming) -> list[tuple[bytes, SliceId]]:
    """Tell `naming` the names of this prompt's slices. Those that had another name until now, with that name."""
    renamed: list[tuple[bytes, SliceId]] = []
    for key, name in zip(prompt.keys[prompt.named :], prompt.names[prompt.named :], strict=False):
        before = naming.learn(key, name)
        if before is not None:
            renamed.append((key, before))
    prompt.named = min(prompt.length, len(prompt.names))
    return renamed
