"""Admission: which of the engines a request goes to."""

from typing import Any

from events.decisions import DeferReason, WakeAsked
from events.engine import Health
from policies.admission import ADMISSION
from tests.policies.house import BOTH, admitted, deferred, house
from tests.policies.words import (
    MS,
    arrived,
    embedding,
    engine,
    finished,
    first_token,
    health,
    settings,
    slices,
)
from tests.spec import Spec, at, given, said


def test_the_engine_that_is_quicker_is_taken() -> None:
    house(arrived("a", 400, out=1), engines=BOTH).when(arrived("b", 100)).then(admitted("b", "e2"))


def test_a_cached_prefix_makes_an_engine_quicker() -> None:
    spec = house(arrived("a", 400, out=1), arrived("b", 200, slices=slices("x", "y"), slice_tokens=100), engines=BOTH)
    spec.after(finished("a"), finished("b", "e2"))
    spec.when(arrived("c", 300, slices=slices("x", "y", "z"), slice_tokens=100)).then(
        admitted("c", "e2", cached_tokens_predicted=200, ttft_predicted_ns=10 * MS)
    )


WARM = {"slices": slices("x", "y", "z", "u"), "slice_tokens": 100}
"""What e1 has computed 300 tokens of, in `warm`."""


def warm(*more: Any) -> Spec:
    """e1 has the first three slices of WARM; then 40 ms of other work stand before e1, and none before e2."""
    spec = house(*more, arrived("a", 300, out=1, slices=slices("x", "y", "z"), slice_tokens=100), engines=BOTH)
    spec.after(finished("a"))
    return spec.when(arrived("b", 400, out=1)).then(admitted("b", "e1"))


def test_a_prompt_follows_its_prefix_even_where_computing_it_anew_would_be_quicker() -> None:
    """50 ms on e1, 10 of them its own work; on e2 40 ms, all of them its own."""
    warm().when(arrived("c", 400, out=1, **WARM)).then(
        admitted("c", "e1", cached_tokens_predicted=300, ttft_predicted_ns=50 * MS)
    )
    warm().when(arrived("c", 400, out=1)).then(admitted("c", "e2"))


def test_it_is_computed_anew_where_there_is_no_time_to_wait_for_its_prefix() -> None:
    spec = warm(settings(backlog_max_ns=20 * MS, safety_ppm=0))
    spec.when(arrived("c", 400, out=1, slack=45 * MS, **WARM)).then(admitted("c", "e2", cached_tokens_predicted=0))


def test_it_waits_for_the_engine_with_its_prefix_and_no_other_takes_it_meanwhile() -> None:
    spec = warm(settings(backlog_max_ns=20 * MS, safety_ppm=0))
    spec.when(arrived("c", 400, out=1, **WARM)).then(deferred("c", DeferReason.PREFILL_BACKLOG), said(WakeAsked))
    spec.when(arrived("d", 100, out=1)).then(admitted("d", "e2"))
    spec.when(at(10 * MS, first_token("d", "e2"))).then()
    spec.when(at(40 * MS, first_token("b"))).then(admitted("c", "e1"))


def test_a_lost_engine_has_lost_its_cache() -> None:
    spec = house(arrived("a", 200, slices=slices("x", "y"), slice_tokens=100), finished("a"))
    spec.after(health("e1", Health.LOST), health("e1", Health.READY))
    spec.when(arrived("b", 200, slices=slices("x", "y"), slice_tokens=100)).then(
        admitted("b", cached_tokens_predicted=0)
    )


def test_the_next_best_engine_is_taken_where_the_best_has_no_room() -> None:
    spec = house(engines=(engine("e1"), engine("e2", batch_tokens_max=50)), decoding=arrived("a", 500, out=500))
    spec.when(arrived("b", 400, out=100)).then(admitted("b", "e2"))


def test_round_robin_takes_turns_per_model_and_kind() -> None:
    spec = given(
        ADMISSION, settings(placement="round_robin"), engine("e1", embedding=True), engine("e2", embedding=True)
    )
    for name, engine_id in (("a", "e1"), ("b", "e2"), ("c", "e1")):
        spec.when(arrived(name, 10)).then(admitted(name, engine_id))
        spec.when(embedding(f"v{name}", 10)).then(admitted(f"v{name}", engine_id))


def test_least_loaded_goes_by_tokens() -> None:
    spec = house(
        settings(placement="least_loaded"), arrived("a", 400), arrived("b", 100), arrived("c", 100), engines=BOTH
    )
    spec.when(arrived("d", 100)).then(admitted("d", "e2"))


def test_prefix_affinity_follows_the_prefix_unless_that_engine_is_much_busier() -> None:
    spec = house(
        settings(placement="prefix_affinity", affinity_tokens_min=100, affinity_load_ppm=1_200_000), engines=BOTH
    )
    spec.after(arrived("a", 200, slices=slices("x", "y"), slice_tokens=100))
    spec.after(finished("a"), arrived("b", 100, model="m"), arrived("c", 100))
    warm = {"slices": slices("x", "y"), "slice_tokens": 100}
    spec.when(arrived("d", 200, **warm)).then(admitted("d", "e1"))
    spec.when(arrived("e", 200, **warm)).then(admitted("e", "e2"))
