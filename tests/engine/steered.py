"""A real vLLM with the whole plugin in it, short of blocks, under a house of its own."""

import asyncio
import json
import random
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from events.base import NS_PER_S, EngineId
from events.slice import Tier
from policies.memory.delegate_ops import Cleared
from replay.choice_journal import ChoiceReader, Line, files_of
from tests.engine.house import KV_SCHEMA, PATIENT_MS, POOL, TIDEGATE, House
from tests.engine.offload import SLICE_BYTES, until
from tests.engine.vllm_server import HOST, VllmServer, free_port

ROOT = Path(__file__).parents[2]
ENGINE = EngineId("steered")
CONTEXT_TOKENS_MAX = 2_048
BLOCKS = 104
"""Of 32 tokens: room for about three of the prompts below with their answers, where six want to run."""
DRAM_SLICES = 40
COMMAND_TIMEOUT_S = 60
ANSWER_TOKENS = 300
PROMPT_TOKENS = 620
"""Two whole slices and a part: what was preempted can be loaded again."""
SLACKS_S = {"late": -5, "urgent": 20, "soon": 100, "patient": 2_000, "idle": 20_000, "unhinted": 0}
Asked = tuple[list[int], int, dict[str, Any]]


class Said(NamedTuple):
    """An answer."""

    tokens: tuple[int, ...]
    finish: str


class Steered:
    """The house, the server, and the folder of the engine's own journals."""

    def __init__(self, house: House, server: VllmServer, choices: Path) -> None:
        self.house, self.server, self.choices = house, server, choices

    def ask(self, prompt: Sequence[int], *, tokens: int, hints: dict[str, Any] | None = None) -> Said:
        """Past the gateway, greedily; with hints as the gateway would give them."""
        body: dict[str, Any] = {
            "model": self.server.model.name, "prompt": list(prompt), "max_tokens": tokens, "temperature": 0,
            "ignore_eos": True, "return_token_ids": True,
        }  # fmt: skip
        if hints is not None:
            body["kv_transfer_params"] = {"tidegate": hints}
        [choice] = self.server.post("/v1/completions", body)["choices"]
        return Said(tuple(choice["token_ids"]), choice["finish_reason"])

    def ask_all(self, asked: Sequence[Asked]) -> list[Said]:
        """All at once: the engine begins none before it has them all."""
        added = self._added()
        self.server.post("/pause?mode=keep&clear_cache=false")
        with ThreadPoolExecutor(len(asked)) as threads:
            answers = threads.map(lambda one: self.ask(one[0], tokens=one[1], hints=one[2]), asked)
            try:
                until(lambda: self._added() >= added + len(asked), "the engine has all requests")
            finally:
                self.server.post("/resume")
            return list(answers)

    def forget(self) -> int:
        """Neither the device nor DRAM holds anything. The number of the journal's entry that says so."""
        before = self._cleared()
        assert self.server.post("/reset_prefix_cache?reset_external=true")["success"]
        until(lambda: len(self._cleared()) > len(before), "the journal says that DRAM is empty")
        return self._cleared()[len(before)]

    def journal(self) -> list[Line]:
        """All that the engine wrote down of its choices until now; what it did a second ago may not be there yet."""
        return [line for path in files_of(self.choices) for line in ChoiceReader(path)]

    def until_written(self, number: int = 1) -> None:
        """Until the journal has an entry of this number."""
        until(lambda: any(line.number >= number for line in self.journal()), f"entry {number} is written")

    def verify(self, *arguments: object) -> tuple[int, dict[str, Any]]:
        """What `tidegate replay verify --engine` says; {} where it cannot even begin, and says so as an error."""
        done = subprocess.run(
            [TIDEGATE, "replay", "verify", "--engine", "--json", *map(str, arguments)],
            capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False,
        )  # fmt: skip
        assert bool(done.stdout) != bool(done.stderr), done.stderr
        return done.returncode, json.loads(done.stdout or "{}")

    def _added(self) -> int:
        return self.server.log_file.read_text(errors="replace").count("Added request")

    def _cleared(self) -> list[int]:
        return [line.number for line in self.journal() if isinstance(line.op, Cleared) and line.op.tier is Tier.DRAM]


def pressing() -> list[Asked]:
    """Prompts, lengths of answers and hints of six requests, from late to unhurried, of which three fit."""
    rows: list[Asked] = []
    for number, (name, slack_s) in enumerate(SLACKS_S.items()):
        hints: dict[str, Any] = {"request_id": f"{name}-request", "output_expected": ANSWER_TOKENS}
        if slack_s:
            hints["slack_ns"] = slack_s * NS_PER_S
        if name not in ("unhinted", "idle"):
            hints["slo_tpot_ns"] = max(1, slack_s) * NS_PER_S // ANSWER_TOKENS
        chance = random.Random(number)
        rows.append(([chance.randrange(2, 500) for _ in range(PROMPT_TOKENS)], ANSWER_TOKENS, hints))
    return rows


@contextmanager
def steered(python: Path, model: Path, folder: Path) -> Iterator[Steered]:
    """Both, running. The engine is started once the log is there."""
    folders = {name: folder / name for name in ("choices", "ssd")}
    for each in folders.values():
        each.mkdir(mode=0o700)
    server = make(python, model, folder, **folders)
    house = House(folder, settings(folder, server))
    try:
        url = asyncio.run(house.start_log())
        server.environment = {**server.environment, "TIDEGATE_NATS__URL": url}
        server.start().wait_ready()
        asyncio.run(house.until_well())
        yield Steered(house, server, folders["choices"])
    finally:
        server.stop()
        asyncio.run(house.stop())


def make(python: Path, model: Path, folder: Path, *, choices: Path, ssd: Path) -> VllmServer:
    """The server, as `tidegate engine launch` would start it, but with few blocks."""
    told = {"engine_id": ENGINE, "pool": POOL, "folder": str(choices), "ssd_folder": str(ssd), "ssd_bytes": 1 << 28}
    extra = {
        "cpu_bytes_to_use": DRAM_SLICES * SLICE_BYTES,
        "tidegate": {**told, "prefill_tokens_per_s": 1_000},
    }
    transfer = {
        "kv_connector": "TidegateConnector", "kv_connector_module_path": "services.vllm_plugin.connector",
        "kv_role": "kv_both", "kv_load_failure_policy": "recompute", "kv_connector_extra_config": extra,
    }  # fmt: skip
    events = {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": f"ipc://{folder}/events",
              "replay_endpoint": f"ipc://{folder}/replay"}  # fmt: skip
    return VllmServer(
        "steered", python, model, folder / "steered.log",
        arguments=[
            "--max-model-len", str(CONTEXT_TOKENS_MAX), "--num-gpu-blocks-override", str(BLOCKS),
            "--enable-log-requests",
            "--scheduler-cls", "services.vllm_plugin.scheduler.TidegateScheduler",
            "--kv-transfer-config", json.dumps(transfer), "--kv-events-config", json.dumps(events),
        ],
        environment={"PYTHONPATH": str(ROOT), "VLLM_SERVER_DEV_MODE": "1"},
    )  # fmt: skip


def settings(folder: Path, server: VllmServer) -> dict[str, Any]:
    """Of the house: one engine with an agent, DRAM relieved early, and patience with a slow machine."""
    name = server.model.name
    return {
        "pool": POOL,
        "state_dir": str(folder / "state"),
        "gateway": {"host": HOST, "port": free_port(), "log_down_after_ms": PATIENT_MS},
        "models": [
            {"name": name, "tokenizer": str(server.model), "slo_ttft_ms": PATIENT_MS, "slo_tpot_ms": PATIENT_MS}
        ],
        "engines": [
            {
                "id": ENGINE, "url": server.url, "models": [name], "kv_schema": KV_SCHEMA, "kv_blocks": BLOCKS,
                "agent": True,
            }
        ],
        "policies": {"migration": {"high_ppm": 500_000, "low_ppm": 300_000}},
    }  # fmt: skip
