"""The doctor finds what is there, and names the mend for what is not."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from events.engine import EngineKind
from services.checkup import Finding, examine
from services.engines import vllm_checks
from services.runtime import servers
from services.runtime.config import (
    Config,
    ConfigError,
    EngineConfig,
    LaunchConfig,
    LogProfile,
    NatsConfig,
    RedisConfig,
)
from services.runtime.embedded import start_nats, start_valkey
from services.vllm_plugin.support import VLLM_VERSIONS


class _Engine(BaseHTTPRequestHandler):
    """Answers /version as vLLM does, for whoever shows the key."""

    def do_GET(self) -> None:
        known = self.path == "/version" and self.headers["Authorization"] == "Bearer hush"
        self.send_response(200 if known else 401)
        self.end_headers()
        self.wfile.write(b'{"version":"0.32.1"}')

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing: tests are quiet."""


@pytest.fixture
def engine_url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Engine) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def engine(url: str, api_key: str = "hush") -> EngineConfig:
    return EngineConfig(id="e1", kind=EngineKind.VLLM, models=["m"], url=url, api_key=api_key)


async def found(config: Config, what: str) -> Finding:
    return next(finding for finding in await examine(lambda: config) if finding.what == what)


async def test_an_engine_that_answers_is_named_with_its_version(engine_url: str, tmp_path: Path) -> None:
    finding = await found(Config(state_dir=str(tmp_path), engines=[engine(engine_url)]), "engine e1")
    assert (finding.status, finding.found) == ("ok", f"{engine_url}: vllm 0.32.1")


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", None])
async def test_an_engine_that_does_not_answer_or_refuses_the_key_fails_with_a_mend(
    engine_url: str, tmp_path: Path, url: str | None
) -> None:
    config = Config(state_dir=str(tmp_path), engines=[engine(url or engine_url, api_key="wrong")])
    finding = await found(config, "engine e1")
    assert finding.status == "fail"
    assert finding.mend


async def test_servers_that_are_named_and_absent_fail(tmp_path: Path) -> None:
    config = Config(
        state_dir=str(tmp_path), nats=NatsConfig(url="nats://u:hush@127.0.0.1:1"),
        redis=RedisConfig(url="redis://:hush@127.0.0.1:1/0"),
    )  # fmt: skip
    for what in ("nats", "redis"):
        finding = await found(config, what)
        assert finding.status == "fail"
        assert "127.0.0.1:1" in finding.found
        assert "_URL" in finding.mend
        assert "hush" not in str(finding)


async def test_servers_that_nobody_named_will_be_children(tmp_path: Path) -> None:
    for what in ("nats", "redis"):
        finding = await found(Config(state_dir=str(tmp_path)), what)
        assert finding.status == "ok"
        assert "starts a child" in finding.found


async def test_settings_that_do_not_load_are_a_finding_and_the_rest_is_still_looked_at() -> None:
    def load() -> Config:
        raise ConfigError("no such setting", where="t.toml", key="gateway.prot")

    findings = {finding.what: finding for finding in await examine(load)}
    assert findings["config"].status == "fail"
    assert "gateway.prot" in findings["config"].found
    assert findings["python"].status == "ok"


async def test_a_state_dir_that_cannot_be_written_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    finding = await found(Config(state_dir=str(tmp_path / "file" / "state")), "state dir")
    assert finding.status == "fail"
    assert finding.mend


def launchable(folder: Path, **fields: Any) -> Config:
    how = LaunchConfig(python="/engine/python", ssd_dir=str(folder / "ssd"))
    one = {"dram_bytes": 1 << 20, "ssd_bytes": 1 << 20, "agent": True, "vllm": how, **fields}
    made = EngineConfig(id="e1", models=["m"], url="http://127.0.0.1:1", **one)
    return Config(state_dir=str(folder / "state"), engines=[made])


def contents(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def test_an_engine_that_can_be_launched_here_is_said_with_its_vllm_and_its_tiers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has = vllm_checks.Environment(vllm=VLLM_VERSIONS[0], missing=[], plugin=True)
    monkeypatch.setattr(vllm_checks, "ask", lambda _python: has)
    finding = await found(launchable(tmp_path), "plugin of engine e1")
    assert finding.status == "ok"
    assert finding.found.startswith(f"vllm {VLLM_VERSIONS[0]} in /engine/python")
    assert contents(tmp_path) == []


async def test_what_keeps_an_engine_from_being_launched_here_is_a_warning_with_its_mends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has = vllm_checks.Environment(vllm="0.31.0", missing=["blake3"], plugin=True)
    monkeypatch.setattr(vllm_checks, "ask", lambda _python: has)
    finding = await found(launchable(tmp_path, dram_bytes=2**60), "plugin of engine e1")
    assert finding.status == "warn"
    assert [word for word in ("vLLM 0.31.0", "lacks blake3", "/dev/shm") if word not in finding.found] == []
    assert "pip install 'tidegate[engine]'" in finding.mend


async def test_an_engine_that_is_not_launched_from_here_has_no_such_line(tmp_path: Path) -> None:
    config = launchable(tmp_path, vllm=None)
    assert [one.what for one in await examine(lambda: config) if "plugin" in one.what] == []


@pytest.mark.integration
async def test_servers_that_run_are_ok_and_named_without_their_password(tmp_path: Path) -> None:
    with start_nats(tmp_path / "nats", profile=LogProfile.FAST) as nats, start_valkey(tmp_path / "v") as valkey:
        config = Config(
            state_dir=str(tmp_path), nats=NatsConfig(url=nats.url), redis=RedisConfig(url=valkey.url)
        )  # fmt: skip
        findings = [await found(config, what) for what in ("nats", "redis")]
    assert [finding.status for finding in findings] == ["ok", "ok"]
    assert "JetStream" in findings[0].found
    assert "valkey" in findings[1].found
    password = nats.url.partition("@")[0].rpartition(":")[2]
    assert password not in str(findings)


@pytest.mark.integration
def test_what_up_started_is_found_by_state_dir_as_long_as_it_runs(tmp_path: Path) -> None:
    config = Config(state_dir=str(tmp_path))
    assert servers.running(config) is None
    with servers.start(config) as (started, _):
        assert servers.running(config) == started
        assert servers.nats_url(config) == started.nats_url
        file = servers.run_folder(config) / "servers.json"
        assert file.stat().st_mode & 0o077 == 0
        assert started.nats_url.partition("@")[0] not in started.nats_where
    assert servers.running(config) is None
