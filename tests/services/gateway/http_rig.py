"""A whole gateway on a free loopback port, over a memory log with an admission beside it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import msgspec
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from events.base import PoolId
from events.engine import EngineKind
from events.request import RequestArrived
from policies import catalog
from services.gateway.main import Gateway, open_gateway
from services.runtime.config import Config, EngineConfig, GatewayConfig, ModelConfig, OnLogDown
from services.runtime.pool_clock import PoolClock
from tests.services.gateway.rig import Decide, SwitchLog, admit_by, admit_for_real, heard

SIMULATED = EngineConfig(id="e1", kind=EngineKind.SIMULATED, models=["tiny"], embedding=True)
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hello tide"}], "max_tokens": 8}
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}" \
    "{% if add_generation_prompt %}assistant:{% endif %}"  # fmt: skip


class Answered(NamedTuple):
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def code(self) -> str | None:
        code: str | None = self.json["error"]["code"]
        return code


class House(NamedTuple):
    """A running gateway and a client."""

    gateway: Gateway
    log: SwitchLog
    session: aiohttp.ClientSession

    async def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> Answered:
        data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        async with self.session.post(self.gateway.url + path, data=data, headers=headers or {}) as response:
            return Answered(response.status, _lower(response), await response.read())

    async def get(self, path: str, headers: dict[str, str] | None = None) -> Answered:
        async with self.session.get(self.gateway.url + path, headers=headers or {}) as response:
            return Answered(response.status, _lower(response), await response.read())


def _lower(response: aiohttp.ClientResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}


def config_of(folder: Path, *, engines: Sequence[EngineConfig] = (SIMULATED,), **more: Any) -> Config:
    """A pool in `folder`; `gateway` settings and others by name."""
    gateway = {"port": 0, "log_down_after_ms": 50, "on_log_down": OnLogDown.REFUSE, **more.pop("gateway", {})}
    models = more.pop("models", [ModelConfig(name="tiny", slo_ttft_ms=60_000)])
    return Config(
        pool="p", state_dir=str(folder), models=models, engines=list(engines), gateway=GatewayConfig(**gateway), **more
    )


@asynccontextmanager
async def house(
    config: Config, *, decide: Decide | None = None, speed: int = 20, log: SwitchLog | None = None
) -> AsyncIterator[House]:
    """`decide` None: the real admission policy. A `log` given: its ticks are the time."""
    clock = PoolClock(speed=speed) if log is None else None
    log = log or SwitchLog(PoolId(config.pool))
    deciding = admit_by(log, decide) if decide is not None else admit_for_real(log, catalog.ACTORS["admission"])
    admission = asyncio.create_task(deciding)
    try:
        async with (
            open_gateway(config, log=log, clock=clock) as gateway,
            aiohttp.ClientSession() as session,
        ):
            yield House(gateway, log, session)
    finally:
        admission.cancel()
        await asyncio.gather(admission, return_exceptions=True)


def byte_tokenizer(folder: Path) -> Path:
    """A tokenizer of one token per byte, with a beginning-of-text token and a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<s>": 0, **{letter: number for number, letter in enumerate(alphabet, start=1)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>"])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": {"content": "<s>"}, "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_bytes(msgspec.json.encode(settings))
    return folder


async def arrival(running: House) -> RequestArrived:
    """The first request in the log."""
    recorded = await heard(running.log, lambda event: isinstance(event, RequestArrived))
    assert isinstance(recorded.event, RequestArrived)
    return recorded.event
