"""A state dir is tried at the start."""

from pathlib import Path

import pytest

from services.runtime import servers, state_dir
from services.runtime.config import Config, ConfigError, NatsConfig, RedisConfig


def test_the_folder_of_the_pool_is_made_and_nothing_is_left_in_it(tmp_path: Path) -> None:
    folder = state_dir.claim(Config(pool="p", state_dir=str(tmp_path / "a" / "b")))
    assert folder == tmp_path / "a" / "b" / "p"
    assert list(folder.iterdir()) == []


def test_one_that_cannot_be_written_is_one_line_even_where_both_servers_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    nowhere = NatsConfig(url="nats://127.0.0.1:1"), RedisConfig(url="redis://127.0.0.1:1")
    config = Config(state_dir=str(tmp_path / "file"), nats=nowhere[0], redis=nowhere[1])
    with pytest.raises(ConfigError, match=r"state_dir: .* cannot be written: Not a directory"), servers.start(config):
        pass
