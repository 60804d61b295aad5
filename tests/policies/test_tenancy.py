"""Tenants: what each holds to the byte, and who waits for whom when it is too much."""

import pytest

from events.decisions import DeferReason, RejectReason, WakeAsked
from policies import tenancy
from policies.tenancy import QUOTAS_MAX, Tenants
from tests.policies.house import admitted, deferred, house, rejected
from tests.policies.words import (
    S,
    aborted,
    arrived,
    beat,
    embedding,
    engine,
    finished,
    first_token,
    quota,
    settings,
)
from tests.spec import Spec, said


def held(spec: Spec) -> dict[str, int]:
    return dict(spec.state.tenants.held)


# ------------------------------------------------------------------------------------------------------------ the books


def test_a_request_costs_its_tenant_what_it_is_promised_until_it_ends() -> None:
    spec = house(arrived("a", 100, out=100), arrived("b", 95, out=10, tenant="other"))
    assert held(spec) == {"t": 20_000, "other": 11_000}
    assert held(spec.after(finished("a"))) == {"other": 11_000}
    assert held(spec.after(aborted("b"))) == {}


def test_an_embedding_job_reserves_its_workspace_and_gets_it_back_when_it_fails() -> None:
    spec = house(engines=(engine("e1", embedding=True),))
    spec.when(embedding("vector", 1_000, inputs=5)).then(
        admitted("vector", embedding_workspace_bytes=30_000, kv_bytes_reserved=30_000)
    )
    assert held(spec) == {"t": 30_000}
    assert held(spec.after(aborted("vector"))) == {}


def test_one_that_outgrows_its_prediction_costs_more() -> None:
    short = [event for n in range(20) for event in (arrived(f"s{n}", 10), finished(f"s{n}", out=20))]
    spec = house(*short, arrived("a", 400, out=500), first_token("a"))
    before = held(spec)["t"]
    assert held(spec.after(beat(a=100)))["t"] == spec.state.accounts["e1"].load.blocks_final * 1_000 > before


def test_an_engine_that_is_described_anew_may_have_larger_blocks() -> None:
    spec = house(arrived("a", 100, out=100))
    large = engine("e1")
    spec.after(type(large)(**{name: getattr(large, name) for name in large.__struct_fields__} | {"block_bytes": 3_000}))
    assert held(spec) == {"t": 60_000}
    assert held(spec.after(finished("a"))) == {}


# ----------------------------------------------------------------------------------------------------------- the quotas


def test_above_its_quota_a_tenant_waits_for_its_own_requests() -> None:
    spec = house(quota("t", 40_000), arrived("a", 100, out=200, slack=9 * S))
    spec.when(arrived("b", 100, out=100)).then(deferred("b", DeferReason.TENANT_QUOTA), said(WakeAsked))
    spec.when(arrived("c", 50, out=50, tenant="other")).then(admitted("c"))
    spec.when(finished("c")).then_nothing()
    spec.when(finished("a")).then(admitted("b"))


@pytest.mark.parametrize(
    ("prompt", "out", "tenant", "goes"),
    [(100, 100, "t", True), (101, 100, "t", False), (500, 400, "other", True)],
    ids=["just at its quota", "one block more", "a tenant without a quota"],
)
def test_a_quota_is_held_to_the_block(prompt: int, out: int, tenant: str, goes: bool) -> None:
    spec = house(quota("t", 20_000)).when(arrived("r", prompt, out=out, tenant=tenant))
    spec.then(admitted("r") if goes else rejected("r", RejectReason.TENANT_QUOTA, retry_after_ns=0))


def test_it_holds_up_nobody_else_however_often_it_is_passed() -> None:
    spec = house(settings(passes_max=0), quota("t", 20_000), arrived("a", 100, out=100), arrived("b", 100, slack=9 * S))
    for n in range(5):
        spec.when(arrived(f"o{n}", 10, out=10, tenant="other")).then(admitted(f"o{n}"))


def test_those_of_one_tenant_go_in_their_order() -> None:
    spec = house(settings(passes_max=0), quota("t", 20_000), arrived("a", 100, out=100), arrived("b", 100, slack=9 * S))
    spec.when(arrived("c", 10, out=10, slack=9 * S)).then(deferred("c", DeferReason.BEHIND_OTHERS))
    spec.when(finished("a")).then(admitted("b"))
    spec.when(finished("b")).then(admitted("c"))


def test_whoever_waits_goes_when_the_quota_is_raised_or_lifted() -> None:
    spec = house(quota("t", 20_000), arrived("a", 100, out=100), arrived("b", 100, out=100, slack=9 * S))
    assert list(spec.state.lines.by_group) == ["llm:m\nt"]
    spec.when(quota("t", 39_000)).then_nothing()
    spec.when(quota("t", 0)).then(admitted("b"))
    assert spec.state.tenants.quota == {}


def test_a_lower_quota_takes_nothing_back() -> None:
    spec = house(arrived("a", 100, out=100))
    spec.when(quota("t", 1_000)).then_nothing()
    assert held(spec) == {"t": 20_000}


def test_with_deferral_off_it_is_refused_at_once() -> None:
    spec = house(settings(deferral="off"), quota("t", 20_000), arrived("a", 100, out=100))
    spec.when(arrived("b", 100, out=100)).then(rejected("b", RejectReason.TENANT_QUOTA, retry_after_ns=S))


def test_a_fresh_look_is_taken_before_it_goes() -> None:
    """Its prefix was cached while it waited."""
    warm = {"slices": ("x", "y"), "slice_tokens": 100}
    spec = house(quota("t", 40_000), arrived("a", 100, out=200, slack=9 * S))
    spec.after(arrived("b", 250, out=100, slack=9 * S, **warm))
    spec.after(arrived("c", 250, out=10, tenant="other", **warm), finished("c"))
    spec.when(finished("a")).then(admitted("b", cached_tokens_predicted=200))


def test_the_number_of_quotas_is_bounded() -> None:
    tenants = Tenants()
    for n in range(QUOTAS_MAX + 5):
        tenancy.set_quota(tenants, f"t{n}", 1)  # type: ignore[arg-type]
    assert len(tenants.quota) == QUOTAS_MAX
    assert "t0" not in tenants.quota
