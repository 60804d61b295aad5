"""One real vLLM server on the CPU, as a child that leaves nothing behind."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

HOST = "127.0.0.1"
KEEPER = Path(__file__).with_name("keeper.py")
CONTEXT_TOKENS_MAX = 4096
BLOCK_TOKENS = 32
READY_TIMEOUT_S = 240.0
PROBE_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 120.0
PROBE_EVERY_S = 0.25
STOP_TIMEOUT_S = 40.0
LOG_TAIL_CHARS = 3_000
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    # Three engines share the cores: one thread each, bound to none.
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # Eager throughout: the first request for log-probabilities would else wait for a C++ compiler.
    "TORCHDYNAMO_DISABLE": "1",
}


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class VllmServer:
    """A server and where it listens; it keeps its port over restarts. `model` is a folder and the name it serves.
    `arguments` come after its own, and `environment` on top of its own."""

    name: str
    python: Path
    model: Path
    log_file: Path
    embedding: bool = False
    arguments: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    keeper: "subprocess.Popen[str] | None" = None
    pgid: int = 0

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def alive(self) -> bool:
        """The process runs (it may not answer yet)."""
        return self.keeper is not None and self.keeper.poll() is None

    def start(self) -> Self:
        """Start the processes; `wait_ready` waits until it serves."""
        assert not self.alive, "a server is started once"
        command = [
            self.python, "-m", "vllm.entrypoints.openai.api_server", "--host", HOST, "--port", str(self.port),
            "--model", self.model, "--served-model-name", self.model.name, "--dtype", "float32", "--enforce-eager",
            "--block-size", str(BLOCK_TOKENS), "--max-model-len", str(CONTEXT_TOKENS_MAX),
            *(["--runner", "pooling", "--convert", "embed"] if self.embedding else []), *self.arguments,
        ]  # fmt: skip
        with self.log_file.open("ab") as log:
            self.keeper = subprocess.Popen(
                [sys.executable, KEEPER, *command], env=os.environ | ENVIRONMENT | self.environment, text=True,
                start_new_session=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip
        assert self.keeper.stdout is not None, "stdout is a pipe"
        self.pgid = int(self.keeper.stdout.readline())
        return self

    def wait_ready(self) -> None:
        """Until /health says well. AssertionError with the end of its log when it never does."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not self._healthy():
            assert self.alive, f"vLLM {self.name} ended: {self._log_tail()}"
            assert time.monotonic() < deadline, f"vLLM {self.name} is not ready: {self._log_tail()}"
            time.sleep(PROBE_EVERY_S)

    def kill(self) -> None:
        """SIGKILL to all of its processes at once, as the loss of its machine would."""
        os.killpg(self.pgid, signal.SIGKILL)
        self.stop()

    def freeze(self) -> None:
        """SIGSTOP to all of its processes: it takes connections, and answers nothing until `thaw` or `kill`."""
        os.killpg(self.pgid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        os.killpg(self.pgid, signal.SIGCONT)

    def stop(self) -> None:
        """End it in good order; again does nothing."""
        if self.keeper is None:
            return
        with suppress(BrokenPipeError), self.keeper:
            assert self.keeper.stdin is not None, "stdin is a pipe"
            self.keeper.stdin.close()
            self.keeper.wait(STOP_TIMEOUT_S)
        self.keeper = None

    def metric(self, name: str, label: str = "") -> float:
        """The sum of a metric over its labels (those with `label="..."` among them), as /metrics says it now."""
        text = self._get("/metrics", ANSWER_TIMEOUT_S)
        found = re.findall(rf"^{re.escape(name)}(\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
        assert found, f"{name} stands in /metrics"
        return sum(float(value) for labels, value in found if label in labels)

    def post(self, path: str, body: object = None) -> Any:
        """What it answers to a POST, as JSON. AssertionError when it refuses."""
        data = json.dumps(body).encode() if body is not None else b""
        asked = urllib.request.Request(self.url + path, data=data, headers={"content-type": "application/json"})
        try:
            with urllib.request.urlopen(asked, timeout=ANSWER_TIMEOUT_S) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path}: {error.code} {error.read().decode()}") from error

    def _healthy(self) -> bool:
        try:
            self._get("/health", PROBE_TIMEOUT_S)
        except (urllib.error.URLError, OSError):
            return False
        return True

    def _get(self, path: str, timeout_s: float) -> str:
        with urllib.request.urlopen(self.url + path, timeout=timeout_s) as answer:
            text: str = answer.read().decode()
            return text

    def _log_tail(self) -> str:
        return f"{self.log_file}\n{self.log_file.read_text(errors='replace')[-LOG_TAIL_CHARS:]}"
