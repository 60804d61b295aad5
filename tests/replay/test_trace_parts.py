"""Parts of traces, traces without names, and what is said of a trace."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from events.base import NS_PER_S, PoolId, RequestKind
from events.log.journal import read_journal
from replay.costmodel import LLAMA_8B_KV, registered
from replay.traces.anonymise import anonymised
from replay.traces.describe import describe
from replay.traces.own import POOL, THREE_TENANTS, three_tenants, write
from replay.traces.sample import sample, sessions_of
from replay.workloads.base import Arrival
from replay.workloads.facts import TraceRow, arrivals_of, row_of, rows_of, rows_to_messages

ENGINE = registered("trace", ["llama-3-8b"])
KEY = b"0123456789abcdef"
OWN = [row_of(arrival, ENGINE) for arrival in three_tenants()]


def rows(*arrivals: Arrival) -> list[TraceRow]:
    named = (replace(one, request_id=one.request_id or f"r{n}", at_ns=n * NS_PER_S) for n, one in enumerate(arrivals))
    return [row_of(one, ENGINE) for one in named]


def turn(*prefix: int, name: str = "", **more: object) -> Arrival:
    made = Arrival(
        at_ns=0, request_id=name, prompt_tokens=512 * len(prefix) + 10, output_tokens=20, prefix=prefix,
    )  # fmt: skip
    return replace(made, **more)


def groups(found: list[TraceRow]) -> list[list[str]]:
    return [[row.arrived.request_id for row in group] for group in sessions_of(found)]


def test_a_session_is_what_is_named_so_waits_for_each_other_or_goes_on_with_a_prompt() -> None:
    trace = rows(
        turn(1, 2, name="a", session="s"),
        turn(1, 7, name="b", session="s", tenant="other"),
        turn(1, 3, name="c"),
        turn(9, name="d", session="s"),
        turn(1, 3, 4, name="e"),
        turn(5, name="f", after="b"),
        turn(1, name="g"),
        turn(8, name="h", session="late", after="f"),
    )
    assert groups(trace) == [["a", "d"], ["b", "f", "h"], ["c", "e"], ["g"]]


@given(seed=st.integers(0, 99), share=st.floats(0.01, 1.0))
def test_a_sample_keeps_sessions_whole_in_order_and_at_their_times(seed: int, share: float) -> None:
    chosen = sample(OWN, seed=seed, share=share)
    whole = {row.arrived.request_id: row for row in OWN}
    assert [row.at_ns for row in chosen] == sorted(row.at_ns for row in chosen)
    assert all(whole[row.arrived.request_id] == row for row in chosen)
    names = {row.arrived.request_id for row in chosen}
    assert all(row.traced.after in names for row in chosen if row.traced.after)
    sessions = Counter(row.arrived.session for row in chosen if row.arrived.session)
    of_all = Counter(row.arrived.session for row in OWN)
    assert all(of_all[session] == count for session, count in sessions.items())
    assert len(sessions_of(chosen)) == max(1, round(share * len(sessions_of(OWN))))


def test_a_sample_is_a_function_of_its_seed() -> None:
    one, same, other = (sample(OWN, seed=seed, count=20) for seed in (1, 1, 2))
    assert one == same != other
    assert len(sessions_of(one)) == 20
    assert sample(OWN, seed=3, count=10**6) == OWN


def test_nothing_of_a_name_is_left_and_what_was_equal_still_is() -> None:
    hidden = list(anonymised(OWN, key=KEY))
    before, after = arrivals_of(rows_to_messages(OWN, pool=POOL)), arrivals_of(rows_to_messages(hidden, pool=POOL))
    for old, new in zip(before, after, strict=True):
        assert replace(new, request_id="", tenant="", session="", after="", prefix=()) == replace(
            old, request_id="", tenant="", session="", after="", prefix=()
        )
    for of in (
        lambda one: (one.request_id,),
        lambda one: (one.tenant,),
        lambda one: (one.session,) if one.session else (),
        lambda one: one.prefix,
    ):
        pairs = {(o, n) for old, new in zip(before, after, strict=True) for o, n in zip(of(old), of(new), strict=True)}
        assert len(pairs) == len({o for o, _ in pairs}) == len({n for _, n in pairs}), "one name for one name"
        assert not {o for o, _ in pairs} & {n for _, n in pairs}
    new_ids = {one.request_id for one in after}
    assert all(one.after in new_ids for one in after if one.after)
    body = b"".join(message.body for message in rows_to_messages(hidden, pool=POOL))
    assert not [name for name in ("chat", "search", "agents") if f'"{name}"'.encode() in body]


def test_names_depend_on_the_key_alone_and_times_can_be_shifted() -> None:
    one, same = (list(anonymised(OWN[:50], key=KEY)) for _ in range(2))
    other = list(anonymised(OWN[:50], key=KEY[::-1], shift_ns=NS_PER_S))
    assert one == same
    assert not {row.arrived.tenant for row in one} & {row.arrived.tenant for row in other}
    assert [row.at_ns - NS_PER_S for row in other] == [row.at_ns for row in one]


def test_a_description_counts_what_is_there() -> None:
    job = Arrival(
        at_ns=0, request_id="", kind=RequestKind.EMBEDDING, tenant="b", prompt_tokens=900, output_tokens=0, inputs=9
    )
    trace = rows(turn(1, 2), turn(1, 2, 3, after="r0", think_ns=2 * NS_PER_S, estimated=True), job, turn(6))
    told = describe(trace, token_bytes=LLAMA_8B_KV.token_bytes())
    assert (told.requests, told.seconds, told.kinds) == (4, 3.0, {"llm": 3, "embedding": 1})
    assert told.tenants == {"default": 3, "b": 1}
    assert (told.sessions, told.turns.most, told.waiting, told.think_ms.p50) == (1, 2, 1, 2_000)
    assert (told.unique_kv_tokens, told.prefix_tokens) == (4 * 512, (512,))
    assert told.unique_kv_bytes == 4 * 512 * 131_072
    assert told.ideal_hit_share == pytest.approx(2 * 512 / (1_034 + 1_546 + 522))
    assert told.estimated == 1
    assert told.kv_cache_bytes.most == -(-(1_546 + 20) // 16) * 16 * 131_072
    assert told.embedding_workspace_bytes.p50 == -(-900 // 16) * 16 * 131_072
    assert describe([], token_bytes=1).requests == 0


def test_the_data_set_that_ships_is_the_one_that_its_generator_draws(tmp_path: Path) -> None:
    write(tmp_path / "again.jsonl")
    header, messages = read_journal(THREE_TENANTS)
    assert header.pool == PoolId("three_tenants")
    shipped = list(messages)
    assert shipped == list(read_journal(tmp_path / "again.jsonl")[1])
    assert THREE_TENANTS.stat().st_size < 200_000
    told = describe(rows_of(shipped), token_bytes=LLAMA_8B_KV.token_bytes())
    assert set(told.kinds) == {"llm", "embedding"}
    assert len(told.tenants) == 3
    assert told.waiting > 200
