"""What would happen on one engine if one more request went there: first token, peak memory, pace.

An engine is looked at as it stands in the decision that is being made (`policies.trial`). Nothing here changes an
account.

An engine's memory is shared by kind. What LLM requests will hold at their worst moment (the predicted peak), what the
embedding jobs in flight hold (all of it until they end), and what others use there must stay within the budget: the
engine's blocks without the safety margin. Where shares are set, each kind must also stay within its own; but the first
of its kind there may be larger than a share (unless that is 0), else it would wait for ever.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

from events.base import PPM, EngineId, RequestKind
from events.decisions import DeferReason
from events.request import RequestArrived
from policies import prefix_index, shared_prefix
from policies.accounts import Account, Load, Resident, blocks, shared_blocks, slices_of
from policies.admission_settings import AdmissionSettings
from policies.cached_prefix import reported
from policies.predictors.output_question import Foretold
from policies.predictors.peak_memory import peak_blocks
from policies.predictors.step_time import step_ns
from policies.predictors.tpot import Answer, Decoding, Pace, breaks_pace, would_hold
from policies.predictors.ttft import NOMINAL, SAMPLES_MIN, prefill_pairs, work_ns
from policies.trial import Trial, growth_of

AHEAD = 4
"""An engine gets work ahead for so many ways from a decision to it. While the one before is computed the next is under
way, so an engine without work loses at most one part in so many: a longer prefill is followed by one such gap."""
EXPECTED_LEFT_MIN = 3
"""A running answer is taken to have at least one part in so many of its expected length still to come."""


@dataclass(slots=True)
class Prospect:
    """One request on one engine. `foretold` is the predicted length, not yet cut to what the engine can hold.
    `raw_ns` is the TTFT before correction, `ttft_ns` after it, with what it waits for its cached part to be loaded
    (`load_ns` in all). `judged` is false where nothing is known about the engine's speed."""

    trial: Trial
    request: RequestArrived
    cached_tokens: int
    foretold: Foretold
    raw_ns: int
    ttft_ns: int
    judged: bool
    load_ns: int = 0


def can_ever_hold(account: Account, request: RequestArrived, settings: AdmissionSettings) -> bool:
    """Whether the request fits the engine's context and, alone, its KV. An estimated length is not held against the
    context: the engine counts for itself."""
    prompt, embeds = request.prompt_tokens, request.kind is RequestKind.EMBEDDING
    longest = prompt // max(request.inputs, 1) if embeds else prompt + 1
    if longest > account.context_tokens_max and not request.estimated:
        return False
    tokens = held_tokens(account, request) if embeds else prompt + 1
    return not account.kv_blocks or blocks(account, tokens) <= usable_blocks(account, settings)


def usable_blocks(account: Account, settings: AdmissionSettings) -> int:
    """The KV blocks that may be promised at all."""
    return account.kv_blocks - account.kv_blocks * settings.safety_ppm // PPM


def share_blocks(account: Account, kind: RequestKind, settings: AdmissionSettings) -> int:
    """The KV blocks that requests of this kind may hold there: all that are usable, where no shares are set; and a
    share that is not 0 is at least a block, however small the engine."""
    ppm = account.llm_ppm if kind is RequestKind.LLM else account.embedding_ppm
    usable = usable_blocks(account, settings)
    return usable if ppm < 0 else -(-usable * ppm // PPM)


def room_blocks(account: Account, kind: RequestKind, settings: AdmissionSettings) -> int:
    """What the books may hold of this kind there: its share, and once more what its prompts have in common."""
    share = share_blocks(account, kind, settings)
    return share + shared_blocks(account) if kind is RequestKind.LLM else share


def share_is_set(account: Account) -> bool:
    """Whether its memory is divided between the kinds."""
    return account.llm_ppm >= 0 or account.embedding_ppm >= 0


def held_tokens(account: Account, request: RequestArrived) -> int:
    """Tokens of KV that the prompt takes. The inputs of an embedding job pass through one after another, so its
    workspace is what a step computes and the longest input before that."""
    if request.kind is RequestKind.EMBEDDING:
        return min(request.prompt_tokens, account.batch_tokens + request.prompt_tokens // max(request.inputs, 1))
    return request.prompt_tokens


def resident_of(
    trial: Trial,
    request: RequestArrived,
    *,
    foretold: Foretold,
    cached: int,
    reserved: int,
    now_ns: int,
) -> Resident:
    """How the request will stand in the engine's account when it is sent there now."""
    prompt, account = request.prompt_tokens, trial.account
    uncached = max(prompt - cached, 1)
    pairs = prefill_pairs(prompt=prompt, cached=cached, inputs=request.inputs)
    raw_ns, load_ns = raw_ttft_ns(trial, tokens=uncached, pairs=pairs, now_ns=now_ns), 0
    if cached and account.reports_slices:
        load_ns = loading_ns(trial, reported(account, request).load_ns, now_ns)
        raw_ns += load_ns * PPM // max(account.correction.ratio_ppm, 1)
    told = request.stream or request.kind is RequestKind.EMBEDDING
    due_ns = now_ns + lead_ns(trial) + raw_ns * account.correction.ratio_ppm // PPM
    return Resident(
        request=request, foretold=foretold, decodes=request.kind is RequestKind.LLM,
        prompt_tokens=held_tokens(account, request), uncached_tokens=uncached,
        pairs=pairs, output_reserved=reserved, output_expected=min(foretold.expected, reserved), admitted_ns=now_ns,
        ttft_raw_ns=raw_ns, due_ns=0 if told else due_ns, load_ns=load_ns,
    )  # fmt: skip


def prospect(trial: Trial, request: RequestArrived, *, foretold: Foretold, now_ns: int) -> Prospect:
    """The request on this engine, with everything that the choice among engines needs."""
    account, prompt = trial.account, request.prompt_tokens
    cached = load_ns = 0
    if account.reports_slices:
        cached, load_ns = reported(account, request)
    elif request.slices:
        cached = min(prefix_index.matched(account.prefix, request.slices) * request.slice_tokens, prompt - 1)
    pairs = prefill_pairs(prompt=prompt, cached=cached, inputs=request.inputs)
    raw_ns = raw_ttft_ns(trial, tokens=max(prompt - cached, 1), pairs=pairs, now_ns=now_ns)
    correction = account.correction
    judged = account.step is not None or correction.samples >= SAMPLES_MIN
    ttft_ns = lead_ns(trial) + raw_ns * correction.ratio_ppm // PPM
    if load_ns:
        ttft_ns += loading_ns(trial, load_ns, now_ns)
    return Prospect(trial, request, cached, foretold, raw_ns, ttft_ns, judged, load_ns)


def loading_ns(trial: Trial, load_ns: int, now_ns: int) -> int:
    """What of a load is waited for: it goes on while the work that stands before the request is done."""
    return max(0, load_ns - backlog_ns(trial, now_ns)) if load_ns else 0


def lead_ns(trial: Trial) -> int:
    """How long an engine without prefill work waits until a request that is sent there now arrives. Behind other
    work, the way there costs nothing."""
    return 0 if trial.load.prefill_tokens else trial.account.control_ns


def reserved_tokens(one: Prospect, settings: AdmissionSettings) -> int:
    """The output that memory is promised for: as predicted, but no more than the engine can hold alone."""
    if one.request.kind is RequestKind.EMBEDDING:
        return 0
    return min(one.foretold.high, longest_output(one.trial.account, one.request.prompt_tokens, settings))


def blocks_wanted(one: Prospect, settings: AdmissionSettings) -> int:
    """What it will hold there at its reserved length."""
    account = one.trial.account
    return blocks(account, held_tokens(account, one.request) + reserved_tokens(one, settings))


def bytes_wanted(one: Prospect, settings: AdmissionSettings) -> int:
    """The same in bytes: what it costs its tenant."""
    return blocks_wanted(one, settings) * one.trial.account.block_bytes


def bytes_min(
    accounts: Mapping[EngineId, Account], request: RequestArrived, foretold: Foretold, settings: AdmissionSettings
) -> int:
    """What it costs its tenant on the engine where that is least."""
    costs = []
    for account in accounts.values():
        if account.serves(request.model, request.kind):
            output = min(foretold.high, longest_output(account, request.prompt_tokens, settings))
            costs.append(blocks(account, held_tokens(account, request) + output) * account.block_bytes)
    return min(costs, default=0)


def longest_output(account: Account, prompt_tokens: int, settings: AdmissionSettings) -> int:
    """The longest answer that the engine can hold for a prompt that it has alone."""
    longest = max(account.context_tokens_max - prompt_tokens, 1)
    if account.kv_blocks:
        share = share_blocks(account, RequestKind.LLM, settings) * account.block_tokens
        longest = min(longest, max(share - prompt_tokens, 1))
    return longest


def alone_ns(one: Prospect) -> int:
    """TTFT on that engine if it were idle, corrected."""
    account, prompt, cached = one.trial.account, one.request.prompt_tokens, one.cached_tokens
    pairs = prefill_pairs(prompt=prompt, cached=cached, inputs=one.request.inputs)
    raw_ns = work_ns(
        account.step or NOMINAL, tokens=max(prompt - cached, 1), pairs=pairs,
        batch_tokens=account.batch_tokens, context=0, seqs=0,
    )  # fmt: skip
    return one.load_ns + raw_ns * account.correction.ratio_ppm // PPM


def raw_ttft_ns(trial: Trial, *, tokens: int, pairs: int, now_ns: int) -> int:
    """Prefill work in line there and `tokens` more, less what the head of the line has behind it; not corrected. With
    nothing in line, what the engine has scheduled ahead goes first: steps that only decode."""
    account, load = trial.account, trial.load
    step, seqs, context = account.step or NOMINAL, load.decode_seqs, load.decode_context
    if not load.prefill_tokens:
        ahead_ns = account.steps_ahead * step_ns(step, tokens=seqs, context=context, seqs=seqs) if seqs else 0
        own_ns = work_ns(
            step, tokens=tokens, pairs=pairs, batch_tokens=account.batch_tokens, context=context, seqs=seqs
        )
        return ahead_ns + own_ns
    in_all_ns = work_ns(
        step, tokens=load.prefill_tokens + tokens, pairs=load.prefill_pairs + pairs,
        batch_tokens=account.batch_tokens, context=context, seqs=seqs,
    )  # fmt: skip
    if trial.head_done_ns is None:
        trial.head_done_ns = _head_done_ns(trial, now_ns)
    return in_all_ns - trial.head_done_ns


def _head_done_ns(trial: Trial, now_ns: int) -> int:
    """What the head of the line has behind it of its prefill, as far as anybody can tell."""
    account, load = trial.account, trial.load
    head_id = next(iter(account.prefilling), None)
    if account.step is None or head_id is None or head_id in trial.withdrawn:
        return 0
    head = account.residents[head_id]
    head_ns = work_ns(
        account.step, tokens=head.uncached_tokens, pairs=head.pairs,
        batch_tokens=account.batch_tokens, context=load.decode_context, seqs=load.decode_seqs,
    )  # fmt: skip
    return min(head_ns, max(0, now_ns - _at_work_since_ns(account, head)))


def _at_work_since_ns(account: Account, head: Resident) -> int:
    """Since when an engine works on its line. While the head waits for its slices, that is the next one's turn."""
    since_ns = account.head_since_ns + head.load_ns
    following = next(islice(account.prefilling, 1, None), None) if head.load_ns else None
    if following is None:
        return since_ns
    return min(since_ns, max(account.head_since_ns, account.residents[following].begun_ns))


def is_full(trial: Trial, request: RequestArrived, settings: AdmissionSettings) -> bool:
    """Whether it cannot go there now, whatever its answer's length: what `blocked` finds first, at a glance."""
    account, load = trial.account, trial.load
    if load.seqs + account.foreign_seqs >= account.seqs_max or goes_on_first(trial, request):
        return True
    if not account.kv_blocks:
        return False
    own = blocks(account, held_tokens(account, request))
    alike = _blocks_of_kind(load, request.kind, load.blocks_held)
    share = room_blocks(account, request.kind, settings)
    first = not alike and share > 0
    return load.blocks_held + own > budget_blocks(account, settings) or (not first and alike + own > share)


def blocked(one: Prospect, settings: AdmissionSettings, now_ns: int) -> DeferReason | None:
    """Why the request cannot go to this engine now; None when it can."""
    account, load = one.trial.account, one.trial.load
    if load.seqs + account.foreign_seqs >= account.seqs_max:
        return DeferReason.SEQS_MAX
    if goes_on_first(one.trial, one.request):
        return DeferReason.BEHIND_OTHERS
    if account.kv_blocks:
        why = lacks(one, settings)
        if why is not None:
            return why
    if one.judged and is_backed_up(one.trial, settings, now_ns):
        return DeferReason.PREFILL_BACKLOG
    if settings.tpot_margin_ppm and account.step is not None and _breaks_pace(one, settings, now_ns):
        return DeferReason.TPOT_GUARD
    return None


def goes_on_first(trial: Trial, request: RequestArrived) -> bool:
    """Whether a preempted request that can go on only there comes before this one."""
    parked = trial.account.parked
    return bool(parked) and any(
        one.request.priority >= request.priority for name, one in parked.items() if name not in trial.resumed
    )


def backlog_ns(trial: Trial, now_ns: int) -> int:
    """Prefill work in line there, corrected."""
    if trial.backlog_ns is None:
        raw_ns = raw_ttft_ns(trial, tokens=0, pairs=0, now_ns=now_ns) if trial.load.prefill_tokens else 0
        trial.backlog_ns = raw_ns * trial.account.correction.ratio_ppm // PPM
    return trial.backlog_ns


def own_work_ns(one: Prospect, now_ns: int) -> int:
    """What of its predicted TTFT is its own prefill, beside what is decoded there: those after it wait for it, too."""
    return max(0, one.raw_ns * one.trial.account.correction.ratio_ppm // PPM - backlog_ns(one.trial, now_ns))


def is_backed_up(trial: Trial, settings: AdmissionSettings, now_ns: int) -> bool:
    """Whether so much prefill work stands before the engine that what waits loses nothing by waiting here."""
    return turn_in_ns(trial, settings, now_ns) > 0


def turn_in_ns(trial: Trial, settings: AdmissionSettings, now_ns: int) -> int:
    """After how much time that will be over: the engine takes what waits here (not above 0: it does now)."""
    if not settings.backlog_max_ns or not trial.load.prefill_tokens:
        return 0
    return backlog_ns(trial, now_ns) - settings.backlog_max_ns - AHEAD * trial.account.control_ns


def budget_blocks(account: Account, settings: AdmissionSettings) -> int:
    """The KV blocks that ours may hold there, as the books count: what prompts have in common is counted for each."""
    return usable_blocks(account, settings) - account.foreign_blocks + shared_blocks(account)


def budget_left_ppm(one: Prospect, settings: AdmissionSettings) -> int:
    """The share of the engine's budget that is left once the request is there, and all are at their reserved length."""
    account = one.trial.account
    if not account.kv_blocks:
        return PPM
    budget = max(budget_blocks(account, settings), 1)
    left = budget - one.trial.load.blocks_final - blocks_wanted(one, settings)
    return PPM * max(left, 0) // budget


def peak_with(one: Prospect, settings: AdmissionSettings) -> int:
    """Predicted peak of the engine's KV blocks in use by ours, the request among them."""
    account, embeds = one.trial.account, one.request.kind is RequestKind.EMBEDDING
    own = blocks(account, held_tokens(account, one.request)) if embeds else 0
    return llm_peak(one, settings) + one.trial.load.embedding_blocks + own


def parted_blocks(trial: Trial) -> int:
    """What those that are taken off the engine have in common with others: it stays there, not theirs to give."""
    shared = trial.account.shared
    tokens = sum(shared_prefix.common_tokens(shared, slices_of(one)) for one in trial.withdrawn.values())
    return blocks(trial.account, tokens)


def fits_peak(one: Prospect, peak: int, settings: AdmissionSettings) -> bool:
    """Whether the budget there holds a predicted peak of LLM requests (`llm_peak`) beside the embedding jobs. Where
    prompts have something in common, also when some of those that share it have ended: that is looked at last."""
    account = one.trial.account
    embeds = one.request.kind is RequestKind.EMBEDDING
    own = blocks(account, held_tokens(account, one.request)) if embeds else 0
    left = budget_blocks(account, settings) - parted_blocks(one.trial) - one.trial.load.embedding_blocks - own
    return peak <= left and (not shared_blocks(account) or llm_peak(one, settings, parting=True) <= left)


def llm_peak(one: Prospect, settings: AdmissionSettings, *, parting: bool = False) -> int:
    """Predicted peak of the KV blocks in use by LLM requests there, this one among them if it is one, as the books
    count. `parting`: what an answer that ends has in common with others counts on, for they still hold it."""
    account, load = one.trial.account, one.trial.load
    growth = growth_of(one.trial, parting=parting)
    chunk = max(1, account.batch_tokens - load.decode_seqs)
    # Who is still in prefill begins to grow later, so it ends that many steps later.
    late = -(-(load.prefill_tokens + one.request.prompt_tokens - one.cached_tokens) // chunk)
    running = [*growth.begun, *((left + late, held) for left, held in growth.in_prefill)]
    if one.request.kind is RequestKind.LLM:
        running.append((reserved_tokens(one, settings) + late, one.request.prompt_tokens))
    return growth.blocks + peak_blocks(running, block_tokens=account.block_tokens)


def lacks(one: Prospect, settings: AdmissionSettings) -> DeferReason | None:
    """Whether memory there is too small for it now (`kv_budget`), or its kind's share of it (`share`)."""
    account, load, kind = one.trial.account, one.trial.load, one.request.kind
    budget, share = budget_blocks(account, settings), room_blocks(account, kind, settings)
    if one.trial.withdrawn:
        parted = parted_blocks(one.trial)
        budget, share = budget - parted, share - (parted if kind is RequestKind.LLM else 0)
    if share > 0 and not _blocks_of_kind(load, kind, load.blocks_held):
        share = budget  # The first of its kind may be larger than a share, else it would wait for ever.
    now, later = blocks(account, held_tokens(account, one.request)), blocks_wanted(one, settings)
    # Cheap answers first: all at full length fits, or what is held already does not.
    if load.blocks_final + later <= budget and _blocks_of_kind(load, kind, load.blocks_final) + later <= share:
        return None
    if load.blocks_held + now > budget:
        return DeferReason.KV_BUDGET
    if _blocks_of_kind(load, kind, load.blocks_held) + now > share:
        return DeferReason.SHARE
    peak = llm_peak(one, settings)
    embedding = load.embedding_blocks + (now if kind is RequestKind.EMBEDDING else 0)
    if not fits_peak(one, peak, settings):
        return DeferReason.KV_BUDGET
    return DeferReason.SHARE if (peak if kind is RequestKind.LLM else embedding) > share else None


def _blocks_of_kind(load: Load, kind: RequestKind, in_all: int) -> int:
    """The part of the blocks in all that this kind has."""
    return in_all - load.embedding_blocks if kind is RequestKind.LLM else load.embedding_blocks


def _breaks_pace(one: Prospect, settings: AdmissionSettings, now_ns: int) -> bool:
    trial, request, load = one.trial, one.request, one.trial.load
    if not load.decode_seqs and not load.prefill_decodes:
        return False
    if trial.pace is None:
        trial.pace = _pace_now(trial, settings, now_ns)
    before, answers = trial.pace
    llm = request.kind is RequestKind.LLM
    tokens = load.prefill_tokens + request.prompt_tokens - one.cached_tokens
    after = _pace(trial, tokens=tokens, prefill_ns=one.raw_ns, decodes=1 if llm else 0, context=request.prompt_tokens)
    own_limit_ns = request.slo_tpot_ns if llm else 0
    return breaks_pace(
        answers, before=before, after=after, own_limit_ns=own_limit_ns, margin_ppm=settings.tpot_margin_ppm
    )


def _pace_now(trial: Trial, settings: AdmissionSettings, now_ns: int) -> tuple[Pace, list[Answer]]:
    """How the engine steps as it is, and the answers there that keep their limits so."""
    tokens = trial.load.prefill_tokens
    prefill_ns = raw_ttft_ns(trial, tokens=0, pairs=0, now_ns=now_ns) if tokens else 0
    pace = _pace(trial, tokens=tokens, prefill_ns=prefill_ns)
    step_now_ns = pace.prefill_ns // pace.prefill_steps if pace.prefill_steps else pace.step_ns
    decoding = (
        _decoding(resident, step_now_ns, now_ns)
        for resident in trial.residents()
        if resident.decodes and resident.request.slo_tpot_ns
    )
    return pace, would_hold(decoding, pace, margin_ppm=settings.tpot_margin_ppm)


def _pace(trial: Trial, *, tokens: int, prefill_ns: int, decodes: int = 0, context: int = 0) -> Pace:
    """How the engine steps with all that prefill will soon decode, `tokens` of prefill that take so long, and `decodes`
    more answers (one or none) with so much context."""
    account, load = trial.account, trial.load
    assert account.step is not None, "pace is asked for where there is a model"
    seqs = load.decode_seqs + load.prefill_decodes + decodes
    context = load.decode_context + load.prefill_context + decodes * context
    chunk = max(1, account.batch_tokens - load.decode_seqs)
    return Pace(step_ns(account.step, tokens=seqs, context=context, seqs=seqs), -(-tokens // chunk), prefill_ns)


def _decoding(resident: Resident, step_now_ns: int, now_ns: int) -> Decoding:
    left_min = max(1, resident.output_expected // EXPECTED_LEFT_MIN)
    expected = max(resident.output_expected, resident.output_tokens + left_min)
    tokens = min(tokens_now(resident, step_now_ns, now_ns), expected)
    begun_ns = resident.first_ns or resident.token_ns or now_ns
    return Decoding(resident.request.slo_tpot_ns, tokens, expected, now_ns - begun_ns)


def tokens_now(resident: Resident, step_now_ns: int, now_ns: int) -> int:
    """How far its answer probably is: told at `seen_ns`, and a token a step since, but not that it has ended."""
    if resident.prefilling:
        return resident.output_tokens
    tokens = resident.output_tokens + max(0, now_ns - resident.seen_ns) // max(step_now_ns, 1)
    return max(min(tokens, expected_tokens(resident) - 1), resident.output_tokens)


def expected_tokens(resident: Resident) -> int:
    """How long its answer will probably be: the median, until that is reached."""
    expected = resident.output_expected if resident.output_tokens < resident.output_expected else 0
    return max(expected or resident.output_reserved, resident.output_tokens, 1)
