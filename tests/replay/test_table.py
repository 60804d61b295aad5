"""Plain tables as traces: any names of columns, any unit of time; what cannot be is refused by line."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from events.base import NS_PER_MS, NS_PER_S, RequestKind
from replay.traces.base import PROGRESS_EVERY, Trace, TraceError
from replay.traces.table import Columns, read_table

ROW: dict[str, Any] = {"time": 2.5, "prompt_tokens": 700, "output_tokens": 9}
CSV = "time,prompt_tokens,output_tokens\n"


def read(tmp_path: Path, content: Any, *, form: str = "jsonl", zipped: bool = False, **columns: Any) -> Trace:
    text = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)
    path = tmp_path / (f"t.{form}.gz" if zipped else f"t.{form}")
    path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    return read_table(path, form=form, columns=Columns(**columns))


def test_rows_are_counted_from_the_first(tmp_path: Path) -> None:
    later = ROW | {"time": 4, "tenant": "a", "model": "m", "priority": -3, "tokens_max": 50, "request_id": "mine"}
    trace = read(tmp_path, [ROW, later], zipped=True)
    first, second = trace.arrivals
    assert (first.at_ns, first.prompt_tokens, first.output_tokens, first.request_id) == (0, 700, 9, "t1")
    assert (second.at_ns, second.tenant, second.model, second.priority) == (1_500 * NS_PER_MS, "a", "m", -3)
    assert (second.tokens_max, second.request_id) == (50, "mine")


def test_csv_says_the_same(tmp_path: Path) -> None:
    text = 'when,"in",out,kind,ids,n\r\n1500,700,9,,"a b c",\r\n1501,64,,embedding,,8\r\n'
    of = {"time": "when", "prompt_tokens": "in", "output_tokens": "out", "prefix": "ids", "inputs": "n"}
    first, second = read(tmp_path, text, form="csv", of=of, time_unit="ms", prefix_tokens=128).arrivals
    assert (first.prompt_tokens, first.output_tokens, len(first.prefix), first.prefix_tokens) == (700, 9, 3, 128)
    assert second.at_ns == NS_PER_MS
    assert (second.kind, second.inputs, second.output_tokens) == (RequestKind.EMBEDDING, 8, 0)


@pytest.mark.parametrize(("unit", "ns"), [("s", 10**9), ("ms", 10**6), ("us", 10**3), ("ns", 1)])
def test_times_are_exact_in_every_unit(tmp_path: Path, unit: str, ns: int) -> None:
    rows = [ROW | {"time": 1_700_000_000}, ROW | {"time": 1_700_000_007}]
    assert read(tmp_path, rows, time_unit=unit).arrivals[1].at_ns == 7 * ns


def test_an_id_means_all_before_it(tmp_path: Path) -> None:
    rows = [ROW | {"prefix": prefix} for prefix in (["x", "y"], ["x", "y", "z"], ["w", "y"], [1, 2])]
    one, longer, other, _ = (arrival.prefix for arrival in read(tmp_path, rows, prefix_tokens=256).arrivals)
    assert longer[:2] == one
    assert not set(other) & set(one), "the same block behind another one is another prefix"


def test_turns_wait_for_what_they_name(tmp_path: Path) -> None:
    rows = [ROW | {"request_id": "a"}, ROW | {"time": 9, "after": "a", "think_time": 1.5}]
    assert [(one.after, one.think_ns) for one in read(tmp_path, rows).arrivals] == [("", 0), ("a", 1_500 * NS_PER_MS)]


def test_turns_of_a_session_wait_for_each_other_where_it_is_said_how_long_answers_took(tmp_path: Path) -> None:
    rows = [
        ROW | {"time": time, "session": session, "took": took}
        for time, session, took in ((0, "s", 3), (1, "q", 1), (10, "s", 2), (11, "s", 5), (20, "", 1))
    ]
    waits = [(one.after, one.think_ns // NS_PER_S) for one in read(tmp_path, rows).arrivals]
    assert waits == [("", 0), ("", 0), ("t1", 7), ("t3", 0), ("", 0)]
    assert not any(one.after for one in read(tmp_path, [row | {"took": None} for row in rows]).arrivals)


STEADY = [ROW | {"time": second} for second in range(1, 61)]


@pytest.mark.parametrize(
    ("content", "line", "says"),
    [
        ("\n", 0, "no rows"),
        ("nonsense\n", 1, "not JSON"),
        ("[1]\n", 1, "Expected `object`"),
        ('{"time": ' + "[" * 200_000, 1, "not JSON"),
        (json.dumps(ROW) + '\n{"time": NaN, "prompt_tokens": 1, "output_tokens": 1}\n', 2, "not JSON"),
        ([ROW, {"time": 3, "prompt_tokens": 5}], 2, "no 'output_tokens'.*--map output_tokens=COLUMN"),
        ([ROW | {"time": -1}], 1, "time is -1: give a time of at least 0, in s"),
        ([ROW | {"time": "nan"}], 1, "time is 'nan'"),
        ([ROW | {"time": "1e99"}], 1, "time is '1e99'"),
        ([ROW | {"time": True}], 1, "time is True"),
        ([ROW | {"time": "2024-01-01"}], 1, "time is '2024-01-01'"),
        ([ROW | {"prompt_tokens": 0}], 1, "whole number from 1"),
        ([ROW | {"prompt_tokens": 1.5}], 1, "whole number from 1"),
        ([ROW | {"prompt_tokens": 10**9}], 1, "whole number from 1"),
        ([ROW | {"prompt_tokens": "9" * 5_000}], 1, "whole number from 1"),
        ([ROW | {"output_tokens": -1}], 1, "whole number from 0"),
        ([ROW | {"output_tokens": None}], 1, "'output_tokens' is empty"),
        ([ROW | {"prefix": ["a", "b", "c"]}], 1, "3 ids for 700 tokens: 2 at most"),
        ([ROW, ROW | {"time": 10**20}], 2, "days behind the first.*another unit"),
        ([ROW | {"kind": "image"}], 1, "one of llm, embedding"),
        ([ROW | {"prefix": 7}], 1, "no list of ids"),
        ([ROW | {"prefix": [None]}], 1, "no list of ids"),
        ([ROW | {"session": ["s"]}], 1, "give a name"),
        ([ROW | {"request_id": "a"}, ROW | {"request_id": "a"}], 2, "there twice"),
        ([ROW | {"after": "ghost"}], 1, "waits for 'ghost'"),
        ([ROW | {"request_id": "a"}, ROW | {"after": "a", "took": 1}], 2, "one way"),
        ([ROW, ROW | {"time": 2}], 2, "sort the trace by time"),
        ([*STEADY, ROW | {"time": 61_000}], 61, "one unit"),
        ([*STEADY[:9], ROW | {"time": 10_000}, ROW | {"time": 11}], 11, "as if units were mixed"),
        ([ROW | {"time": 1_000}, ROW | {"time": 2_000}, ROW | {"time": 3}], 3, "as if units were mixed"),
        ([ROW | {"time": 1_700_000_000}, ROW | {"time": 1_700_000_001}, ROW | {"time": 1_700_000_002_000}], 3,
         "one unit"),
    ],
)  # fmt: skip
def test_what_is_no_such_table_is_refused_by_line(tmp_path: Path, content: Any, line: int, says: str) -> None:
    with pytest.raises(TraceError, match=says) as refused:
        read(tmp_path, content)
    assert refused.value.line == line
    assert refused.value.mend
    assert "t.jsonl" in str(refused.value)


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        (CSV, 0, "no rows"),
        (CSV + "1,2\n", 2, "2 cells"),
        (CSV + '1,"2,3\n', 2, "not a row of CSV"),
        (CSV + "nan,2,3\n", 2, "time is 'nan'"),
        (CSV + "1,two,3\n", 2, "prompt_tokens is 'two'"),
        (CSV + "1,,3\n", 2, "'prompt_tokens' is empty: every row has one"),
        ("time,time,output_tokens\n", 1, "two columns have one name"),
        ("when,prompt_tokens,output_tokens\n1,2,3\n", 2, "no 'time'.*the columns are when, prompt_tokens"),
    ],
)
def test_what_is_no_csv_is_refused_by_line(tmp_path: Path, text: str, line: int, says: str) -> None:
    with pytest.raises(TraceError, match=says) as refused:
        read(tmp_path, text, form="csv")
    assert refused.value.line == line


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"of": {"tme": "t"}}, "no field 'tme'"),
        ({"of": {"tenant": "customer"}}, "no 'customer'"),
        ({"time_unit": "h"}, "one of s, ms, us, ns"),
        ({"prefix_tokens": 0}, "at least 1 token"),
    ],
)
def test_a_mapping_that_cannot_be_is_refused(tmp_path: Path, columns: dict[str, Any], says: str) -> None:
    with pytest.raises(TraceError, match=says):
        read(tmp_path, [ROW], **columns)


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_files_own_marks_are_no_part_of_its_first_row(tmp_path: Path, form: str) -> None:
    text = CSV + "2.5,700,9\n" if form == "csv" else json.dumps(ROW) + "\n"
    path = tmp_path / f"t.{form}"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + text.encode()))
    (arrival,) = read_table(path, form=form, columns=Columns()).arrivals
    assert (arrival.prompt_tokens, arrival.output_tokens) == (700, 9), (
        "gzipped whatever its name, with a byte order mark"
    )


@pytest.mark.parametrize("zipped", [False, True])
def test_a_trace_may_come_through_a_pipe(zipped: bool) -> None:
    text = (CSV + "".join(f"{number},700,9\n" for number in range(2 * PROGRESS_EVERY))).encode()
    reads, writes = os.pipe()
    try:
        with os.fdopen(writes, "wb") as end:
            end.write(gzip.compress(text) if zipped else text)
        path = Path(f"/dev/fd/{reads}")
        read = read_table(path, form="csv", columns=Columns(), on_progress=lambda _done, _size: None)
    finally:
        os.close(reads)
    assert len(read.arrivals) == 2 * PROGRESS_EVERY


def test_a_long_pause_is_no_change_of_unit(tmp_path: Path) -> None:
    later = ROW | {"time": 60 + 3 * 3_600}
    assert len(read(tmp_path, [*STEADY, later]).arrivals) == 61
    assert len(read(tmp_path, [ROW | {"time": time} for time in (0, 1, 1_000)]).arrivals) == 3
