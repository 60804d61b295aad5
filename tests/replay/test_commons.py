"""What engines share for nothing, in a bound: what one computed the other has, and an engine alone is as it was."""

from events.engine import EngineRegistered
from replay.costmodel import registered
from replay.engines.base import EngineBuilder, VirtualEngine
from replay.engines.job import Finished, SimRequest
from replay.engines.light import light_engine, sharing_light_engine

S = 1_000_000_000
UNITS = tuple(f"u{number}" for number in range(8))


def shape(name: str) -> EngineRegistered:
    return registered(name, ["m"], kv_tokens=40_000)


def built(build: EngineBuilder, name: str) -> VirtualEngine:
    return build(shape(name), now_ns=0, tiers=None, faults=None, ssd=None, peer=lambda _engine_id: None)


def cached(engine: VirtualEngine, name: str, now_ns: int, units: tuple[str, ...] = UNITS) -> int:
    """Asks for a prompt of these units and a token more; how much of it was not computed."""
    request = SimRequest(
        request_id=name, prompt_tokens=256 * len(units) + 1, output_tokens=2, prefix=units, unit_tokens=256  # type: ignore[arg-type]
    )  # fmt: skip
    engine.submit(request, now_ns)
    engine.next_ns()
    ends = [one for one in engine.run_until(now_ns + S) if isinstance(one, Finished)]
    engine.check_integrity()  # type: ignore[attr-defined]
    return ends[0].cached_tokens


def test_what_one_engine_computed_the_others_have() -> None:
    build = sharing_light_engine()
    one, other = built(build, "e1"), built(build, "e2")
    assert cached(one, "r1", 0) == 0
    assert cached(other, "r2", 2 * S) == 256 * 8
    assert cached(other, "r3", 4 * S, (*UNITS[:4], "x")) == 256 * 4, "up to the first that nobody has"


def test_engines_that_do_not_share_compute_for_themselves() -> None:
    one, other = built(light_engine, "e1"), built(light_engine, "e2")
    assert cached(one, "r1", 0) == 0
    assert cached(other, "r2", 2 * S) == 0
    assert cached(other, "r3", 4 * S) == 256 * 8


def test_two_runs_share_nothing() -> None:
    one, other = built(sharing_light_engine(), "e1"), built(sharing_light_engine(), "e2")
    assert cached(one, "r1", 0) == 0
    assert cached(other, "r2", 2 * S) == 0
