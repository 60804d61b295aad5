"""What a running request stands to lose, and how much longer it could take."""

from types import SimpleNamespace
from typing import Any

import pytest

from events.base import EngineId, RequestId, TenantId
from events.slice import Tier, TierMeasured
from services.vllm_plugin.hints import Hints
from services.vllm_plugin.weighing import UNHURRIED_NS, Holds, Rates, Seen, by_slack, lost_ns, slack_ns, weigh

MS, S = 10**6, 10**9


def dram(**about: int) -> TierMeasured:
    known = {"slice_bytes": 10**6, "read_bytes_per_s": 10**9}
    return TierMeasured(engine_id=EngineId("e"), tier=Tier.DRAM, bytes_max=1, bytes_used=1, **(known | about))


def rates(measured: TierMeasured | None = None) -> Rates:
    """A step takes 10 ms, a token of a prompt 1 ms; eight blocks to a slice."""
    return Rates(step_ns=10 * MS, token_ns=MS, block_tokens=32, slice_tokens=256, dram=measured)


def seen(*, due_s: int = 0, first_s: int = 0, **told: Any) -> Seen:
    return Seen(RequestId("r"), Hints(**told), due_s * S, first_s * S)


SLACKS: list[tuple[str, Seen, int, int]] = [
    ("until the first token is due", seen(due_s=9), 0, 4 * S),
    ("late", seen(due_s=4), 0, -S),
    ("nobody knows when it is due", seen(), 0, UNHURRIED_NS),
    ("nobody asked for a pace", seen(due_s=9, first_s=4), 5, UNHURRIED_NS),
    ("first token not seen", seen(due_s=9, slo_tpot_ns=MS), 5, UNHURRIED_NS),
    # 100 tokens in 99 * 50 ms are asked for; 1 s is past, and 60 tokens to come take 600 ms.
    ("to the pace of the whole answer", seen(first_s=4, slo_tpot_ns=50 * MS, output_expected=100), 40, 3_350 * MS),
    ("longer than expected", seen(first_s=4, slo_tpot_ns=50 * MS, output_expected=10), 40, 950 * MS),
]


@pytest.mark.parametrize(("one", "tokens", "slack"), [row[1:] for row in SLACKS], ids=[row[0] for row in SLACKS])
def test_slack_is_what_is_left_to_the_promise(one: Seen, tokens: int, slack: int) -> None:
    assert slack_ns(one, tokens, now_ns=5 * S, step_ns=10 * MS) == slack


LOSSES: list[tuple[str, int, Holds, TierMeasured | None, int]] = [
    ("all is computed again", 1_000, Holds(32, 0, 0), None, 1_000 * MS),
    ("but what others hold, too", 1_000, Holds(32, 8, 0), None, 744 * MS),
    ("slices in DRAM are loaded, the rest computed", 1_000, Holds(32, 0, 3), dram(), 3 * MS + 232 * MS),
    ("only those behind what others hold", 1_000, Holds(32, 8, 3), dram(), 2 * MS + 232 * MS),
    ("a slow link is not used", 1_000, Holds(32, 0, 3), dram(read_bytes_per_s=10**6), 1_000 * MS),
    ("nor one that is busy", 1_000, Holds(32, 0, 3), dram(read_queue_bytes=10**10), 1_000 * MS),
    ("what is stored is what others hold", 256, Holds(8, 8, 1), dram(), 0),
]


@pytest.mark.parametrize(
    ("computed", "holds", "measured", "lost"), [row[1:] for row in LOSSES], ids=[row[0] for row in LOSSES]
)
def test_loss_is_the_quicker_of_computing_and_loading(
    computed: int, holds: Holds, measured: TierMeasured | None, lost: int
) -> None:
    assert lost_ns(computed, holds, rates(measured)) == lost


def test_request_is_weighed_with_what_its_leaving_frees_and_spares() -> None:
    request = SimpleNamespace(num_output_tokens=3, num_computed_tokens=320, num_preemptions=1)
    told = seen(due_s=9, tenant=TenantId("acme"), priority=2, output_expected=50)

    row = weigh(request, told, Holds(10, 4, 0), rates(), now_ns=5 * S, spares=2)

    assert (row.request_id, row.tenant, row.priority) == (RequestId("r"), TenantId("acme"), 2)
    assert (row.blocks_freed, row.first_token, row.preempted) == (8, True, 1)
    assert (row.tokens_done, row.tokens_expected, row.lost_ns) == (3, 50, 192 * MS)


LINES: list[tuple[str, list[int | None], str]] = [
    ("least slack first", [3, 1, 2], "bca"),
    ("who has none known keeps its place", [9, None, 1], "cba"),
    ("equals keep their order", [5, 5, 1, 5], "cabd"),
    ("nobody has any", [None, None], "ab"),
    ("the late first", [1, -5], "ba"),
]


@pytest.mark.parametrize(("slacks", "line"), [row[1:] for row in LINES], ids=[row[0] for row in LINES])
def test_line_is_ordered_by_slack(slacks: list[int | None], line: str) -> None:
    assert by_slack("abcd"[: len(slacks)], slacks) == list(line)
