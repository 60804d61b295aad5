"""Which code decides: what an owner says at its start, and what replay holds epochs against."""

from functools import cache
from hashlib import blake2b
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import msgspec

import events
import policies

RELEASE: Final = "0.1.0"
"""As in pyproject.toml. Not asked of what is installed: the same code also runs as a checkout, and inside vLLM."""
DIGEST_BYTES: Final = 6
_canonical = msgspec.json.Encoder(order="deterministic").encode


@cache
def code_version() -> str:
    """Release, `+`, and 12 hex digits over every source file that a decision can depend on, the same everywhere."""
    return f"{RELEASE}+{sources_digest(events, policies)}"


def sources_digest(*packages: ModuleType) -> str:
    """12 hex digits over every source file of some packages."""
    digest = blake2b(digest_size=DIGEST_BYTES)
    for package in packages:
        root = Path(str(package.__file__)).parent
        for path in sorted(root.rglob("*.py"), key=lambda file: file.relative_to(root).as_posix()):
            source = path.read_bytes()
            digest.update(f"{package.__name__}/{path.relative_to(root).as_posix()} {len(source)}\n".encode())
            digest.update(source)
    return digest.hexdigest()


def policy_digest(settings: dict[str, Any]) -> str:
    """12 hex digits over an actor's settings, whatever the order of their keys."""
    return blake2b(_canonical(settings), digest_size=DIGEST_BYTES).hexdigest()
