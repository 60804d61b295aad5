"""What a gateway may say of engines: ready is what the log has shown to answer."""

from events.base import EngineId, ModelId, RequestKind
from events.engine import EngineHealthChanged, EngineKind, EngineMeasured, EngineRegistered, Health
from services.gateway.engine_book import EngineBook

E1 = EngineId("e1")
REGISTERED = EngineRegistered(
    engine_id=E1, kind=EngineKind.VLLM, models=(ModelId("m"),), kv_blocks=10, block_tokens=16, block_bytes=1
)
MEASURED = EngineMeasured(engine_id=E1, running=0, waiting=0, kv_used_ppm=0)


def health(now: Health) -> EngineHealthChanged:
    return EngineHealthChanged(engine_id=E1, health=now)


def test_a_configured_engine_is_not_ready_before_it_was_seen_to_answer() -> None:
    book = EngineBook([REGISTERED])
    assert book.ready() == ()
    assert book.serving(ModelId("m"), RequestKind.LLM) == [REGISTERED]
    book.take(health(Health.READY))
    assert book.ready() == (E1,)


def test_a_gateway_that_came_later_hears_of_it_by_what_is_measured() -> None:
    book = EngineBook([REGISTERED])
    book.take(MEASURED)
    assert book.ready() == (E1,)


def test_a_measurement_does_not_bring_a_lost_engine_back() -> None:
    book = EngineBook([REGISTERED])
    book.take(health(Health.LOST))
    book.take(MEASURED)
    assert book.ready() == ()
    assert book.serving(ModelId("m"), RequestKind.LLM) == []
    book.take(health(Health.READY))
    assert book.ready() == (E1,)


def test_an_engine_that_broke_a_call_off_is_passed_over_until_it_is_well() -> None:
    book = EngineBook([REGISTERED])
    book.take(health(Health.READY))
    book.broke_off(E1)
    assert book.ready() == ()
    book.take(health(Health.READY))
    assert book.ready() == (E1,)
