"""The simulated engine behind the Protocol: its times are the model's, its answers depend on the request alone."""

import asyncio
import base64
from array import array

import msgspec
import pytest

from events.base import NS_PER_S, EngineId, RequestId, RequestKind, SliceId, TenantId
from events.decisions import Move, MoveReason, TransferOrdered
from events.engine import EngineKind
from events.slice import SlicesHit, SlicesStored, Tier, TransferEnd, TransferFinished
from policies.predictors.step_time import unloaded_ttft_ns
from replay.engines.job import SimRequest
from replay.engines.light import LightEngine
from replay.engines.tiers import TierSizes
from services.engines.base import EngineError
from services.engines.simulated import SimulatedBackend, tiers_of
from services.runtime.config import ConfigError, EngineConfig
from services.runtime.pool_clock import PoolClock
from tests.services.engines.test_backend_contract import call, collect


def backend(**settings: object) -> SimulatedBackend:
    config = EngineConfig(id="e1", kind=EngineKind.SIMULATED, models=["tiny"], **settings)  # type: ignore[arg-type]
    return SimulatedBackend(config, clock=PoolClock(speed=50))


async def test_times_are_the_models_not_this_machines() -> None:
    engine = backend()
    asked = call(output_tokens=100)._replace(prompt_tokens=3_000)
    before_ns = engine._clock.steady_ns()
    chunks = [chunk for chunk in await collect(engine.submit(asked)) if chunk.tokens]

    registered = await engine.describe()
    assert registered.step is not None
    ttft_ns = chunks[0].at_ns - before_ns
    unloaded = unloaded_ttft_ns(registered.step, prompt=3_000, batch_tokens=2_048)
    assert unloaded <= ttft_ns < unloaded + 50_000_000 * 50, "modelled, plus what passed before it was submitted"
    assert chunks[0].tokens == 1, "the first token stands alone"
    decode_ns = chunks[-1].at_ns - chunks[0].at_ns
    assert decode_ns == pytest.approx(99 * 6_100_000, rel=0.05), "99 steps of an H100"
    assert len(chunks) < 60, "tokens come in groups when time runs faster"
    await engine.close()


@pytest.mark.parametrize(("tokens_max", "wanted", "length"), [(50, 20, 20), (10, 20, 10), (0, 20, 20), (1, 0, 1)])
async def test_length_is_the_workloads_within_the_cap(tokens_max: int, wanted: int, length: int) -> None:
    engine = backend()
    chunks = await collect(engine.submit(call(output_tokens=wanted)._replace(tokens_max=tokens_max)))
    assert sum(chunk.tokens for chunk in chunks) == length
    [usage] = [chunk.usage for chunk in chunks if chunk.usage]
    assert usage.finish_reason == ("length" if length == tokens_max else "stop")
    await engine.close()


async def test_answer_depends_on_the_request_id_alone() -> None:
    answers = []
    for name in ("a", "a", "b"):
        engine = backend()
        asked = call(output_tokens=0, stream=False, name=name)._replace(tokens_max=64)
        [chunk] = await collect(engine.submit(asked))
        answers.append(msgspec.json.decode(chunk.data)["choices"][0]["message"]["content"])
        await engine.close()
    assert answers[0] == answers[1] != answers[2]


async def test_the_engine_knows_what_a_request_is_worth_when_it_must_choose_a_victim(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[SimRequest] = []
    submit = LightEngine.submit

    def seen(self: LightEngine, request: SimRequest, now_ns: int) -> None:
        asked.append(request)
        submit(self, request, now_ns)

    monkeypatch.setattr(LightEngine, "submit", seen)
    engine = backend()
    worth = {
        "tenant": TenantId("t"), "priority": 3, "deadline_ns": 77, "slo_tpot_ns": 50_000_000, "output_expected": 40
    }  # fmt: skip
    await collect(engine.submit(call()._replace(**worth)))
    await engine.close()

    [one] = asked
    assert {name: getattr(one, name) for name in worth} == worth


async def test_labels_say_where_the_engine_is() -> None:
    engine = backend(labels={"host": "a", "rack": "1"})
    assert (await engine.describe()).capability.labels == {"host": "a", "rack": "1"}
    with pytest.raises(msgspec.ValidationError, match="'row'"):
        msgspec.convert({"id": "e1", "models": ["tiny"], "labels": {"row": "1"}}, EngineConfig)


async def test_tiers_behind_the_memory_serve_what_left_it_and_say_so() -> None:
    engine = backend(kv_blocks=200, dram_bytes=1 << 32, ssd_bytes=1 << 33)
    registered = await engine.describe()
    assert registered.capability.reports_slices
    first = call(output_tokens=2)._replace(prompt_tokens=2_600, slices=tuple(f"s{n}" for n in range(10)))
    other = first._replace(request_id=RequestId("r2"), slices=tuple(f"t{n}" for n in range(10)))
    stored: set[str] = set()
    for asked in (first, other, first._replace(request_id=RequestId("r3"))):
        chunks = await collect(engine.submit(asked))
        async with asyncio.timeout(5):
            while len(stored) < 10:
                facts = await engine.slice_facts(measure=True)
                stored |= {
                    s for fact in facts if isinstance(fact, SlicesStored) for s in fact.slices if fact.tier == "dram"
                }
    assert [chunk.usage.cached_tokens for chunk in chunks if chunk.usage] == [2_560]
    facts = await engine.slice_facts(measure=True)
    hits = [(fact.tier, len(fact.slices)) for fact in facts if isinstance(fact, SlicesHit)]
    assert hits == [(Tier.HBM, 2), (Tier.DRAM, 8)]
    await engine.close()


async def test_an_order_has_until_a_time_of_the_pool_and_slices_can_be_copied_to_a_neighbour() -> None:
    neighbours: dict[str, SimulatedBackend] = {}
    config = EngineConfig(id="e1", kind=EngineKind.SIMULATED, models=["tiny"], dram_bytes=1 << 32)
    clock = PoolClock(speed=50)
    for name in ("e1", "e2"):
        neighbours[name] = SimulatedBackend(
            msgspec.structs.replace(config, id=name), clock=clock, others=neighbours.get
        )
    one = neighbours["e1"]
    await collect(one.submit(call(output_tokens=2)._replace(prompt_tokens=600, slices=("s1", "s2"))))
    order = TransferOrdered(
        order="p1", engine_id=one.engine_id, move=Move.REPLICATE, reason=MoveReason.SPREAD,
        slices=(SliceId("s1"), SliceId("s2")), from_tier=Tier.HBM, to_engine=EngineId("e2"),
        until_ns=clock.now_ns() + NS_PER_S,
    )  # fmt: skip
    late = msgspec.structs.replace(order, order="p2", until_ns=clock.now_ns() - NS_PER_S)
    for each in (order, late):
        await one.order(each)
    ended: dict[str, TransferFinished] = {}
    async with asyncio.timeout(5):
        while len(ended) < 2:
            await asyncio.sleep(0)
            facts = await one.slice_facts(measure=False)
            ended |= {fact.order: fact for fact in facts if isinstance(fact, TransferFinished)}
    assert (ended["p1"].end, ended["p1"].slices_done) == (TransferEnd.DONE, 2)
    assert (ended["p2"].end, ended["p2"].why) == (TransferEnd.FAILED, "too_late")
    facts = await neighbours["e2"].slice_facts(measure=True)
    assert [fact.slices for fact in facts if isinstance(fact, SlicesStored)] == [("s1", "s2")]
    for each in neighbours.values():
        await each.close()


def test_speeds_of_tiers_are_those_of_the_engine_where_nothing_is_said() -> None:
    config = EngineConfig(id="e1", kind=EngineKind.SIMULATED, models=["tiny"], dram_bytes=1, ssd_bytes=2)
    assert tiers_of(config) == TierSizes(dram_bytes=1, ssd_bytes=2)
    assert tiers_of(msgspec.structs.replace(config, dram_bytes=0)) is None


async def test_prefix_hits_are_told() -> None:
    engine = backend()
    asked = call(output_tokens=2)._replace(prompt_tokens=600, slices=("s1", "s2"))
    await collect(engine.submit(asked))
    chunks = await collect(engine.submit(asked._replace(request_id=RequestId("r2"))))
    assert [chunk.usage.cached_tokens for chunk in chunks if chunk.usage] == [512]
    await engine.close()


async def test_usage_event_comes_only_when_the_body_asks() -> None:
    engine = backend()
    chunks = await collect(engine.submit(call(body=b'{"model":"tiny","stream":true}')))
    assert b"usage" not in b"".join(chunk.data for chunk in chunks)
    assert [chunk.usage.output_tokens for chunk in chunks if chunk.usage] == [3]
    await engine.close()


async def test_vectors_come_as_numbers_or_base64() -> None:
    engine = backend(embedding=True)
    vectors = []
    for name, form in (("r1", b"float"), ("r2", b"base64"), ("r1", b"base64")):
        body = b'{"model":"tiny","encoding_format":"' + form + b'"}'
        asked = call(stream=False, body=body, name=name)._replace(
            path="/v1/embeddings", kind=RequestKind.EMBEDDING, inputs=2, tokens_max=0
        )
        [chunk] = await collect(engine.submit(asked))
        data = msgspec.json.decode(chunk.data)["data"]
        assert [each["index"] for each in data] == [0, 1]
        vectors.append(data[0]["embedding"])
    assert array("f", base64.b64decode(vectors[2])).tolist() == vectors[0]
    await engine.close()


async def test_request_that_never_fits_is_refused_in_openais_shape() -> None:
    engine = backend(kv_blocks=4)
    with pytest.raises(EngineError) as refused:
        await collect(engine.submit(call()._replace(prompt_tokens=1_000)))
    assert (refused.value.lost, refused.value.status) == (False, 400)
    assert msgspec.json.decode(refused.value.body)["error"]["code"] == "context_length_exceeded"
    await engine.close()


def test_unknown_step_model_names_what_is_allowed() -> None:
    with pytest.raises(ConfigError) as wrong:
        backend(step_model="abacus")
    assert "llama-3-8b_h100" in str(wrong.value)
