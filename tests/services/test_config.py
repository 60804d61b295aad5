"""One schema, four sources, and errors that say where, what and what else."""

from pathlib import Path

import pytest

from services.runtime.config import Config, ConfigError, LogProfile, OnLogDown, load, masked, without_password

PRESETS = sorted((Path(__file__).parents[2] / "deploy" / "presets").glob("*.toml"))
ONE_ENGINE = """
pool = "p1"
[[models]]
name = "m"
[[engines]]
id = "e1"
kind = "simulated"
models = ["m"]
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tidegate.toml of the checkout is found by accident."""
    monkeypatch.chdir(tmp_path)


def written(tmp_path: Path, text: str, name: str = "t.toml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_every_preset_is_a_whole_configuration(preset: Path) -> None:
    config = load(preset)
    assert config.engines
    assert config.models


def test_there_are_presets_for_a_laptop_and_for_vllm() -> None:
    assert {"laptop", "vllm"} <= {path.stem for path in PRESETS}


def test_nothing_given_is_the_default() -> None:
    assert load() == Config()


def test_toml_and_json_say_the_same(tmp_path: Path) -> None:
    toml = written(tmp_path, 'pool = "p"\n[gateway]\nport = 1')
    json = written(tmp_path, '{"pool": "p", "gateway": {"port": 1}}', "t.json")
    assert load(toml) == load(json) == Config(pool="p", gateway=load(toml).gateway)


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, 'pool = "file"\nstate_dir = "file"\n[nats]\nurl = "nats://file"\nprofile = "durable"')
    env = {"TIDEGATE_POOL": "env", "NATS_URL": "nats://env:1", "TIDEGATE_GATEWAY__ON_LOG_DOWN": "pass"}
    config = load(path, env, ["pool=line", "gateway.port=9000"])
    assert (config.pool, config.state_dir, config.nats.url) == ("line", "file", "nats://env:1")
    assert (config.gateway.on_log_down, config.nats.profile) == (OnLogDown.PASS, LogProfile.DURABLE)
    assert config.gateway.port == 9000


def test_our_own_variable_wins_over_the_common_name() -> None:
    env = {"NATS_URL": "nats://a", "TIDEGATE_NATS__URL": "nats://b", "NATS_CREDS": "c", "REDIS_URL": "redis://r"}
    config = load(None, env)
    assert (config.nats.url, config.nats.creds, config.redis.url) == ("nats://b", "c", "redis://r")


def test_members_of_lists_are_named_by_index(tmp_path: Path) -> None:
    env = {"TIDEGATE_ENGINES__0__API_KEY": "12345", "TIDEGATE_TENANTS__0__NAME": "t"}
    env["TIDEGATE_TENANTS__0__API_KEYS"] = "k1, k2"
    config = load(written(tmp_path, ONE_ENGINE), env, ["engines.0.seqs_max=7", "engines.0.priority=true"])
    assert (config.engines[0].api_key, config.engines[0].seqs_max, config.engines[0].priority) == ("12345", 7, True)
    assert config.tenants[0].api_keys == ["k1", "k2"]


def test_what_kubernetes_adds_for_a_service_called_tidegate_is_left_alone() -> None:
    env = {
        "TIDEGATE_PORT": "tcp://10.0.0.1:8400", "TIDEGATE_SERVICE_HOST": "10.0.0.1", "TIDEGATE_SERVICE_PORT_HTTP": "1",
        "TIDEGATE_PORT_8400_TCP_ADDR": "10.0.0.1", "TIDEGATE_GATEWAY_SERVICE_PORT": "8400",
    }  # fmt: skip
    assert load(None, env) == Config()


def test_a_setting_that_is_named_like_a_variable_of_kubernetes_is_still_ours() -> None:
    """As `tidegate up --set metrics_port=9400` hands it on to its workers."""
    assert load(None, {"TIDEGATE_METRICS_PORT": "9400"}).metrics_port == 9400
    assert load(None, {"TIDEGATE_METRICS_PORT": "tcp://10.0.0.1:9400"}).metrics_port == 0
    with pytest.raises(ConfigError, match="TIDEGATE_GATEWAY_PORT: gateway_port: no such setting"):
        load(None, {"TIDEGATE_GATEWAY_PORT": "9000"})


def test_a_file_is_found_by_variable_or_in_the_working_folder(tmp_path: Path) -> None:
    other = written(tmp_path, 'pool = "other"', "other.toml")
    written(tmp_path, 'pool = "here"', "tidegate.toml")
    assert load().pool == "here"
    assert load(None, {"TIDEGATE_CONFIG": str(other)}).pool == "other"


FILE_ERRORS = [
    ("gateway = 3", "gateway", "expected `object`", ""),
    ("[gateway]\nprot = 1", "gateway.prot", "did you mean 'port'?", "host, port,"),
    ("[gateway]\nport = 'x'", "gateway.port", "expected `int`", "a whole number"),
    ("[gateway]\nport = 70000", "gateway.port", "70000 is no port", "0 to 65535"),
    ("[gateway]\non_log_down = '502'", "gateway.on_log_down", "'502'", "pass, 503"),
    ("[gateway]\ntls_cert = 'c'", "gateway.tls_key", "together", ""),
    ("speed = 0", "speed", "too small", "1 or more"),
    ("pool = 'a.b'", "pool", "'a.b'", ""),
    ("[[engines]]\nid = 'e'", "engines[0]", "missing required field `models`", ""),
    (ONE_ENGINE + "[[engines]]\nid='e1'\nkind='simulated'\nmodels=['m']", "engines[1].id", "also the id of", ""),
    (ONE_ENGINE + "kinds = 1", "engines[0].kinds", "did you mean 'kind'?", "id, kind,"),
    (ONE_ENGINE + "step_model = 'llama-3-8b_h10'", "engines[0].step_model", "did you mean 'llama-3-8b_h10", "qwen3"),
    (ONE_ENGINE + "url = 'http://x'", "engines[0].url", "a simulated engine has no url", ""),
    (ONE_ENGINE + "ssd_bytes = 9", "engines[0].ssd_bytes", "goes by way of DRAM", ""),
    (ONE_ENGINE + "dram_bytes_per_s = 0", "engines[0].dram_bytes_per_s", "too small", "1 or more"),
    (ONE_ENGINE.replace('["m"]', '["mm"]'), "engines[0].models[0]", "did you mean 'm'?", "m"),
    (ONE_ENGINE.replace('["m"]', "[]"), "engines[0].models", "serves no model", "m"),
    (ONE_ENGINE.replace('"simulated"', '"vllm"'), "engines[0].url", "needs a url", "http://host:port"),
    (ONE_ENGINE.replace('"simulated"', '"tgi"'), "engines[0].kind", "'tgi'", "vllm, simulated"),
    (ONE_ENGINE.replace('"e1"', '"e 1"'), "engines[0].id", "'e 1'", ""),
    (ONE_ENGINE + "seqs_max = 0", "engines[0].seqs_max", "too small", "1 or more"),
    (ONE_ENGINE + "llm = false", "engines[0].llm", "does nothing", ""),
    (
        "speed = 2\n" + ONE_ENGINE.replace('"simulated"', '"vllm"') + "url = 'http://x:1'",
        "speed", "real (kind vllm)", "simulated engines only",
    ),
    ("[[tenants]]\nname = 'a'\n[[tenants]]\nname = 'a'", "tenants[1].name", "also the name of tenants[0]", ""),
    (
        "[[tenants]]\nname='a'\napi_keys=['hush']\n[[tenants]]\nname='b'\napi_keys=['x','hush']",
        "tenants[1].api_keys[1]", "a key of tenant 'a'", "",
    ),
    ("[[tenants]]\nname='a'\napi_keys=['']", "tenants[0].api_keys[0]", "let everybody in", ""),
]  # fmt: skip


@pytest.mark.parametrize(("text", "key", "what", "allowed"), FILE_ERRORS, ids=[f"{e[1]}: {e[2]}" for e in FILE_ERRORS])
def test_an_error_names_the_file_the_key_and_what_is_allowed(
    tmp_path: Path, text: str, key: str, what: str, allowed: str
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as raised:
        load(path)
    error = raised.value
    assert (error.where, error.key) == (str(path), key)
    assert what in error.what
    assert allowed in error.allowed
    assert "hush" not in str(error)


@pytest.mark.parametrize(
    ("env", "overrides", "where"),
    [
        ({"TIDEGATE_GATEWAY__PORT": "x"}, [], "TIDEGATE_GATEWAY__PORT"),
        ({"TIDEGATE_GATWAY__PORT": "1"}, [], "TIDEGATE_GATWAY__PORT"),
        ({}, ["gateway.port=x"], "--set gateway.port"),
        ({"TIDEGATE_GATEWAY__PORT": "x"}, ["gateway.port=-1"], "--set gateway.port"),
        ({}, ["gateway.port"], "--set gateway.port"),
        ({}, ["engines.3.id=e"], "--set engines.3.id"),
        ({}, ["engines.0.id=e"], "--set engines.0.id"),
    ],
)
def test_an_error_names_the_variable_or_the_option(env: dict[str, str], overrides: list[str], where: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(None, env, overrides)
    assert raised.value.where == where


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("t.toml", "pool = ", "not well formed"),
        ("t.json", '{"pool": ', "not well formed"),
        ("t.json", "[]", "not well formed"),
        ("t.yaml", "pool: p", "'.yaml' is not known"),
    ],
)
def test_a_file_that_cannot_be_taken_is_named(tmp_path: Path, name: str, text: str, what: str) -> None:
    path = written(tmp_path, text, name)
    with pytest.raises(ConfigError, match=what) as raised:
        load(path)
    assert raised.value.where == str(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load(tmp_path / "no.toml")


def test_settings_of_policies_are_validated_by_their_policy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'admission'") as raised:
        load(written(tmp_path, "[policies.admision]\nmode = 'observe'"))
    assert raised.value.key == "policies.admision"
    with pytest.raises(ConfigError) as raised:
        load(written(tmp_path, "[policies.admission]\nno_such_setting = 1"))
    assert raised.value.key == "policies.admission"


def test_what_is_secret_is_not_shown(tmp_path: Path) -> None:
    env = {
        "NATS_URL": "nats://u:hush@h:1,nats://h2:1", "REDIS_URL": "redis://:hush@h:2/0", "TIDEGATE_SECRET": "hush",
        "TIDEGATE_ENGINES__0__API_KEY": "hush",
        "TIDEGATE_TENANTS__0__NAME": "t", "TIDEGATE_TENANTS__0__API_KEYS": "hush",
    }  # fmt: skip
    shown = masked(load(written(tmp_path, ONE_ENGINE), env))
    assert "hush" not in str(shown)
    assert shown["nats"]["url"] == "nats://***@h:1,nats://h2:1"
    assert shown["tenants"][0]["api_keys"] == ["***"]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("unix://:pw@/tmp/x.sock?db=0", "unix://***@/tmp/x.sock?db=0"),
        ("nats://h:4222", "nats://h:4222"),
        ("tls://token@h:4222", "tls://***@h:4222"),
        ("", ""),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert without_password(url) == shown
