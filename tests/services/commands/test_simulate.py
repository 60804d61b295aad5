"""`tidegate replay simulate`: tiers, windows, faults, and what is left of a run that is stopped."""

import json
import re
from contextlib import nullcontext
from pathlib import Path

import pytest

from events import codec
from events.base import NS_PER_S, PoolId
from events.log.journal import JournalWriter, read_journal
from events.slice import Tier, TierMeasured
from replay.belady import unique_bytes
from replay.workloads.mixed import mixed
from services import cli
from services.runtime.output import Exit, Output

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


def test_sizes_may_be_shares_of_what_all_prompts_would_take(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    made = tmp_path / "shares.jsonl"
    run(capsys, *SHORT, "--dram-ppm", 1_000_000, "--ssd-ppm", 3_000_000, "--out", made)
    sizes = {key: fact.bytes_max for key, fact in measured(made).items()}
    unique = unique_bytes(mixed(1)[:12], token_bytes=131_072)
    assert sizes["e1", Tier.DRAM] == unique // 2, "evenly over two engines"
    assert sizes["e2", Tier.SSD] == unique * 3 // 2


def test_dram_is_lazy_where_that_is_asked_for(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    made = tmp_path / "lazy.jsonl"
    run(capsys, *SHORT, "--dram-gib", 1, "--tier-lazy", "--out", made)
    assert measured(made)["e1", Tier.DRAM].lazy


def test_such_a_share_is_of_what_comes_until_the_end_of_the_window(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    made, seconds = tmp_path / "window.jsonl", 2
    run(capsys, *SHORT, "--until", seconds, "--dram-ppm", 1_000_000, "--out", made)
    come = [one for one in mixed(1)[:12] if one.at_ns < seconds * NS_PER_S]
    assert 0 < len(come) < 12
    assert measured(made)["e1", Tier.DRAM].bytes_max == unique_bytes(come, token_bytes=131_072) // 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--ssd-gib", "8"), "--dram-gib"),
        (("--ssd-ppm", "8"), "--dram-gib"),
        (("--dram-gib", "1", "--dram-ppm", "1"), "not both"),
        (("--workload", "mixde"), "no profile 'mixde'"),
        (("--tier-eviction", "arc"), "--dram-gib"),
        (("--tier-lazy",), "--dram-gib"),
        (("--speed", "nan"), "nan is no amount"),
        (("--dram-gib", "inf"), "not in the range"),
        (("--dram-gib", "1e300"), "not in the range"),
        (("--speed", "1e-300"), "not in the range"),
        (("--until", "1000000000000"), "not in the range"),
    ],
)
def test_what_cannot_be_is_refused(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str) -> None:
    assert cli.run(["replay", "simulate", "--workload", "mixed", *words]) == Exit.BAD_INPUT
    assert said in capsys.readouterr().err


def test_in_a_closed_loop_a_window_counts_the_same_requests_at_any_speed_of_the_engines(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ("replay", "simulate", "--workload", "coding_agents", "--limit", "60", "--until", "600", "--json")
    closed = run(capsys, *words, "--closed-loop")
    opened = run(capsys, *words)
    assert closed["requests"] == opened["requests"]
    assert closed["window_ns"] == opened["window_ns"] == 600 * NS_PER_S
    assert opened["unsent"] == 0


def test_faults_are_drawn_by_their_seed(capsys: pytest.CaptureFixture[str]) -> None:
    words = (*SHORT, "--dram-gib", "2", "--gateways", "2")
    plain, first, again, other = (
        run(capsys, *words, *faults)["digest"] for faults in ((), ("--faults", 0), ("--faults", 0), ("--faults", 5))
    )
    assert first == again
    assert len({plain, first, other}) == 3


def test_a_run_stopped_by_ctrl_c_leaves_a_journal_that_verify_accepts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(done: int) -> None:
        if done > 20:
            raise KeyboardInterrupt

    monkeypatch.setattr(Output, "progress", lambda _self, _what, _total: nullcontext(pressed))
    made = tmp_path / "stopped.jsonl.zst"
    words = ("replay", "simulate", "--workload", "mixed")
    assert cli.run([*words, "--out", str(made)]) == Exit.INTERRUPTED
    assert f"stopped: {made} holds what there was until then" in capsys.readouterr().err
    monkeypatch.undo()
    assert run(capsys, "replay", "verify", made, "--json")["identical"]
    part, whole = len(list(read_journal(made)[1])), run(capsys, *words, "--json")["messages"]
    assert isinstance(whole, int)
    assert 0 < part < whole


def test_a_log_in_which_nobody_arrives_is_bad_input(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with JournalWriter(tmp_path / "empty.jsonl", PoolId("p")):
        pass
    assert cli.run(["replay", "simulate", str(tmp_path / "empty.jsonl")]) == Exit.BAD_INPUT
    assert "no request arrives in it" in capsys.readouterr().err


def test_a_window_that_ends_before_the_first_session_begins_says_when_that_is(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    turn = {"t": 0.0, "type": "n", "in": 640, "out": 9, "hash_ids": [*range(10)], "api_time": 2.0}
    sessions = tmp_path / "t.jsonl"
    sessions.write_text(json.dumps({"id": "s", "block_size": 64, "requests": [turn]}))
    assert cli.run(["replay", "simulate", str(sessions), "--format", "weka", "--until", "1"]) == Exit.BAD_INPUT
    assert re.search(r"before --until 1: the first comes after [\d,]+ s", capsys.readouterr().err)


def test_a_share_of_prompts_that_name_no_prefix_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("time,prompt_tokens,output_tokens\n0,1000,3\n")
    words = ("replay", "simulate", str(table), "--format", "csv")
    assert cli.run([*words, "--dram-ppm", "100000"]) == Exit.BAD_INPUT
    assert "no prompt names a prefix" in capsys.readouterr().err
    assert cli.run([*words, "--dram-gib", "1"]) == Exit.FINE


def test_people_are_told_what_became_of_all_that_missed(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("replay", "simulate", "--workload", "mixed", "--limit", "60", "--gateways", "2", "--faults", "0")
    scores = run(capsys, *words, "--json")
    assert cli.run([*words]) == Exit.FINE
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("missed"))
    told = sum(int(number) for number in re.findall(r"\d+", line))
    assert isinstance(scores["requests"], int)
    assert isinstance(scores["slo_met"], int)
    assert told == scores["requests"] - scores["slo_met"] > 0


def test_a_closed_loop_in_which_nobody_waits_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["replay", "simulate", "--workload", "azure_chat", "--limit", "3", "--closed-loop"]) == Exit.FINE
    assert "no turn waits for another" in capsys.readouterr().err


def test_people_are_told_of_tiers_and_of_what_was_reused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["replay", "simulate", "--workload", "mixed", "--limit", "40", "--dram-gib", "2"]) == Exit.FINE
    said = capsys.readouterr().out
    assert "of prompt tokens" in said
    assert [line.split()[:2] for line in said.splitlines() if line.startswith(("e1", "e2"))] == [
        [engine, tier] for engine in ("e1", "e2") for tier in ("hbm", "dram")
    ]
