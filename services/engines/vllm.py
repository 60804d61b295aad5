"""A vLLM server over HTTP: no plugin needed, nothing of the answer changed. One with an agent gets hints beside."""

import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp
import msgspec

from events.base import EngineId, Event, ModelId, RequestId, RequestKind, SliceId
from events.decisions import EngineDirected, TransferCancelled, TransferOrdered
from events.engine import STEPS_AHEAD, Capability, EngineKind, EngineMeasured, EngineRegistered
from kvstore.schema import KVCacheSchema
from services.engines import vllm_metrics
from services.engines.base import STATUS_ABORTED, Call, Chunk, EngineError
from services.engines.stream import EventStream, TooLong, whole_answer
from services.runtime.config import EngineConfig
from services.vllm_plugin.hints import SLICES_MAX, Hints

ASK_TIMEOUT_S: Final = 5.0
"""For the small questions: /metrics, /health, /version, /v1/models, /tokenize."""
ANSWER_TIMEOUT_S: Final = 3_600.0
"""A non-stream answer says nothing until it is whole."""
TOKENIZE_FIELDS: Final = (
    "model", "prompt", "messages", "add_special_tokens", "add_generation_prompt", "continue_final_message",
    "chat_template", "chat_template_kwargs", "mm_processor_kwargs", "tools",
)  # fmt: skip
"""What /tokenize takes of a body."""
HINTS_FIELD: Final = "kv_transfer_params"

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class VLLMBackend:
    """See `services.engines.base.InferenceBackend`. The client's own key never goes to the engine: `api_key` does."""

    def __init__(self, config: EngineConfig) -> None:
        """Raises OSError or ssl.SSLError when `tls_ca` cannot be read."""
        self.engine_id = EngineId(config.id)
        self._config = config
        self._url = config.url.rstrip("/")
        self._tls: ssl.SSLContext | bool = True
        if config.tls_ca:
            self._tls = ssl.create_default_context(cafile=config.tls_ca)
        elif not config.tls_verify:
            self._tls = False
        self._opened: aiohttp.ClientSession | None = None
        self._running: dict[RequestId, aiohttp.ClientResponse] = {}
        self._aborted: set[RequestId] = set()

    def get_kv_schema(self) -> KVCacheSchema | None:
        """vLLM does not tell its KV format over HTTP: it is known only from the configuration."""
        return self._config.kv_schema

    def get_capability(self) -> Capability:
        """As configured; `priority` says that the server runs with the priority policy."""
        return registered(self._config).capability

    async def describe(self) -> EngineRegistered:
        """Models as configured; block count, block size and context length as the server says."""
        configured = registered(self._config)
        capability = configured.capability
        cache = vllm_metrics.cache_config((await self._ask("GET", "/metrics")).decode("utf-8", "replace"))
        context = _context_tokens(await self._ask_object("GET", "/v1/models"))
        if context:
            capability = msgspec.structs.replace(
                capability, context_tokens_max=min(context, capability.context_tokens_max)
            )
        block_tokens = cache.block_tokens or configured.block_tokens
        return msgspec.structs.replace(
            configured,
            kv_blocks=configured.kv_blocks or cache.kv_blocks,
            block_tokens=block_tokens,
            block_bytes=_block_bytes(self._config, block_tokens),
            capability=capability,
        )

    async def submit(self, call: Call) -> AsyncIterator[Chunk]:
        """See the Protocol. Closing the iterator closes the connection, on which vLLM aborts the request."""
        async with self._call(call) as response:
            if response.status != 200:
                body = await response.read()
                what = f"answered {response.status}"
                raise EngineError(what, engine_id=self.engine_id, lost=False, status=response.status, body=body)
            if not call.stream:
                yield whole_answer(await response.read(), content_type=response.content_type)
                return
            stream = EventStream(role_first=call.path.endswith("/chat/completions"))
            async for data in response.content.iter_any():
                for chunk in stream.take(data):
                    yield chunk
            if not stream.done:
                raise EngineError("the stream broke off", engine_id=self.engine_id, lost=True)

    async def abort(self, request_id: RequestId) -> None:
        """Close the request's connection; whoever reads it gets EngineError(lost=False, status=499)."""
        response = self._running.get(request_id)
        if response is not None:
            self._aborted.add(request_id)
            response.close()

    async def preempt(self, request_id: RequestId) -> bool:  # noqa: ARG002 - no stock vLLM can
        """Never: a stock vLLM takes no such order over HTTP, and its capability says so."""
        return False

    async def resume(self, request_id: RequestId) -> None:
        """Nothing was preempted here."""

    async def direct(self, directive: EngineDirected) -> None:
        """A stock vLLM chooses by its own rule; an agent reads directives from the log itself."""

    async def order(self, order: TransferOrdered | TransferCancelled) -> None:
        """As with directives."""

    async def slice_facts(self, *, measure: bool) -> list[Event]:  # noqa: ARG002 - its agent reports, if it has one
        """None from here."""
        return []

    async def metrics(self) -> EngineMeasured:
        """From /metrics."""
        text = (await self._ask("GET", "/metrics")).decode("utf-8", "replace")
        return vllm_metrics.measured(self.engine_id, text)

    async def health(self) -> None:
        """Returns when /health says well; EngineError when not."""
        await self._ask("GET", "/health")

    async def version(self) -> str:
        """Of the vLLM that runs there; "" when it does not say."""
        return str((await self._ask_object("GET", "/version")).get("version", ""))

    async def tokenize(self, path: str, body: bytes) -> list[int] | None:
        """Asks /tokenize for a single prompt or a chat; None for several prompts, or where it refuses."""
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        if path == "/v1/embeddings" and "input" in fields:
            fields["prompt"] = fields["input"]
        # Token ids stand for themselves, and several prompts have no one list.
        if "messages" not in fields and not bytes(fields.get("prompt", msgspec.Raw(b""))).startswith(b'"'):
            return None
        question = {name: fields[name] for name in TOKENIZE_FIELDS if name in fields}
        try:
            answer = await self._ask_object("POST", "/tokenize", msgspec.json.encode(question))
        except EngineError as error:
            if error.lost:
                raise
            return None
        tokens = answer.get("tokens")
        return tokens if isinstance(tokens, list) else None

    async def close(self) -> None:
        """Close every connection; calls in flight end with EngineError(lost=True)."""
        session, self._opened = self._opened, None
        if session is not None:
            await session.close()

    @asynccontextmanager
    async def _call(self, call: Call) -> AsyncIterator[aiohttp.ClientResponse]:
        quiet_s = self._config.first_byte_timeout_ms / 1000 if call.stream else ANSWER_TIMEOUT_S
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=self._config.connect_timeout_ms / 1000, sock_read=quiet_s
        )
        headers = {"content-type": "application/json", "x-request-id": call.request_id}
        body = hinted(call) if self._config.agent else call.body
        async with self._answering("POST", call.path, body, headers, timeout, call.request_id) as response:
            self._running[call.request_id] = response
            try:
                yield response
            finally:
                self._running.pop(call.request_id, None)
                if not response.content.at_eof():
                    response.close()

    async def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        timeout = aiohttp.ClientTimeout(total=ASK_TIMEOUT_S, sock_connect=self._config.connect_timeout_ms / 1000)
        async with self._answering(method, path, body, {"content-type": "application/json"}, timeout) as response:
            data: bytes = await response.read()
            if response.status != 200:
                what = f"{path} answered {response.status}"
                raise EngineError(what, engine_id=self.engine_id, lost=False, status=response.status, body=data)
            return data

    async def _ask_object(self, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
        answer = await self._ask(method, path, body)
        try:
            return msgspec.json.decode(answer, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise EngineError(f"{path} answered no JSON object", engine_id=self.engine_id, lost=False) from None

    @asynccontextmanager
    async def _answering(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str], timeout: aiohttp.ClientTimeout,
        request_id: RequestId | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:  # fmt: skip
        """A request whose every failure of the network is an EngineError(lost=True)."""
        try:
            async with self._session().request(
                method, self._url + path, data=body, headers=headers, timeout=timeout, ssl=self._tls
            ) as response:
                yield response
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if request_id in self._aborted:
                what, lost, status = "aborted", False, STATUS_ABORTED
            else:
                what, lost, status = f"{type(error).__name__} on {path}", True, 502
            raise EngineError(what, engine_id=self.engine_id, lost=lost, status=status) from error
        except TooLong as error:
            raise EngineError(str(error), engine_id=self.engine_id, lost=True) from error
        finally:
            if request_id is not None:
                self._aborted.discard(request_id)

    def _session(self) -> aiohttp.ClientSession:
        if self._opened is None:
            headers = {"authorization": f"Bearer {self._config.api_key}"} if self._config.api_key else {}
            # Admission bounds what is in flight; a limit here would queue without anybody knowing.
            connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=60)
            self._opened = aiohttp.ClientSession(
                connector=connector, headers=headers, auto_decompress=True, cookie_jar=aiohttp.DummyCookieJar()
            )
        return self._opened


def registered(config: EngineConfig) -> EngineRegistered:
    """The engine as its configuration describes it, without asking it."""
    return EngineRegistered(
        engine_id=EngineId(config.id),
        kind=EngineKind.VLLM,
        models=tuple(ModelId(model) for model in config.models),
        kv_blocks=config.kv_blocks,
        block_tokens=config.block_tokens,
        block_bytes=_block_bytes(config, config.block_tokens),
        capability=Capability(
            llm=config.llm,
            embedding=config.embedding,
            can_prioritise=config.priority,
            reports_slices=config.agent,
            seqs_max=config.seqs_max,
            steps_ahead=STEPS_AHEAD,
            device_lru=True,
            batch_tokens_max=config.batch_tokens_max,
            context_tokens_max=config.context_tokens_max,
            labels=dict[str, str](config.labels.items()),
        ),
    )


def hinted(call: Call) -> bytes:
    """The body of a call with what an engine with an agent may weigh in its choices. A client's own
    `kv_transfer_params` do not get there: it could name slices that are not its own. Real engines run at the wall's
    speed, so the deadline is in this machine's monotonic time."""
    if call.kind is not RequestKind.LLM:
        return call.body
    hints = Hints(
        request_id=call.request_id,
        tenant=call.tenant,
        priority=call.priority,
        slack_ns=call.deadline_ns - time.monotonic_ns() if call.deadline_ns else 0,
        slo_tpot_ns=call.slo_tpot_ns,
        output_expected=call.output_expected,
        slices=tuple(map(SliceId, call.slices[:SLICES_MAX])),
        slice_tokens=call.slice_tokens,
    )
    return msgspec.json.encode(_fields(call.body) | {HINTS_FIELD: msgspec.Raw(msgspec.json.encode(hints.params()))})


def _block_bytes(config: EngineConfig, block_tokens: int) -> int:
    """Without a schema a block weighs 1: budgets are then counted in blocks."""
    return config.kv_schema.token_bytes() * block_tokens if config.kv_schema else 1


def _context_tokens(models: dict[str, Any]) -> int:
    """The longest context that the server gives to any of its models; 0 when it does not say."""
    lengths = [each.get("max_model_len") for each in models.get("data") or [] if isinstance(each, dict)]
    return max((length for length in lengths if isinstance(length, int)), default=0)
