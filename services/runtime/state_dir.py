"""The state dir: made and tried before anything depends on it, so that a wrong one is one line at the start."""

import tempfile
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
