"""Servers that one test may kill."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from services.runtime.config import LogProfile
from services.runtime.embedded import EmbeddedNats, EmbeddedValkey, start_nats, start_valkey


@pytest.fixture
def own_nats(tmp_path: Path) -> Iterator[EmbeddedNats]:
    """A NATS server for this test alone."""
    with start_nats(tmp_path / "nats", profile=LogProfile.FAST) as server:
        yield server


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    """A Valkey server for this test alone."""
    with start_valkey(tmp_path / "valkey") as server:
        yield server
