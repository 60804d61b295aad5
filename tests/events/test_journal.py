"""A journal is what was written, byte for byte, or it is refused with the first bad record named."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from events.base import LogDamaged, LogError, PoolId
from events.log.base import Message
from events.log.digest import extend, start
from events.log.journal import JournalDamaged, JournalLog, JournalWriter, NotAJournal, read_journal

POOL = PoolId("p1")
NAMES = ["log.jsonl", "log.jsonl.zst"]
SUBJECT = "tg.v1.p1.fact.clock.ticked"
BODIES = [b'{"n":1}', b'{"n": 2, "text": "\xc3\xa9"}', b"not json", b'{"n":4}', b'{"n":5}', b'{"n":6}']
MESSAGES = [Message(seq, SUBJECT, body, {"Tg-Trace": "t"} if seq == 2 else {}) for seq, body in enumerate(BODIES, 1)]
LINES = len(MESSAGES) + 2

settings.register_profile("journal", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(path: Path, messages: list[Message] = MESSAGES, pool: PoolId = POOL) -> Path:
    with JournalWriter(path, pool) as writer:
        for message in messages:
            writer.write(message)
    return path


def read(path: Path) -> list[Message]:
    _, messages = read_journal(path)
    return list(messages)


@pytest.fixture(params=NAMES)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / request.param


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return write(tmp_path / "log.jsonl")


def test_what_was_written_is_read_back(path: Path) -> None:
    assert read(write(path)) == MESSAGES
    assert read_journal(path)[0].pool == POOL
    assert path.read_bytes()[:4] == (b"\x28\xb5\x2f\xfd" if path.suffix == ".zst" else b'{"ti')


def test_an_empty_log_is_a_journal_too(path: Path) -> None:
    assert read(write(path, [])) == []


@given(
    body=st.one_of(
        st.binary(max_size=60),
        st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.dictionaries(st.text(), inner)).map(
            msgspec.json.encode
        ),
    ),
    subject=st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable()),
    headers=st.dictionaries(st.text(min_size=1, max_size=5), st.text(max_size=5), max_size=2),
)
@example(body=b' {"a":1}', subject="s", headers={})
@example(body=b'{"a":1} ', subject="s", headers={})
@example(body=b'{"a":\n1}', subject="s", headers={})
@example(body=b'{"a":"\xff"}', subject="s", headers={})
@example(body=b'{"a":1,}', subject="s", headers={})
@example(body=b'{"a":1},"x":{}', subject="s", headers={})
@example(body=b'{"a":' * 5000 + b"1" + b"}" * 5000, subject="s", headers={})
@settings(settings.get_profile("journal"), max_examples=60)
def test_every_message_comes_back_byte_for_byte(
    body: bytes, subject: str, headers: dict[str, str], tmp_path: Path
) -> None:
    message = Message(1, subject, body, headers)
    assert read(write(tmp_path / "one.jsonl", [message])) == [message]


def test_a_person_can_read_the_bodies_and_other_tools_can_unpack_them(tmp_path: Path) -> None:
    packed = write(tmp_path / "log.jsonl.zst").read_bytes()
    text = zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True).read()
    assert text == write(tmp_path / "log.jsonl").read_bytes()
    assert b'"body":{"n":1}}\n' in text
    assert b'"body_b64":"bm90IGpzb24="}\n' in text


def test_the_digest_of_a_record_is_the_logs_running_digest(journal: Path) -> None:
    digest = start(POOL)
    for message, line in zip(MESSAGES, journal.read_bytes().splitlines()[1:], strict=False):
        digest = extend(digest, message)
        assert f'"digest":"{digest.hex()}"'.encode() in line


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@settings(settings.get_profile("journal"), max_examples=150)
def test_one_changed_byte_anywhere_is_refused(name: str, data: st.DataObject, tmp_path: Path) -> None:
    good = write(tmp_path / name).read_bytes()
    at = data.draw(st.integers(0, len(good) - 1))
    flip = data.draw(st.integers(1, 255))
    bad = tmp_path / f"bad-{name}"
    bad.write_bytes(good[:at] + bytes([good[at] ^ flip]) + good[at + 1 :])
    with pytest.raises(JournalDamaged) as caught:
        read(bad)
    if name == "log.jsonl":
        # In plain text the bad line is known. Another pool's name in the header shows at the first record.
        line = good[:at].count(b"\n") + 1
        assert caught.value.line in ({1, 2} if line == 1 else {line})
        assert caught.value.seq == caught.value.line - 1


EDITS: dict[str, tuple[Callable[[list[bytes], int], list[bytes]], range]] = {
    "dropped": (lambda lines, at: lines[:at] + lines[at + 1 :], range(LINES)),
    "doubled": (lambda lines, at: lines[: at + 1] + lines[at:], range(LINES)),
    "swapped": (lambda lines, at: [*lines[:at], lines[at + 1], lines[at], *lines[at + 2 :]], range(LINES - 1)),
    "cut off after": (lambda lines, at: lines[:at], range(1, LINES)),
    "cut off inside": (lambda lines, at: [*lines[:at], lines[at][:-1]], range(LINES)),
}


@pytest.mark.parametrize(("edit", "at"), [(name, at) for name, (_, where) in EDITS.items() for at in where])
def test_a_line_dropped_doubled_swapped_or_cut_off_is_refused_at_the_first_bad_record(
    journal: Path, edit: str, at: int
) -> None:
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(EDITS[edit][0](lines, at)))
    with pytest.raises(JournalDamaged) as caught:
        read(journal)
    # A doubled line is bad where it stands for the second time.
    bad_line = at + 2 if edit == "doubled" else at + 1
    assert caught.value.line == bad_line
    assert f"(line {bad_line})" in str(caught.value)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("tail", [b"\n", b"x", b'{"seq":7}\n', bytes(24)])
def test_anything_after_the_end_is_refused(path: Path, tail: bytes) -> None:
    write(path)
    path.write_bytes(path.read_bytes() + tail)
    with pytest.raises(JournalDamaged):
        read(path)


def test_another_spelling_of_the_same_record_is_refused(journal: Path) -> None:
    journal.write_bytes(journal.read_bytes().replace(b'"body":{"n":1}', b'"body_b64":"eyJuIjoxfQ=="'))
    with pytest.raises(JournalDamaged, match=r"record 1 \(line 2\): .* another spelling"):
        read(journal)


def test_a_record_of_another_pool_does_not_pass(tmp_path: Path) -> None:
    other = write(tmp_path / "other.jsonl", pool=PoolId("p2")).read_bytes().splitlines(keepends=True)
    mixed = write(tmp_path / "log.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "log.jsonl").write_bytes(b"".join([mixed[0], *other[1:]]))
    with pytest.raises(JournalDamaged, match=r"record 1 \(line 2\)"):
        read(tmp_path / "log.jsonl")


def test_records_before_the_first_bad_one_are_given_out(journal: Path) -> None:
    journal.write_bytes(journal.read_bytes().replace(b'{"n":4}', b'{"n":7}'))
    _, messages = read_journal(journal)
    assert [next(messages) for _ in range(3)] == MESSAGES[:3]
    with pytest.raises(JournalDamaged, match=r"record 4 \(line 5\): it was changed"):
        next(messages)


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"hello\n", b'{"pool":"p1"}\n', b"\x00" * 100, b'[1]\n{"a":1}\n', b"PK\x03\x04" + bytes(60)],
)
def test_a_file_that_never_was_a_journal_is_another_error(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(NotAJournal) as caught:
        read_journal(path)
    assert caught.value.exit_code == 2
    assert not isinstance(caught.value, LogDamaged)


def test_a_compressed_file_that_is_no_journal_is_another_error(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl.zst"
    path.write_bytes(zstandard.compress(b"hello\nworld\n"))
    with pytest.raises(NotAJournal):
        read_journal(path)


def test_a_file_that_is_not_there_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(NotAJournal, match=r"cannot be read: No such file or directory \(.*gone.jsonl\)") as caught:
        read_journal(tmp_path / "gone.jsonl")
    assert caught.value.exit_code == 2
    with pytest.raises(NotAJournal, match="directory"):
        read_journal(tmp_path)


def test_an_exception_in_the_middle_still_leaves_a_whole_journal(path: Path) -> None:
    def interrupted() -> None:
        with JournalWriter(path, POOL) as writer:
            writer.write(MESSAGES[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert read(path) == MESSAGES[:1]
    assert list(path.parent.iterdir()) == [path]


def test_the_name_is_given_only_when_the_journal_is_whole(path: Path) -> None:
    write(path, MESSAGES[:2])
    writer = JournalWriter(path, POOL)
    writer.write(MESSAGES[0])
    writer.flush()
    assert read(path) == MESSAGES[:2], "the journal before it stays until then"
    partial = path.with_name(path.name + ".partial")
    _, messages = read_journal(partial)
    assert next(messages) == MESSAGES[0]
    with pytest.raises(JournalDamaged, match="truncated"):
        next(messages)
    writer.close()
    writer.close()
    assert read(path) == MESSAGES[:1]
    assert not partial.exists()


def test_a_writer_killed_hard_leaves_a_file_that_is_readable_and_says_that_it_is_truncated(path: Path) -> None:
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom events.log.base import Message\n"
        "from events.log.journal import JournalWriter\n"
        "writer = JournalWriter(Path(sys.argv[1]), 'p1')\n"
        f"writer.write(Message(1, {SUBJECT!r}, b'{{\"n\":1}}', {{}}))\nwriter.flush()\n"
        f"os.kill(os.getpid(), {int(signal.SIGKILL)})\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == -signal.SIGKILL
    assert not path.exists()
    _, messages = read_journal(path.with_name(path.name + ".partial"))
    assert next(messages) == MESSAGES[0]
    with pytest.raises(JournalDamaged, match="truncated"):
        next(messages)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_is_a_log_error_and_leaves_no_journal_that_looks_whole(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.with_name(f"{name}.partial").symlink_to("/dev/full")
    writer = JournalWriter(path, POOL)
    writer.write(MESSAGES[0])
    with pytest.raises(LogError, match="cannot be written: No space left on device"):
        writer.flush()
    with pytest.raises(LogError, match="closed"):
        writer.write(MESSAGES[1])
    writer.close()
    assert not path.exists()


def test_a_place_that_cannot_be_written_is_a_log_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LogError, match="cannot be written"):
        JournalWriter(tmp_path / "file" / "log.jsonl", POOL)
    with pytest.raises(LogError, match="cannot be written: File name too long"):
        JournalWriter(tmp_path / ("long" * 100), POOL)


def test_what_is_no_file_is_not_replaced_by_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "device")
    with pytest.raises(LogError, match="a file of its own"):
        JournalWriter(tmp_path / "device", POOL)
    assert (tmp_path / "device").is_fifo()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_gap_is_a_mistake_of_the_writer(path: Path) -> None:
    with JournalWriter(path, POOL) as writer, pytest.raises(AssertionError, match="in order"):
        writer.write(MESSAGES[1])
    assert read(path) == []


async def test_a_journal_that_was_opened_takes_nothing_more(path: Path) -> None:
    log = JournalLog.open(write(path))
    with pytest.raises(LogError, match="reading only"):
        await log.append(SUBJECT, b"{}")
    assert await log.last() == MESSAGES[-1]


async def test_what_a_journal_log_acknowledged_outlives_its_process(path: Path) -> None:
    log = JournalLog.create(path, POOL)
    await log.append(SUBJECT, b'{"n":1}')
    _, messages = read_journal(path.with_name(path.name + ".partial"))
    assert next(messages) == MESSAGES[0]
    await log.close()


def test_two_writers_of_the_same_messages_write_the_same_file(tmp_path: Path) -> None:
    assert write(tmp_path / "a.jsonl").read_bytes() == write(tmp_path / "b.jsonl").read_bytes()
    assert write(tmp_path / "a.jsonl.zst").read_bytes() == write(tmp_path / "b.jsonl.zst").read_bytes()
