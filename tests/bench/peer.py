"""Somebody else's code in a process and an environment of its own, asked for its figures round by round.

A peer is a script that says one line when it is ready, and answers every line it reads with one line: its figures as
JSON. What a peer's libraries print goes to stderr.
"""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from services.runtime.embedded import tethered
from tests.bench.rounds import Figures, Way

READY_S = 300.0
"""Importing a peer and filling its cache."""
ROUND_S = 120.0
INSTALL_S = 180.0


class PeerAbsent(Exception):
    """There is no such peer here; the text says why, in one line."""


@asynccontextmanager
async def peer(python: Path, script: Path, *, env: Mapping[str, str], log: Path) -> AsyncIterator[Way]:
    """A way of a benchmark. Raises PeerAbsent when the script does not get ready."""
    with log.open("ab") as file:
        child = await asyncio.create_subprocess_exec(
            *tethered([str(python), str(script)]), env=dict(env), stderr=file,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
    assert child.stdin is not None, "stdin is a pipe"
    assert child.stdout is not None, "stdout is a pipe"
    question, answers = child.stdin, child.stdout

    async def one_round() -> Figures:
        question.write(b"round\n")
        line = await asyncio.wait_for(answers.readline(), ROUND_S)
        assert line, f"{script.name} ended: {_last_line(log)}"
        return msgspec.json.decode(line, type=Figures)

    try:
        if not await asyncio.wait_for(answers.readline(), READY_S):
            raise PeerAbsent(f"{script.name}: {_last_line(log)}")
        yield one_round
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


def installed(folder: Path, packages: Sequence[str], *, uv: Path, python: str) -> Path:
    """An interpreter with these packages and nothing else, in a new environment. Raises PeerAbsent with the reason."""
    made = folder / "bin" / "python"
    for command in (
        [python, "-m", "venv", "--without-pip", str(folder)],
        [str(uv), "pip", "install", "--quiet", "--no-deps", "--python", str(made), *packages],
    ):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise PeerAbsent(str(error)) from error
        if done.returncode:
            raise PeerAbsent((done.stderr.strip().splitlines() or ["it does not install"])[-1])
    return made


def _last_line(log: Path) -> str:
    return next((line for line in reversed(log.read_text(errors="replace").splitlines()) if line.strip()), "silent")
