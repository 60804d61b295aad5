"""What each engine is, what it holds of ours, and what it told: the books of admission.

Sums are kept as requests come and go, so that looking at an engine costs the same however much runs there. A request
is taken out of the sums, changed, and put back: no sum can drift.
"""

from itertools import islice, takewhile

import msgspec

from events.base import NS_PER_S, PPM, EngineId, ModelId, RequestId, RequestKind, SliceId
from events.decisions import ShareReason, SharesSet
from events.engine import EngineMeasured, EngineRegistered, Health, StepModel
from events.request import RequestArrived
from policies import prefix_index, shared_prefix
from policies.predictors.output_question import Foretold
from policies.predictors.ttft import Correction, take_in
from policies.prefix_index import PrefixIndex
from policies.shared_prefix import SharedPrefix
from policies.tier_index import TierIndex
from policies.waiting import Waiting

BEAT_TOKENS = 64
"""Tokens that a decode may have made since its holder last said so: no sign of somebody else's use."""
CONTROL_MAX_NS = NS_PER_S
"""The longest way from a decision to its engine that is believed: what takes longer was held up by something else."""
CONTROL_FADE = 16
"""The newest of these ways counts one part in so many."""
OVERDUE_MAX = 16
"""Requests per engine and tick that are dropped for being there too long."""
KV_TOKENS_DEFAULT = 1_000_000
"""Tokens that an engine which does not tell the size of its KV is taken to hold."""


class Resident(msgspec.Struct, kw_only=True):
    """One request that was sent to an engine, as it arrived.
    `output_reserved` is what memory is promised for, `output_expected` the median; `first_ns` is 0 until its first
    token; `seen_ns` is when `output_tokens` was last told.

    One that was preempted before has `preemptions` (how often) and `preempted_on` (where last). If it had its first
    token by then, that was at `token_ns`: it now computes its prompt and `output_tokens` anew."""

    request: RequestArrived
    foretold: Foretold
    decodes: bool
    prompt_tokens: int
    uncached_tokens: int
    pairs: int
    output_reserved: int
    output_expected: int
    admitted_ns: int
    ttft_raw_ns: int
    begun_ns: int = 0
    """From when `ttft_raw_ns` counts: from its dispatch if no prefill stood before it, else from its admission."""
    due_ns: int = 0
    """When its prefill is presumed to be over, where nobody tells: its answer comes in one piece. 0 = it is told."""
    presumed: bool = False
    load_ns: int = 0
    """How long it waits for slices when its turn has come: so long nothing of its prefill is done."""
    output_tokens: int = 0
    first_ns: int = 0
    seen_ns: int = 0
    preemptions: int = 0
    preempted_on: EngineId = EngineId("")
    token_ns: int = 0
    bytes_charged: int = 0
    """What stands for it in its tenant's book."""

    @property
    def prefilling(self) -> bool:
        """Whether its first token (or its vector) is still to come."""
        return self.first_ns == 0


class Load(msgspec.Struct, kw_only=True):
    """Sums over the residents of an engine. `blocks_final` is what all would hold at their reserved length, and
    `embedding_blocks` the part of it that is workspace of embedding jobs: all held at once, until they end."""

    seqs: int = 0
    prefill_tokens: int = 0
    prefill_pairs: int = 0
    prefill_context: int = 0
    prefill_decodes: int = 0
    decode_seqs: int = 0
    decode_context: int = 0
    blocks_held: int = 0
    blocks_final: int = 0
    embedding_blocks: int = 0


class Account(msgspec.Struct, kw_only=True):
    """One engine. `suspect`: a holder lost it, and nothing was heard of it since. `removed`: it left the pool, and
    stays here only until its residents end. `foreign_blocks` are in use there, and not by ours.

    `llm_ppm` and `embedding_ppm` of its usable blocks are what each kind may hold (-1 = no cap), `own_shares` says that
    they were set for this engine and not for the pool. What it has cached is told by `tiers` where it `reports_slices`,
    else guessed by `prefix`. `parked` are its preempted requests that can go on only there;
    `priorities` counts the residents by priority."""

    engine_id: EngineId
    models: tuple[ModelId, ...] = ()
    kv_blocks: int = 0
    block_tokens: int = 1
    block_bytes: int = 0
    seqs_max: int = 0
    batch_tokens: int = 1
    context_tokens_max: int = 0
    llm: bool = True
    embedding: bool = False
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    can_preempt: bool = False
    can_abort: bool = True
    steps_ahead: int = 0
    llm_ppm: int = -1
    embedding_ppm: int = -1
    own_shares: bool = False
    step: StepModel | None = None
    health: Health = Health.READY
    suspect: bool = False
    removed: bool = False
    residents: dict[RequestId, Resident] = msgspec.field(default_factory=dict)
    prefilling: dict[RequestId, int] = msgspec.field(default_factory=dict)
    """Who waits for a first token there, in order, with its uncached tokens."""
    parked: dict[RequestId, Waiting] = msgspec.field(default_factory=dict)
    priorities: dict[int, int] = msgspec.field(default_factory=dict)
    head_since_ns: int = 0
    """When the first of `prefilling` came to its turn."""
    control_ns: int = 0
    """How long it takes of late from a decision to its holder's call: log, decider and holder together."""
    load: Load = msgspec.field(default_factory=Load)
    foreign_blocks: int = 0
    excess_blocks: int = 0
    foreign_seqs: int = 0
    excess_seqs: int = 0
    correction: Correction = msgspec.field(default_factory=Correction)
    shared: SharedPrefix = msgspec.field(default_factory=SharedPrefix)
    prefix: PrefixIndex = msgspec.field(default_factory=PrefixIndex)
    reports_slices: bool = False
    tiers: TierIndex = msgspec.field(default_factory=TierIndex)

    def takes_work(self) -> bool:
        """Whether anything new may go there."""
        return self.health is Health.READY and not self.suspect and not self.removed

    def serves(self, model: ModelId, kind: RequestKind) -> bool:
        """Whether it has the model, and does that kind of work."""
        return model in self.models and (self.llm if kind is RequestKind.LLM else self.embedding)


def blocks(account: Account, tokens: int) -> int:
    """Blocks that hold `tokens` tokens there."""
    return -(-tokens // account.block_tokens)


def divide(account: Account, shares: SharesSet | None) -> None:
    """Its memory is shared by kind from now on, or not (None); never where it serves one kind only."""
    divided = shares if account.llm and account.embedding else None
    account.llm_ppm = divided.llm_ppm if divided is not None else -1
    account.embedding_ppm = divided.embedding_ppm if divided is not None else -1


def shares_set(books: dict[EngineId, Account], pool: SharesSet | None, event: SharesSet) -> SharesSet | None:
    """An engine's memory is divided, or that of all engines that have no division of their own; what the pool's is
    from now on."""
    lifted = event.reason is ShareReason.LIFTED
    if not event.engine_id:
        pool = None if lifted else event
        for each in books.values():
            if not each.own_shares:
                divide(each, pool)
    elif (account := books.get(event.engine_id)) is not None:
        account.own_shares = not lifted
        divide(account, pool if lifted else event)
    return pool


def slices_of(resident: Resident) -> tuple[SliceId, ...]:
    """The slices that its prompt fills and keeps: an embedding job keeps none."""
    request = resident.request
    return request.slices[: request.prompt_tokens // request.slice_tokens] if resident.decodes else ()


def shared_blocks(account: Account) -> int:
    """Blocks that stand in the books more than once, and in the engine once: whole ones only."""
    return account.shared.tokens // account.block_tokens


def describe(account: Account, event: EngineRegistered) -> None:
    """Take over what the engine is; what runs there stays, counted anew."""
    capability = event.capability
    account.models = event.models
    account.kv_blocks, account.block_bytes = event.kv_blocks, event.block_bytes
    account.block_tokens = max(event.block_tokens, 1)
    account.seqs_max, account.batch_tokens = capability.seqs_max, capability.batch_tokens_max
    account.context_tokens_max = capability.context_tokens_max
    account.llm, account.embedding = capability.llm, capability.embedding
    account.labels = capability.labels
    account.can_preempt, account.can_abort = capability.can_preempt, capability.can_abort
    account.reports_slices, account.steps_ahead = capability.reports_slices, capability.steps_ahead
    account.step = event.step
    account.suspect = account.removed = False
    account.load = Load()
    for resident in account.residents.values():
        count(account.load, account, resident, 1)


def count(load: Load, account: Account, resident: Resident, sign: int) -> None:
    """Add a resident to sums (sign 1), or take it out (-1)."""
    prompt = resident.prompt_tokens
    load.seqs += sign
    if resident.first_ns == 0:
        load.prefill_tokens += sign * resident.uncached_tokens
        load.prefill_pairs += sign * resident.pairs
        if resident.decodes:
            load.prefill_context += sign * (prompt + resident.output_tokens)
            load.prefill_decodes += sign
    elif resident.decodes:
        load.decode_seqs += sign
        load.decode_context += sign * (prompt + resident.output_tokens)
    size = account.block_tokens
    load.blocks_held += sign * -(-(prompt + resident.output_tokens) // size)
    final = -(-(prompt + max(resident.output_reserved, resident.output_tokens)) // size)
    load.blocks_final += sign * final
    if not resident.decodes:
        load.embedding_blocks += sign * final


def bytes_of(account: Account, resident: Resident) -> int:
    """What it holds there at its reserved length: what it costs its tenant."""
    tokens = resident.prompt_tokens + max(resident.output_reserved, resident.output_tokens)
    return blocks(account, tokens) * account.block_bytes


def hold(account: Account, request_id: RequestId, resident: Resident) -> None:
    """A request was sent there."""
    account.residents[request_id] = resident
    shared_prefix.hold(account.shared, slices_of(resident), slice_tokens=resident.request.slice_tokens)
    priority = resident.request.priority
    account.priorities[priority] = account.priorities.get(priority, 0) + 1
    resident.begun_ns = resident.admitted_ns
    if resident.prefilling:
        if not account.prefilling:
            resident.begun_ns += account.control_ns
            account.head_since_ns = resident.begun_ns
        account.prefilling[request_id] = resident.uncached_tokens
    count(account.load, account, resident, 1)


def dispatched(account: Account, request_id: RequestId, now_ns: int) -> None:
    """Its holder is about to call the engine. Only now the turn of one at the head of the line begins."""
    resident = account.residents[request_id]
    took_ns = min(max(now_ns - resident.admitted_ns, 0), CONTROL_MAX_NS)
    account.control_ns += (took_ns - account.control_ns) // CONTROL_FADE
    if next(iter(account.prefilling), None) == request_id:
        if resident.begun_ns == account.head_since_ns:
            resident.begun_ns = account.head_since_ns = now_ns
        account.head_since_ns = max(account.head_since_ns, now_ns)


def first_token(account: Account, request_id: RequestId, now_ns: int) -> None:
    """Its first token came: what was predicted is held against it."""
    resident = account.residents[request_id]
    if resident.token_ns or not (resident.prefilling or resident.presumed):
        return
    take_in(
        account.correction, seen_ns=max(0, now_ns - resident.begun_ns), predicted_ns=resident.ttft_raw_ns,
        modelled=account.step is not None,
    )  # fmt: skip
    if resident.presumed:
        resident.presumed = False
    else:
        _begin_decode(account, request_id, now_ns)


def presume_first_tokens(account: Account, now_ns: int) -> None:
    """Nobody sees the first token of an answer that comes in one piece: at the head of the line, its prefill is over
    when its predicted time has passed."""
    while account.prefilling:
        request_id = next(iter(account.prefilling))
        resident = account.residents[request_id]
        if not 0 < resident.due_ns <= now_ns:
            return
        resident.presumed = True
        _begin_decode(account, request_id, max(resident.due_ns, account.head_since_ns))


def _begin_decode(account: Account, request_id: RequestId, now_ns: int) -> None:
    """Its prefill is over: it decodes from now on, and the next in line is at its turn."""
    resident = account.residents[request_id]
    count(account.load, account, resident, -1)
    resident.seen_ns = max(now_ns, 1)
    resident.first_ns = resident.token_ns or resident.seen_ns
    if resident.decodes and not resident.output_tokens:
        resident.output_tokens = 1
    count(account.load, account, resident, 1)
    del account.prefilling[request_id]
    account.head_since_ns = now_ns


def progressed(account: Account, request_id: RequestId, output_tokens: int, now_ns: int) -> None:
    """It has that many output tokens now. Less than before (said late) changes nothing, nor is more believed than
    the engine can hold."""
    resident = account.residents[request_id]
    output_tokens = min(output_tokens, kv_tokens(account))
    if output_tokens <= resident.output_tokens or not resident.decodes:
        return
    if resident.prefilling and resident.token_ns:
        _begin_decode(account, request_id, now_ns)
    elif resident.prefilling:
        first_token(account, request_id, now_ns)
    # The same as taking it out and putting it back, but this is said of every running request every second.
    load, size, before = account.load, account.block_tokens, resident.prompt_tokens + resident.output_tokens
    after = resident.prompt_tokens + output_tokens
    load.decode_context += after - before
    load.blocks_held += -(-after // size) - -(-before // size)
    if output_tokens > resident.output_reserved:
        final = resident.prompt_tokens + max(resident.output_reserved, resident.output_tokens)
        load.blocks_final += -(-after // size) - -(-final // size)
    resident.output_tokens, resident.seen_ns = output_tokens, now_ns


def reserve(account: Account, request_id: RequestId, output_reserved: int) -> None:
    """It turned out longer than was thought: promise it that many output tokens."""
    resident = account.residents[request_id]
    count(account.load, account, resident, -1)
    resident.output_reserved = output_reserved
    count(account.load, account, resident, 1)


def release(account: Account, request_id: RequestId, now_ns: int) -> Resident:
    """It ended: all it held is free."""
    resident = account.residents.pop(request_id)
    shared_prefix.release(account.shared, slices_of(resident))
    count(account.load, account, resident, -1)
    priority = resident.request.priority
    account.priorities[priority] -= 1
    if not account.priorities[priority]:
        del account.priorities[priority]
    if request_id in account.prefilling:
        if next(iter(account.prefilling)) == request_id:
            account.head_since_ns = now_ns
        del account.prefilling[request_id]
    return resident


def overdue(account: Account, limit_ns: int) -> list[RequestId]:
    """Those that were admitted at that time or before, the first OVERDUE_MAX. Residents stand in the order in which
    they were admitted, so the first young one ends the search."""
    first = islice(account.residents.items(), OVERDUE_MAX)
    return [request_id for request_id, _ in takewhile(lambda item: item[1].admitted_ns <= limit_ns, first)]


def measure(account: Account, event: EngineMeasured) -> None:
    """Hold what the engine says against the books. What it uses beyond what ours can is somebody else's once it was
    seen twice in a row: once may be a request that ended in between. What was promised since counts in any case."""
    account.suspect = False
    load = account.load
    ours = min(load.blocks_final, load.blocks_held + load.decode_seqs * blocks(account, BEAT_TOKENS))
    ours -= shared_blocks(account)
    excess_blocks = max(0, event.kv_used_ppm * account.kv_blocks // PPM - ours)
    excess_seqs = max(0, event.running + event.waiting - load.seqs)
    account.foreign_blocks = min(excess_blocks, account.excess_blocks)
    account.foreign_seqs = min(excess_seqs, account.excess_seqs)
    account.excess_blocks, account.excess_seqs = excess_blocks, excess_seqs


def change_health(account: Account, health: Health) -> None:
    """It began or stopped answering. What a lost engine had cached is gone."""
    account.health, account.suspect = health, False
    if health is Health.LOST:
        prefix_index.clear(account.prefix)
        account.foreign_blocks = account.excess_blocks = account.foreign_seqs = account.excess_seqs = 0


def kv_tokens(account: Account) -> int:
    """How many tokens its KV can hold."""
    return account.kv_blocks * account.block_tokens or KV_TOKENS_DEFAULT


def has_begun(resident: Resident) -> bool:
    """Whether its first token is, or is presumed to be, there: also of one that computes anew after a preemption."""
    return resident.first_ns > 0 or resident.token_ns > 0
