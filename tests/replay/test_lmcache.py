"""Agent traces with text: lengths are estimates and say so, prefixes are those of the texts."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from events.base import NS_PER_S
from replay.traces.base import TraceError
from replay.traces.lmcache import lmcache_trace

START = 1_760_995_776_640_783
PUBLIC = Path(__file__).parents[2].parent / "shared/traces/lmcache_agent/miniswe.jsonl.gz"


def row(second: float, text: str, *, output: str = "x" * 400, session: str = "s", **more: Any) -> dict[str, Any]:
    return {"timestamp": START + int(second * 1e6), "input": text, "output": output, "session_id": session, **more}


def write(path: Path, rows: list[dict[str, Any]] | str) -> Path:
    path.write_text(rows if isinstance(rows, str) else "".join(json.dumps(one) + "\n" for one in rows))
    return path


def test_lengths_are_estimated_and_equal_texts_share_their_prefix(tmp_path: Path) -> None:
    begin = "abcd" * 600
    rows = [row(0, begin), row(9, begin + "more" * 100, output=""), row(20, "z" + begin, session="t")]
    trace = lmcache_trace(write(tmp_path / "t.jsonl", rows))
    first, second, other = trace.arrivals
    assert trace.estimated
    assert all(one.estimated for one in trace.arrivals)
    assert (first.prompt_tokens, first.output_tokens, second.output_tokens) == (600, 100, 1)
    assert len(first.prefix) == 2
    assert second.prefix[:2] == first.prefix
    assert not set(other.prefix) & set(second.prefix)


def test_rows_are_sorted_and_turns_wait_for_each_other(tmp_path: Path) -> None:
    trace = lmcache_trace(write(tmp_path / "t.jsonl", [row(30, "b"), row(10, "a"), row(12, "c", session="t")]))
    assert [one.at_ns // NS_PER_S for one in trace.arrivals] == [0, 2, 20]
    first, alone, second = trace.arrivals
    assert (first.after, alone.after, second.after) == ("", "", first.request_id)
    assert second.think_ns == 20 * NS_PER_S - 100 * 22_000_000, "less 22 ms for each token of the answer"


@pytest.mark.parametrize(
    ("rows", "line", "says"),
    [
        ("nonsense", 1, "not JSON"),
        ("\n", 0, "no rows"),
        ([row(0, "a"), {"timestamp": START}], 2, "input"),
        ([row(0, "a", timestamp=-1)], 1, ">= 0"),
        ([row(0, "a"), row(0, "a", timestamp=START // 1_000)], 2, "all times in microseconds"),
        ([row(0, "a") | {"output": None}], 1, "output"),
    ],
)
def test_what_is_no_such_trace_is_refused_by_line(tmp_path: Path, rows: Any, line: int, says: str) -> None:
    with pytest.raises(TraceError, match=says) as refused:
        lmcache_trace(write(tmp_path / "t.jsonl", rows))
    assert refused.value.line == line


def test_a_cut_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(row(0, "a")).encode())[:-9])
    with pytest.raises(TraceError, match="fetch the file again"):
        lmcache_trace(path)


@pytest.mark.skipif(not PUBLIC.exists(), reason="the public trace is not here")
def test_the_public_trace_is_read_whole() -> None:
    trace = lmcache_trace(PUBLIC)
    assert (len(trace.arrivals), len({one.session for one in trace.arrivals})) == (206, 10)
    assert sum(not one.after for one in trace.arrivals) == 10
