"""The command that starts a vLLM: what stands in it, what does not, and what is refused."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from events.base import EngineId, PoolId
from services.engines import vllm_command
from services.engines.vllm_checks import NEEDED
from services.engines.vllm_command import Launch, launch
from services.runtime.config import Config, ConfigError, EngineConfig, LaunchConfig, NatsConfig, load
from services.vllm_plugin import settings
from services.vllm_plugin.settings import PluginSettings

GIB = 2**30
DEPLOY = Path(__file__).parents[3] / "deploy" / "vllm"


def engine(**fields: Any) -> EngineConfig:
    made: dict[str, Any] = {
        "id": "e1", "models": ["m"], "url": "http://127.0.0.1:8123", "agent": True, "dram_bytes": GIB,
        "vllm": LaunchConfig(model="/models/m", python="/engine/python"),
    }  # fmt: skip
    return EngineConfig(**(made | fields))


def launched(tmp_path: Path, **fields: Any) -> Launch:
    return launch(Config(pool="p", state_dir=str(tmp_path)), engine(**fields), nats_url="nats://u:hush@n:4222")


def option(made: Launch, name: str) -> str:
    return made.argv[made.argv.index(name) + 1]


def extra(made: Launch) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(option(made, "--kv-transfer-config"))["kv_connector_extra_config"]
    return told


def test_the_server_is_started_as_the_house_knows_it(tmp_path: Path) -> None:
    made = launched(tmp_path, models=["m", "alias"], block_tokens=32, seqs_max=7, batch_tokens_max=512)
    assert made.argv[:3] == ("/engine/python", "-m", "vllm.entrypoints.openai.api_server")
    assert option(made, "--model") == "/models/m"
    assert made.argv[made.argv.index("--served-model-name") + 1 :][:2] == ("m", "alias")
    said = {name: option(made, name) for name in ("--host", "--port", "--block-size", "--max-num-seqs")}
    assert said == {"--host": "127.0.0.1", "--port": "8123", "--block-size": "32", "--max-num-seqs": "7"}
    assert option(made, "--max-num-batched-tokens") == "512"


def test_the_plugin_is_put_in_by_vllms_own_options(tmp_path: Path) -> None:
    made = launched(tmp_path)
    assert option(made, "--scheduler-cls") == "services.vllm_plugin.scheduler.TidegateScheduler"
    transfer = json.loads(option(made, "--kv-transfer-config"))
    assert (transfer["kv_connector"], transfer["kv_role"]) == ("TidegateConnector", "kv_both")
    assert transfer["kv_connector_module_path"] == "services.vllm_plugin.connector"
    told = extra(made)
    assert told["cpu_bytes_to_use"] == GIB
    own = tmp_path / "p" / "engines" / "e1"
    assert settings.of(told) == PluginSettings(engine_id=EngineId("e1"), pool=PoolId("p"), folder=str(own))
    assert transfer["engine_id"] == "tidegate-p-e1"


@pytest.mark.parametrize("lazy", [True, False])
def test_whether_dram_is_lazy_is_handed_on(tmp_path: Path, lazy: bool) -> None:
    assert settings.of(extra(launched(tmp_path, vllm=LaunchConfig(lazy=lazy)))).lazy is lazy


def test_an_ssd_tier_lies_in_the_state_dir_unless_a_folder_is_named(tmp_path: Path) -> None:
    for how, folder in (
        (LaunchConfig(), tmp_path / "p" / "engines" / "e1" / "ssd"),
        (LaunchConfig(ssd_dir=str(tmp_path / "fast")), tmp_path / "fast"),
    ):
        plugin = settings.of(extra(launched(tmp_path, vllm=how, ssd_bytes=2 * GIB)))
        assert (plugin.ssd_folder, plugin.ssd_bytes) == (str(folder), 2 * GIB)


def test_events_with_token_ids_in_them_go_over_no_port(tmp_path: Path) -> None:
    told = json.loads(option(launched(tmp_path), "--kv-events-config"))
    own = tmp_path / "p" / "engines" / "e1"
    assert (told["endpoint"], told["replay_endpoint"]) == (f"ipc://{own}/events", f"ipc://{own}/replay")


def test_blocks_keep_their_hashes_over_restarts(tmp_path: Path) -> None:
    made = launched(tmp_path)
    assert made.env["PYTHONHASHSEED"] == "0"
    assert option(made, "--prefix-caching-hash-algo") == "sha256_cbor"


def test_nothing_secret_stands_in_the_command_or_on_the_screen(tmp_path: Path) -> None:
    made = launched(tmp_path, api_key="hush-key")
    assert made.env[settings.NATS_URL] == "nats://u:hush@n:4222"
    assert made.env["VLLM_API_KEY"] == "hush-key"
    assert "hush" not in " ".join(made.argv)
    assert "hush" not in made.shell()
    assert f"# export {settings.NATS_URL}=..." in made.shell()


def test_tokens_for_the_engine_are_not_on_the_screen(tmp_path: Path) -> None:
    made = launched(tmp_path, vllm=LaunchConfig(env={"HF_TOKEN": "hush", "HF_HOME": "/models"}))
    assert made.env["HF_TOKEN"] == "hush"
    assert "hush" not in made.shell()
    assert "HF_HOME=/models" in made.shell()


def test_an_engine_without_an_agent_is_a_stock_vllm(tmp_path: Path) -> None:
    made = launched(tmp_path, agent=False, dram_bytes=0)
    assert not set(vllm_command.OURS) & set(made.argv)
    assert made.env == {}


def test_an_engine_that_only_embeds_runs_as_one(tmp_path: Path) -> None:
    made = launched(tmp_path, agent=False, llm=False, embedding=True)
    assert (option(made, "--runner"), option(made, "--convert")) == ("pooling", "embed")


@pytest.mark.parametrize("said", [["--max-num-seqs", "3"], ["--max-num-seqs=3"]])
def test_what_an_operator_says_goes_before_what_the_house_believes(tmp_path: Path, said: list[str]) -> None:
    made = launched(tmp_path, vllm=LaunchConfig(args=said))
    assert [word for word in made.argv if word.startswith("--max-num-seqs")] == said[:1]
    assert made.argv[-len(said) :] == tuple(said)


def test_variables_for_the_engine_are_set_but_never_shown_by_config_show(tmp_path: Path) -> None:
    from services.runtime.config import masked

    how = LaunchConfig(env={"VLLM_CPU_KVCACHE_SPACE": "1", "HF_TOKEN": "hush"})
    assert launched(tmp_path, vllm=how).env["HF_TOKEN"] == "hush"
    assert "hush" not in str(masked(Config(engines=[engine(vllm=how)])))


@pytest.mark.parametrize(
    ("fields", "key", "what"),
    [
        ({"dram_bytes": 0}, "dram_bytes", "needs a DRAM tier"),
        ({"vllm": LaunchConfig(ssd_dir="/x")}, "ssd_bytes", "how much may lie there"),
        ({"block_tokens": 48}, "block_tokens", "no whole number of blocks"),
        ({"vllm": LaunchConfig(args=["--scheduler-cls=x.Y"])}, "vllm.args", "--scheduler-cls"),
        ({"vllm": LaunchConfig(args=["--kv-transfer-config", "{}"])}, "vllm.args", "--kv-transfer-config"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_by_name(
    tmp_path: Path, fields: dict[str, Any], key: str, what: str
) -> None:
    with pytest.raises(ConfigError, match=what) as refused:
        launched(tmp_path, **fields)
    assert refused.value.key == f"engines.e1.{key}"


def test_the_credentials_file_of_nats_goes_along(tmp_path: Path) -> None:
    config = Config(state_dir=str(tmp_path), nats=NatsConfig(creds="/etc/n.creds"))
    assert launch(config, engine(), nats_url="nats://n").env[settings.NATS_CREDS] == "/etc/n.creds"


def test_what_the_plugin_is_told_is_refused_when_it_is_wrong() -> None:
    for told in ({}, {"tidegate": {"engine_id": "e1", "ssd": "/x"}}, {"tidegate": {"engine_id": 3}}):
        with pytest.raises(ValueError, match="tidegate"):
            settings.of(told)


@pytest.mark.parametrize(
    ("env", "url"),
    [
        ({}, ""),
        ({"NATS_URL": "nats://a"}, "nats://a"),
        ({"NATS_URL": "nats://a", "TIDEGATE_NATS__URL": "nats://b"}, "nats://b"),
    ],
)
def test_the_plugin_finds_the_log_by_the_houses_own_names(env: dict[str, str], url: str) -> None:
    assert settings.nats_url(env) == url


def test_the_configuration_that_comes_along_launches_its_engine() -> None:
    config = load(DEPLOY / "tidegate.toml")
    made = launch(config, config.engines[0], nats_url="nats://n")
    told = settings.of(extra(made))
    assert (told.ssd_folder, told.ssd_bytes) == ("/var/lib/tidegate/llama-1", 500 * GIB)
    assert extra(made)["cpu_bytes_to_use"] == 64 * GIB


def test_what_the_plugin_needs_is_a_part_of_the_extra_and_of_what_is_looked_for() -> None:
    lines = (DEPLOY / "requirements-plugin.txt").read_text().splitlines()
    needed = {line for line in lines if not line.startswith("#")}
    project = tomllib.loads((DEPLOY.parents[1] / "pyproject.toml").read_text())["project"]
    assert needed <= set(project["optional-dependencies"]["engine"])
    assert {name.removesuffix("-py") for name in needed} <= set(NEEDED)
