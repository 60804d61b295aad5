"""The Mooncake importer: what it reads, and what it refuses with file, line and the mend."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from events.base import NS_PER_MS, NS_PER_S
from replay.traces.base import TraceError
from replay.traces.mooncake import read_mooncake

ROW: dict[str, Any] = {"timestamp": 5_000, "input_length": 1_300, "output_length": 7, "hash_ids": [1, 2, 3]}
PUBLIC = Path(__file__).parents[2] / "../shared/traces/mooncake/conversation_trace.t0-1800000ms.jsonl.gz"


def write(path: Path, rows: list[dict[str, Any]] | str) -> Path:
    text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz"])
def test_rows_become_arrivals_counted_from_the_first(tmp_path: Path, name: str) -> None:
    later = ROW | {"timestamp": 8_000, "output_length": 0}
    first, second = read_mooncake(write(tmp_path / name, [ROW, later]), speed=2)
    assert (first.at_ns, second.at_ns) == (0, 1_500 * NS_PER_MS)
    assert (first.prompt_tokens, first.output_tokens, first.prefix, first.prefix_tokens) == (1_300, 7, (1, 2, 3), 512)
    assert second.output_tokens == 1, "every request makes a token"
    assert first.request_id != second.request_id


def test_the_limit_ends_the_reading_before_what_is_wrong_behind_it(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", json.dumps(ROW) + "\n" + json.dumps(ROW) + "\nnonsense\n")
    assert len(read_mooncake(path, limit=2)) == 2
    with pytest.raises(TraceError):
        read_mooncake(path)


def test_progress_ends_with_the_whole_file(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl.gz", [ROW] * 1_000)
    seen: list[tuple[int, int]] = []
    read_mooncake(path, on_progress=lambda done, total: seen.append((done, total)))
    size = path.stat().st_size
    assert len(seen) > 2
    assert seen[-1] == (size, size)


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("not json\n", 1, "not JSON"),
        (json.dumps(ROW) + "\n[1]\n", 2, "hash_ids"),
        (json.dumps({k: v for k, v in ROW.items() if k != "hash_ids"}), 1, "hash_ids"),
        (json.dumps(ROW | {"input_length": "1300"}), 1, "input_length"),
        (json.dumps(ROW | {"input_length": 0}), 1, "input_length"),
        (json.dumps(ROW | {"input_length": 10**12}), 1, "input_length"),
        (json.dumps(ROW | {"output_length": float("nan")}), 1, "not JSON"),
        (json.dumps(ROW)[:-1] + ', "x": ' + "[" * 500_000, 1, "not JSON"),
        (json.dumps(ROW | {"output_length": -1}), 1, "output_length"),
        (json.dumps(ROW | {"timestamp": -5}), 1, "timestamp"),
        (json.dumps(ROW) + "\n" + json.dumps(ROW | {"timestamp": 10**14}), 2, "days behind the first"),
        (json.dumps(ROW) + "\n" + json.dumps(ROW | {"timestamp": 4_000}), 2, "sort the trace"),
        (json.dumps(ROW | {"hash_ids": [1, 2, 3, 4]}), 1, "4 hash_ids for 1300 tokens"),
        ("\n\n", 0, "no rows"),
        ("{" + "x" * 2_000_000, 1, "too long"),
    ],
)
def test_what_is_no_trace_is_refused_by_line(tmp_path: Path, text: str, line: int, says: str) -> None:
    path = write(tmp_path / "t.jsonl", text)
    with pytest.raises(TraceError, match=says) as refused:
        read_mooncake(path)
    assert refused.value.line == line
    assert str(path) in str(refused.value)
    assert refused.value.mend


def test_a_cut_archive_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl.gz", [ROW | {"hash_ids": [n]} for n in range(500)])
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(TraceError, match="fetch the file again"):
        read_mooncake(path)


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl.gz"
    path.write_text(json.dumps(ROW))
    with pytest.raises(TraceError, match="fetch the file again"):
        read_mooncake(path)


def test_damage_inside_an_archive_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl.gz", [ROW | {"hash_ids": [n]} for n in range(2_000)])
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(TraceError):
        read_mooncake(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="give the path of a trace"):
        read_mooncake(tmp_path / "none.jsonl")
    with pytest.raises(TraceError, match="give the path of a trace"):
        read_mooncake(tmp_path)


@pytest.mark.parametrize("speed", [0, -1, float("nan"), float("inf")])
def test_a_speed_that_cannot_be_is_refused(tmp_path: Path, speed: float) -> None:
    with pytest.raises(TraceError, match="give a speed"):
        read_mooncake(write(tmp_path / "t.jsonl", [ROW]), speed=speed)


@pytest.mark.skipif(not PUBLIC.exists(), reason="the public trace is not here")
def test_the_public_trace_is_read_whole() -> None:
    arrivals = read_mooncake(PUBLIC)
    assert len(arrivals) == 5_719
    assert arrivals[-1].at_ns == 1_797 * NS_PER_S
