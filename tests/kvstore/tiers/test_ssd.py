"""The SSD tier: found again, never mistaken, never half, and clear about a disk that fails."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from events.base import SliceId
from kvstore.errors import ChecksumMismatch, KVError, NotResident, TierUnavailable
from kvstore.tiers.shelf import Shelf
from kvstore.tiers.slicefile import HEADER_BYTES, namespace_digest
from kvstore.tiers.ssd import Sync, ssd_tier
from tests.kvstore.tiers.faults import Steps
from tests.kvstore.tiers.kinds import NAMESPACE, OTHER_NAMESPACE
from tests.kvstore.tiers.test_contract import SLICE_BYTES, A, B, C, D, content, put, read

FILE_BYTES = HEADER_BYTES + SLICE_BYTES


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "slices"


def opened(root: Path, *, slices: int = 8, namespace: bytes = NAMESPACE, files: Steps | None = None) -> Shelf:
    return ssd_tier(root, bytes_max=slices * FILE_BYTES, namespace=namespace, files=files)


def folder(root: Path) -> Path:
    return root / NAMESPACE.hex()


def file(root: Path, slice_id: SliceId) -> Path:
    return folder(root) / f"{slice_id}.slice"


def names(root: Path) -> set[str]:
    return {path.name for path in folder(root).iterdir()} - {"lock"}


def kept(root: Path, *slices: SliceId) -> None:
    """An earlier run put them there."""
    tier = opened(root)
    put(tier, *slices)
    tier.close()


def test_a_restart_finds_every_slice_again(root: Path) -> None:
    kept(root, B, A, C)
    tier = opened(root)
    assert tier.inventory() == tuple((name, SLICE_BYTES) for name in (B, A, C)), "oldest first, as before"
    assert [read(tier, name) for name in (A, B, C)] == [content(name) for name in (A, B, C)]
    assert tier.bytes_used == 3 * FILE_BYTES
    put(tier, D)
    tier.drop(A)
    tier.close()
    assert [name for name, _ in opened(root).inventory()] == [B, C, D]


def test_files_are_readable_by_us_alone(root: Path) -> None:
    kept(root, A)
    assert stat.S_IMODE(file(root, A).stat().st_mode) == 0o600
    assert stat.S_IMODE(folder(root).stat().st_mode) == 0o700


FACTS = {"model": "m", "dtype": "float32", "layout": "nhd", "schema": {"layers": 2}}


@pytest.mark.parametrize(
    "changed",
    [{"model": "n"}, {"dtype": "int8"}, {"layout": "hnd"}, {"schema": {"layers": 3}}, {"tp_rank": 1}],
    ids=str,
)
def test_slices_of_another_meaning_never_match(root: Path, changed: dict[str, object]) -> None:
    mine, theirs = namespace_digest(**FACTS), namespace_digest(**(FACTS | changed))  # type: ignore[arg-type]
    first = opened(root, namespace=mine)
    put(first, A)
    second = opened(root, namespace=theirs)
    assert second.inventory() == ()
    with pytest.raises(NotResident):
        read(second, A)
    assert second.put(A, content(B))
    assert (read(first, A), read(second, A)) == (content(A), content(B))


def test_a_file_of_another_namespace_in_our_folder_is_left_alone_and_never_served(root: Path) -> None:
    other = opened(root, namespace=OTHER_NAMESPACE)
    put(other, A)
    other.close()
    kept(root, B)
    (root / OTHER_NAMESPACE.hex() / f"{A}.slice").rename(file(root, A))
    tier = opened(root)
    assert [name for name, _ in tier.inventory()] == [B]
    assert names(root) == {f"{A}.slice", f"{B}.slice"}
    put(tier, A)
    assert read(tier, A) == content(A)


def flip(at: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[at] ^= 1
        path.write_bytes(data)

    return damage


def length(size: int) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, size)


def swap(path: Path) -> None:
    """Another whole slice under this name."""
    path.write_bytes((path.parent / f"{B}.slice").read_bytes())


def link(path: Path) -> None:
    path.rename(path.parent / "elsewhere")
    path.symlink_to("elsewhere")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


IN_HEADER = {
    "magic": flip(0), "version": flip(9), "namespace": flip(10), "name": flip(26), "generation": flip(161),
    "length": flip(169), "padding": flip(1000), "checksum of the header": flip(HEADER_BYTES - 1),
}  # fmt: skip
SHAPE = {
    "empty": length(0), "half a header": length(2000), "no bytes": length(HEADER_BYTES),
    "short": length(FILE_BYTES - 1), "long": length(FILE_BYTES + 1),
    "another slice": swap, "a link": link, "a pipe": pipe,
}  # fmt: skip
IN_BYTES = {"first byte": flip(HEADER_BYTES), "last byte": flip(FILE_BYTES - 1)}


@pytest.mark.parametrize("damage", [*IN_HEADER.values(), *SHAPE.values(), *IN_BYTES.values()],
                         ids=[*IN_HEADER, *SHAPE, *IN_BYTES])  # fmt: skip
def test_a_damaged_slice_is_noticed_counted_forgotten_and_can_be_stored_again(
    root: Path, damage: Callable[[Path], None]
) -> None:
    tier = opened(root)
    put(tier, A, B)
    damage(file(root, A))
    with pytest.raises(ChecksumMismatch) as caught:
        read(tier, A)
    assert caught.value.name == A
    with pytest.raises(NotResident):
        read(tier, A)
    assert (tier.stats().corrupt, tier.stats().hits) == (1, 0)
    assert f"{A}.slice" not in names(root)
    assert tier.bytes_used == FILE_BYTES
    put(tier, A)
    assert (read(tier, A), read(tier, B)) == (content(A), content(B))


@pytest.mark.parametrize("damage", [*IN_HEADER.values(), *SHAPE.values()], ids=[*IN_HEADER, *SHAPE])
def test_a_start_removes_what_is_not_whole_and_keeps_the_rest(root: Path, damage: Callable[[Path], None]) -> None:
    kept(root, A, B)
    damage(file(root, A))
    tier = opened(root)
    assert [name for name, _ in tier.inventory()] == [B]
    assert f"{A}.slice" not in names(root)
    assert read(tier, B) == content(B)


@pytest.mark.parametrize("damage", IN_BYTES.values(), ids=IN_BYTES)
def test_damage_of_the_bytes_is_noticed_by_the_first_read_after_a_restart(
    root: Path, damage: Callable[[Path], None]
) -> None:
    kept(root, A)
    damage(file(root, A))
    tier = opened(root)
    with pytest.raises(ChecksumMismatch):
        read(tier, A)
    assert tier.inventory() == ()


def test_an_earlier_generation_of_a_slice_is_not_taken_for_the_present_one(root: Path) -> None:
    tier = opened(root)
    put(tier, A)
    old = file(root, A).read_bytes()
    tier.drop(A)
    put(tier, A)
    file(root, A).write_bytes(old)
    with pytest.raises(ChecksumMismatch, match="generation"):
        read(tier, A)


def test_generations_go_on_after_a_restart(root: Path) -> None:
    kept(root, A)
    tier = opened(root)
    old = file(root, A).read_bytes()
    tier.drop(A)
    put(tier, A)
    file(root, A).write_bytes(old)
    with pytest.raises(ChecksumMismatch, match="generation"):
        read(tier, A)


def test_a_vanished_file_is_a_miss_and_is_counted(root: Path) -> None:
    tier = opened(root)
    put(tier, A, B)
    file(root, A).unlink()
    with pytest.raises(NotResident):
        read(tier, A)
    assert (tier.holds(A), tier.stats().lost, tier.stats().corrupt) == (False, 1, 0)
    assert tier.bytes_used == FILE_BYTES
    put(tier, A)
    assert read(tier, A) == content(A)


def test_a_vanished_file_can_be_dropped_as_well(root: Path) -> None:
    tier = opened(root)
    put(tier, A)
    file(root, A).unlink()
    tier.drop(A)
    assert tier.bytes_used == 0


def test_a_pin_of_a_lost_slice_is_taken_back_as_any_other(root: Path) -> None:
    tier = opened(root)
    put(tier, A)
    tier.pin(A)
    file(root, A).unlink()
    with pytest.raises(NotResident):
        read(tier, A)
    tier.unpin(A)
    put(tier, A)
    tier.drop(A)


def test_a_vanished_folder_is_said_and_reads_miss(root: Path) -> None:
    tier = opened(root)
    put(tier, A)
    for path in folder(root).iterdir():
        path.unlink()
    folder(root).rmdir()
    with pytest.raises(TierUnavailable, match="bring that folder back"):
        put(tier, B)
    with pytest.raises(NotResident):
        read(tier, A)
    assert tier.bytes_used == 0


def test_halves_of_an_earlier_run_are_removed_and_what_is_not_ours_stays(root: Path) -> None:
    kept(root, A)
    (folder(root) / f"{B}.7.tmp").write_bytes(b"half")
    for name in ("README", f"{C}.slice.bak", "X.slice"):
        (folder(root) / name).write_bytes(b"not ours")
    tier = opened(root)
    assert names(root) == {f"{A}.slice", "README", f"{C}.slice.bak", "X.slice"}
    assert tier.bytes_used == FILE_BYTES


def test_a_smaller_budget_keeps_the_newest(root: Path) -> None:
    kept(root, A, B, C)
    tier = opened(root, slices=2)
    assert [name for name, _ in tier.inventory()] == [B, C]
    assert names(root) == {f"{B}.slice", f"{C}.slice"}


def test_a_second_owner_of_the_folder_is_refused(root: Path) -> None:
    tier = opened(root)
    with pytest.raises(TierUnavailable, match="another process has that folder"):
        opened(root)
    put(tier, A)
    tier.close()
    assert opened(root).holds(A)


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_folder_in_which_others_may_write_is_refused(root: Path, mode: int) -> None:
    kept(root, A)
    folder(root).chmod(mode)
    with pytest.raises(TierUnavailable, match="chmod 700"):
        opened(root)


def test_a_link_in_the_place_of_our_folder_is_not_followed(root: Path, tmp_path: Path) -> None:
    kept(root, A)
    folder(root).rename(tmp_path / "theirs")
    folder(root).symlink_to(tmp_path / "theirs")
    with pytest.raises(TierUnavailable):
        opened(root)


class Failing:
    """Fails the next call of a step with an error number, so often."""

    def __init__(self) -> None:
        self.files = Steps(self._before)
        self._step, self._number, self._times = "", 0, 0

    def next(self, step: str, number: int, *, times: int = 1) -> None:
        self._step, self._number, self._times = step, number, times

    def _before(self, name: str, _number: int) -> None:
        if name == self._step and self._times:
            self._times -= 1
            raise OSError(self._number, os.strerror(self._number))


@pytest.fixture
def failing() -> Iterator[Failing]:
    disk = Failing()
    yield disk
    disk.files.end()


STORE_STEPS = ["create", "reserve", "write", "close", "rename"]
MENDS = {
    errno.ENOSPC: ("free space", False), errno.EDQUOT: ("free space", False), errno.EROFS: ("writable", True),
    errno.EACCES: ("chmod 700", True), errno.EIO: ("replace it", True), errno.EMFILE: ("open files", False),
}  # fmt: skip


@pytest.mark.parametrize("step", STORE_STEPS)
@pytest.mark.parametrize("number", MENDS, ids=errno.errorcode.get)
def test_a_disk_that_refuses_a_store_is_clear_about_it_and_loses_nothing(
    root: Path, failing: Failing, step: str, number: int
) -> None:
    tier = opened(root, files=failing.files)
    put(tier, A)
    fds = dict(failing.files.open)
    failing.next(step, number)
    mend, lasting = MENDS[number]
    with pytest.raises(TierUnavailable, match=mend) as caught:
        put(tier, B)
    assert caught.value.lasting is lasting
    assert os.strerror(number) in tier.stats().trouble
    assert (tier.inventory(), tier.bytes_used) == (((A, SLICE_BYTES),), FILE_BYTES)
    assert names(root) == {f"{A}.slice"}, "no half file stays"
    assert read(tier, A) == content(A)
    put(tier, B)
    assert tier.stats().trouble == "", "and it works again as soon as the disk does"
    if step != "close":
        assert failing.files.open == fds, "no descriptor leaks"


def test_a_failing_sync_is_a_failed_store(root: Path, failing: Failing) -> None:
    tier = ssd_tier(root, bytes_max=FILE_BYTES, namespace=NAMESPACE, sync=Sync.POWER, files=failing.files)
    failing.next("sync", errno.EIO)
    with pytest.raises(TierUnavailable):
        put(tier, A)
    assert (names(root), tier.bytes_used) == (set(), 0)
    put(tier, A)
    assert read(tier, A) == content(A)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EIO], ids=errno.errorcode.get)
def test_a_slice_that_cannot_be_dropped_is_still_there(root: Path, failing: Failing, number: int) -> None:
    tier = opened(root, files=failing.files)
    put(tier, A)
    failing.next("unlink", number)
    with pytest.raises(TierUnavailable):
        tier.drop(A)
    assert (tier.holds(A), tier.bytes_used) == (True, FILE_BYTES)
    assert read(tier, A) == content(A)
    tier.drop(A)
    assert names(root) == set()


def test_what_cannot_be_removed_counts_until_it_is(root: Path, failing: Failing) -> None:
    tier = opened(root, slices=2, files=failing.files)
    put(tier, A)
    flip(FILE_BYTES - 1)(file(root, A))
    failing.next("unlink", errno.EROFS)
    with pytest.raises(ChecksumMismatch):
        read(tier, A)
    assert (tier.holds(A), tier.bytes_used) == (False, FILE_BYTES), "the file is still there, and never served"
    with pytest.raises(NotResident):
        read(tier, A)
    put(tier, B)
    assert (names(root), tier.bytes_used) == ({f"{B}.slice"}, FILE_BYTES), "the next store swept it first"


def test_a_half_store_that_cannot_be_removed_counts_until_it_is(root: Path, failing: Failing) -> None:
    tier = opened(root, slices=2, files=failing.files)
    put(tier, A)
    failing.files.before = fail({"write": errno.ENOSPC, "unlink": errno.EIO})
    with pytest.raises(TierUnavailable, match="free space"):
        put(tier, B)
    assert (tier.holds(B), tier.bytes_used) == (False, 2 * FILE_BYTES)
    failing.files.before = fail({})
    put(tier, C)
    assert (names(root), tier.bytes_used) == ({f"{A}.slice", f"{C}.slice"}, 2 * FILE_BYTES)


def fail(errors: dict[str, int]) -> Callable[[str, int], None]:
    def before(name: str, _number: int) -> None:
        if name in errors:
            raise OSError(errors[name], os.strerror(errors[name]))

    return before


@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE, errno.ESTALE], ids=errno.errorcode.get)
def test_a_file_out_of_reach_is_not_lost(root: Path, failing: Failing, number: int) -> None:
    tier = opened(root, files=failing.files)
    put(tier, A)
    failing.next("open_read", number)
    with pytest.raises(TierUnavailable) as caught:
        read(tier, A)
    assert caught.value.mend
    assert (tier.holds(A), tier.stats().failures) == (True, 1)
    assert read(tier, A) == content(A)


def test_a_sector_that_cannot_be_read_is_damage(root: Path, failing: Failing) -> None:
    tier = opened(root, files=failing.files)
    put(tier, A)
    failing.next("read", errno.EIO)
    with pytest.raises(ChecksumMismatch):
        read(tier, A)
    assert (tier.holds(A), tier.stats().corrupt) == (False, 1)


@pytest.mark.parametrize("step", ["open_folder", "lock", "names"])
@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC], ids=errno.errorcode.get)
def test_a_folder_that_cannot_be_used_is_refused_at_the_start(
    root: Path, failing: Failing, step: str, number: int
) -> None:
    failing.next(step, number)
    with pytest.raises(TierUnavailable) as caught:
        opened(root, files=failing.files)
    assert caught.value.mend
    assert failing.files.open == {}, "nothing stays open or locked"
    opened(root).close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused_for_real(root: Path) -> None:
    root.mkdir()
    root.chmod(0o500)
    with pytest.raises(TierUnavailable, match="chmod 700"):
        opened(root)


def test_no_error_is_anything_but_ours(root: Path, failing: Failing) -> None:
    """Whatever number a call fails with, the caller gets a KVError."""
    tier = opened(root, files=failing.files)
    put(tier, A)
    for number in sorted(errno.errorcode):
        for step, call in (
            ("rename", lambda: put(tier, B)),
            ("unlink", lambda: tier.drop(A)),
            ("read", lambda: read(tier, A)),
        ):
            failing.next(step, number)
            with suppress(KVError):
                call()
        tier.put(A, content(A))
    assert read(tier, A) == content(A)
