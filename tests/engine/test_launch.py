"""`tidegate engine launch` starts a real vLLM that the house knows, and leaves nothing of it."""

import asyncio
import os
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from events.request import RequestArrived
from events.slice import SlicesHit, SlicesStored, Tier
from tests.engine.house import KV_SCHEMA, PATIENT_MS, POOL, TIDEGATE, House
from tests.engine.vllm_server import BLOCK_TOKENS, ENVIRONMENT, HOST, READY_TIMEOUT_S, free_port

ENGINE = "launched"
PROMPT = [2 + number * 7 % 500 for number in range(4 * 256 + 10)]
GONE_TIMEOUT_S = 30.0


def settings(folder: Path, model: Path, python: Path, port: int) -> dict[str, Any]:
    """The one section from which both the house and the engine are started."""
    return {
        "pool": POOL,
        "state_dir": str(folder / "state"),
        "gateway": {"host": HOST, "port": free_port(), "log_down_after_ms": PATIENT_MS},
        "models": [{"name": model.name, "tokenizer": str(model), "slo_ttft_ms": PATIENT_MS, "slo_tpot_ms": PATIENT_MS}],
        "engines": [{
            "id": ENGINE, "models": [model.name], "url": f"http://{HOST}:{port}", "agent": True,
            "block_tokens": BLOCK_TOKENS, "kv_schema": KV_SCHEMA, "dram_bytes": 1 << 27, "ssd_bytes": 1 << 28,
            "vllm": {
                "model": str(model), "python": str(python), "env": ENVIRONMENT,
                "args": [
                    "--dtype", "float32", "--enforce-eager", "--max-model-len", "2048",
                    # So few that what a request leaves on the device is about to be evicted.
                    "--num-gpu-blocks-override", "80",
                ],
            },
        }],
    }  # fmt: skip


async def test_launched_engine_serves_under_the_gateways_names_and_dies_with_its_launcher(
    engine_python: Path, model: Path, tmp_path: Path
) -> None:
    port = free_port()
    house = House(tmp_path, settings(tmp_path, model, engine_python, port))
    async with running(house), launched(tmp_path) as launcher:
        await until_healthy(port, launcher, tmp_path / "launch.log")
        await house.until_well()
        for _ in range(2):
            assert (await ask(house, model))["usage"]["prompt_tokens"] == len(PROMPT)

        arrived, *_ = await house.until(RequestArrived)
        assert len(arrived.slices) == 4
        for tier in Tier:
            stored = await stored_in(house, tier)
            assert set(stored.slices) <= set(arrived.slices), f"{tier} speaks of the prompt by its names"
        hit, *_ = await house.until(SlicesHit, lambda fact: fact.tier is Tier.HBM)
        assert set(hit.slices) == set(arrived.slices)

        [group] = {os.getpgid(pid) for pid in children(launcher.pid) if b"api_server" in command_of(pid)}
        assert len(members_of(group)) >= 2, "the server and its engine core"
        launcher.kill()
        async with asyncio.timeout(GONE_TIMEOUT_S):
            while members_of(group):  # noqa: ASYNC110 - processes of somebody else's say nothing
                await asyncio.sleep(0.1)


@asynccontextmanager
async def running(house: House) -> AsyncIterator[None]:
    """From its log on; the gateway serves once there is an engine."""
    try:
        await house.start_log()
        yield
    finally:
        await house.stop()


async def stored_in(house: House, tier: Tier) -> SlicesStored:
    """The first that was said of a tier."""
    return (await house.until(SlicesStored, lambda fact: fact.tier is tier))[0]


@asynccontextmanager
async def launched(folder: Path) -> AsyncIterator[Process]:
    """The launcher, ended at the end."""
    command = (str(TIDEGATE), "engine", "launch", ENGINE, "--config", str(folder / "tidegate.json"))
    with (folder / "launch.log").open("wb") as log:
        launcher = await asyncio.create_subprocess_exec(*command, cwd=folder, stdin=DEVNULL, stdout=log, stderr=log)
    try:
        yield launcher
    finally:
        if launcher.returncode is None:
            launcher.terminate()
        await launcher.wait()


async def ask(house: House, model: Path) -> dict[str, Any]:
    """One completion through the gateway."""
    body = {"model": model.name, "prompt": PROMPT, "max_tokens": 2, "temperature": 0}
    async with aiohttp.ClientSession() as session, session.post(f"{house.url}/v1/completions", json=body) as answer:
        said: dict[str, Any] = await answer.json()
        assert answer.status == 200, said
        return said


async def until_healthy(port: int, launcher: Process, log: Path) -> None:
    """Until the engine answers. AssertionError with the end of its log when it does not."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    async with aiohttp.ClientSession() as session:
        while True:
            assert launcher.returncode is None, end_of(log)
            assert time.monotonic() < deadline, end_of(log)
            try:
                async with session.get(f"http://{HOST}:{port}/health") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                await asyncio.sleep(0.25)


def end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-3_000:]


def children(pid: int) -> list[int]:
    """Of all of its threads."""
    return [
        int(each) for task in Path(f"/proc/{pid}/task").iterdir() for each in (task / "children").read_text().split()
    ]


def command_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def members_of(group: int) -> list[int]:
    """Processes of a group that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, pgid = path.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(pgid) == group and state != "Z":
            found.append(int(path.parent.name))
    return found
