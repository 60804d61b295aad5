"""The comparison of policies as people read it, on wide and narrow terminals."""

import io

import pytest
from rich.console import Console

from replay.bench.offered import Workload
from replay.bench.policies import Cell, Found, Knee, Report, Swept
from replay.score import Part
from services.commands.bench_text import COLUMNS, show

PARTS = {name: Part(requests=9, slo_met=9, slo_attainment=1.0) for name in ("< 4K", "4-16K", "16-32K", "> 32K")}
CELL = Cell(
    variant="first_come_affinity", load=1.2, scale=1, batch_tokens=1024, offered_per_s=4, goodput_per_s=3.97,
    goodput_std=0.1, goodput_min=3, goodput_max=4, attainment=0.96, attainment_llm=0.96, attainment_embedding=1,
    prompts=PARTS, tenants=PARTS, jain=1, preemptions=8,
    rejected={"rejected_deadline_passed": 67, "rejected_slo_infeasible": 12}, aborted={},
    ttft_error_p99_ns=18_040_000_000, ratio_baseline=1.11, ratio_rival=1,
)  # fmt: skip
KNEE = Knee(scale=1, goodput_per_s=4, at_edge=False, sweep=(Swept(scale=1, offered_per_s=4, goodput_per_s=4),))
FOUND = Found(workload=Workload.MIXED, source="drawn", knee=KNEE, batch_tokens=1024, chunks={1024: 4}, cells=(CELL,))


def shown(width: int) -> str:
    console = Console(file=io.StringIO(), width=width, soft_wrap=True)
    show(Report(found=(FOUND,), runs=1, seconds=1, seeds=(1,), loads=(1.2,)), (), console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    return str(said)


@pytest.mark.parametrize("width", [80, 240])
def test_no_word_is_broken_and_every_column_is_there(width: int) -> None:
    said = shown(width)
    assert [word for column in COLUMNS for word in column.split() if word not in said] == []
    assert [word for word in ("first_come_affinity", "rejected_deadline_passed", "18.04") if word not in said] == []
    rows = [line for line in said.splitlines() if line.startswith("first_come_affinity")]
    assert len(rows) == (1 if width > 80 else 4)
    assert max(len(line.rstrip()) for line in rows) <= width
