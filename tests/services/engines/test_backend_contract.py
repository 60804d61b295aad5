"""What every engine promises, over both kinds."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import NamedTuple

import pytest

from events.base import ModelId, RequestId, RequestKind, SliceId
from events.decisions import EngineDirected, Move, MoveReason, TransferOrdered
from events.engine import EngineKind
from events.slice import Tier, TransferEnd, TransferFinished
from kvstore.schema import KVCacheSchema
from services.engines.base import STATUS_ABORTED, Call, Chunk, EngineError, InferenceBackend
from services.engines.open import open_engine
from services.runtime.config import EngineConfig
from services.runtime.pool_clock import PoolClock
from tests.services.engines.vllm_double import vllm_double

SCHEMA = KVCacheSchema(layers=2, kv_heads=2, head_dim=8)
PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}


class Subject(NamedTuple):
    """A backend, how its server dies, how it is made to work for long, and whether it works."""

    backend: InferenceBackend
    kill: Callable[[], Awaitable[None]]
    slow: Callable[[], None]
    is_idle: Callable[[], Awaitable[bool]]
    long_call: Callable[..., Call]


@asynccontextmanager
async def simulated(**tiers: int) -> AsyncIterator[Subject]:
    config = EngineConfig(
        id="e1", kind=EngineKind.SIMULATED, models=["tiny"], kv_schema=SCHEMA, kv_blocks=2_000, embedding=True,
        context_tokens_max=1_000_000, **tiers,
    )  # fmt: skip
    backend = open_engine(config, clock=PoolClock(speed=20))

    async def is_idle() -> bool:
        measured = await backend.metrics()
        return measured.running == measured.waiting == measured.kv_used_ppm == 0

    try:
        yield Subject(backend, backend.close, lambda: None, is_idle, lambda **more: call(output_tokens=20_000, **more))
    finally:
        await backend.close()


@asynccontextmanager
async def vllm() -> AsyncIterator[Subject]:
    async with vllm_double() as double:
        config = EngineConfig(id="e1", models=["tiny"], url=double.url, kv_schema=SCHEMA, embedding=True)
        backend = open_engine(config, clock=PoolClock())

        def slow() -> None:
            double.hold = asyncio.Event()

        async def is_idle() -> bool:
            return double.running == 0

        try:
            yield Subject(backend, double.kill, slow, is_idle, call)
        finally:
            await backend.close()


@pytest.fixture(
    params=[simulated, partial(simulated, dram_bytes=1 << 20, ssd_bytes=1 << 22), vllm],
    ids=["simulated", "with_tiers", "vllm"],
)
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    async with request.param() as subject:
        yield subject


def call(
    path: str = "chat", *, stream: bool = True, output_tokens: int = 3, body: bytes = b"", name: str = "r1"
) -> Call:
    options = b',"stream_options":{"include_usage":true}' if stream else b""
    flag = b"true" if stream else b"false"
    return Call(
        request_id=RequestId(name),
        model=ModelId("tiny"),
        kind=RequestKind.LLM,
        path=PATHS[path],
        body=body or b'{"model":"tiny","stream":' + flag + options + b"}",
        stream=stream,
        prompt_tokens=11,
        tokens_max=100_000,
        output_tokens=output_tokens,
    )


async def collect(answer: AsyncIterator[Chunk]) -> list[Chunk]:
    return [chunk async for chunk in answer]


@pytest.mark.parametrize("path", list(PATHS))
async def test_stream_is_complete_and_its_usage_stands_alone(subject: Subject, path: str) -> None:
    chunks = await collect(subject.backend.submit(call(path)))

    assert sum(chunk.tokens for chunk in chunks) == 3
    told = [chunk for chunk in chunks if chunk.usage is not None]
    assert len(told) == 1
    assert told[0].usage is not None
    assert (told[0].usage.prompt_tokens, told[0].usage.output_tokens) == (11, 3)
    assert told[0].usage.finish_reason == "stop"
    assert told[0].tokens == 0
    assert b'"choices":[]' in told[0].data
    assert told[0].data.count(b"data: ") == 1
    data = b"".join(chunk.data for chunk in chunks)
    assert data.startswith(b"data: {")
    assert data.endswith(b"data: [DONE]\n\n")
    assert all(chunk.content_type.startswith("text/event-stream") for chunk in chunks)


async def test_whole_answer_is_one_piece_with_its_usage(subject: Subject) -> None:
    [chunk] = await collect(subject.backend.submit(call(stream=False)))

    assert chunk.usage is not None
    assert (chunk.tokens, chunk.usage.output_tokens) == (3, 3)
    assert b'"choices"' in chunk.data
    assert chunk.content_type == "application/json"


async def test_embeddings_are_one_piece(subject: Subject) -> None:
    asked = call(stream=False)._replace(path="/v1/embeddings", kind=RequestKind.EMBEDDING, tokens_max=0)
    [chunk] = await collect(subject.backend.submit(asked))

    assert b'"embedding"' in chunk.data
    assert chunk.usage is not None
    assert chunk.usage.prompt_tokens > 0
    assert chunk.tokens == 0
    registered = await subject.backend.describe()
    held = registered.block_bytes if registered.kind is EngineKind.SIMULATED else 0
    assert chunk.usage.embedding_bytes == held, "11 tokens are one block; vLLM does not tell"


async def test_closing_the_answer_aborts_the_work(subject: Subject) -> None:
    subject.slow()
    async with aclosing(subject.backend.submit(subject.long_call())) as answer:  # type: ignore[type-var]
        await anext(answer)
        assert not await subject.is_idle()
    await until(subject.is_idle)


async def test_abort_by_name_ends_the_answer_and_frees_the_engine(subject: Subject) -> None:
    subject.slow()
    with pytest.raises(EngineError) as aborted:
        await after_each(subject.backend.submit(subject.long_call()), lambda: subject.backend.abort(RequestId("r1")))

    assert (aborted.value.lost, aborted.value.status) == (False, STATUS_ABORTED)
    await until(subject.is_idle)
    await subject.backend.abort(RequestId("nobody"))


async def test_engine_that_dies_in_the_middle_is_lost(subject: Subject) -> None:
    subject.slow()
    with pytest.raises(EngineError) as error:
        await after_each(subject.backend.submit(subject.long_call()), subject.kill)

    assert error.value.lost


async def test_dead_engine_is_lost_whatever_it_is_asked(subject: Subject) -> None:
    await subject.kill()
    for asking in (collect(subject.backend.submit(call())), subject.backend.metrics(), subject.backend.describe()):
        with pytest.raises(EngineError) as error:
            await asking
        assert error.value.lost


async def test_engine_describes_its_memory_and_capability(subject: Subject) -> None:
    registered = await subject.backend.describe()

    assert registered.engine_id == "e1"
    assert registered.models == ("tiny",)
    assert registered.kv_blocks in (2_000, 2_048)
    assert registered.block_bytes == SCHEMA.token_bytes() * registered.block_tokens
    assert registered.capability.embedding
    assert registered.capability.llm
    schema = subject.backend.get_kv_schema()
    assert schema is not None
    assert schema.token_bytes() == SCHEMA.token_bytes()


async def test_a_preempted_stream_gives_its_memory_back_and_goes_on_without_loss(subject: Subject) -> None:
    if not subject.backend.get_capability().can_preempt:
        pytest.skip("this kind cannot, and says so")
    got: list[Chunk] = []

    async def read() -> None:
        async for chunk in subject.backend.submit(call(output_tokens=2_000)):
            got.append(chunk)  # noqa: PERF401 - others look at it meanwhile

    reading = asyncio.create_task(read())

    async def begun() -> bool:
        return bool(got)

    await until(begun)
    assert await subject.backend.preempt(RequestId("r1"))
    assert not await subject.backend.preempt(RequestId("r1")), "it does not run any more"
    await until(subject.is_idle)
    assert not reading.done()
    await subject.backend.resume(RequestId("r1"))
    async with asyncio.timeout(20):
        await reading
    assert sum(chunk.tokens for chunk in got) == 2_000
    assert [chunk.usage.output_tokens for chunk in got if chunk.usage is not None] == [2_000]
    assert got[-1].data.endswith(b"data: [DONE]\n\n")


async def test_a_preempted_request_can_be_aborted(subject: Subject) -> None:
    if not subject.backend.get_capability().can_preempt:
        pytest.skip("this kind cannot, and says so")
    async with aclosing(subject.backend.submit(subject.long_call())) as answer:  # type: ignore[type-var]
        await anext(answer)
        assert await subject.backend.preempt(RequestId("r1"))
    await subject.backend.resume(RequestId("r1"))
    await until(subject.is_idle)


async def test_who_cannot_preempt_says_so_and_goes_on(subject: Subject) -> None:
    if subject.backend.get_capability().can_preempt:
        pytest.skip("this kind can")
    async with aclosing(subject.backend.submit(call())) as answer:  # type: ignore[type-var]
        first = await anext(answer)
        assert not await subject.backend.preempt(RequestId("r1"))
        assert first.tokens + sum([chunk.tokens async for chunk in answer]) == 3


async def test_orders_about_a_request_that_is_not_there_change_nothing(subject: Subject) -> None:
    assert not await subject.backend.preempt(RequestId("nobody"))
    await subject.backend.resume(RequestId("nobody"))
    assert await subject.is_idle()


async def test_a_directive_is_gone_by_or_ignored_and_never_pretended(subject: Subject) -> None:
    directive = EngineDirected(engine_id=subject.backend.engine_id, version=5, eviction="lru", protect_ppm=800_000)
    await subject.backend.direct(directive)
    version = (await subject.backend.metrics()).directive_version
    assert version == (5 if subject.backend.get_capability().can_preempt else 0)


async def test_an_order_is_answered_where_slices_are_reported_and_ignored_elsewhere(subject: Subject) -> None:
    order = TransferOrdered(
        order="m1", engine_id=subject.backend.engine_id, move=Move.DROP, reason=MoveReason.WORTHLESS,
        slices=(SliceId("s"),), from_tier=Tier.DRAM,
    )  # fmt: skip
    await subject.backend.order(order)
    answers = [
        (fact.order, fact.end)
        for fact in await subject.backend.slice_facts(measure=False)
        if isinstance(fact, TransferFinished)
    ]
    reports = subject.backend.get_capability().reports_slices
    assert answers == ([("m1", TransferEnd.FAILED)] if reports else [])
    assert await subject.backend.slice_facts(measure=False) == []


async def test_engine_measures_itself(subject: Subject) -> None:
    await collect(subject.backend.submit(call()))
    measured = await subject.backend.metrics()

    assert measured.engine_id == "e1"
    assert measured.prompt_tokens_total > 0
    assert measured.output_tokens_total > 0
    assert 0 <= measured.kv_used_ppm <= 1_000_000


async def test_calls_run_beside_each_other(subject: Subject) -> None:
    answers = await asyncio.gather(*(collect(subject.backend.submit(call(name=f"r{n}"))) for n in range(20)))

    assert [sum(chunk.tokens for chunk in chunks) for chunks in answers] == [3] * 20


async def after_each(answer: AsyncIterator[Chunk], act: Callable[[], Awaitable[None]]) -> None:
    async for _ in answer:
        await act()


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(5):
        while not await holds():  # noqa: ASYNC110 - an engine does not say when it becomes idle
            await asyncio.sleep(0.005)
