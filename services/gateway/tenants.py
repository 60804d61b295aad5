"""Who asks: a tenant, by its API key or its NATS client name, never by the client's own word."""

import os
import secrets
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Final, NamedTuple

from events.base import TenantId
from kvstore.fingerprint import domain_key, salted_key
from services.gateway.errors import Refusal
from services.runtime.config import Config, TenantConfig

SECRET_BYTES: Final = 32
SALT_BYTES: Final = 16


class Tenant(NamedTuple):
    """A tenant, with the key of its cache domain, the salt that keeps its KV apart inside an engine, and the key of its
    slices' names, which follows from the salt."""

    id: TenantId
    priority: int
    domain_key: bytes
    cache_salt: str
    fingerprint_key: bytes

    def name_of(self, text: str) -> str:
        """A client's own word (a session's name) as it may stand in the log: keyed, so that it tells nothing."""
        return blake2b(text.encode("utf-8", "surrogatepass"), key=self.domain_key, digest_size=8).hexdigest()


class Tenants:
    """The tenants of a pool. None configured: everybody is the tenant `default`."""

    def __init__(self, configs: Sequence[TenantConfig], *, secret: bytes) -> None:
        self._secret = secret
        self._default = self._tenant(TenantConfig(name="default"))
        tenants = [(config, self._tenant(config)) for config in configs]
        # By digest: a look-up tells nothing about how much of a key was right.
        self._by_key = {_digest(key): tenant for config, tenant in tenants for key in config.api_keys}
        self._by_client = {client: tenant for config, tenant in tenants for client in (config.name, *config.clients)}
        self._open = not configs

    def of_key(self, authorization: str) -> Tenant:
        """The tenant of an `Authorization` header. Refusal 401 when tenants are configured and this is none."""
        if self._open:
            return self._default
        scheme, _, key = authorization.partition(" ")
        tenant = self._by_key.get(_digest(key.strip())) if scheme.lower() == "bearer" else None
        if tenant is None:
            message = "send a known API key: Authorization: Bearer <key>"
            raise Refusal(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
        return tenant

    def of_client(self, client: str) -> Tenant:
        """The tenant of a NATS client name; `default` for a name that no tenant has."""
        return self._by_client.get(client, self._default)

    def _tenant(self, config: TenantConfig) -> Tenant:
        key = domain_key(self._secret, config.domain or config.name)
        salt = blake2b(b"cache_salt", key=key, digest_size=SALT_BYTES).hexdigest()
        return Tenant(TenantId(config.name), config.priority, key, salt, salted_key(salt))


def pool_secret(config: Config) -> bytes:
    """What all cache domains' keys derive from: configured, else made once and kept in the state folder (0600)."""
    if config.secret:
        return config.secret.encode()
    path = Path(config.state_dir) / config.pool / "secret"
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_name(f"secret.{os.getpid()}.new")
    descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(SECRET_BYTES))
    try:
        # A link either makes the whole file appear or finds another process's: nobody reads half a secret.
        os.link(made, path)
    except FileExistsError:
        pass
    finally:
        made.unlink()
    return path.read_text(encoding="ascii").encode()


def _digest(key: str) -> bytes:
    return blake2b(key.encode(), digest_size=32).digest()
