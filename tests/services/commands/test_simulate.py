"""`tidegate replay simulate` with tiers: those that are asked for, configured, or that a log reports."""

import json
from pathlib import Path

import pytest

from events import codec
from events.log.journal import read_journal
from events.slice import Tier, TierMeasured
from services import cli
from services.runtime.output import Exit

GIB = 1 << 30
SHORT = ("replay", "simulate", "--workload", "mixed", "--limit", "12", "--json")


def measured(path: Path) -> dict[tuple[str, Tier], TierMeasured]:
    """What each tier last said."""
    return {
        (recorded.event.engine_id, recorded.event.tier): recorded.event
        for message in read_journal(path)[1]
        for recorded in codec.decode(message.seq, message.subject, message.body)
        if isinstance(recorded.event, TierMeasured)
    }


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> dict[str, object]:
    assert cli.run([str(word) for word in argv]) == Exit.FINE
    said: dict[str, object] = json.loads(capsys.readouterr().out)
    return said


def test_engines_get_the_tiers_that_are_asked_for_and_a_log_of_them_gives_them_again(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    run(capsys, *SHORT, "--dram-gib", 2, "--ssd-gib", 8, "--out", first)
    told = measured(first)
    assert {key: fact.bytes_max for key, fact in told.items() if key[1] is not Tier.HBM} == {
        (engine, tier): size * GIB for engine in ("e1", "e2") for tier, size in ((Tier.DRAM, 2), (Tier.SSD, 8))
    }
    run(capsys, "replay", "simulate", first, "--json", "--out", second)
    again = measured(second)
    for key, fact in told.items():
        for field in ("bytes_max", "read_bytes_per_s", "write_bytes_per_s"):
            assert getattr(again[key], field) == getattr(fact, field)


def test_without_tiers_none_are_measured(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run(capsys, *SHORT, "--out", tmp_path / "plain.jsonl")
    assert measured(tmp_path / "plain.jsonl") == {}


def test_ssd_without_dram_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*SHORT, "--ssd-gib", "8"]) == Exit.BAD_INPUT
    assert "--dram-gib" in capsys.readouterr().err
