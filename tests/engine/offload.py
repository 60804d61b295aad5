"""A real vLLM with Tidegate's memory in it, and how it is asked: what came from which tier, and what was answered."""

import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.engine.vllm_server import VllmServer

ROOT = Path(__file__).parents[2]
CONTEXT_TOKENS_MAX = 8192
SLICE_TOKENS = 256
SLICE_BYTES = 2 * 2 * 2 * 64 * 4 * SLICE_TOKENS
"""Of the tiny model: keys and values, layers, heads, head size, float32. A multiple of a page, so nothing is padded."""
TAIL_TOKENS = 20
"""Less than a block: whatever is cached, the same tokens are computed, in the same shapes."""
ANSWER_TOKENS = 12
VOCABULARY = 500
SETTLE_TIMEOUT_S = 60.0
ASKED_EVERY_S = 0.05
UNTIL_TIMEOUT_S = 240.0
SMALL = ("--num-gpu-blocks-override", "280", "--max-num-batched-tokens", "4096")
"""A device on which all that a request leaves is about to be evicted, so lazy DRAM takes it at once."""

LAZY_BLOCKS = 200
"""Room for two prompts of ten slices with their answers."""
LAZY_DRAM_SLICES = 40
LAZY = (
    "--scheduler-cls", "services.vllm_plugin.scheduler.TidegateScheduler", "--max-model-len", "4096",
    "--num-gpu-blocks-override", str(LAZY_BLOCKS), "--max-num-batched-tokens", "1024",
)  # fmt: skip
"""So 128 of these blocks are looked at: what was asked last is on the device alone."""


class Answer(NamedTuple):
    """`device`, `dram` and `ssd`: slices of the prompt that came from there instead of being computed."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    device: float
    dram: float
    ssd: float

    @property
    def said(self) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """What was answered, wherever it came from."""
        return self.tokens, self.logprobs


class OffloadEngine:
    """One server with the plugin. Requests go one at a time, so what is counted between two of them is the one's."""

    def __init__(self, server: VllmServer, *, has_ssd: bool = True) -> None:
        self.server, self.has_ssd = server, has_ssd

    def ask(self, prompt: Sequence[int], *, salt: str = "") -> Answer:
        """Greedily, with log-probabilities; when it is done, everything it wrote is written."""
        before = self._cached()
        choice = self._answer(prompt, salt)
        self.settle()
        came = [(now - then) / SLICE_TOKENS for now, then in zip(self._cached(), before, strict=True)]
        return Answer(tuple(choice["token_ids"]), tuple(choice["logprobs"]["token_logprobs"]), *came)

    def ask_at_once(self, prompts: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
        """The tokens of their answers; all are asked at the same time."""
        with ThreadPoolExecutor(len(prompts)) as threads:
            choices = list(threads.map(self._answer, prompts))
        self.settle()
        return [tuple(choice["token_ids"]) for choice in choices]

    def forget_device(self) -> None:
        """The device's own cache is empty."""
        assert self.server.post("/reset_prefix_cache")["success"]

    def forget_dram(self) -> None:
        """The device's own cache and the DRAM tier are empty; the SSD tier is kept (`reset_keeps_ssd`)."""
        assert self.server.post("/reset_prefix_cache?reset_external=true")["success"]

    def settle(self) -> None:
        """Until nothing is on its way between tiers. AssertionError when that never comes."""
        until(lambda: not self._moving(), "transfers end", timeout_s=SETTLE_TIMEOUT_S)

    def stored(self) -> float:
        """Slices that DRAM has taken since the server began."""
        return self.server.metric("vllm:kv_offload_store_bytes_total") / SLICE_BYTES

    def corrupt(self) -> float:
        """Slices that failed their checksum."""
        return self.server.metric("tidegate:ssd_slices_corrupt_total")

    def failures(self) -> float:
        """Slices that the SSD tier could not read or write."""
        return self.server.metric("tidegate:ssd_failures_total")

    def usable(self) -> bool:
        """Whether the SSD tier is in use."""
        return self.server.metric("tidegate:ssd_usable") > 0

    def _answer(self, prompt: Sequence[int], salt: str = "") -> Any:
        body = {
            "model": self.server.model.name, "prompt": list(prompt), "max_tokens": ANSWER_TOKENS, "temperature": 0,
            "ignore_eos": True, "logprobs": 1, "return_token_ids": True, **({"cache_salt": salt} if salt else {}),
        }  # fmt: skip
        [choice] = self.server.post("/v1/completions", body)["choices"]
        return choice

    def _cached(self) -> tuple[float, float, float]:
        name = "vllm:prompt_tokens_cached_by_source_total"
        device, dram, ssd = (self.server.metric(name, f'source="{source}"') for source in ("device", "host", "disk"))
        return device, dram, ssd

    def _moving(self) -> bool:
        if not self.has_ssd:
            return False  # vLLM has no such metrics then; with the device DRAM is in step.
        names = ("promotion", "cascade")
        return any(self.server.metric(f"vllm:kv_offload_tiering_active_{name}_jobs") for name in names)


def until(holds: Callable[[], bool], what: str, *, timeout_s: float = UNTIL_TIMEOUT_S) -> None:
    """Until it holds. AssertionError with `what` when it never does."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(ASKED_EVERY_S)


def private_folder(made: pytest.TempPathFactory, name: str) -> Path:
    """One that nobody else may look into: what an SSD tier asks for."""
    folder = made.mktemp(name)
    folder.chmod(0o700)
    return folder


def slices_in(ssd: Path) -> list[Path]:
    """The files of an SSD tier."""
    return list(ssd.rglob("*.slice"))


@contextmanager
def running(
    python: Path, model: Path, folder: Path, *, name: str, ssd: Path | None, dram_slices: int = 128,
    arguments: Sequence[str] = (), **settings: Any,
) -> Iterator[OffloadEngine]:  # fmt: skip
    """A server with a DRAM tier of so many slices, and an SSD tier in the folder `ssd`."""
    server = make(python, model, folder, name=name, ssd=ssd, dram_slices=dram_slices, arguments=arguments, **settings)
    with side_by_side(server):
        server.wait_ready()
        yield OffloadEngine(server, has_ssd=ssd is not None)


@contextmanager
def side_by_side(*servers: VllmServer) -> Iterator[None]:
    """Started at once, which on two cores takes little longer than one alone; stopped at the end."""
    with ExitStack() as stack:
        for server in servers:
            stack.callback(server.stop)
            server.start()
        yield


def make(
    python: Path, model: Path, folder: Path, *, name: str, ssd: Path | None, dram_slices: int = 128,
    arguments: Sequence[str] = (), **settings: Any,
) -> VllmServer:  # fmt: skip
    """The server, not yet started. Computing counts as slow, and a disk may take its time, so that fetching is worth it
    however busy the machine of the tests is. `settings` may say otherwise."""
    tiers = {"ssd_folder": str(ssd), "ssd_bytes": 1 << 30} if ssd is not None else {}
    told: dict[str, Any] = {"engine_id": name, "reset_keeps_ssd": True}
    told |= {"prefill_tokens_per_s": 100, "fetch_patience_ms": 60_000} | tiers | settings
    transfer = {
        "kv_connector": "TidegateConnector",
        "kv_connector_module_path": "services.vllm_plugin.connector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"cpu_bytes_to_use": dram_slices * SLICE_BYTES, "tidegate": told},
    }
    return VllmServer(
        name, python, model, folder / f"{name}.log",
        arguments=[
            "--max-model-len", str(CONTEXT_TOKENS_MAX), "--kv-transfer-config", json.dumps(transfer), *arguments,
        ],
        environment={"PYTHONPATH": str(ROOT), "VLLM_SERVER_DEV_MODE": "1"},
    )  # fmt: skip


def prompt(slices: int, seed: int, *, tail: int = TAIL_TOKENS) -> list[int]:
    """A prompt of so many full slices and a tail; another one for each seed."""
    chance = random.Random(seed)
    return [chance.randrange(2, VOCABULARY) for _ in range(slices * SLICE_TOKENS + tail)]
