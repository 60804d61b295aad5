"""Who asks, and what keeps one tenant's KV apart from another's."""

import stat
from pathlib import Path

import pytest

from kvstore.fingerprint import salted_key
from services.gateway.errors import Refusal
from services.gateway.tenants import Tenants, pool_secret
from services.runtime.config import Config, TenantConfig

A = TenantConfig(name="a", api_keys=["key-a", "key-a2"], clients=["batch"])
B = TenantConfig(name="b", api_keys=["key-b"], domain="shared")
C = TenantConfig(name="c", api_keys=["key-c"], domain="shared")


@pytest.mark.parametrize(
    ("authorization", "tenant"),
    [("Bearer key-a", "a"), ("bearer key-a2", "a"), ("Bearer  key-b ", "b")],
)
def test_key_names_the_tenant(authorization: str, tenant: str) -> None:
    assert Tenants([A, B], secret=b"s").of_key(authorization).id == tenant


def test_without_tenants_everybody_is_default() -> None:
    open_to_all = Tenants([], secret=b"s")
    assert open_to_all.of_key("").id == open_to_all.of_key("Bearer anything").id == "default"


def test_unknown_key_is_refused_without_being_quoted() -> None:
    with pytest.raises(Refusal) as refused:
        Tenants([A], secret=b"s").of_key("Bearer nobody")
    assert refused.value.status == 401
    assert "nobody" not in refused.value.message


@pytest.mark.parametrize(("client", "tenant"), [("a", "a"), ("batch", "a"), ("b", "b"), ("stranger", "default")])
def test_nats_client_names_the_tenant(client: str, tenant: str) -> None:
    assert Tenants([A, B], secret=b"s").of_client(client).id == tenant


def test_domains_are_apart_unless_shared_on_purpose() -> None:
    tenants = Tenants([A, B, C], secret=b"s")
    a, b, c = (tenants.of_key(f"Bearer key-{name}") for name in "abc")
    assert (b.domain_key, b.cache_salt) == (c.domain_key, c.cache_salt)
    assert len({a.domain_key, b.domain_key, a.cache_salt, b.cache_salt}) == 4
    other_pool = Tenants([A], secret=b"t").of_key("Bearer key-a")
    assert a.cache_salt != other_pool.cache_salt
    assert a.name_of("session") != b.name_of("session")
    assert "session" not in a.name_of("session")


def test_who_knows_the_salt_can_name_the_slices_and_nothing_else() -> None:
    a, b = (Tenants([A, B], secret=b"s").of_key(f"Bearer key-{name}") for name in "ab")
    assert a.fingerprint_key == salted_key(a.cache_salt) != b.fingerprint_key
    assert a.fingerprint_key != a.domain_key


def test_pools_secret_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    config = Config(state_dir=str(tmp_path))
    secret = pool_secret(config)
    assert pool_secret(config) == secret
    assert len(secret) == 64
    [path] = [each for each in tmp_path.rglob("*") if each.is_file()]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert pool_secret(Config(secret="given")) == b"given"
