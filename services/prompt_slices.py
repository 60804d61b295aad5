"""What a prompt's slices are called: counted and named exactly as the gateway does it, for whoever has its secret."""

from pathlib import Path

from events.base import SliceId
from services.gateway import openai
from services.gateway.errors import Refusal
from services.gateway.tenants import Tenants, pool_secret
from services.gateway.tokens import Tokens
from services.runtime.aio import run
from services.runtime.config import Config


class NotNamed(Exception):
    """These slices cannot be named here; the text says why."""

    exit_code = 2


def slices_of(config: Config, body: bytes, *, tenant: str = "") -> tuple[SliceId, ...]:
    """The full slices of a request's prompt, first to last, in the tenant's cache domain. A prompt of less than one has
    none. Raises NotNamed, ConfigError."""
    known = [one.name for one in config.tenants]
    if tenant and tenant != "default" and tenant not in known:
        raise NotNamed(f"there is no tenant {tenant!r} (allowed: {', '.join(known) or 'default'})")
    if not config.secret and not (Path(config.state_dir) / config.pool / "secret").exists():
        raise NotNamed(
            f"slices are named with the pool's secret, and {config.state_dir} has none: no gateway ran there"
        )
    key = Tenants(config.tenants, secret=pool_secret(config)).of_client(tenant).fingerprint_key
    path = openai.CHAT if b'"messages"' in body else openai.COMPLETIONS
    tokens = Tokens(config.models, threads=1)
    try:
        counted = run(tokens.count(openai.read(path, body), key=key))
    except Refusal as error:
        raise NotNamed(f"the request does not hold: {error}") from error
    finally:
        tokens.close()
    if counted.estimated:
        raise NotNamed("the prompt cannot be tokenised here: give token ids, or a model whose tokenizer is configured")
    return counted.slices
