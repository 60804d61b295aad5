"""What is told and asked of a delegate (`policies.memory.delegate`), and what it answers: an engine's journal's words.

An op is what happened in the engine (`stored`, `used`, `let_go`, ...) or a question that must be answered within its
step (`evict_asked`, `victim_asked`, `fetch_asked`). Each holds all that its answer depends on, times and speeds too, so
that the ops alone give the same answers again. A slice stands under its name: a SliceId, or any other text where the
engine's agent knows none. `at_ns` is the engine's own monotonic time.
"""

import msgspec

from events.base import RequestId
from events.decisions import EngineDirected
from events.slice import ChoiceKind, Tier
from policies.memory.victims import Running


class Op(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", omit_defaults=True):
    """One entry of an engine's journal."""


class Directed(Op, frozen=True, kw_only=True, tag="directed"):
    """From now on choices are made by this directive; one that names no eviction lifts those before it."""

    directive: EngineDirected


class Stored(Op, frozen=True, kw_only=True, tag="stored"):
    """A slice is put into a tier, and held there until it is let go. It takes `cost_ns` to compute and `size` bytes.
    `parent` is the slice before it in its prompt ("" = it is the first, or nobody knows); it stands `from_end` slices
    before the last one of a prompt of `length` slices. Said again of a slice that is there, it is held again."""

    at_ns: int
    tier: Tier
    slice_id: str
    parent: str = ""
    cost_ns: int
    size: int
    from_end: int = 0
    length: int = 1


class Used(Op, frozen=True, kw_only=True, tag="used"):
    """A request had these slices from a tier: a run of its prompt of `length` slices, from place `first` on. Those that
    are not there are passed over. What a request stored itself it does not use."""

    at_ns: int
    tier: Tier
    slices: tuple[str, ...]
    first: int = 0
    length: int = 1


class Held(Op, frozen=True, kw_only=True, tag="held"):
    """They are being read: not to be evicted until they are let go."""

    tier: Tier
    slices: tuple[str, ...]


class LetGo(Op, frozen=True, kw_only=True, tag="let_go"):
    """Nobody reads or writes these slices now: they may be evicted."""

    at_ns: int
    tier: Tier
    slices: tuple[str, ...]


class Removed(Op, frozen=True, kw_only=True, tag="removed"):
    """They are gone from the tier, and no choice of the delegate was the reason."""

    tier: Tier
    slices: tuple[str, ...]


class Cleared(Op, frozen=True, kw_only=True, tag="cleared"):
    """The tier is empty now."""

    tier: Tier


class GaveWay(Op, frozen=True, kw_only=True, tag="gave_way"):
    """The engine preempted this request: what came of a choice, or of its own accord."""

    at_ns: int
    request_id: RequestId


class EvictAsked(Op, frozen=True, kw_only=True, tag="evict_asked"):
    """Which `count` slices leave the tier now; none of `protected`. All or none."""

    at_ns: int
    tier: Tier
    count: int
    protected: tuple[str, ...] = ()


class VictimAsked(Op, frozen=True, kw_only=True, tag="victim_asked"):
    """Who gives way so that `need_blocks` blocks are free for `for_request` (one of those that run)."""

    at_ns: int
    need_blocks: int
    running: tuple[Running, ...]
    for_request: RequestId = RequestId("")


class FetchAsked(Op, frozen=True, kw_only=True, tag="fetch_asked"):
    """Whether these slices are loaded from a tier for a request, or computed again. `size` bytes go over a link of
    `bytes_per_s` (0 = not measured yet) behind `queue_bytes`; computing them takes `recompute_ns`."""

    at_ns: int
    tier: Tier
    slices: tuple[str, ...]
    size: int
    queue_bytes: int = 0
    bytes_per_s: int = 0
    latency_ns: int = 0
    recompute_ns: int
    for_request: RequestId = RequestId("")


AnyOp = (
    Directed | Stored | Used | Held | LetGo | Removed | Cleared | GaveWay | EvictAsked | VictimAsked | FetchAsked
)  # fmt: skip
"""Every op, for decoding."""


class Choice(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An answer. `chosen`: the slices that leave (none: it cannot be done), the requests that give way, first to last,
    or the slices that are fetched (none: not worth it). `candidates` were looked at; their digest is that of all that
    was looked at, in order. `directive_version` 0: no directive was there."""

    kind: ChoiceKind
    directive_version: int
    candidates: int
    candidates_digest: str
    chosen: tuple[str, ...] = ()
    for_request: RequestId = RequestId("")
