"""One contract for every kind of snapshot store, and what a snapshot holds."""

from pathlib import Path

import pytest

from events.base import Cause
from events.log import digest
from policies.decider import Heard, advance, begin
from services.runtime import snapshot
from services.runtime.snapshot import CrashNote, FileSnapshots, MemorySnapshots, Snapshot, SnapshotStore
from tests.services.runtime import toy

NOTE = CrashNote(position="3.0", code_version="v1", starts=1, error="ValueError at toy.py:1 in decide")


@pytest.fixture(params=["memory", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> SnapshotStore:
    return MemorySnapshots() if request.param == "memory" else FileSnapshots(tmp_path / "snapshots")


def a_snapshot(seq: int = 1) -> Snapshot:
    progress = begin(toy.TOY)
    progress.seq, progress.item, progress.now_ns, progress.tick_ns, progress.skipped = seq, 2, 5, 4, 3
    progress.heard["quota"] = Heard(Cause(1, 0), 2)
    progress.takes = toy.TOY.takes
    progress.state.held.update({"z": 1, "a": 2})
    before = digest.start(toy.POOL)
    return snapshot.take(
        toy.TOY, progress, code_version="v1", owner_seq=9, seq=seq, digest=b"\1" * 16, digest_before=before,
        watermark="1.0",
    )  # fmt: skip


async def test_nothing_is_there_at_first(store: SnapshotStore) -> None:
    assert await store.load("admission") is None
    assert await store.crash_note("admission") is None
    await store.note_crash("admission", None)


async def test_the_newest_snapshot_comes_back_as_it_was(store: SnapshotStore) -> None:
    await store.save(a_snapshot(seq=1))
    await store.save(a_snapshot(seq=2))
    assert await store.load("admission") == a_snapshot(seq=2)
    assert await store.load("quota") is None


async def test_a_crash_note_comes_back_until_it_is_forgotten(store: SnapshotStore) -> None:
    await store.note_crash("admission", NOTE)
    assert await store.crash_note("admission") == NOTE
    await store.note_crash("admission", None)
    assert await store.crash_note("admission") is None


def test_restoring_gives_the_same_progress_and_the_same_bytes() -> None:
    taken = a_snapshot()
    progress = snapshot.restore(toy.TOY, taken)
    assert list(progress.state.held) == ["z", "a"], "the order of keys decides, so it is kept"
    assert progress.heard == {"quota": Heard(Cause(1, 0), 2)}
    assert progress.takes == toy.TOY.takes
    again = snapshot.take(
        toy.TOY, progress, code_version="v1", owner_seq=9, seq=1, digest=b"\1" * 16,
        digest_before=digest.start(toy.POOL), watermark="1.0",
    )  # fmt: skip
    assert snapshot.pack(again) == snapshot.pack(taken)


async def test_a_restored_actor_decides_as_one_that_never_stopped() -> None:
    log = toy.MemoryLog(toy.POOL)
    await toy.say_some(log, toy.random.Random(1), range(40))
    records = toy.records(log)
    for cut in range(1, len(records)):
        straight, first = begin(toy.TOY), begin(toy.TOY)
        for record in records[:cut]:
            advance(toy.TOY, straight, record)
            advance(toy.TOY, first, record)
        second = snapshot.restore(toy.TOY, snapshot.take(
            toy.TOY, first, code_version="", owner_seq=0, seq=first.seq, digest=b"", digest_before=b"", watermark="",
        ))  # fmt: skip
        for record in records[cut:]:
            assert advance(toy.TOY, second, record) == advance(toy.TOY, straight, record)
        assert second == straight


@pytest.mark.parametrize("harm", ["cut", "flip", "empty"])
async def test_a_damaged_file_is_passed_over(tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture) -> None:
    store = FileSnapshots(tmp_path)
    await store.save(a_snapshot())
    file = store.file_of("admission")
    data = file.read_bytes()
    file.write_bytes({"cut": data[:-5], "flip": data[:60] + bytes([data[60] ^ 1]) + data[61:], "empty": b""}[harm])
    assert await store.load("admission") is None
    assert "passed over" in caplog.text


async def test_a_file_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    store = FileSnapshots(tmp_path)
    await store.save(a_snapshot(seq=1))
    await store.save(a_snapshot(seq=2))
    await store.note_crash("admission", NOTE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["admission.crash", "admission.snapshot"]  # noqa: ASYNC240
