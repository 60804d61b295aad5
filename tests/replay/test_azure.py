"""Azure traces: rows become arrivals; what is no such trace is refused by file, line and mend."""

import gzip
from pathlib import Path

import pytest

from events.base import NS_PER_MS, NS_PER_S
from replay.traces.azure import read_azure
from replay.traces.base import TraceError

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
ROWS = "2023-11-16 18:15:46.6805900,374,44\r\n2023-11-16 18:15:50.9951690,396,0\n"
PUBLIC = Path(__file__).parents[2].parent / "shared/traces/azure2023/AzureLLMInferenceTrace_conv.before_1845.csv.gz"


def write(path: Path, text: str) -> Path:
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_rows_become_arrivals_counted_from_the_first(tmp_path: Path, name: str) -> None:
    first, second = read_azure(write(tmp_path / name, HEADER + ROWS), tenant="a", model="m")
    assert (first.at_ns, first.prompt_tokens, first.output_tokens) == (0, 374, 44)
    assert second.at_ns == 4_314_579_000
    assert second.output_tokens == 1, "every answer has a token"
    assert (first.tenant, first.model, first.prefix) == ("a", "m", ())


def test_later_traces_have_an_offset_from_utc(tmp_path: Path) -> None:
    rows = "2024-05-10 00:00:00.5+00:00,1,1\n2024-05-10T02:00:01.500000001+02:00,1,1\n"
    assert [a.at_ns for a in read_azure(write(tmp_path / "t.csv", HEADER + rows))] == [0, NS_PER_S + 1]


def test_speed_and_limit(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", HEADER + ROWS)
    assert read_azure(path, speed=2)[1].at_ns == 4_314_579_000 // 2
    assert len(read_azure(path, limit=1)) == 1


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("", 0, "no rows"),
        (HEADER, 0, "no rows"),
        (ROWS, 1, "no header"),
        ("TIMESTAMP,ContextTokens\n", 1, "no header"),
        (HEADER + "2023-11-16 18:15:46,1\n", 2, "2 cells"),
        (HEADER + "2023-11-16 18:15:46,0,1\n", 2, "at least one token"),
        (HEADER + "2023-11-16 18:15:46,-3,1\n", 2, "ContextTokens is '-3'"),
        (HEADER + "2023-11-16 18:15:46,1,1.5\n", 2, "GeneratedTokens is '1.5'"),
        (HEADER + "2023-11-16 18:15:46,1,99999999999\n", 2, "whole number from 0"),
        (HEADER + "today,1,1\n", 2, "TIMESTAMP is 'today'"),
        (HEADER + "2023-13-16 18:15:46,1,1\n", 2, "month"),
        (HEADER + ROWS + "2023-11-16 18:15:46,1,1\n", 4, "sort the trace"),
        (HEADER + ROWS + "2053-11-16 18:15:46,1,1\n", 4, "days behind the first"),
        (HEADER + "x" * 2_000_000, 2, "too long"),
    ],
)
def test_what_is_no_trace_is_refused_by_line(tmp_path: Path, text: str, line: int, says: str) -> None:
    path = write(tmp_path / "t.csv", text)
    with pytest.raises(TraceError, match=says) as refused:
        read_azure(path)
    assert refused.value.line == line
    assert str(path) in str(refused.value)
    assert refused.value.mend


def test_a_cut_archive_and_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv.gz", HEADER + ROWS * 1)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(TraceError, match="fetch the file again"):
        read_azure(path)
    other = tmp_path / "t.csv"
    other.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TraceError, match="not text"):
        read_azure(other)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="give the path of a trace"):
        read_azure(tmp_path / "none.csv")


@pytest.mark.skipif(not PUBLIC.exists(), reason="the public trace is not here")
def test_the_public_trace_is_read_whole() -> None:
    arrivals = read_azure(PUBLIC)
    assert len(arrivals) == 9_754
    assert arrivals[-1].at_ns // NS_PER_MS == 1_753_257
