"""What would happen on one engine if one more request went there: first token, peak memory, pace.

A Trial is the engine's account plus what was promised in the decision that is being made, which stands in no account
yet. Nothing here changes an account.
"""

from dataclasses import dataclass, field

import msgspec

from events.base import PPM, RequestKind
from events.decisions import DeferReason
from events.request import RequestArrived
from policies import prefix_index
from policies.accounts import Account, Load, Resident, blocks, count
from policies.predictors.peak_memory import Growing, peak_blocks
from policies.predictors.step_time import step_ns
from policies.predictors.tpot import Decoding, Pace, breaks_pace
from policies.predictors.ttft import NOMINAL, SAMPLES_MIN, corrected_ns, prefill_pairs, work_ns
from policies.settings import AdmissionSettings

EXPECTED_LEFT_MIN = 3
"""A running answer is taken to have at least one part in so many of its expected length still to come."""


@dataclass(slots=True)
class Trial:
    """One engine, with `promised` on top of what its account holds."""

    account: Account
    load: Load
    promised: list[Resident] = field(default_factory=list)


@dataclass(slots=True)
class Prospect:
    """One request on one engine. `raw_ns` is the TTFT before correction, `ttft_ns` after it, `alone_ns` what it
    would be on that engine if it were idle. `judged` is false where nothing is known about the engine's speed."""

    trial: Trial
    request: RequestArrived
    held_tokens: int
    cached_tokens: int
    output_reserved: int
    raw_ns: int
    ttft_ns: int
    alone_ns: int
    judged: bool


def trial_of(account: Account) -> Trial:
    """Before anything was promised. The load is the account's own until `promise` replaces it."""
    return Trial(account, account.load)


def promise(trial: Trial, resident: Resident) -> None:
    """Count a request that this decision sends there."""
    trial.load = msgspec.structs.replace(trial.load)
    count(trial.load, trial.account, resident, 1)
    trial.promised.append(resident)


def can_ever_hold(account: Account, request: RequestArrived, settings: AdmissionSettings) -> bool:
    """Whether the request fits the engine's context and, alone, its KV. An estimated length is not held against the
    context: the engine counts for itself."""
    prompt, embeds = request.prompt_tokens, request.kind is RequestKind.EMBEDDING
    longest = prompt // max(request.inputs, 1) if embeds else prompt + 1
    if longest > account.context_tokens_max and not request.estimated:
        return False
    return embeds or not account.kv_blocks or blocks(account, prompt + 1) <= usable_blocks(account, settings)


def usable_blocks(account: Account, settings: AdmissionSettings) -> int:
    """The KV blocks that may be promised at all."""
    return account.kv_blocks - account.kv_blocks * settings.safety_ppm // PPM


def held_tokens(account: Account, request: RequestArrived, settings: AdmissionSettings) -> int:
    """Tokens of KV that the prompt takes. The inputs of an embedding job run one after another where they do not
    fit together, so they never take more than there is."""
    if request.kind is RequestKind.EMBEDDING and account.kv_blocks:
        return min(request.prompt_tokens, usable_blocks(account, settings) * account.block_tokens)
    return request.prompt_tokens


def resident_of(
    trial: Trial,
    request: RequestArrived,
    *,
    history: str,
    cached: int,
    reserved: int,
    expected: int,
    settings: AdmissionSettings,
    now_ns: int,
) -> Resident:
    """How the request will stand in the engine's account when it is sent there now."""
    prompt, account = request.prompt_tokens, trial.account
    uncached = max(prompt - cached, 1)
    pairs = prefill_pairs(prompt=prompt, cached=cached, inputs=request.inputs)
    return Resident(
        history=history, holder=request.holder, decodes=request.kind is RequestKind.LLM,
        prompt_tokens=held_tokens(account, request, settings), uncached_tokens=uncached,
        pairs=pairs, output_reserved=reserved, output_expected=min(expected, reserved), tokens_max=request.tokens_max,
        slo_tpot_ns=request.slo_tpot_ns, admitted_ns=now_ns, attempt=request.attempt,
        ttft_raw_ns=raw_ttft_ns(trial, tokens=uncached, pairs=pairs, now_ns=now_ns),
    )  # fmt: skip


def prospect(
    trial: Trial, request: RequestArrived, *, output: int, settings: AdmissionSettings, now_ns: int
) -> Prospect:
    """The request on this engine; `output` is the predicted length, cut to what the engine can hold alone."""
    account, prompt = trial.account, request.prompt_tokens
    cached = 0
    if request.slices:
        cached = min(prefix_index.matched(account.prefix, request.slices) * request.slice_tokens, prompt - 1)
    reserved = 0
    if request.kind is RequestKind.LLM:
        reserved = min(output, max(account.context_tokens_max - prompt, 1))
        if account.kv_blocks:
            reserved = min(reserved, usable_blocks(account, settings) * account.block_tokens - prompt)
    uncached = max(prompt - cached, 1)
    pairs = prefill_pairs(prompt=prompt, cached=cached, inputs=request.inputs)
    raw_ns = raw_ttft_ns(trial, tokens=uncached, pairs=pairs, now_ns=now_ns)
    alone_ns = work_ns(
        account.step or NOMINAL, tokens=uncached, pairs=pairs, batch_tokens=account.batch_tokens, context=0, seqs=0
    )
    modelled, correction = account.step is not None, account.correction
    return Prospect(
        trial, request, held_tokens(account, request, settings), cached, reserved, raw_ns,
        corrected_ns(raw_ns, correction, modelled=modelled), corrected_ns(alone_ns, correction, modelled=modelled),
        modelled or correction.samples >= SAMPLES_MIN,
    )  # fmt: skip


def raw_ttft_ns(trial: Trial, *, tokens: int, pairs: int, now_ns: int) -> int:
    """Prefill work in line there and `tokens` more, less what the head of the line has behind it; not corrected."""
    account, load = trial.account, trial.load
    step, seqs, context = account.step or NOMINAL, load.decode_seqs, load.decode_context
    if not load.prefill_tokens:
        return work_ns(step, tokens=tokens, pairs=pairs, batch_tokens=account.batch_tokens, context=context, seqs=seqs)
    in_all_ns = work_ns(
        step, tokens=load.prefill_tokens + tokens, pairs=load.prefill_pairs + pairs,
        batch_tokens=account.batch_tokens, context=context, seqs=seqs,
    )  # fmt: skip
    if account.step is None or not account.prefilling:
        return in_all_ns
    head = account.residents[next(iter(account.prefilling))]
    head_ns = work_ns(
        step, tokens=head.uncached_tokens, pairs=head.pairs,
        batch_tokens=account.batch_tokens, context=context, seqs=seqs,
    )  # fmt: skip
    return in_all_ns - min(head_ns, now_ns - account.head_since_ns)


def blocked(one: Prospect, settings: AdmissionSettings, now_ns: int) -> DeferReason | None:
    """Why the request cannot go to this engine now; None when it can."""
    account, load = one.trial.account, one.trial.load
    if load.seqs + account.foreign_seqs >= account.seqs_max:
        return DeferReason.SEQS_MAX
    if account.kv_blocks and not _fits(one, settings):
        return DeferReason.KV_BUDGET
    limited = settings.backlog_max_ns and one.judged and load.prefill_tokens
    if limited and backlog_ns(one.trial, now_ns) > settings.backlog_max_ns:
        return DeferReason.PREFILL_BACKLOG
    if settings.tpot_margin_ppm and account.step is not None and _breaks_pace(one, settings, now_ns):
        return DeferReason.TPOT_GUARD
    return None


def backlog_ns(trial: Trial, now_ns: int) -> int:
    """Prefill work in line there, corrected."""
    raw_ns = raw_ttft_ns(trial, tokens=0, pairs=0, now_ns=now_ns)
    return corrected_ns(raw_ns, trial.account.correction, modelled=trial.account.step is not None)


def budget_blocks(account: Account, settings: AdmissionSettings) -> int:
    """The KV blocks that ours may hold there."""
    return usable_blocks(account, settings) - account.foreign_blocks


def peak_with(one: Prospect) -> int:
    """Predicted peak of the engine's KV blocks in use by ours, the request among them."""
    account, load = one.trial.account, one.trial.load
    chunk = max(1, account.batch_tokens - load.decode_seqs)
    # Who is still in prefill begins to grow later, so it ends that many steps later.
    late = -(-(load.prefill_tokens + one.request.prompt_tokens - one.cached_tokens) // chunk)
    running = [
        Growing(
            resident.output_reserved - resident.output_tokens + (late if resident.first_ns == 0 else 0),
            resident.prompt_tokens + resident.output_tokens,
        )
        for residents in (account.residents.values(), one.trial.promised)
        for resident in residents
    ]
    running.append(Growing(one.output_reserved + late, one.held_tokens))
    return peak_blocks(running, block_tokens=account.block_tokens)


def _fits(one: Prospect, settings: AdmissionSettings) -> bool:
    account, load = one.trial.account, one.trial.load
    budget, prompt = budget_blocks(account, settings), one.held_tokens
    # Two cheap answers first: all at full length fits, or what is held already does not.
    if load.blocks_final + blocks(account, prompt + one.output_reserved) <= budget:
        return True
    if load.blocks_held + blocks(account, prompt) > budget:
        return False
    return peak_with(one) <= budget


def _breaks_pace(one: Prospect, settings: AdmissionSettings, now_ns: int) -> bool:
    trial, request = one.trial, one.request
    account, load = trial.account, trial.load
    if not load.decode_seqs and not load.prefill_decodes:
        return False
    before = _pace(trial, one, added=False, now_ns=now_ns)
    after = _pace(trial, one, added=True, now_ns=now_ns)
    step_now_ns = before.prefill_ns // before.prefill_steps if before.prefill_steps else before.step_ns
    decoding = (
        _decoding(resident, step_now_ns, now_ns)
        for resident in account.residents.values()
        if resident.first_ns and resident.decodes and resident.slo_tpot_ns
    )
    own_limit_ns = request.slo_tpot_ns if request.kind is RequestKind.LLM else 0
    return breaks_pace(
        decoding, before=before, after=after, own_limit_ns=own_limit_ns, margin_ppm=settings.tpot_margin_ppm
    )


def _pace(trial: Trial, one: Prospect, *, added: bool, now_ns: int) -> Pace:
    """How the engine steps with what it has (`added`: and with this request): all that prefill will soon decode."""
    account, load = trial.account, trial.load
    assert account.step is not None, "pace is asked for where there is a model"
    decodes = 1 if added and one.request.kind is RequestKind.LLM else 0
    seqs = load.decode_seqs + load.prefill_decodes + decodes
    context = load.decode_context + load.prefill_context + decodes * one.request.prompt_tokens
    tokens = load.prefill_tokens + (one.request.prompt_tokens - one.cached_tokens if added else 0)
    prefill_ns = one.raw_ns if added else raw_ttft_ns(trial, tokens=0, pairs=0, now_ns=now_ns) if tokens else 0
    chunk = max(1, account.batch_tokens - load.decode_seqs)
    return Pace(step_ns(account.step, tokens=seqs, context=context, seqs=seqs), -(-tokens // chunk), prefill_ns)


def _decoding(resident: Resident, step_now_ns: int, now_ns: int) -> Decoding:
    """How far it probably is now: told at `seen_ns`, and a token a step since."""
    tokens = resident.output_tokens + (now_ns - resident.seen_ns) // max(step_now_ns, 1)
    left_min = max(1, resident.output_expected // EXPECTED_LEFT_MIN)
    expected = max(resident.output_expected, resident.output_tokens + left_min)
    return Decoding(resident.slo_tpot_ns, min(tokens, expected), expected, now_ns - resident.first_ns)
