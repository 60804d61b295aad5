"""The whole house, started and stopped as a person would."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from threading import Timer

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, "-m", "services.cli"]
READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
COMMAND_TIMEOUT_S = 60.0
REQUESTS = 12

pytestmark = pytest.mark.integration


class House:
    """A running `tidegate up`, and what it said when it was ready."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = ["--preset", "laptop", "--set", f"state_dir={folder}/state", "--set", "gateway.port=0"]
        self.log = (folder / "up.log").open("w+b")
        self.process = subprocess.Popen(
            [*PROGRAM, "up", *self.settings, "--json"], cwd=ROOT, env=plain_environment(), stdout=subprocess.PIPE,
            stderr=self.log, start_new_session=True,
        )  # fmt: skip
        hurry = Timer(READY_TIMEOUT_S, self.process.kill)
        hurry.start()
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        hurry.cancel()
        assert line, f"not ready: {(folder / 'up.log').read_text()}"
        self.said: dict[str, str] = json.loads(line)

    def call(self, *argv: str) -> tuple[int, str]:
        done = subprocess.run(
            [*PROGRAM, *argv, *self.settings], cwd=ROOT, env=plain_environment(), capture_output=True, text=True,
            timeout=COMMAND_TIMEOUT_S, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout

    def stop(self, how: signal.Signals) -> int:
        self.process.send_signal(how)
        try:
            return self.process.wait(STOP_TIMEOUT_S)
        finally:
            os.killpg(self.process.pid, signal.SIGKILL) if self.process.poll() is None else None

    def close(self) -> None:
        if self.process.poll() is None:
            self.stop(signal.SIGTERM)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.log.close()


def plain_environment() -> dict[str, str]:
    ours = ("TIDEGATE_", "NATS_", "REDIS_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    try:
        yield house
    finally:
        house.close()


def chat(url: str, text: str) -> dict[str, object]:
    body = json.dumps({"model": "llama-3-8b", "max_tokens": 8, "messages": [{"role": "user", "content": text}]})
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", body.encode(), {"Content-Type": "application/json"}
    )  # fmt: skip
    with urllib.request.urlopen(request, timeout=COMMAND_TIMEOUT_S) as answer:
        said: dict[str, object] = json.loads(answer.read())
    return said


def family(folder: Path) -> dict[int, str]:
    """Processes that know the house's state dir from their environment or arguments: pid -> arguments."""
    found = {}
    for proc in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (proc / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            known = str(folder) in arguments or str(folder).encode() in (proc / "environ").read_bytes()
        except OSError:
            continue
        if known:
            found[int(proc.name)] = arguments
    return found


def test_requests_are_served_and_the_log_of_it_verifies_and_nothing_is_left(house: House) -> None:
    for n in range(REQUESTS):
        assert chat(house.said["gateway"], f"hello {n}")["object"] == "chat.completion"

    code, out = house.call("watch", "--from", "1", "--kind", "request_admitted", "--count", str(REQUESTS), "--json")
    assert code == 0
    admitted = [json.loads(line) for line in out.splitlines()]
    assert len({line["event"]["request_id"] for line in admitted}) == REQUESTS

    running = family(house.folder)
    commands = [command.partition(" worker ")[2].split() for command in running.values()]
    assert sorted(name for names in commands for name in names) == sorted(house.said["workers"])
    passwords = {line.split('"')[3] for line in (house.folder / "state/nats/nats-server.conf").read_text().splitlines()
                 if line.startswith("authorization")}  # fmt: skip
    assert passwords
    assert not any(word in arguments for word in passwords for arguments in running.values())

    journal = house.folder / "day.jsonl.zst"
    assert house.call("replay", "export", "--out", str(journal))[0] == 0
    code, out = house.call("doctor", "--json")
    assert code == 0, out
    assert house.stop(signal.SIGINT) == 0
    assert family(house.folder) == {}

    code, out = house.call("replay", "verify", str(journal), "--json")
    report = json.loads(out)
    assert (code, report["identical"], report["pending"]) == (0, True, 0)
    assert report["decisions"] >= REQUESTS
