"""An engine's journal of its choices: made again to the same answers, whatever ended it; no byte can change."""

import errno
import io
import json
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
import zstandard

from events import codec
from events.base import EngineId, PoolId
from events.log.base import Message
from events.log.journal import JournalWriter
from events.log.sealed import SealedWriter
from events.slice import ChoiceMade
from events.subjects import fact
from policies.memory.delegate import Snapshot
from replay.choice_journal import (
    PARTIAL,
    START,
    ChoiceReader,
    ChoicesDamaged,
    End,
    Header,
    Line,
    NoChoices,
    files_of,
    sealed,
)
from replay.verify_choices import verify_choices
from services import cli
from services.vllm_plugin.journal import GAP, ChoiceJournal
from tests.services.vllm_plugin.choosing import ENGINE, Chooser


def closed(folder: Path, *, count: int = 40) -> Path:
    """The one journal of an engine that chose and ended well."""
    engine = Chooser(folder)
    engine.work(0, count)
    engine.direct(3)
    engine.work(count, count)
    engine.write()
    engine.journal.close()
    [path] = files_of(folder)
    return path


def unpacked(path: Path) -> list[bytes]:
    """The journal's lines, as they are packed."""
    return zstandard.ZstdDecompressor().stream_reader(io.BytesIO(path.read_bytes())).read().splitlines(keepends=True)


def test_choices_are_made_again_to_the_same_answers(tmp_path: Path) -> None:
    report = verify_choices([closed(tmp_path)])

    assert report.identical
    assert report.ended
    assert (report.engine, report.files, report.first) == (ENGINE, 1, 1)
    assert report.choices == {"evict": 40, "victim": 2, "fetch": 2}
    assert report.directive_versions == [0, 3]
    assert report.last == report.ops
    assert report.first_divergence is None


def test_journals_in_a_row_are_one_history_and_each_can_be_verified_alone(tmp_path: Path) -> None:
    engine = Chooser(tmp_path, bytes_max=1_000, files_max=64)
    engine.direct(1)
    for first in range(0, 200, 20):
        engine.work(first, 20)
        engine.write()
    engine.journal.close()
    paths = files_of(tmp_path)
    assert len(paths) > 2

    whole, alone = verify_choices(paths), [verify_choices([path]) for path in paths]

    assert whole.identical
    assert all(report.identical and report.ended for report in alone)
    assert whole.ops == sum(report.ops for report in alone) == whole.last


def test_journal_is_not_full_of_its_snapshot(tmp_path: Path) -> None:
    engine = Chooser(tmp_path, bytes_max=100)
    engine.work(0, 400)
    engine.write()
    engine.bridge.begin_journal()
    engine.work(400, 2)
    engine.write()
    assert len(files_of(tmp_path)) == 2, "what a large tier holds is a long first line"

    for _ in range(3):
        engine.work(500, 0)
        engine.write()

    assert len(files_of(tmp_path)) == 2, "few ops make no new one: each would cost the engine another snapshot"
    engine.kill()
    assert verify_choices(files_of(tmp_path)).identical


def test_only_so_many_journals_are_kept(tmp_path: Path) -> None:
    engine = Chooser(tmp_path, bytes_max=500, files_max=3)
    for first in range(0, 200, 20):
        engine.work(first, 20)
        engine.write()
    engine.kill()

    assert len(files_of(tmp_path)) == 3
    assert verify_choices(files_of(tmp_path)).identical


def test_engine_that_is_killed_leaves_all_that_was_written(tmp_path: Path) -> None:
    engine = Chooser(tmp_path)
    engine.work(0, 20)
    engine.write()
    engine.kill()

    [path] = files_of(tmp_path)
    assert path.name.endswith(PARTIAL)
    report = verify_choices([path])

    assert report.identical
    assert not report.ended
    assert report.last == engine.journal.written


def test_next_engine_goes_on_numbering_and_nothing_is_used_twice(tmp_path: Path) -> None:
    first = Chooser(tmp_path)
    first.work(0, 10)
    first.write()
    first.kill()

    second = Chooser(tmp_path)
    second.work(10, 10)
    second.write()
    second.kill()

    report = verify_choices(files_of(tmp_path))
    assert report.identical
    assert (report.files, report.last) == (2, first.journal.written + second.journal.written)


@pytest.mark.parametrize("cut", [3, 40, 200, 600])
def test_partial_journal_may_break_off_anywhere(tmp_path: Path, cut: int) -> None:
    engine = Chooser(tmp_path)
    for first in range(0, 100, 10):
        engine.work(first, 10)
        engine.write()
    engine.kill()
    [path] = files_of(tmp_path)
    whole = verify_choices([path]).last
    path.write_bytes(path.read_bytes()[:-cut])

    report = verify_choices([path])

    assert report.identical
    assert 0 < report.last < whole


def test_complete_journal_may_not(tmp_path: Path) -> None:
    path = closed(tmp_path)
    path.write_bytes(path.read_bytes()[:-40])

    with pytest.raises(ChoicesDamaged):
        verify_choices([path])


def test_no_byte_of_a_packed_journal_can_change_unnoticed(tmp_path: Path) -> None:
    path = closed(tmp_path, count=6)
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises((ChoicesDamaged, NoChoices)):
            verify_choices([path])


def test_line_that_was_changed_is_named(tmp_path: Path) -> None:
    lines = unpacked(closed(tmp_path))
    assert b'"chosen":["' in lines[5]
    lines[5] = lines[5].replace(b'"chosen":["0', b'"chosen":["1')
    plain = tmp_path / "choices-000000000000001.jsonl"
    plain.write_bytes(b"".join(lines))

    with pytest.raises(ChoicesDamaged) as caught:
        verify_choices([plain])

    assert caught.value.number == 5


@pytest.mark.parametrize("wrong", ["missing", "doubled", "swapped"])
def test_lines_stand_in_their_places(tmp_path: Path, wrong: str) -> None:
    lines = unpacked(closed(tmp_path))
    match wrong:
        case "missing":
            del lines[5]
        case "doubled":
            lines.insert(5, lines[5])
        case _:
            lines[5], lines[6] = lines[6], lines[5]
    plain = tmp_path / "choices-000000000000001.jsonl"
    plain.write_bytes(b"".join(lines))

    with pytest.raises(ChoicesDamaged):
        verify_choices([plain])


def forged(folder: Path, *, number: int) -> Path:
    """A journal that is whole, with another answer at one place: as whoever can write the file could make it."""
    reader, digest, made = ChoiceReader(closed(folder)), START, []
    entries: list[Header | Line | End] = [reader.header, *reader]
    for entry in (*entries, End(reader.last)):
        if isinstance(entry, Line) and entry.number == number and entry.choice is not None:
            lie = msgspec.structs.replace(entry.choice, chosen=("f" * 32,))
            entry = msgspec.structs.replace(entry, choice=lie)
        line, digest = sealed(entry, digest)
        made.append(line)
    plain = folder / "forged.jsonl"
    plain.write_bytes(b"".join(made))
    return plain


def test_answer_that_does_not_follow_is_the_first_difference(tmp_path: Path) -> None:
    reader = ChoiceReader(closed(tmp_path / "before"))
    number = [line.number for line in reader if line.choice is not None][3]

    report = verify_choices([forged(tmp_path / "after", number=number)])

    assert not report.identical
    first = report.first_divergence
    assert first is not None
    assert (first.kind, first.number, first.op) == ("changed", number, "evict_asked")
    assert first.recorded is not None
    assert first.recomputed is not None
    assert first.recorded.chosen == ("f" * 32,)
    assert first.recomputed.chosen != first.recorded.chosen


def test_journal_that_begins_with_another_state_is_a_difference(tmp_path: Path) -> None:
    engine = Chooser(tmp_path, bytes_max=1_000)
    for first in range(0, 60, 20):
        engine.work(first, 20)
        engine.write()
    engine.journal.close()
    before, after = files_of(tmp_path)[:2]
    assert verify_choices([before, after]).identical
    reader, digest, made = ChoiceReader(after), START, []
    header = msgspec.structs.replace(reader.header, snapshot=msgspec.Raw(msgspec.json.encode(Snapshot())))
    lines = list(reader)
    for entry in (header, *lines, End(reader.last)):
        line, digest = sealed(entry, digest)
        made.append(line)
    after.write_bytes(b"".join(made))

    report = verify_choices([before, after])

    assert not report.identical
    assert report.first_divergence is not None
    assert (report.first_divergence.kind, report.first_divergence.number) == ("state", header.after + 1)


def test_choices_of_other_code_are_not_called_identical(tmp_path: Path) -> None:
    path = closed(tmp_path)

    other, same = (verify_choices([path], code_version=code) for code in ("1.0+0123456789ab", _code(path)))

    assert (other.identical, other.other_version) == (False, _code(path))
    assert other.first_divergence is None
    assert (same.identical, same.other_version) == (True, "")


def _code(path: Path) -> str:
    return ChoiceReader(path).header.code_version


def pool_log(path: Path, facts: list[ChoiceMade]) -> Path:
    """A pool's journal with these facts in it."""
    pool = PoolId("p")
    with JournalWriter(path, pool) as writer:
        for seq, said in enumerate(facts, 1):
            body = codec.encode(owner="e1-1", ts_ns=seq, said=[codec.Said(event=said)])
            writer.write(Message(seq, fact(pool, "agent", "choice_made"), body, {}))
    return path


def told(folder: Path) -> list[ChoiceMade]:
    engine = Chooser(folder)
    engine.work(0, 20)
    facts = engine.write()
    engine.journal.close()
    return [said for said in facts if isinstance(said, ChoiceMade)]


class Said(NamedTuple):
    exit_code: int
    output: str


def verify(capsys: pytest.CaptureFixture[str], *arguments: object) -> Said:
    code = cli.run(["replay", "verify", *map(str, arguments)])
    said = capsys.readouterr()
    return Said(code, said.out + said.err)


def test_command_says_identical_and_counts_what_stands_in_the_log_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = told(tmp_path / "e1")
    log = pool_log(tmp_path / "pool.jsonl", facts[:-1])

    done = verify(capsys, "--engine", tmp_path / "e1", "--log", log, "--json")

    assert done.exit_code == 0, done.output
    report = json.loads(done.output)
    assert (report["identical"], report["said"], report["unsaid"]) == (True, len(facts) - 1, 1)
    shown = verify(capsys, "--engine", tmp_path / "e1", "--log", log)
    assert "verify: IDENTICAL, choices of engine e1" in shown.output
    assert f"{len(facts) - 1} choices stand in the log, too; 1 only here, 0 only there" in shown.output


def test_command_notices_a_log_that_was_told_another_choice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = told(tmp_path / "e1")
    lie = msgspec.structs.replace(facts[2], candidates_digest="0" * 32)
    other = msgspec.structs.replace(lie, engine_id=EngineId("e2"))
    log = pool_log(tmp_path / "pool.jsonl", [*facts[:2], lie, other, *facts[3:]])

    done = verify(capsys, "--engine", tmp_path / "e1", "--log", log)

    assert done.exit_code == 1
    assert "NOT IDENTICAL" in done.output
    assert f"first difference: entry {lie.number}" in done.output
    assert "stands in the log as another choice" in done.output


def test_command_names_the_first_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    number = next(line.number for line in ChoiceReader(closed(tmp_path / "before")) if line.choice is not None)

    done = verify(capsys, "--engine", forged(tmp_path / "after", number=number))

    assert done.exit_code == 1
    assert f"first difference: entry {number} evict_asked" in done.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--log", "x.jsonl", "y.jsonl"], "--log goes with --engine"), (["--engine", "--pool", "p"], "--engine FILE")],
)
def test_command_refuses_what_makes_no_sense(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    done = verify(capsys, *arguments)

    assert done.exit_code == 2
    assert said in done.output


def test_folder_without_a_journal_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = verify(capsys, "--engine", tmp_path)

    assert done.exit_code == 2
    assert str(tmp_path) in done.output


def test_file_that_is_no_journal_of_choices_is_refused(tmp_path: Path) -> None:
    for name, content in (("empty", b""), ("other", b'{"tidegate_journal":1,"pool":"p"}\n')):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(NoChoices):
            verify_choices([path])
    with pytest.raises(NoChoices):
        verify_choices([])


def test_folder_that_takes_nothing_costs_the_journal_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    engine = Chooser(tmp_path / "file" / "folder")
    engine.work(0, 5)

    facts = engine.write()

    assert engine.journal.broken
    assert engine.journal.lost > 0
    assert [said.event_kind() for said in facts].count("choice_made") == 4


def test_journal_begins_anew_once_the_folder_takes_something_again(tmp_path: Path) -> None:
    blocked = tmp_path / "folder"
    blocked.write_text("in the way")
    engine = Chooser(blocked)
    engine.work(0, 5)
    engine.write()
    blocked.unlink()

    engine.bridge.begin_journal()
    engine.work(5, 5)
    engine.write()
    engine.kill()

    [path] = files_of(blocked)
    report = verify_choices([path])
    assert report.identical
    assert report.first > 1


def test_journal_is_not_there_before_its_first_line_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_writer: SealedWriter) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    engine = Chooser(tmp_path)
    engine.work(0, 4)
    with monkeypatch.context() as patched:
        patched.setattr(SealedWriter, "flush", full)
        engine.write()
    assert files_of(tmp_path) == []

    engine.bridge.begin_journal()
    engine.work(4, 4)
    engine.write()
    engine.kill()

    assert verify_choices(files_of(tmp_path)).identical
    assert [path.name for path in tmp_path.iterdir()] == [path.name for path in files_of(tmp_path)]


def test_numbers_skip_what_a_damaged_journal_may_have_held(tmp_path: Path) -> None:
    path = closed(tmp_path)
    path.write_bytes(path.read_bytes()[:-30])

    assert ChoiceJournal(tmp_path, ENGINE).last_number() == 1 + GAP


def test_journals_are_readable_by_their_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "choices"
    closed(folder)

    assert folder.stat().st_mode & 0o077 == 0
