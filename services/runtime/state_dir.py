"""The state dir: made and tried before anything depends on it, so that a wrong one is one line at the start."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.runtime.config import Config, ConfigError


def claim(config: Config) -> Path:
    """The pool's folder in the state dir, made if it was not there. Raises ConfigError where nothing can be written."""
    folder = Path(config.state_dir) / config.pool
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        what = f"{folder} cannot be written: {error.strerror}"
        raise ConfigError(what, where="settings", key="state_dir", allowed="a folder that may be written") from error


@contextmanager
def locked(folder: Path, *, what: str) -> Iterator[None]:
    """Have a folder alone for the block. The kernel gives it back whatever becomes of this process. Raises ConfigError
    where another process has it."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConfigError(f"{what} is running already", where=str(folder), key="", allowed="one at a time") from None
    try:
        yield
    finally:
        os.close(descriptor)
