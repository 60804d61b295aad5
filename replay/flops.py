"""Model-FLOPs utilisation: how much of its device's arithmetic a run used, and how much its step model could have.

FLOPs are those of the model, not of the machine (the words of PaLM, appendix B): 2 a weight for every token computed, 2
a weight of the output head for every token made, 4 a query-key pair and unit of attention width. What was cached, and
what was computed twice, counts for nothing.

    utilisation = FLOPs of the requests that finished / (engines x window x peak of the device)
    bound       = the same FLOPs / (what the step model takes for them in full steps x peak)

The bound is an engine that never waits and fills every step up to its token budget with that very mix of prompts and
answers. It stays below 1 because weights and KV have to be read, and because kernels do not reach the peak.
"""

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from events import codec
from events.base import NS_PER_S, EngineId, Event, RequestId, RequestKind
from events.engine import EngineRegistered, StepModel
from events.log.base import Message
from events.request import RequestArrived, RequestFinished
from policies.predictors.step_time import FS_PER_NS, step_fs
from replay.costmodel import PROFILES

FS_PER_S = FS_PER_NS * NS_PER_S


class Shape(NamedTuple):
    """What a token costs: weights of the layers (without embeddings), of the output head, and the width of attention
    over all layers (layers x query heads x head dimension)."""

    layer_weights: int
    head_weights: int
    attention_width: int


LLAMA_8B = Shape(layer_weights=32 * 218_103_808, head_weights=128_256 * 4_096, attention_width=32 * 4_096)
QWEN3_32B = Shape(layer_weights=64 * 487_587_840, head_weights=151_936 * 5_120, attention_width=64 * 8_192)


class Device(NamedTuple):
    """A model on a device: what a token costs there, and dense bf16 FLOP/s by the data sheet."""

    shape: Shape
    peak_flops: int


DEVICES: dict[str, Device] = {
    "llama-3-8b_h100": Device(LLAMA_8B, 989 * 10**12),
    "llama-3-8b_h200": Device(LLAMA_8B, 989 * 10**12),
    "llama-3-8b_a100": Device(LLAMA_8B, 312 * 10**12),
    "llama-3.1-8b_rtxpro6000": Device(LLAMA_8B, 503 * 10**12),
    "llama-3.1-8b_rtx4090": Device(LLAMA_8B, 165 * 10**12),
    "qwen3-32b_rtxpro6000": Device(QWEN3_32B, 503 * 10**12),
}
"""By the names of `replay.costmodel.PROFILES`."""


class Work(msgspec.Struct, kw_only=True):
    """What was computed: prompt tokens, answer tokens that a decode step made, tokens sampled in all, query-key pairs
    of prompts, and contexts of decode steps."""

    prompt_tokens: int = 0
    decode_tokens: int = 0
    sampled_tokens: int = 0
    pairs: int = 0
    context: int = 0


class Utilisation(msgspec.Struct, frozen=True, kw_only=True):
    """Shares of the peak: what was used, and what the step model allows for the same work in full steps."""

    used: float
    bound: float


class Meter:
    """Takes records in one by one; `utilisation` at any time says what the requests that finished so far came to."""

    def __init__(self) -> None:
        self._engines: dict[EngineId, EngineRegistered] = {}
        self._asked: dict[RequestId, RequestArrived] = {}
        self._work: dict[EngineId, Work] = {}

    def take(self, event: Event) -> None:
        """Take one event in, in log order."""
        match event:
            case EngineRegistered():
                self._engines[event.engine_id] = event
            case RequestArrived():
                self._asked[event.request_id] = event
            case RequestFinished():
                asked = self._asked.pop(event.request_id, None)
                if asked is not None:
                    work = self._work.setdefault(event.engine_id, Work())
                    add(work, event, inputs=asked.inputs if asked.kind is RequestKind.EMBEDDING else 0)
            case _:
                pass

    def utilisation(self, window_ns: int) -> Utilisation | None:
        """Of all engines over so long. None where one of them has no step model of `replay.costmodel`."""
        used = peak = 0
        possible = 0.0
        for engine_id, registered in self._engines.items():
            device = device_of(registered.step) if registered.step is not None else None
            if device is None or registered.step is None:
                return None
            work = self._work.get(engine_id, Work())
            used += flops(device.shape, work)
            peak += device.peak_flops
            least = least_fs(registered.step, work, batch_tokens=registered.capability.batch_tokens_max)
            possible += device.peak_flops * (least / FS_PER_S)
        if not peak or not window_ns:
            return None
        seconds = window_ns / NS_PER_S
        return Utilisation(used=used / (peak * seconds), bound=used / possible if possible else 0.0)


def utilisation(messages: Iterable[Message], *, window_ns: int) -> Utilisation | None:
    """Of all engines in a log, for what finished within the first `window_ns` after its first arrival."""
    meter = Meter()
    ends_ns = 0
    for message in messages:
        for recorded in codec.decode(message.seq, message.subject, message.body):
            if not ends_ns and isinstance(recorded.event, RequestArrived):
                ends_ns = recorded.ts_ns + window_ns
            if not ends_ns or recorded.ts_ns <= ends_ns:
                meter.take(recorded.event)
    return meter.utilisation(window_ns)


def device_of(step: StepModel) -> Device | None:
    """The device that a step model was measured on."""
    return next((DEVICES[name] for name, profile in PROFILES.items() if profile.step == step), None)


def add(work: Work, done: RequestFinished, *, inputs: int = 0) -> None:
    """Put a request on top. `inputs` > 0: it is an embedding of so many inputs, which do not attend to each other."""
    prompt, cached = done.prompt_tokens, min(done.cached_tokens, done.prompt_tokens)
    work.prompt_tokens += prompt - cached
    if inputs:
        work.pairs += prompt * prompt // (2 * inputs)
        return
    decoded = max(done.output_tokens - 1, 0)
    work.pairs += (prompt * prompt - cached * cached) // 2
    work.decode_tokens += decoded
    work.sampled_tokens += done.output_tokens
    work.context += decoded * prompt + decoded * (decoded + 1) // 2


def flops(shape: Shape, work: Work) -> int:
    """FLOPs of the model for it."""
    tokens = work.prompt_tokens + work.decode_tokens
    attention = 4 * shape.attention_width * (work.pairs + work.context)
    return 2 * shape.layer_weights * tokens + 2 * shape.head_weights * work.sampled_tokens + attention


def least_fs(model: StepModel, work: Work, *, batch_tokens: int) -> int:
    """What the step model takes for it on one engine whose every step is full, in femtoseconds."""
    tokens = work.prompt_tokens + work.decode_tokens
    steps, rest = divmod(tokens, batch_tokens)
    fs = steps * step_fs(model, tokens=batch_tokens) + (step_fs(model, tokens=rest) if rest else 0)
    return fs + model.qk_fs * work.pairs + model.context_fs * work.context + model.seq_fs * work.decode_tokens
