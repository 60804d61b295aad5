"""An open loop over HTTP: every request is sent when it is due, whatever became of those before it.

Times are of the monotonic clock, in nanoseconds from the beginning of the load. A request's time to first token counts
from when it was due, not from when it was sent: what the client is late by is never in the target's favour, and is told
apart (`Seen.late_ns`), so that nobody takes one for the other.
"""

import asyncio
import time
from collections.abc import Callable, Sequence

import aiohttp
import msgspec

from events.base import NS_PER_S, RequestKind
from replay.workloads.base import Arrival
from services.engines.base import Chunk
from services.engines.stream import EventStream, TooLong, whole_answer
from services.target.prompts import Prompts

REQUEST_ID, ENGINE, REASON = "x-request-id", "x-tidegate-engine", "x-llm-d-request-dropped-reason"
REFUSAL_BYTES_MAX = 65_536


class Seen(msgspec.Struct, kw_only=True):
    """One request as its client saw it. `status` 0 = no answer; `ended` False = none by the end of the run, else
    `whole` says whether the answer came to its end. Tokens are the target's own count, where it told (-1 = it did not:
    then `events` is how many came, a lower bound)."""

    arrival: Arrival
    due_ns: int
    sent_ns: int = 0
    first_ns: int = 0
    last_ns: int = 0
    status: int = 0
    ended: bool = False
    whole: bool = False
    reason: str = ""
    name: str = ""
    engine: str = ""
    events: int = 0
    prompt_tokens: int = -1
    output_tokens: int = -1
    cached_tokens: int = 0

    @property
    def late_ns(self) -> int:
        """How late the client sent it."""
        return max(0, self.sent_ns - self.due_ns)

    @property
    def answered(self) -> bool:
        """Whether there is a whole answer."""
        return self.ended and self.whole and self.status == 200


class OpenLoop:
    """Sends arrivals to `url`. `ignores_eos`: the target takes vLLM's word for answers of a given length."""

    def __init__(
        self, session: aiohttp.ClientSession, url: str, prompts: Prompts, *, keys: dict[str, str],
        in_flight_max: int, ignores_eos: bool, clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:  # fmt: skip
        self._session, self._url, self._prompts, self._keys = session, url, prompts, keys
        self._ignores_eos, self._clock = ignores_eos, clock
        self._slots = asyncio.Semaphore(in_flight_max)
        self._begun_ns = clock()
        self.seen: list[Seen] = []
        """What was due so far, in order."""

    async def run(
        self, arrivals: Sequence[Arrival], *, drain_s: float, on_progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Send all, each when it is due from now on; over when all have ended, or `drain_s` after the last."""
        self._begun_ns = self._clock()
        tasks: set[asyncio.Task[None]] = set()
        ended = 0

        def end(task: asyncio.Task[None]) -> None:
            nonlocal ended
            tasks.discard(task)
            self._slots.release()
            ended += 1
            if on_progress is not None:
                on_progress(ended, len(arrivals))

        try:
            for arrival in arrivals:
                await self._until(arrival.at_ns)
                one = Seen(arrival=arrival, due_ns=arrival.at_ns)
                self.seen.append(one)
                await self._slots.acquire()
                task = asyncio.create_task(self.send(one))
                tasks.add(task)
                task.add_done_callback(end)
            if tasks:
                await asyncio.wait(tasks, timeout=drain_s)
        finally:
            await _cancel(tasks)

    async def send(self, one: Seen) -> None:
        """Ask once, and note what comes."""
        path, body, headers = self._call(one.arrival)
        one.sent_ns = self._now()
        try:
            async with self._session.post(self._url + path, data=body, headers=headers) as response:
                one.status, one.engine = response.status, response.headers.get(ENGINE, "")
                one.name = response.headers.get(REQUEST_ID, "")
                one.reason = response.headers.get(REASON, "")
                if response.status != 200:
                    await response.content.read(REFUSAL_BYTES_MAX)
                elif one.arrival.kind is RequestKind.EMBEDDING:
                    self._take(one, whole_answer(await response.read(), content_type=response.content_type))
                    one.whole = True
                else:
                    one.whole = await self._stream(one, response)
        except (aiohttp.ClientError, TimeoutError, TooLong) as error:
            one.reason = type(error).__name__
        one.ended = True

    async def _stream(self, one: Seen, response: aiohttp.ClientResponse) -> bool:
        stream = EventStream(role_first=False)
        async for data in response.content.iter_any():
            for chunk in stream.take(data):
                self._take(one, chunk)
        return stream.done and one.events > 0

    def _take(self, one: Seen, chunk: Chunk) -> None:
        if chunk.usage is not None:
            one.prompt_tokens, one.output_tokens = chunk.usage.prompt_tokens, chunk.usage.output_tokens
            one.cached_tokens = chunk.usage.cached_tokens
        if chunk.tokens or one.arrival.kind is RequestKind.EMBEDDING:
            one.events += chunk.tokens
            one.last_ns = self._now()
            one.first_ns = one.first_ns or one.last_ns

    def _call(self, arrival: Arrival) -> tuple[str, bytes, dict[str, str]]:
        headers = {
            "content-type": "application/json", REQUEST_ID: arrival.request_id,
            "x-tidegate-output-tokens": str(arrival.output_tokens),
            "x-llm-d-inference-fairness-id": arrival.tenant,
        }  # fmt: skip
        key = self._keys.get(arrival.tenant) or self._keys.get("")
        if key:
            headers["authorization"] = f"Bearer {key}"
        if arrival.slo is not None:
            headers["x-llm-d-slo-ttft-ms"] = _ms(arrival.slo.ttft_min_ns)
            if arrival.kind is RequestKind.LLM:
                headers["x-llm-d-slo-tpot-ms"] = _ms(arrival.slo.tpot_ns)
        model = msgspec.json.encode(arrival.model)
        prompt = self._prompts(arrival)
        if arrival.kind is RequestKind.EMBEDDING:
            return "/v1/embeddings", b'{"model":%b,"input":%b}' % (model, prompt), headers
        length = b'"max_tokens":%d' % arrival.output_tokens
        if self._ignores_eos:
            length += b',"ignore_eos":true'
        body = b'{"model":%b,"stream":true,"stream_options":{"include_usage":true},"temperature":0,%b,"prompt":%b}'
        return "/v1/completions", body % (model, length, prompt), headers

    async def _until(self, at_ns: int) -> None:
        left_ns = at_ns - self._now()
        if left_ns > 0:
            await asyncio.sleep(left_ns / NS_PER_S)

    def _now(self) -> int:
        return self._clock() - self._begun_ns


def _ms(ns: int) -> str:
    return str(max(1, ns // 1_000_000))


async def _cancel(tasks: set[asyncio.Task[None]]) -> None:
    """End what is left; it is shown as unfinished."""
    left = list(tasks)
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
