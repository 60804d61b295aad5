"""Results of runs in a folder, one file each, so that a benchmark that was stopped goes on where it was.

A file's name is the digest of its task, of its trace file, of all source that a run depends on, and of the release of
its engines where they are not ours: after a change of any of them nothing that was found before is taken for a result.
A file is written beside its place and then put there, so there is no half one.
"""

import os
from collections.abc import Mapping
from functools import cache
from hashlib import file_digest, sha256
from pathlib import Path

import msgspec

import events
import kvstore
import policies
import replay
from replay.bench.memory.report import EngineModel, RunResult
from replay.bench.memory.task import MemoryTask
from replay.code_version import sources_digest

FOLDER = "runs"
"""Below the folder that a benchmark writes into."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(RunResult).decode


class Store:
    """See the module. `folder` None keeps results in memory only; `releases` are those of engines that are not ours."""

    def __init__(self, folder: Path | None, releases: Mapping[EngineModel, str] | None = None) -> None:
        self._releases = releases or {}
        self._folder = folder / FOLDER if folder is not None else None
        self._kept: dict[str, RunResult] = {}
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)

    def get(self, task: MemoryTask) -> RunResult | None:
        """What this task gave, if it was done before. A file that cannot be read is as good as none."""
        name = self._name(task)
        if name not in self._kept and self._folder is not None:
            try:
                self._kept[name] = _decode((self._folder / name).read_bytes())
            except (FileNotFoundError, msgspec.DecodeError):
                return None
        return self._kept.get(name)

    def put(self, task: MemoryTask, result: RunResult) -> None:
        """Keep it. Raises OSError where the folder takes no more."""
        name = self._name(task)
        self._kept[name] = result
        if self._folder is None:
            return
        beside = self._folder / f"{name}.{os.getpid()}"
        beside.write_bytes(_encode(result))
        beside.replace(self._folder / name)

    def _name(self, task: MemoryTask) -> str:
        parts = (task.digest(), digest_of(task.offer.trace), _sources(), self._releases.get(task.engine, ""))
        return sha256(" ".join(parts).encode()).hexdigest()[:32] + ".json"


@cache
def _sources() -> str:
    return sources_digest(events, kvstore, policies, replay)


@cache
def digest_of(path: str) -> str:
    """Of what is in a file, as it is when it is first asked for; "" where it cannot be read."""
    if not path:
        return ""
    try:
        with Path(path).open("rb") as file:
            return file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""  # Who reads it as a trace says what is wrong with it.
