"""Two admission workers against each other: one owner at a time, and the log tells who decided what."""

import os
import time
from collections import Counter
from pathlib import Path
from typing import Final

import pytest

from events.control import ActorStarted
from services.runtime.embedded import EmbeddedNats
from services.runtime.output import Exit
from tests.e2e.client import steady_load
from tests.e2e.house import running, until
from tests.e2e.settings import house_settings

pytestmark = pytest.mark.integration

RIVALRY_S: Final = float(os.environ.get("E2E_RIVALRY_S", "10"))
REQUESTS_PER_S: Final = 20
PATIENT_MS: Final = 20_000
OWNERS_MIN: Final = 4
RIVALS: Final = {
    "admission-careful": ("policies.admission.output_quantile_ppm=950000", "policies.admission.safety_ppm=200000"),
    "admission-bold": ("policies.admission.output_quantile_ppm=500000", "policies.admission.backlog_max_ns=0"),
}


async def test_of_two_admission_workers_one_decides_at_a_time_and_every_takeover_stands_in_the_log(
    nats_server: EmbeddedNats, tmp_path: Path
) -> None:
    config = house_settings(tmp_path, nats_url=nats_server.url, slo_ttft_ms=PATIENT_MS)
    async with running(tmp_path, config, workers=["clock"]) as house:
        for name, settings in RIVALS.items():
            house.start(name, "worker", "admission", overrides=settings)
        async with steady_load(house.url, per_s=REQUESTS_PER_S, prompt_tokens=200, output_tokens=50) as load:
            over_s = time.monotonic() + RIVALRY_S
            await until(lambda: time.monotonic() > over_s, "the rivals have met", timeout_s=2 * RIVALRY_S)
            await house.witness.comes(ActorStarted, count=OWNERS_MIN)
            fenced = {name: house.exit_code(name) for name in RIVALS}
            await house.stop("admission-bold")
        assert Counter(answer.status for answer in load.answers).keys() <= {200, 429, 503}
        await house.witness.until(lambda: house.witness.arrived <= house.witness.ended, "every request has ended")
        await house.settle()
        report = await house.verify()

    assert fenced == dict.fromkeys(RIVALS, Exit.FENCED)
    assert report["identical"], report["first_divergence"]
    assert report["differences"] == {}
    assert report["two_owners"] == report["pending"] == 0
    assert house.witness.answered_twice() == {}

    epochs = report["epochs"]
    assert [epoch["owner"] for epoch in epochs] == [started.instance for started in house.witness.all(ActorStarted)]
    assert len({epoch["owner"] for epoch in epochs}) == len(epochs) >= OWNERS_MIN
    assert {epoch["status"] for epoch in epochs} == {"identical"}
    decided = Counter[str]()
    for epoch in epochs:
        decided[epoch["policy_digest"]] += epoch["decisions"]
    assert len(decided) == len(RIVALS)
    assert min(decided.values()) > 0, "each of them had its say"
