"""`is_full` is a shortcut past `blocked`: it may say "full" only where that says so, too, whatever the answer."""

from hypothesis import given
from hypothesis import strategies as st

from events.base import EngineId
from policies.accounts import Account, Load
from policies.admission_settings import AdmissionSettings
from policies.forecast import blocked, is_full, prospect
from policies.predictors.output_question import Foretold
from policies.trial import trial_of
from tests.policies.words import arrived


@given(
    seqs=st.integers(0, 6), foreign_seqs=st.integers(0, 3), held=st.integers(0, 60), kv_blocks=st.sampled_from([0, 50]),
    foreign_blocks=st.integers(0, 10), prompt=st.integers(1, 400), output=st.integers(1, 400),
)  # fmt: skip
def test_what_is_full_at_a_glance_is_blocked(
    seqs: int, foreign_seqs: int, held: int, kv_blocks: int, foreign_blocks: int, prompt: int, output: int
) -> None:
    account = Account(
        engine_id=EngineId("e"), models=(), kv_blocks=kv_blocks, block_tokens=10, seqs_max=5, batch_tokens=100,
        context_tokens_max=1_000, foreign_seqs=foreign_seqs, foreign_blocks=foreign_blocks,
        load=Load(seqs=seqs, blocks_held=held, blocks_final=held),
    )  # fmt: skip
    settings, request = AdmissionSettings(), arrived("r", prompt=prompt)
    one = prospect(trial_of(account), request, foretold=Foretold(expected=output, high=output), now_ns=0)
    if is_full(one.trial, request, settings):
        assert blocked(one, settings, 0) is not None
