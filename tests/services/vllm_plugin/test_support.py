"""What was not tested is refused, with the reason and with what was."""

from types import SimpleNamespace
from typing import Any

import pytest

from services.vllm_plugin.support import UnsupportedEngine, check_engine, check_version


class FullAttentionSpec:
    """By its name, as vLLM's."""


class MambaSpec:
    """Likewise."""


def group(kind: type = FullAttentionSpec) -> Any:
    return SimpleNamespace(kv_cache_spec=kind())


def engine(**changed: Any) -> tuple[Any, Any]:
    """vLLM's configuration, as far as it is looked at."""
    parallel = {"tensor_parallel_size": 1, "pipeline_parallel_size": 1, "data_parallel_size": 1}
    extra = {"canonical_layout": changed.pop("canonical_layout", False)}
    config = SimpleNamespace(
        parallel_config=SimpleNamespace(**parallel | changed.pop("parallel", {})),
        cache_config=SimpleNamespace(
            enable_prefix_caching=changed.pop("prefix_caching", True),
            prefix_caching_hash_algo=changed.pop("hashes", "sha256"),
        ),
        speculative_config=changed.pop("speculative", None),
        lora_config=changed.pop("lora", None),
        kv_transfer_config=SimpleNamespace(kv_connector_extra_config=extra),
    )
    cache = SimpleNamespace(kv_cache_groups=changed.pop("groups", [group()]))
    assert not changed
    return config, cache


@pytest.mark.parametrize("version", ["0.32.0", "0.32.0+cpu", "0.32.0+cu130"])
def test_tested_versions_are_taken(version: str) -> None:
    check_version(version)


@pytest.mark.parametrize("version", ["0.31.2", "0.32.1", "0.33.0", "0.32.0rc1", "dev"])
def test_other_versions_are_refused_with_the_list(version: str) -> None:
    with pytest.raises(UnsupportedEngine, match=r"was not tested.*Tested: vLLM 0\.32\.0"):
        check_version(version)


@pytest.mark.parametrize("hashes", ["sha256", "sha256_cbor"])
def test_tested_engine_is_taken(hashes: str) -> None:
    check_engine(*engine(hashes=hashes), ssd=True)
    check_engine(*engine(lora=object()), ssd=False)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"parallel": {"tensor_parallel_size": 2}}, "tensor_parallel_size = 2"),
        ({"parallel": {"pipeline_parallel_size": 4}}, "pipeline_parallel_size = 4"),
        ({"parallel": {"data_parallel_size": 2}}, "data_parallel_size = 2"),
        ({"groups": [group(), group()]}, "2 KV cache groups"),
        ({"groups": [group(MambaSpec)]}, "MambaSpec"),
        ({"prefix_caching": False}, "prefix caching is off"),
        ({"hashes": "xxhash"}, "collide"),
        ({"speculative": object()}, "speculative"),
        ({"canonical_layout": True}, "canonical_layout"),
        ({"lora": object()}, "LoRA"),
    ],
)
def test_other_engines_are_refused_with_the_reason(changed: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnsupportedEngine, match=reason) as refused:
        check_engine(*engine(**changed), ssd=True)
    assert "Tested: " in str(refused.value)
