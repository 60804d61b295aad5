"""The simulated engine: blocks are kept, requests finish, and taking many steps at once changes nothing."""

import os
import subprocess
import sys
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from events.base import EngineId, ModelId, RequestId, RequestKind
from events.engine import Capability, EngineKind, EngineRegistered, StepModel
from policies.predictors.step_time import FS_PER_NS, step_fs
from replay.costmodel import PROFILES, STEP_MODELS, registered
from replay.engines.job import Finished, FirstToken, Outcome, Refused, RefuseReason, SimRequest, Tokens
from replay.engines.light import LightEngine
from tests.replay.plain_engine import run_plain

MS = 1_000_000
STEP = StepModel(
    base_fs=6_000_000_000_123, above_fs=19_740_412_135, below_fs=11_689_306_693, knee_tokens=64,
    qk_fs=935_465, context_fs=44_385_941, seq_fs=1_000_003,
)  # fmt: skip
SPLIT = structs.replace(STEP, decode_base_fs=5_000_000_000_321, decode_context_fs=21_000_007, decode_seq_fs=3_000_017)
"""A board where steps that only decode have kernels of their own."""


def engine(
    *, kv_blocks: int = 64, block_tokens: int = 4, seqs_max: int = 8, batch_tokens: int = 32, tell: bool = True,
    step: StepModel = STEP, ahead: int = 0,
) -> LightEngine:  # fmt: skip
    return LightEngine(
        EngineRegistered(
            engine_id=EngineId("e1"), kind=EngineKind.SIMULATED, models=(ModelId("m"),), kv_blocks=kv_blocks,
            block_tokens=block_tokens, block_bytes=1, step=step,
            capability=Capability(
                embedding=True, seqs_max=seqs_max, batch_tokens_max=batch_tokens, steps_ahead=ahead
            ),
        ),
        tell_tokens=tell,
    )  # fmt: skip


def llm(name: str, prompt: int, output: int, prefix: tuple[int, ...] = (), unit: int = 8) -> SimRequest:
    return SimRequest(
        request_id=RequestId(name), prompt_tokens=prompt, output_tokens=output, prefix=prefix, unit_tokens=unit
    )


def embedding(name: str, prompt: int, inputs: int) -> SimRequest:
    return SimRequest(
        request_id=RequestId(name), prompt_tokens=prompt, output_tokens=0, inputs=inputs, kind=RequestKind.EMBEDDING
    )


def drain(one: LightEngine) -> list[Outcome]:
    out: list[Outcome] = []
    while (at := one.next_ns()) is not None:
        out += one.run_until(at)
        one.check_integrity()
    return out


def finished(outcomes: list[Outcome]) -> dict[str, Finished]:
    return {o.request_id: o for o in outcomes if isinstance(o, Finished)}


class Load(NamedTuple):
    """One generated request and when it comes (ns)."""

    at_ns: int
    prompt: int
    output: int
    family: int
    inputs: int


LOADS = st.lists(
    st.builds(
        Load,
        at_ns=st.integers(0, 400 * MS),
        prompt=st.integers(1, 90),
        output=st.integers(1, 60),
        family=st.integers(0, 3),
        inputs=st.integers(-6, 4),
    ),
    min_size=1,
    max_size=24,
)


def requests(loads: list[Load]) -> list[tuple[int, SimRequest]]:
    out = []
    for n, load in enumerate(sorted(loads)):
        units = tuple(load.family * 100 + index for index in range(load.prompt // 8))
        if load.inputs > 0:
            out.append((load.at_ns, embedding(f"r{n}", max(load.prompt, load.inputs), load.inputs)))
        else:
            out.append((load.at_ns, llm(f"r{n}", load.prompt, load.output, units)))
    return out


def run_light(work: list[tuple[int, SimRequest]], polls_ns: list[int], one: LightEngine) -> list[Outcome]:
    """Submit in time order, look in at `polls_ns`, then drain; integrity is checked at every look."""
    out: list[Outcome] = []
    looks: list[tuple[int, int, SimRequest | None]] = [(at, 0, request) for at, request in work]
    looks += [(at, 1, None) for at in polls_ns]
    for at, _, request in sorted(looks, key=lambda look: look[:2]):
        while (due := one.next_ns()) is not None and due < at:
            out += one.run_until(due)
        if request is None:
            out += one.run_until(at)
        else:
            one.submit(request, at)
        one.check_integrity()
    return out + drain(one)


def ends(outcomes: list[Outcome]) -> list[Outcome]:
    """First tokens and ends, in an order that does not depend on ties."""
    return sorted(o for o in outcomes if isinstance(o, FirstToken | Finished))


SHAPE = {"kv_blocks": 40, "block_tokens": 4, "seqs_max": 6, "batch_tokens": 24}


@settings(max_examples=250, deadline=None)
@given(LOADS, st.lists(st.integers(0, 3_000 * MS), max_size=30), st.sampled_from([STEP, SPLIT]))
def test_many_steps_at_once_equal_one_by_one(loads: list[Load], polls_ns: list[int], step: StepModel) -> None:
    work = requests(loads)
    light = run_light(work, polls_ns, engine(**SHAPE, step=step))
    assert ends(light) == ends(run_plain(work, step, **SHAPE))


@settings(max_examples=80, deadline=None)
@given(LOADS, st.lists(st.tuples(st.integers(0, 1_000 * MS), st.integers(0, 23)), max_size=12))
def test_no_block_is_lost_and_all_finish_whatever_is_aborted(
    loads: list[Load], aborts: list[tuple[int, int]]
) -> None:  # fmt: skip
    one, out = engine(**SHAPE), list[Outcome]()
    steps = [(at, 0, r) for at, r in requests(loads)] + [(at, 1, f"r{n}") for at, n in aborts]
    gone = set[str]()
    for at, kind, what in sorted(steps, key=lambda step: (step[0], step[1])):
        while (due := one.next_ns()) is not None and due < at:
            out += one.run_until(due)
            one.check_integrity()
        if kind:
            if one.abort(RequestId(what), at):
                gone.add(what)
                assert what not in {o.request_id for o in out if isinstance(o, Finished)}, "the ended are not aborted"
                out = [o for o in out if o.request_id != what]
        else:
            one.submit(what, at)
        one.check_integrity()
    out += drain(one)
    assert {o.request_id for o in out if isinstance(o, Finished)} == {f"r{n}" for n in range(len(loads))} - gone
    assert not gone & {o.request_id for o in out}, "nothing is said about what was aborted"
    last = one.measured()
    assert (last.running, last.waiting, last.kv_used_ppm) == (0, 0, 0)


@settings(max_examples=60, deadline=None)
@given(LOADS, st.lists(st.integers(0, 3_000 * MS), max_size=30))
def test_tokens_that_are_told_add_up(loads: list[Load], polls_ns: list[int]) -> None:
    work = requests(loads)
    out = run_light(work, polls_ns, engine(**SHAPE))
    for request_id, end in finished(out).items():
        told = sum(o.tokens for o in out if isinstance(o, Tokens) and o.request_id == request_id)
        first = sum(isinstance(o, FirstToken) and o.request_id == request_id for o in out)
        assert first + told == end.output_tokens
    assert [o.at_ns for o in out if not isinstance(o, Tokens)] == sorted(
        o.at_ns for o in out if not isinstance(o, Tokens)
    )


def test_preempted_requests_finish_too() -> None:
    one = engine(kv_blocks=20)
    for n in range(4):
        one.submit(llm(f"r{n}", 16, 24), 0)
    out = finished(drain(one))
    assert len(out) == 4
    assert sum(end.preemptions for end in out.values()) > 0, "four times ten blocks do not fit in twenty"
    assert one.measured().preemptions_total == sum(end.preemptions for end in out.values())
    assert out["r0"].preemptions == 0, "the oldest is never the victim"


def test_a_shared_prefix_shortens_the_time_to_first_token() -> None:
    one = engine(kv_blocks=400, batch_tokens=64)
    prefix = tuple(range(100))
    one.submit(llm("cold", 800, 1, prefix), 0)
    cold = next(o for o in drain(one) if isinstance(o, FirstToken))
    start = cold.at_ns + 5
    one.submit(llm("warm", 800, 1, prefix), start)
    out = drain(one)
    warm = next(o for o in out if isinstance(o, FirstToken))
    assert warm.at_ns - start < cold.at_ns / 5
    assert finished(out)["warm"].cached_tokens == 792, "the last token is computed, so its unit is too"
    one.submit(llm("other", 800, 1, tuple(range(1000, 1100))), warm.at_ns)
    assert finished(drain(one))["other"].cached_tokens == 0


def test_cached_units_make_room_oldest_first() -> None:
    one, second = engine(kv_blocks=16, batch_tokens=64), 10**9
    for n, name in enumerate(("a", "b")):
        one.submit(llm(name, 25, 1, tuple(range(100 * n, 100 * n + 3))), n * second)
        drain(one)
    one.submit(llm("c", 33, 1, tuple(range(300, 304))), 2 * second)
    drain(one)
    one.submit(llm("b2", 25, 1, (100, 101, 102)), 3 * second)
    assert finished(drain(one))["b2"].cached_tokens == 24, "b was used after a"
    one.submit(llm("a2", 25, 1, (0, 1, 2)), 4 * second)
    assert finished(drain(one))["a2"].cached_tokens < 24, "a made room, its last units first"


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (llm("r", 300, 1), RefuseReason.TOO_LONG),
        (llm("r", 200, 57), RefuseReason.TOO_LONG),
        (embedding("r", 600, 2), RefuseReason.TOO_LONG),
    ],
)
def test_what_can_never_fit_is_refused_at_once(request_: SimRequest, reason: RefuseReason) -> None:
    one = engine(kv_blocks=64)
    one.submit(request_, 7)
    assert one.next_ns() == 7
    assert one.run_until(7) == [Refused(RequestId("r"), 7, reason)]
    assert one.next_ns() is None


def test_an_embedding_is_refused_where_it_is_not_served() -> None:
    base = registered("e1", ["m"], capability=Capability(embedding=False))
    one = LightEngine(base)
    one.submit(embedding("v", 100, 1), 0)
    assert one.run_until(0) == [Refused(RequestId("v"), 0, RefuseReason.NOT_SERVED)]


def test_many_inputs_of_an_embedding_pass_through_a_small_memory() -> None:
    one = engine(kv_blocks=16)
    one.submit(embedding("v", 640, 20), 0)
    end = finished(drain(one))["v"]
    assert (end.output_tokens, end.kv_tokens) == (0, 640)


def test_requests_at_the_same_time_share_the_first_step() -> None:
    one = engine()
    one.submit(llm("a", 8, 1), 100)
    one.submit(llm("b", 8, 1), 100)
    first, second = (o.at_ns for o in drain(one) if isinstance(o, FirstToken))
    assert first == second


def test_time_does_not_go_back() -> None:
    one = engine()
    one.run_until(10)
    with pytest.raises(AssertionError, match="back"):
        one.submit(llm("a", 8, 1), 9)


def test_a_thousand_decode_steps_cost_one_stride() -> None:
    one = LightEngine(registered("e1", ["m"]), tell_tokens=False)
    for n in range(100):
        one.submit(llm(f"r{n}", 500, 2_000), 0)
    looks = 0
    while (at := one.next_ns()) is not None:
        one.run_until(at)
        looks += 1
    assert looks < 60, "some prompt steps, then one stride to the end for those that began together"


def test_profiles_carry_their_source_and_their_memory() -> None:
    assert {name for name, model in STEP_MODELS.items() if not model.source} == set()
    assert PROFILES["llama-3-8b_h100"].kv_tokens() == 426_788
    assert registered("e1", ["m"]).kv_blocks == 426_788 // 16


SCRIPT = """
import random
from tests.replay import test_light_engine as t
rng = random.Random(3)
ranges = ((0, 10**8), (1, 90), (1, 60), (0, 4), (-6, 4))
loads = [t.Load(*(rng.randrange(*span) for span in ranges)) for _ in range(60)]
print(t.run_light(t.requests(loads), [], t.engine(**t.SHAPE)))
"""


def test_two_hash_seeds_give_the_same_run() -> None:
    runs = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT], env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": "."},
            check=True, capture_output=True, text=True,
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert runs[0] == runs[1]
    assert "Finished" in runs[0]


# Steps that are scheduled ahead.


@pytest.mark.parametrize(("ahead", "between"), [(0, 0), (1, 1)], ids=["each when it begins", "one ahead"])
def test_who_comes_during_a_step_enters_so_many_steps_later(ahead: int, between: int) -> None:
    """`a` decodes; `b` comes within a step, then waits for its end, for those that were scheduled, and for its own."""
    one = engine(ahead=ahead)
    one.submit(llm("a", 8, 20), 0)
    came_ns = 1 * MS
    alone = engine()
    alone.submit(llm("a", 8, 20), 0)
    tokens = [
        o.at_ns for at in range(0, 400 * MS, MS) for o in alone.run_until(at) if isinstance(o, (FirstToken, Tokens))
    ]
    one.submit(llm("b", 8, 2), came_ns)
    first = next(o for o in drain(one) if isinstance(o, FirstToken) and o.request_id == "b")
    begun_ns = first.at_ns - step_fs(STEP, tokens=9, qk=32, context=9 + between, seqs=1) // FS_PER_NS
    expected = next(at for at in tokens if at >= came_ns)
    later = [at for at in tokens if at > expected]
    assert abs(begun_ns - (later[between - 1] if between else expected)) <= 1


def test_with_nothing_scheduled_who_comes_goes_at_once() -> None:
    """The only step in flight is the last of its request, so none was scheduled behind it."""
    times = []
    for ahead in (0, 1):
        one = engine(ahead=ahead)
        one.submit(llm("a", 8, 1), 0)
        one.submit(llm("b", 8, 1), 1 * MS)
        times.append([o.at_ns for o in drain(one) if isinstance(o, FirstToken)])
    assert times[0] == times[1]


@given(
    asked=st.lists(st.tuples(st.integers(0, 120), st.integers(1, 60), st.integers(1, 12)), min_size=1, max_size=8),
    every=st.integers(1, 40),
)
def test_scheduled_ahead_too_it_does_not_matter_how_often_an_engine_is_looked_at(
    asked: list[tuple[int, int, int]], every: int
) -> None:
    rows = sorted(asked)
    outcomes = []
    for look in (False, True):
        one, out, now = engine(kv_blocks=24, ahead=1, tell=False), [], 0
        for number, (at_ms, prompt, output) in enumerate(rows):
            while look and now + every * MS < at_ms * MS:
                now += every * MS
                out += one.run_until(now)
            one.submit(llm(f"r{number}", prompt, output), at_ms * MS)
            now = at_ms * MS
        out += drain(one)
        outcomes.append(out)
    assert outcomes[0] == outcomes[1]
