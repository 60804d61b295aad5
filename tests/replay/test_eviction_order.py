"""A directive costs no walk over all units, and yet puts them into the order that such a walk would."""

from hypothesis import given as drawn
from hypothesis import strategies as st

from events.base import EngineId, SliceId
from events.decisions import EngineDirected
from replay.engines.changes import Changes
from replay.engines.prefix_cache import PrefixCache, Unit

CHAINS = ("abc", "abd", "ae", "fgh", "fi", "j")

steps = st.lists(
    st.one_of(
        st.tuples(st.just("runs"), st.sampled_from(CHAINS)),
        st.tuples(st.just("evicts"), st.just("")),
        st.tuples(st.just("directed"), st.sampled_from(("", "a", "b", "cg", "dh", "j"))),
    ),
    max_size=40,
)


def run(cache: PrefixCache, chain: str) -> list[str]:
    """A request computes this chain and ends; which units it let go, in that order."""
    units = cache.match(1, chain)
    cache.hold(units)
    for key in chain[len(units) :]:
        unit, _ = cache.add(units[-1] if units else cache.root(1), key)
        units.append(unit)
    cache.release(units)
    return list(reversed(chain))


def directed(hot: str, *, needed: str = "") -> EngineDirected:
    return EngineDirected(
        engine_id=EngineId("e"), version=1, eviction="lru", protect_ppm=0, hot=tuple(SliceId(one) for one in hot),
        needed=tuple(SliceId(one) for one in needed),
    )  # fmt: skip


def above(name: str) -> str:
    """A unit, and those above it."""
    chain = next(chain for chain in CHAINS if name in chain)
    return chain[: chain.index(name) + 1]


def first_to_go(let_go: list[str], hot: str) -> str:
    """Of units let go in this order, all at the same time, the one that goes first."""
    ends = [name for name in let_go if not any(name in above(other)[:-1] for other in let_go)]
    shielded = "".join(above(name) for name in hot if name in let_go)
    return min(ends, key=lambda name: (name in shielded, let_go.index(name)))


@drawn(steps, st.booleans())
def test_right_after_a_directive_goes_who_was_let_go_first(taken: list[tuple[str, str]], watched: bool) -> None:
    cache, gone = PrefixCache(), []
    if watched:
        cache.watch(Changes(), block_bytes=1)

    def hear(unit: Unit) -> None:
        gone.append(unit.key)

    cache.before_eviction = hear
    let_go: list[str] = []
    for step, what in taken:
        if step == "runs":
            again = run(cache, what)
            let_go = [name for name in let_go if name not in again] + again
        elif step == "directed" or not let_go:
            cache.direct(directed(what))
            cache.direct(directed(what, needed="h"))
            cache.direct(directed(what))
            hot = what if step == "directed" else ""
            if let_go:
                cache.evict(1)
                assert gone[-1] == first_to_go(let_go, hot)
                let_go.remove(gone[-1])
        else:
            cache.evict(1)
            let_go.remove(gone[-1])
        cache.check_integrity()
    assert len(let_go) == cache.evictable
