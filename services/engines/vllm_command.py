"""The command that starts a vLLM server, from one engine's settings: with Tidegate's plugin where it has an agent.

Nothing secret stands in the command, which every process list shows: keys and addresses go into the environment. KV
events carry token ids, so they never leave the process's own folder: sockets of files, no ports.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import msgspec

from events.base import EngineId, PoolId
from kvstore.fingerprint import SLICE_TOKENS
from services.runtime.config import Config, ConfigError, EngineConfig, LaunchConfig
from services.vllm_plugin import settings
from services.vllm_plugin.settings import PluginSettings

SERVER: Final = "vllm.entrypoints.openai.api_server"
"""The module, not the `vllm` command: that one fails where vLLM was installed under another distribution's name."""
CONNECTOR: Final = {"kv_connector": "TidegateConnector", "kv_connector_module_path": "services.vllm_plugin.connector"}
SCHEDULER: Final = "services.vllm_plugin.scheduler.TidegateScheduler"
OURS: Final = ("--scheduler-cls", "--kv-transfer-config", "--kv-events-config", "--prefix-caching-hash-algo")
"""What the plugin depends on: `args` may not say otherwise."""
HASHES: Final = {"PYTHONHASHSEED": "0", "VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES": "0"}
"""Blocks keep their hashes over restarts, so that what lies on the SSD is found again; events say them in full, as
offload keys do."""
HASH_ALGORITHM: Final = "sha256_cbor"
"""Its input does not depend on Python's version, as that of the default (pickle) does."""
SECRET_VARIABLES: Final = (settings.NATS_URL, settings.NATS_CREDS, "VLLM_API_KEY")
SECRET_ENDINGS: Final = ("_KEY", "_TOKEN", "_SECRET", "_PASSWORD", "_CREDS", "_CREDENTIALS")
"""Of the operator's own variables (HF_TOKEN, AWS_SECRET_ACCESS_KEY)."""


class Folders(NamedTuple):
    """Where an engine keeps its own: sockets and journal in `own`, slices in `ssd` (None = no SSD tier)."""

    own: Path
    ssd: Path | None


class Launch(NamedTuple):
    """A command, and the variables that are set for it on top of the environment."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    folders: Folders

    @staticmethod
    def is_secret(name: str) -> bool:
        """Whether a variable's value is not for the screen."""
        return name in SECRET_VARIABLES or name.endswith(SECRET_ENDINGS)

    def shell(self) -> str:
        """As a person would type it: folders made, secrets named but not shown."""
        made = [str(folder) for folder in self.folders if folder is not None]
        lines = [shlex.join(["mkdir", "-p", "-m", "700", *made])]
        lines += [f"# export {name}=..." for name in self.env if self.is_secret(name)]
        shown = [f"{name}={shlex.quote(value)}" for name, value in self.env.items() if not self.is_secret(name)]
        return "\n".join([*lines, " ".join([*shown, shlex.join(self.argv)])])


def launch(config: Config, engine: EngineConfig, *, plugin_path: str = "", nats_url: str = "") -> Launch:
    """How this engine is started. `plugin_path` is its PYTHONPATH, where the plugin is not installed in the engine's
    environment; `nats_url` is where the log is. Raises ConfigError for settings that do not go together."""
    how = engine.vllm or LaunchConfig()
    _check(engine, how)
    folders = folders_of(config, engine)
    url = urlsplit(engine.url)
    argv = [
        how.python, "-m", SERVER, "--model", how.model or engine.models[0], "--served-model-name", *engine.models,
        "--host", url.hostname or "127.0.0.1", "--port", str(url.port or (443 if url.scheme == "https" else 80)),
        *_unless_said(how.args, _limits(engine)),
        *(_plugin(config, engine, folders) if engine.agent else ()),
        *how.args,
    ]  # fmt: skip
    env = dict(how.env)
    if engine.agent:
        env |= HASHES | {settings.NATS_URL: nats_url, settings.NATS_CREDS: config.nats.creds}
        env |= {"PYTHONPATH": plugin_path} if plugin_path else {}
    if engine.api_key:
        env["VLLM_API_KEY"] = engine.api_key
    return Launch(tuple(argv), {name: value for name, value in env.items() if value}, folders)


def folders_of(config: Config, engine: EngineConfig) -> Folders:
    """Where it keeps its own; nothing is made."""
    own = Path(config.state_dir).absolute() / config.pool / "engines" / engine.id
    ssd_dir = engine.vllm.ssd_dir if engine.vllm else ""
    ssd = Path(ssd_dir).absolute() if ssd_dir else own / "ssd"
    return Folders(own, ssd if engine.ssd_bytes else None)


def sockets_of(folders: Folders) -> tuple[Path, Path]:
    """Where KV events are published, and where those that were missed can be asked for."""
    return folders.own / "events", folders.own / "replay"


def transfer_id(config: Config, engine: EngineConfig) -> str:
    """vLLM's own name for the engine's memory: the same at every start, so that what a crash left is found."""
    return f"tidegate-{config.pool}-{engine.id}"


def _check(engine: EngineConfig, how: LaunchConfig) -> None:
    if not engine.agent:
        return
    if not engine.dram_bytes:
        raise _wrong(
            engine, "dram_bytes", "an engine with an agent needs a DRAM tier: what leaves the device goes there"
        )
    if how.ssd_dir and not engine.ssd_bytes:
        raise _wrong(engine, "ssd_bytes", "a folder for an SSD tier is named, but not how much may lie there")
    if SLICE_TOKENS % engine.block_tokens:
        raise _wrong(engine, "block_tokens", f"a slice of {SLICE_TOKENS} tokens is no whole number of blocks")
    for argument in how.args:
        name = argument.partition("=")[0]
        if name in OURS:
            raise _wrong(engine, "vllm.args", f"{name} is what the plugin is put in by: leave it out")


def _wrong(engine: EngineConfig, field: str, what: str) -> ConfigError:
    return ConfigError(what, where="settings", key=f"engines.{engine.id}.{field}")


def _limits(engine: EngineConfig) -> list[tuple[str, ...]]:
    """What the house believes of the engine, so that it is true."""
    said: list[tuple[str, ...]] = [
        ("--block-size", str(engine.block_tokens)),
        ("--max-num-seqs", str(engine.seqs_max)),
        ("--max-num-batched-tokens", str(engine.batch_tokens_max)),
    ]
    if engine.embedding and not engine.llm:
        return [*said, ("--runner", "pooling"), ("--convert", "embed")]
    said.append(("--enable-prompt-tokens-details",))
    return [*said, ("--scheduling-policy", "priority")] if engine.priority else said


def _unless_said(args: Sequence[str], options: Sequence[tuple[str, ...]]) -> list[str]:
    said = {argument.partition("=")[0] for argument in args}
    return [word for option in options if option[0] not in said for word in option]


def _plugin(config: Config, engine: EngineConfig, folders: Folders) -> list[str]:
    events, replay = sockets_of(folders)
    told: dict[str, Any] = {
        "enable_kv_cache_events": True, "publisher": "zmq", "endpoint": f"ipc://{events}",
        "replay_endpoint": f"ipc://{replay}", "topic": "",
    }  # fmt: skip
    return [
        "--scheduler-cls", SCHEDULER, "--prefix-caching-hash-algo", HASH_ALGORITHM,
        "--kv-transfer-config", json.dumps(_transfer(config, engine, folders)), "--kv-events-config", json.dumps(told),
    ]  # fmt: skip


def _transfer(config: Config, engine: EngineConfig, folders: Folders) -> dict[str, Any]:
    plugin = PluginSettings(
        engine_id=EngineId(engine.id), pool=PoolId(config.pool), folder=str(folders.own),
        ssd_folder=str(folders.ssd or ""), ssd_bytes=engine.ssd_bytes, lazy=(engine.vllm or LaunchConfig()).lazy,
    )  # fmt: skip
    return {
        **CONNECTOR, "kv_role": "kv_both", "engine_id": transfer_id(config, engine),
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {
            "cpu_bytes_to_use": engine.dram_bytes, settings.KEY: msgspec.to_builtins(plugin),
        },
    }  # fmt: skip
