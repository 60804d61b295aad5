"""When the first token will be there: all prefill work that stands before it, and its own, at the load of now.

An engine spends each step's token budget on its decodes first and on prefill chunks with the rest, and the step takes
longer the more decode context is resident. So for the prompts in line, together with this one:

    steps = uncached tokens in line / (batch tokens - decodes)
    time  = steps at (chunk + decodes, resident context) + attention of the prompts - what the head has done already

The estimate is held against what was seen, as a ratio of decayed sums (so that long waits weigh more than short
ones), and multiplied by it from then on. An engine without a StepModel gets a nominal one; its estimate means
nothing until enough first tokens have given the ratio.

What mattered most in measurements on vLLM's scheduler was that resident decode context is counted at all.
"""

import msgspec

from events.base import NS_PER_S, PPM
from events.engine import StepModel
from policies.predictors.step_time import FS_PER_NS, step_fs

NOMINAL = StepModel(
    base_fs=0, above_fs=1_000 * FS_PER_NS, below_fs=0, knee_tokens=0, qk_fs=0, context_fs=0, seq_fs=0,
    source="nominal: 1 us a token, until the ratio is known",
)  # fmt: skip
SAMPLES_MIN = 8
"""First tokens seen before an engine without a StepModel is judged by its rate."""
_PRIOR_NS = 2 * NS_PER_S
_FADE = 32
_RATIO_MIN_PPM, _RATIO_MAX_PPM = PPM // 4, 16 * PPM


class Correction(msgspec.Struct):
    """What was seen against what was predicted, as decayed sums; `ratio_ppm` is what estimates are multiplied by."""

    seen_ns: int = 0
    predicted_ns: int = 0
    samples: int = 0
    ratio_ppm: int = PPM


def take_in(correction: Correction, *, seen_ns: int, predicted_ns: int, modelled: bool) -> None:
    """One first token: how long it took, and how long it was predicted to take without correction. With a StepModel
    (`modelled`) the ratio begins at 1 and stays within bounds; a nominal one has none to begin with."""
    correction.seen_ns += seen_ns - correction.seen_ns // _FADE
    correction.predicted_ns += predicted_ns - correction.predicted_ns // _FADE
    correction.samples += 1
    if modelled:
        ratio_ppm = (correction.seen_ns + _PRIOR_NS) * PPM // (correction.predicted_ns + _PRIOR_NS)
        correction.ratio_ppm = min(max(ratio_ppm, _RATIO_MIN_PPM), _RATIO_MAX_PPM)
    else:
        correction.ratio_ppm = correction.seen_ns * PPM // max(correction.predicted_ns, 1)


def work_ns(model: StepModel, *, tokens: int, pairs: int, batch_tokens: int, context: int, seqs: int) -> int:
    """Time to prefill `tokens` uncached tokens with `pairs` query-key pairs in all, while every step also decodes
    `seqs` sequences with `context` tokens in all. `batch_tokens` is the whole budget of a step."""
    chunk = batch_tokens - seqs if batch_tokens > seqs else 1
    if tokens <= chunk:  # The usual case, and asked for every engine and request.
        fs = step_fs(model, tokens=tokens + seqs, qk=pairs, context=context, seqs=seqs) if tokens else 0
        return fs // FS_PER_NS
    full, rest = divmod(tokens, chunk)
    fs = full * step_fs(model, tokens=chunk + seqs, context=context, seqs=seqs) + model.qk_fs * pairs
    if rest:
        fs += step_fs(model, tokens=rest + seqs, context=context, seqs=seqs)
    return fs // FS_PER_NS


def prefill_pairs(*, prompt: int, cached: int, inputs: int = 1) -> int:
    """Query-key pairs of a prefill: each new token attends to all before it. `inputs` share the prompt evenly."""
    return (prompt * prompt - cached * cached) // (2 * max(inputs, 1))
