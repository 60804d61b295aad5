"""Every journal in this folder replays to the decisions that it holds, in every process, for ever.

Written anew by `.venv/bin/python -m tests.golden.scenarios`, when a policy's behaviour was changed on purpose: in the
same commit, whose message says what changed. Never to make a test pass.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from events import codec
from events.base import Event
from events.decisions import (
    CancelReason,
    DeferReason,
    EngineDirected,
    LinkSuspended,
    MiscoverageNoticed,
    Move,
    MoveReason,
    RejectReason,
    RequestAdmitted,
    RequestDeferred,
    RequestRejected,
    ShareReason,
    SharesSet,
    TransferCancelled,
    TransferOrdered,
)
from replay.journal_source import JournalSource
from tests.golden.scenarios import DAYS, FOLDER, LONG_DAY, file_of

JOURNALS = sorted([*FOLDER.glob("*.jsonl"), *FOLDER.glob("*.jsonl.zst")])
VERIFY = """
import json, sys
from pathlib import Path
from policies.catalog import ACTORS
from replay.journal_source import JournalSource
from replay.verify import verify
out = {}
for name in sys.argv[1:]:
    source = JournalSource(Path(name))
    report = verify(source, source.pool, ACTORS)
    out[Path(name).name] = [report.identical, report.digest, report.decisions, str(report.first_divergence)]
print(json.dumps(out))
"""


def verified(seed: str) -> dict[str, list[object]]:
    """All journals, verified in a fresh process."""
    run = subprocess.run(
        [sys.executable, "-c", VERIFY, *map(str, JOURNALS)],
        env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: dict[str, list[object]] = json.loads(run.stdout)
    return found


def test_every_journal_replays_to_its_own_decisions_under_two_hash_seeds() -> None:
    first, second = verified("0"), verified("1")
    assert first == second
    assert sorted(first) == [path.name for path in JOURNALS]
    for name, (identical, _digest, decisions, divergence) in first.items():
        assert identical, f"{name}: {divergence}"
        assert decisions, f"{name} decides nothing"


def decisions_of(path: Path) -> list[Event]:
    return [
        recorded.event
        for message in JournalSource(path)
        for recorded in codec.decode(message.seq, message.subject, message.body)
        if recorded.actor and recorded.cause
    ]


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("admit", {"RequestAdmitted"}),
        ("defer", {"RequestAdmitted", "RequestDeferred", "WakeAsked"}),
        ("pace", {"RequestDeferred"}),
        ("reject", {"RequestRejected"}),
        ("holder_lost", {"HolderLost"}),
        ("preempt", {"RequestPreempted", "RequestAdmitted"}),
        ("shares", {"SharesSet", "TenantQuotaSet", "RequestDeferred"}),
        ("sessions", {"RequestDeferred", "RequestAdmitted"}),
        ("set_aside", {"RequestDeferred", "RequestAdmitted"}),
        ("late", {"RequestDeferred", "RequestAdmitted"}),
        ("observe", {"RequestAdmitted"}),
        ("quota", {"SharesSet", "TenantQuotaSet"}),
        ("eviction", {"EngineDirected"}),
        ("migration", {"TransferOrdered", "TransferCancelled", "LinkSuspended"}),
        ("prefetch", {"TransferOrdered", "TransferCancelled"}),
        ("miscoverage", {"RequestAdmitted", "MiscoverageNoticed"}),
        (LONG_DAY, {"RequestAdmitted", "RequestDeferred", "RequestRejected", "HolderLost", "WakeAsked"}),
    ],
)
def test_a_journal_shows_what_its_name_says(name: str, kinds: set[str]) -> None:
    decisions = decisions_of(file_of(name))
    assert {type(event).__name__ for event in decisions} >= kinds
    if name == "observe":
        assert {event.would for event in decisions if isinstance(event, RequestAdmitted)} >= {
            "admit",
            "defer",
            "reject",
        }


def test_the_journals_show_every_reason_that_admission_gives() -> None:
    decisions = [event for name in (*DAYS, LONG_DAY) for event in decisions_of(file_of(name))]
    rejected = {event.reason for event in decisions if isinstance(event, RequestRejected)}
    deferred = {event.reason for event in decisions if isinstance(event, RequestDeferred)}
    assert rejected == {*RejectReason} - {RejectReason.KV_BUDGET}
    assert deferred == {*DeferReason}


def test_the_journal_of_quota_shows_every_reason_that_it_gives() -> None:
    said = {event.reason for event in decisions_of(file_of("quota")) if isinstance(event, SharesSet)}
    assert said == {*ShareReason}


def test_the_journal_of_eviction_shows_what_an_engine_is_told() -> None:
    told = [event for event in decisions_of(file_of("eviction")) if isinstance(event, EngineDirected)]
    assert [event.version for event in told] == list(range(1, len(told) + 1))
    for field in ("needed", "pinned", "hot"):
        assert {bool(getattr(event, field)) for event in told} == {True, False}
    assert {event.eviction for event in told} == {"slo_aware", "lru", ""}


def test_the_journals_of_migration_and_prefetch_show_every_move_and_reason() -> None:
    said = [event for name in ("migration", "prefetch") for event in decisions_of(file_of(name))]
    orders = [event for event in said if isinstance(event, TransferOrdered)]
    assert {event.move for event in orders} == {*Move}
    assert {event.reason for event in orders} == {*MoveReason}
    assert max(event.tries for event in orders) == 4
    back = {event.reason for event in said if isinstance(event, TransferCancelled)}
    assert back == {*CancelReason} - {CancelReason.LINK_SUSPENDED}
    assert [event.until_ns > 0 for event in said if isinstance(event, LinkSuspended)] == [True, False]


def test_the_journal_of_miscoverage_rings_once_is_cleared_once_and_names_who_answered() -> None:
    decisions = decisions_of(file_of("miscoverage"))
    rung = [event for event in decisions if isinstance(event, MiscoverageNoticed)]
    assert [(event.predictor, event.cleared) for event in rung] == [("external", False), ("external", True)]
    answered = [event.predictor for event in decisions if isinstance(event, RequestAdmitted)]
    assert list(dict.fromkeys(answered)) == ["external", "quantile"]
    assert answered.count("quantile") == 10
