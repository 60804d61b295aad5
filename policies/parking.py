"""What becomes of a preempted request: back into its line, or parked on its engine until it goes on there.

Without a first token it waits like any other, with its own deadline, and can go anywhere. When its latest start passes
it is refused (`evicted_deadline_passed`: it was preempted, and some of its work was done), or goes late.

With a first token its stream is open, and only its engine can continue it. It is parked there and never refused:

- it goes on before anybody of the same or a lower priority gets anything on that engine, as soon as a sequence is free
  and its memory is there (its kind's share is not held against it: it was promised once);
- only those of a higher priority that wait go before it;
- after `resume_max_ns` it goes on whatever else there is: then the engine itself has to find room.

It is computed anew: prompt, and output so far.

Example: parked with a prompt of 1,000 and 50 tokens of output, it goes on as a prefill of 1,050.
"""

import msgspec

from events.base import PPM, EngineId, RequestKind
from policies.accounts import Account, Resident, has_begun
from policies.admission_settings import AdmissionSettings
from policies.forecast import Prospect, alone_ns, fits_peak, llm_peak, prospect, resident_of
from policies.predictors.output_question import Foretold
from policies.trial import Trial, trial_of
from policies.waiting import Waiting


def put_back(
    account: Account, resident: Resident, settings: AdmissionSettings, *, output_tokens: int, now_ns: int
) -> Waiting:
    """How a request waits that was taken off this engine. `arrived_ns` of one that is parked is now."""
    request = resident.request
    begun = has_begun(resident)
    again = prospect(trial_of(account), request, foretold=resident.foretold, now_ns=now_ns)
    work_ns = alone_ns(again) if again.judged else 0
    return Waiting(
        request=request,
        arrived_ns=now_ns if begun else request.deadline_ns - request.slo_ttft_ns,
        until_ns=0 if begun else request.deadline_ns - work_ns * settings.ttft_margin_ppm // PPM,
        work_ns=work_ns,
        preemptions=resident.preemptions + 1,
        preempted_on=account.engine_id,
        resume_on=account.engine_id if begun else EngineId(""),
        output_tokens=output_tokens if begun else 0,
        token_ns=resident.token_ns or resident.first_ns,
        foretold=resident.foretold,
    )


def as_waiting(resident: Resident) -> Waiting:
    """A request that went elsewhere after it was taken off an engine, as it waited before."""
    return Waiting(
        request=resident.request, preemptions=resident.preemptions, preempted_on=resident.preempted_on,
        foretold=resident.foretold,
    )  # fmt: skip


def begun_after_all(one: Waiting, account: Account, *, now_ns: int) -> Waiting:
    """The same, of whose answer this engine, which it was taken off too late, has just sent the first token."""
    return msgspec.structs.replace(
        one, resume_on=account.engine_id, arrived_ns=now_ns, until_ns=0, work_ns=0, output_tokens=1, token_ns=now_ns
    )


def back_in_place(trial: Trial, one: Waiting, reserved: int, *, now_ns: int) -> Resident:
    """How it stands in the account of an engine that did not let go of it: as one that makes tokens."""
    sent = resident_again(trial, one, reserved=reserved, cached=0, now_ns=now_ns)
    sent.first_ns = now_ns
    return sent


def going_on(trial: Trial, one: Waiting, *, foretold: Foretold, now_ns: int) -> Prospect:
    """A parked request on its engine: all that it had is prompt now, the rest of what is `foretold` is left."""
    made = one.output_tokens
    request = msgspec.structs.replace(one.request, prompt_tokens=one.request.prompt_tokens + made, slices=())
    left = msgspec.structs.replace(
        foretold, low=max(foretold.low - made, 0), expected=max(foretold.expected - made, 1),
        high=max(foretold.high - made, 1),
    )  # fmt: skip
    return prospect(trial, request, foretold=left, now_ns=now_ns)


def fits(one: Prospect, settings: AdmissionSettings) -> bool:
    """Whether a parked request can go on now."""
    account = one.trial.account
    if one.trial.load.seqs + account.foreign_seqs >= account.seqs_max:
        return False
    return not account.kv_blocks or fits_peak(one, llm_peak(one, settings), settings)


def resident_again(trial: Trial, one: Waiting, *, reserved: int, cached: int, now_ns: int) -> Resident:
    """How it stands in the account when it goes on: with `reserved` output tokens in all."""
    assert one.request.kind is RequestKind.LLM, "only what makes tokens is parked"
    made = one.output_tokens
    whole = msgspec.structs.replace(one.request, prompt_tokens=one.request.prompt_tokens + made)
    sent = resident_of(trial, whole, foretold=one.foretold, cached=cached, reserved=reserved, now_ns=now_ns)
    sent.request, sent.prompt_tokens, sent.output_tokens = one.request, one.request.prompt_tokens, made
    # Nobody says when the engine has computed it anew: presumed when its predicted time is over.
    sent.due_ns = now_ns + max(1, sent.ttft_raw_ns * trial.account.correction.ratio_ppm // PPM)
    sent.token_ns, sent.seen_ns = one.token_ns, now_ns
    sent.preemptions, sent.preempted_on = one.preemptions, one.preempted_on
    return sent
