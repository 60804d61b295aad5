"""docs/configuration.md names every setting, and none that is not there."""

import re
from pathlib import Path

import msgspec
import pytest

from policies.admission_settings import AdmissionSettings
from policies.catalog import ACTORS
from policies.eviction_settings import EvictionSettings
from policies.migration_settings import MigrationSettings
from policies.prefetch_settings import PrefetchSettings
from policies.quota_settings import QuotaSettings
from policies.settings import Settings, choices, ranges
from services.runtime.config import (
    Config,
    EngineConfig,
    GatewayConfig,
    LaunchConfig,
    ModelConfig,
    NatsConfig,
    RedisConfig,
    TenantConfig,
)

PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
SECTIONS = {
    "## Top level": (Config, {"nats", "redis", "gateway", "tenants", "models", "engines", "policies"}),
    "## `[nats]` and `[redis]`": (NatsConfig, set()),
    "## `[gateway]`": (GatewayConfig, set()),
    "## `[[tenants]]`": (TenantConfig, set()),
    "## `[[models]]`": (ModelConfig, set()),
    "## `[[engines]]`": (EngineConfig, set()),
    "## `[engines.vllm]`": (LaunchConfig, set()),
    "## `[policies.admission]`": (AdmissionSettings, set()),
    "## `[policies.quota]`": (QuotaSettings, set()),
    "## `[policies.eviction]`": (EvictionSettings, set()),
    "## `[policies.migration]`": (MigrationSettings, set()),
    "## `[policies.prefetch]`": (PrefetchSettings, set()),
}


@pytest.mark.parametrize("title", SECTIONS)
def test_a_section_names_its_settings(title: str) -> None:
    schema, elsewhere = SECTIONS[title]
    rows = re.findall(r"^\| (`[^|]+) \|", PAGE.split(title)[1].split("\n## ")[0], re.MULTILINE)
    named = {name.rpartition(".")[2] for row in rows for name in re.findall(r"`([a-z_.]+)`", row)}
    known = {field.name for field in msgspec.structs.fields(schema)} - elsewhere
    if schema is NatsConfig:
        known |= {field.name for field in msgspec.structs.fields(RedisConfig)}
    assert named == known


POLICIES = [title for title, (schema, _) in SECTIONS.items() if issubclass(schema, Settings)]


def test_every_actor_has_its_section() -> None:
    assert sorted(f"## `[policies.{actor}]`" for actor in ACTORS) == sorted(POLICIES)


@pytest.mark.parametrize("title", POLICIES)
def test_defaults_and_ranges_of_a_policy_are_its_own(title: str) -> None:
    schema, section = SECTIONS[title][0], PAGE.split(title)[1].split("\n## ")[0]
    for field in msgspec.structs.fields(schema):
        if field.name in ranges(schema):
            low, high = ranges(schema)[field.name]
            assert f"| `{field.name}` | {field.default} | {low} to {high} |" in section
        else:
            allowed = ", ".join(f"`{choice.value}`" for choice in choices(schema)[field.name])
            assert f"| `{field.name}` | `{field.default.value}` | {allowed} |" in section
