"""How long an engine step takes, in exact integers, from the engine's StepModel.

t = base + above*max(T-knee,0) + below*min(T,knee) + qk*Aq + context*C + seq*B. See `events.engine.StepModel`. A step
whose tokens are all of decode sequences has a fit of its own where the model brings one: on some boards a prefill chunk
in the batch takes attention of all its sequences to a slower kernel (vLLM on RTX PRO 6000: twice a context token).
Over a whole prefill the attention term telescopes: sum of chunk*(prior+chunk/2) = (prompt^2 - cached^2)/2.
"""

from events.engine import StepModel

FS_PER_NS = 1_000_000


def step_fs(model: StepModel, *, tokens: int, qk: int = 0, context: int = 0, seqs: int = 0) -> int:
    """Time of one step of `tokens` tokens in all, in femtoseconds: `qk` query-key pairs of prefill chunks, `context`
    tokens of decode context, `seqs` decode sequences. With no more tokens than those it only decodes."""
    if tokens == seqs and model.decode_base_fs:
        return model.decode_base_fs + model.decode_context_fs * context + model.decode_seq_fs * seqs
    knee = model.knee_tokens
    fs = model.base_fs + model.qk_fs * qk + model.context_fs * context + model.seq_fs * seqs
    if tokens > knee:
        fs += model.above_fs * (tokens - knee) + model.below_fs * knee
    else:
        fs += model.below_fs * tokens
    return fs


def step_ns(model: StepModel, *, tokens: int, qk: int = 0, context: int = 0, seqs: int = 0) -> int:
    """The same in nanoseconds, rounded down."""
    return step_fs(model, tokens=tokens, qk=qk, context=context, seqs=seqs) // FS_PER_NS


def decode_grow_fs(model: StepModel, seqs: int) -> int:
    """What a step of `seqs` decode sequences takes longer than the one before it: each context is a token longer."""
    return seqs * (model.decode_context_fs if model.decode_base_fs else model.context_fs)


def prefill_ns(
    model: StepModel, *, prompt: int, cached: int = 0, batch_tokens: int, context: int = 0, seqs: int = 0
) -> int:
    """Time to prefill a prompt of which `cached` tokens are resident, in chunks of `batch_tokens`, while every step
    also decodes `seqs` sequences with `context` tokens in all. `batch_tokens` counts prefill tokens only."""
    uncached = prompt - cached
    if uncached <= 0:
        return 0
    full, rest = divmod(uncached, batch_tokens)
    total = step_ns(model, tokens=batch_tokens + seqs, context=context, seqs=seqs) * full
    if rest:
        total += step_ns(model, tokens=rest + seqs, context=context, seqs=seqs)
    return total + model.qk_fs * ((prompt * prompt - cached * cached) // 2) // FS_PER_NS


def unloaded_ttft_ns(model: StepModel, *, prompt: int, batch_tokens: int) -> int:
    """TTFT of a prompt on an idle engine with nothing cached."""
    return prefill_ns(model, prompt=prompt, batch_tokens=batch_tokens)
