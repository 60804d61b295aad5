"""The steps on a file system that the SSD tier is made of, each one call, so that a test can fail at any of them.

All names are relative to an open folder and no link is ever followed: whoever swaps a folder or a file for a link
after the start gets an error, not our bytes. Every error is an OSError.
"""

import errno
import fcntl
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

_SAFE = os.O_NOFOLLOW | os.O_CLOEXEC
_CANNOT_RESERVE = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class Files:
    """The real ones."""

    def open_folder(self, folder: Path, name: str) -> int:
        """The folder `name` in `folder`, made with mode 0700 where it is missing. PermissionError if others may write
        in it."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / name
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | _SAFE)
        found = os.fstat(fd)
        if found.st_uid != os.geteuid() or found.st_mode & _OTHERS_WRITE:
            os.close(fd)
            raise PermissionError(errno.EACCES, "it belongs to another user, or others may write in it")
        return fd

    def lock(self, folder: int, name: str) -> int:
        """Hold the lock until its descriptor is closed; BlockingIOError if somebody else does."""
        fd = os.open(name, os.O_CREAT | os.O_RDWR | _SAFE, 0o600, dir_fd=folder)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise
        return fd

    def names(self, folder: int) -> list[str]:
        """What is in the folder, sorted."""
        return sorted(os.listdir(folder))

    def create(self, folder: int, name: str) -> int:
        """A new file, readable by us alone. FileExistsError."""
        return os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | _SAFE, 0o600, dir_fd=folder)

    def reserve(self, fd: int, bytes_: int) -> None:
        """Have the disk set aside so many bytes: a full disk says so now, not in the middle of a write. Does
        nothing on a file system that cannot."""
        try:
            os.posix_fallocate(fd, 0, bytes_)
        except OSError as error:
            if error.errno not in _CANNOT_RESERVE:
                raise

    def write(self, fd: int, buffers: Sequence[bytes | memoryview]) -> None:
        """All of them, one after the other."""
        left = [memoryview(buffer) for buffer in buffers]
        while left:
            left = _after(left, os.writev(fd, left))

    def open_read(self, folder: int, name: str) -> tuple[int, int]:
        """An open file and its size. ELOOP for a link, EISDIR for what is no plain file (and no pipe hangs us)."""
        fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | _SAFE, dir_fd=folder)
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            os.close(fd)
            raise IsADirectoryError(errno.EISDIR, "it is not a plain file", name)
        return fd, found.st_size

    def ahead(self, fd: int) -> None:
        """The whole file is wanted: the disk may fetch it while we look at what came."""
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)

    def read(self, fd: int, buffer: bytearray | memoryview, offset: int) -> int:
        """Fill it from there on; how many bytes there were."""
        left, done = memoryview(buffer), 0
        while left.nbytes:
            count = os.preadv(fd, [left], offset + done)
            if count == 0:
                break
            left, done = left[count:], done + count
        return done

    def sync(self, fd: int) -> None:
        """What was written to this file, or happened in this folder, survives a loss of power from now on."""
        os.fsync(fd)

    def close(self, fd: int) -> None:
        """Give the descriptor back."""
        os.close(fd)

    def rename(self, folder: int, old: str, new: str) -> None:
        """Both names at once: `new` is then the file that `old` was."""
        os.rename(old, new, src_dir_fd=folder, dst_dir_fd=folder)

    def unlink(self, folder: int, name: str) -> None:
        """The name is gone; fine if it was gone already."""
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)


def _after(buffers: list[memoryview], count: int) -> list[memoryview]:
    """What remains of the buffers after their first `count` bytes."""
    for index, buffer in enumerate(buffers):
        if count < buffer.nbytes:
            return [buffer[count:], *buffers[index + 1 :]]
        count -= buffer.nbytes
    return []
