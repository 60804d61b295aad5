"""What holds for a delegate whatever it is told: it repeats itself, and nothing in use is ever chosen."""

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from events.base import EngineId, SliceId
from events.decisions import EngineDirected
from events.slice import Tier
from policies.memory.delegate import Delegate, Snapshot
from policies.memory.delegate_ops import (
    AnyOp,
    Choice,
    Cleared,
    Directed,
    EvictAsked,
    Held,
    LetGo,
    Removed,
    Stored,
    Used,
)
from policies.memory.kinds import EvictionKind

NAMES = [f"s{n}" for n in range(8)]
TIER = Tier.DRAM

slices = st.lists(st.sampled_from(NAMES), max_size=4, unique=True).map(tuple)
ids = slices.map(lambda names: tuple(map(SliceId, names)))


@st.composite
def histories(draw: st.DrawFn) -> list[AnyOp]:
    """Ops as an engine says them: time goes on, and a slice's parent is always the same one, of a lower number."""
    ops: list[AnyOp] = []
    at_ns = version = 0
    for kind in draw(st.lists(st.sampled_from("sssslllluuhrecd"), max_size=60)):
        at_ns += draw(st.integers(0, 5)) * 10**9
        match kind:
            case "s":
                number = draw(st.integers(0, len(NAMES) - 1))
                parent = NAMES[number // 2 - 1] if number >= 2 else ""
                ops.append(
                    Stored(
                        at_ns=at_ns, tier=TIER, slice_id=NAMES[number], parent=parent, size=1,
                        cost_ns=draw(st.integers(1, 9)) * 10**9, length=draw(st.integers(1, 9)),
                    )
                )  # fmt: skip
            case "l":
                ops.append(LetGo(at_ns=at_ns, tier=TIER, slices=draw(slices)))
            case "u":
                ops.append(Used(at_ns=at_ns, tier=TIER, slices=draw(slices), length=4))
            case "h":
                ops.append(Held(tier=TIER, slices=draw(slices)))
            case "r":
                ops.append(Removed(tier=TIER, slices=draw(slices)))
            case "e":
                ops.append(EvictAsked(at_ns=at_ns, tier=TIER, count=draw(st.integers(1, 3)), protected=draw(slices)))
            case "c":
                ops.append(Cleared(tier=TIER))
            case _:
                version += 1
                said = EngineDirected(
                    engine_id=EngineId("e"), version=version, protect_ppm=0, pinned=draw(ids), hot=draw(ids),
                    eviction=draw(st.sampled_from([*(each.value for each in EvictionKind), ""])),
                )  # fmt: skip
                ops.append(Directed(directive=said))
    return ops


class Model:
    """Who is there, who is held, what is pinned, and who stands under whom."""

    def __init__(self) -> None:
        self.there: dict[str, str] = {}
        self.held: set[str] = set()
        self.pinned: set[str] = set()

    def take(self, op: AnyOp) -> None:
        match op:
            case Stored():
                self.there.setdefault(op.slice_id, op.parent)
                self.held.add(op.slice_id)
            case LetGo():
                self.held -= set(op.slices)
            case Held():
                self.held |= set(op.slices) & set(self.there)
            case Removed():
                self._leave(op.slices)
            case Cleared():
                self._leave(tuple(self.there))
            case Directed():
                self.pinned = set(op.directive.pinned) if op.directive.eviction else set()
            case _:
                pass

    def check(self, op: EvictAsked, choice: Choice) -> None:
        assert len(choice.chosen) in (0, op.count)
        for name in choice.chosen:
            assert name in self.there
            assert name not in self.held | self.pinned | set(op.protected)
            assert name not in self.there.values(), "children go before their parents"
            self._leave((name,))

    def _leave(self, names: tuple[str, ...]) -> None:
        for name in names:
            self.there.pop(name, None)
            self.held.discard(name)


@settings(max_examples=150, deadline=None)
@given(histories())
def test_nothing_that_is_held_pinned_protected_or_a_parent_is_evicted(ops: list[AnyOp]) -> None:
    delegate, model = Delegate(), Model()
    for op in ops:
        choice = delegate.take(op)
        if isinstance(op, EvictAsked):
            assert choice is not None
            model.check(op, choice)
        else:
            assert choice is None
            model.take(op)
        assert [name for name in NAMES if delegate.holds(TIER, name)] == sorted(model.there)


@settings(max_examples=100, deadline=None)
@given(histories(), st.integers(0, 60))
def test_same_ops_get_same_answers_from_a_snapshot_on_too(ops: list[AnyOp], cut: int) -> None:
    first = Delegate()
    answers = [first.take(op) for op in ops]

    second = Delegate()
    for op in ops[:cut]:
        second.take(op)
    packed = msgspec.json.encode(second.snapshot())
    third = Delegate.restored(msgspec.json.decode(packed, type=Snapshot))

    assert [third.take(op) for op in ops[cut:]] == answers[cut:]
    assert msgspec.json.encode(third.snapshot()) == msgspec.json.encode(first.snapshot())


@settings(max_examples=50, deadline=None)
@given(histories())
def test_ops_are_read_back_as_they_were_written(ops: list[AnyOp]) -> None:
    packed = msgspec.json.encode(ops)

    assert msgspec.json.decode(packed, type=list[AnyOp]) == ops
