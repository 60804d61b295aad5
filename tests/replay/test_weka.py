"""Coding-agent sessions: turns wait for what they waited for, ids stay in their session, what is wrong is refused."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from events.base import NS_PER_MS, NS_PER_S
from replay.traces.base import TraceError
from replay.traces.weka import read_weka, weka_trace

PUBLIC = Path(__file__).parents[2].parent / "shared/traces/weka_agentic/sessions_small.jsonl.gz"


def turn(t: float, tokens: int = 640, **more: Any) -> dict[str, Any]:
    return {"t": t, "type": "n", "in": tokens, "out": 50, "hash_ids": list(range(1, tokens // 64 + 1)), **more}


def line(*turns: dict[str, Any], name: str = "s1", **more: Any) -> dict[str, Any]:
    return {"id": name, "block_size": 64, "hash_id_scope": "local", "requests": list(turns), **more}


def write(path: Path, lines: list[dict[str, Any]] | str) -> Path:
    text = lines if isinstance(lines, str) else "".join(json.dumps(one) + "\n" for one in lines)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


FIRST = turn(0.0, api_time=4.0, think_time=0.0)


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz"])
def test_a_turn_comes_its_think_time_after_the_answer_before_it(tmp_path: Path, name: str) -> None:
    (session,) = read_weka(write(tmp_path / name, [line(FIRST, turn(15.0, 1_300, api_time=2.5, think_time=11.0))]))
    first, second = session
    assert (first.at_ns, first.after, first.think_ns) == (0, "", 0)
    assert (second.at_ns, second.after, second.think_ns) == (15 * NS_PER_S, first.request_id, 11 * NS_PER_S)
    assert (second.prompt_tokens, second.output_tokens, second.session) == (1_300, 50, "s1")


def test_a_unit_is_named_by_its_last_block_and_ids_stay_in_their_session(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", [line(FIRST, turn(9, 1_300)), line(FIRST, name="s2")])
    (first, second), (other,) = read_weka(path)
    assert (first.prefix_tokens, len(first.prefix), len(second.prefix)) == (256, 2, 5)
    assert second.prefix[:2] == first.prefix
    assert not set(other.prefix) & set(second.prefix)
    whole = weka_trace(path, unit_tokens=64).sessions[0]
    assert [len(one.prefix) for one in whole] == [10, 20]


def test_behind_an_answer_of_unknown_time_the_think_time_is_what_its_tokens_leave(tmp_path: Path) -> None:
    # The recorder counts think times from the last answer whose time it knows, here the one that ended at 4 s.
    turns = [FIRST, turn(10, think_time=6.0, out=1_000), turn(50, think_time=46.0)]
    (session,) = read_weka(write(tmp_path / "t.jsonl", [line(*turns)]))
    assert [one.think_ns for one in session] == [0, 6 * NS_PER_S, 18 * NS_PER_S], "1,000 tokens take 22 s"


def test_a_turn_waits_for_a_subagent_that_was_done_and_not_for_one_that_ran_on(tmp_path: Path) -> None:
    inner = [turn(0, api_time=2.0), turn(5, api_time=3.0, think_time=3.0)]
    agent = {"t": 6.0, "type": "subagent", "requests": inner}
    late = {"t": 7.0, "type": "subagent", "requests": [turn(0, api_time=60.0)]}
    (session,) = read_weka(write(tmp_path / "t.jsonl", [line(FIRST, agent, late, turn(20, think_time=16.0))]))
    first, called, ran_on, inside, last = session
    assert [one.at_ns // NS_PER_S for one in session] == [0, 6, 7, 11, 20]
    assert (called.after, called.think_ns) == (first.request_id, 2 * NS_PER_S)
    assert (ran_on.after, ran_on.think_ns) == (first.request_id, 3 * NS_PER_S)
    assert (inside.after, inside.think_ns) == (called.request_id, 3 * NS_PER_S)
    assert (last.after, last.think_ns) == (inside.request_id, 6 * NS_PER_S)


def test_what_fills_the_context_is_left_out_and_thought_over(tmp_path: Path) -> None:
    turns = [FIRST, turn(10, 900, api_time=1.0, think_time=6.0), turn(20, 790, api_time=1.0, think_time=9.0)]
    trace = weka_trace(write(tmp_path / "t.jsonl", [line(*turns)]), context_tokens_max=800)
    ((first, second),) = trace.sessions
    assert trace.left_out == 1
    assert (second.after, second.think_ns) == (first.request_id, 15 * NS_PER_S)
    assert second.output_tokens == 10, "an answer ends where the context does"


def test_a_session_of_which_nothing_fits_is_no_session(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", [line(turn(0, 900)), line(FIRST, name="s2")])
    assert [session[0].session for session in read_weka(path, context_tokens_max=800)] == ["s2"]


def test_the_limit_counts_sessions(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", [line(FIRST, name=name) for name in "abc"])
    assert [session[0].session for session in read_weka(path, limit=2)] == ["a", "b"]


OTHER_UNIT = [turn(t, api_time=4.0, think_time=50.0) for t in (300.0, 900.0, 1_500.0)]


@pytest.mark.parametrize(
    ("lines", "number", "says"),
    [
        ("not json\n", 1, "not JSON"),
        ("\n", 0, "no sessions"),
        (json.dumps(line(FIRST)) + '\n{"id": "s2"}\n', 2, "block_size"),
        ([line({**FIRST, "in": "640"})], 1, "in"),
        ([line({**FIRST, "in": 0})], 1, "no prompt"),
        ([line({**FIRST, "in": 20_000_000})], 1, "<= 10000000"),
        ([line({**FIRST, "hash_ids": [-1]})], 1, "hash_ids"),
        ([line({**FIRST, "hash_ids": [*range(11)]})], 1, "11 hash_ids for 640 tokens"),
        ([line(FIRST, block_size=16)], 1, "64-token blocks"),
        ([line(turn(-1.0))], 1, ">= 0"),
        ([line(FIRST), line(FIRST, name="s2"), line(FIRST)], 3, "session 's1' stands in line 1 already"),
        (json.dumps(line(turn(float("nan")))), 1, "not JSON"),
        ([line(FIRST, turn(9.0), turn(8.0))], 1, "sort by t"),
        ([line(FIRST, turn(15.0, think_time=11_000.0))], 1, "not some in ms"),
        ([line({**FIRST, "api_time": 4_000.0}, turn(15.0, think_time=11.0))], 1, "not some in ms"),
        ([line(FIRST, *OTHER_UNIT)], 1, "in none of 3 turns"),
        ([line(FIRST, turn(15_000.0, think_time=11.0))], 1, "as milliseconds only"),
        ([line({"t": 0.0, "type": "subagent", "requests": [{"t": 0, "type": "subagent", "requests": [FIRST]}]})], 1,
         "subagent in a subagent"),
    ],
)  # fmt: skip
def test_what_is_no_such_trace_is_refused_by_line(tmp_path: Path, lines: Any, number: int, says: str) -> None:
    path = write(tmp_path / "t.jsonl", lines)
    with pytest.raises(TraceError, match=says) as refused:
        read_weka(path)
    assert refused.value.line == number
    assert str(path) in str(refused.value)
    assert refused.value.mend


def test_a_cut_archive_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl.gz", [line(FIRST, name=f"s{n}") for n in range(200)])
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(TraceError, match="fetch the file again"):
        read_weka(path)


@pytest.mark.skipif(not PUBLIC.exists(), reason="the public trace is not here")
def test_the_public_trace_is_read_whole() -> None:
    trace = weka_trace(PUBLIC)
    turns = [one for session in trace.sessions for one in session]
    assert (len(turns), trace.left_out) == (1_072, 505)
    names = {one.request_id for one in turns}
    assert len(names) == len(turns)
    assert all(not one.after or one.after in names for one in turns)
    assert sum(not one.after for one in turns) == len(trace.sessions), "every turn but a session's first waits"
    assert all(one.think_ns % NS_PER_MS == 0 for one in turns)
