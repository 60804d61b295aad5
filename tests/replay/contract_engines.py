"""What holds for every engine in virtual time: one suite for the light model and for vLLM's own scheduler."""

from collections.abc import Sequence
from random import Random

import pytest

from events.base import EngineId, ModelId, RequestId, RequestKind
from events.engine import Capability, EngineKind, EngineRegistered
from policies.predictors.step_time import FS_PER_NS, prefill_ns, step_fs
from replay.costmodel import LLAMA_8B_KV, STEP_MODELS
from replay.engines.base import VirtualEngine
from replay.engines.job import Finished, FirstToken, Outcome, Refused, RefuseReason, SimRequest
from replay.engines.tiers import TierSizes

MS = 1_000_000
S = 1_000_000_000
UNIT = 32
STEP = STEP_MODELS["llama-3-8b_h100"]
BLOCK_BYTES = LLAMA_8B_KV.block_bytes()


def described(
    *, kv_blocks: int = 512, seqs_max: int = 16, batch_tokens: int = 256, embedding: bool = True
) -> EngineRegistered:
    return EngineRegistered(
        engine_id=EngineId("e1"), kind=EngineKind.SIMULATED, models=(ModelId("m"),), kv_blocks=kv_blocks,
        block_tokens=16, block_bytes=BLOCK_BYTES, step=STEP,
        capability=Capability(
            embedding=embedding, seqs_max=seqs_max, batch_tokens_max=batch_tokens, context_tokens_max=4_096
        ),
    )  # fmt: skip


def llm(name: str, prompt: int, output: int, prefix: Sequence[str] = ()) -> SimRequest:
    return SimRequest(
        request_id=RequestId(name), prompt_tokens=prompt, output_tokens=output, prefix=tuple(prefix), unit_tokens=UNIT
    )


def units(name: str, count: int) -> list[str]:
    return [f"{name} {number}" for number in range(count)]


def drain(engine: VirtualEngine) -> list[Outcome]:
    """Look whenever something can come out, until nothing can."""
    found: list[Outcome] = []
    while (at_ns := engine.next_ns()) is not None:
        came = engine.run_until(at_ns)
        assert all(outcome.at_ns == at_ns for outcome in came), "next_ns says when something comes out"
        found += came
    return found


def ends(outcomes: Sequence[Outcome]) -> dict[str, Finished]:
    return {outcome.request_id: outcome for outcome in outcomes if isinstance(outcome, Finished)}


def firsts(outcomes: Sequence[Outcome]) -> dict[str, int]:
    return {outcome.request_id: outcome.at_ns for outcome in outcomes if isinstance(outcome, FirstToken)}


def offered(seed: int, count: int) -> list[tuple[int, SimRequest]]:
    """Some requests that share beginnings, and when they come."""
    rng, at_ns, found = Random(seed), 0, []
    for number in range(count):
        at_ns += rng.randrange(120) * MS
        prompt, document = rng.randint(1, 900), rng.randrange(6)
        if rng.random() < 0.15:
            jobs = SimRequest(
                request_id=RequestId(f"r{number}"), prompt_tokens=prompt + 8, output_tokens=0, inputs=rng.randint(1, 8),
                kind=RequestKind.EMBEDDING,
            )  # fmt: skip
            found.append((at_ns, jobs))
        else:
            request = llm(f"r{number}", prompt, rng.randint(1, 60), units(f"d{document}", prompt // UNIT))
            found.append((at_ns, request))
    return found


def serve(
    engine: VirtualEngine, requests: Sequence[tuple[int, SimRequest]], *, looks: Sequence[int] = ()
) -> list[Outcome]:
    """All of them, at their times; it is looked at whenever something can come out, and at `looks` too."""
    found: list[Outcome] = []
    moments = sorted([(at_ns, 0, request) for at_ns, request in requests] + [(at_ns, 1, None) for at_ns in looks],
                     key=lambda moment: moment[:2])  # fmt: skip
    for at_ns, _, request in moments:
        while (next_ns := engine.next_ns()) is not None and next_ns < at_ns:
            found += engine.run_until(next_ns)
        if request is None:
            found += engine.run_until(at_ns)
        else:
            engine.submit(request, at_ns)
    return found + drain(engine)


class EngineContract:
    """Derive from it, and say how an engine is made."""

    def make(self, registered: EngineRegistered, *, tiers: TierSizes | None = None) -> VirtualEngine:
        raise NotImplementedError

    def test_a_lone_request_takes_what_its_steps_take(self) -> None:
        engine = self.make(described())
        engine.submit(llm("a", 700, 5), 3 * MS)

        found = drain(engine)

        prefill = prefill_ns(STEP, prompt=700, batch_tokens=256)
        decode_fs = sum(step_fs(STEP, tokens=1, context=700 + made, seqs=1) for made in range(1, 5))
        assert abs(firsts(found)["a"] - 3 * MS - prefill) <= 3  # prefill_ns rounds each chunk down
        assert abs(ends(found)["a"].at_ns - firsts(found)["a"] - decode_fs // FS_PER_NS) <= 1

    def test_an_idle_engine_has_nothing_to_say(self) -> None:
        engine = self.make(described())

        assert engine.next_ns() is None
        assert engine.run_until(5 * S) == []
        measured = engine.measured()
        assert (measured.running, measured.waiting, measured.kv_used_ppm) == (0, 0, 0)

    def test_every_request_ends_once_after_its_first_token(self) -> None:
        requests = offered(1, 80)

        found = serve(self.make(described()), requests)

        assert sorted(ends(found)) == sorted(request.request_id for _, request in requests)
        assert len([one for one in found if isinstance(one, Finished)]) == len(requests)
        assert [one.at_ns for one in found] == sorted(one.at_ns for one in found)
        for at_ns, request in requests:
            end, first = ends(found)[request.request_id], firsts(found).get(request.request_id)
            assert end.output_tokens == request.output_tokens
            assert (first is not None) == (request.kind is RequestKind.LLM)
            assert at_ns < (first or end.at_ns) <= end.at_ns

    def test_when_it_is_looked_at_changes_nothing(self) -> None:
        requests, rng = offered(2, 60), Random(5)
        looks = [rng.randrange(requests[-1][0] + 2 * S) for _ in range(300)]

        plain = serve(self.make(described(kv_blocks=120)), requests)
        looked = serve(self.make(described(kv_blocks=120)), requests, looks=looks)

        assert looked == plain

    def test_what_was_computed_is_found_again_except_for_the_last_token(self) -> None:
        engine = self.make(described())
        engine.submit(llm("a", 4 * UNIT, 2, units("d", 4)), 0)
        drain(engine)
        for name, prefix in (("same", units("d", 4)), ("longer", units("d", 8)), ("other", units("e", 4))):
            engine.submit(llm(name, UNIT * len(prefix), 2, prefix), 60 * S)

        found = ends(drain(engine))

        assert found["longer"].cached_tokens == 4 * UNIT
        assert 3 * UNIT <= found["same"].cached_tokens < 4 * UNIT
        assert found["other"].cached_tokens == 0
        assert engine.measured().prefix_hits_total == sum(one.cached_tokens for one in found.values())
        assert engine.measured().prefix_queries_total == 20 * UNIT

    def test_a_unit_is_the_same_only_behind_the_same(self) -> None:
        engine = self.make(described())
        engine.submit(llm("a", 4 * UNIT, 2, ["x", "y", "z", "w"]), 0)
        drain(engine)
        engine.submit(llm("b", 4 * UNIT, 2, ["v", "y", "z", "w"]), 60 * S)

        assert ends(drain(engine))["b"].cached_tokens == 0

    def test_first_come_is_first_served(self) -> None:
        engine = self.make(described(seqs_max=2))
        for number in range(8):
            engine.submit(llm(f"r{number}", 300, 20), number * MS)

        first = firsts(drain(engine))

        assert list(first) == [f"r{number}" for number in range(8)]

    def test_what_is_too_long_or_not_served_is_refused_at_once(self) -> None:
        engine = self.make(described(kv_blocks=32, embedding=False))
        engine.submit(llm("long", 500, 20), 4 * MS)
        engine.submit(SimRequest(request_id=RequestId("vector"), prompt_tokens=8, output_tokens=0,
                                 kind=RequestKind.EMBEDDING), 4 * MS)  # fmt: skip
        engine.submit(llm("fits", 500, 12), 4 * MS)

        found = drain(engine)

        assert found[:2] == [
            Refused(RequestId("long"), 4 * MS, RefuseReason.TOO_LONG),
            Refused(RequestId("vector"), 4 * MS, RefuseReason.NOT_SERVED),
        ]
        assert ends(found)["fits"].output_tokens == 12

    def test_nothing_more_is_said_of_what_is_aborted_and_its_id_may_come_again(self) -> None:
        engine = self.make(described())
        engine.submit(llm("a", 300, 40), 0)
        engine.submit(llm("b", 300, 40), 0)
        found = engine.run_until(120 * MS)
        assert engine.abort(RequestId("a"), 150 * MS)
        assert not engine.abort(RequestId("a"), 150 * MS)
        assert not engine.abort(RequestId("never"), 150 * MS)
        engine.submit(llm("a", 100, 3), 150 * MS)

        found += drain(engine)

        assert ends(found)["a"].output_tokens == 3
        assert ends(found)["b"].output_tokens == 40
        assert engine.measured().kv_used_ppm == 0

    def test_what_waits_can_be_aborted(self) -> None:
        engine = self.make(described(seqs_max=1))
        for name in "abc":
            engine.submit(llm(name, 300, 10), 0)
        assert engine.abort(RequestId("b"), 1 * MS)

        assert list(ends(drain(engine))) == ["a", "c"]

    def test_a_parked_request_waits_to_be_resumed_where_an_engine_can_park(self) -> None:
        engine = self.make(described())
        engine.submit(llm("a", 300, 40), 0)
        found = engine.run_until(100 * MS)
        if engine.preempt(RequestId("a"), 120 * MS):
            found += drain(engine)
            assert not ends(found)
            assert engine.resume(RequestId("a"), 60 * S)
        else:
            assert not engine.resume(RequestId("a"), 130 * MS)

        assert ends(found + drain(engine))["a"].output_tokens == 40

    def test_short_of_blocks_some_give_way_and_all_end(self) -> None:
        engine = self.make(described(kv_blocks=40))
        for number in range(4):
            engine.submit(llm(f"r{number}", 120, 120), 0)

        found = ends(drain(engine))

        assert sorted(found) == [f"r{number}" for number in range(4)]
        assert all(one.output_tokens == 120 for one in found.values())
        preemptions = sum(one.preemptions for one in found.values())
        assert preemptions == engine.measured().preemptions_total > 0

    def test_it_says_what_it_has(self) -> None:
        engine = self.make(described(seqs_max=2, kv_blocks=100))
        for number in range(3):
            engine.submit(llm(f"r{number}", 160, 50), 0)
        engine.run_until(300 * MS)

        measured, progress = engine.measured(), dict(engine.progress())

        assert (measured.running, measured.waiting) == (2, 1)
        assert 2 * 100_000 <= measured.kv_used_ppm <= 2 * 140_000
        assert measured.output_tokens_total == sum(progress.values())
        assert progress["r0"] > 5
        assert progress["r2"] == 0
        drain(engine)
        measured = engine.measured()
        assert (measured.prompt_tokens_total, measured.output_tokens_total) == (480, 150)

    def test_an_embedding_passes_through_and_leaves_nothing(self) -> None:
        engine = self.make(described())
        job = SimRequest(request_id=RequestId("v"), prompt_tokens=1_000, output_tokens=0, inputs=10,
                         kind=RequestKind.EMBEDDING)  # fmt: skip
        engine.submit(job, 0)
        engine.run_until(1 * MS)
        assert engine.measured().embedding_bytes > 0

        found = drain(engine)

        assert found == [Finished(RequestId("v"), found[0].at_ns, 0, 0, 0, 1_000)]
        fs = sum(step_fs(STEP, tokens=tokens, qk=0) for tokens in (256, 256, 256, 232))
        pairs_fs = STEP.qk_fs * (1_000 * 100 // 2)
        assert abs(found[0].at_ns * FS_PER_NS - fs - pairs_fs) <= 10 * STEP.qk_fs * 100
        assert engine.measured().embedding_bytes == 0

    def test_what_had_to_leave_device_memory_comes_back_from_dram(self) -> None:
        def last_of_three(tiers: TierSizes | None) -> Finished:
            engine, found = self.make(described(kv_blocks=160, batch_tokens=2_048), tiers=tiers), []
            for number, document in enumerate(("d", "e", "d")):
                engine.submit(llm(f"r{number}", 2_000, 2, units(document, 62)), number * 10 * S)
                found += drain(engine)
            return ends(found)["r2"]

        assert last_of_three(None).cached_tokens < 600
        assert last_of_three(TierSizes(dram_bytes=1_000 * BLOCK_BYTES)).cached_tokens >= 1_900

    def test_a_run_is_a_function_of_what_comes(self) -> None:
        tiers = TierSizes(dram_bytes=200 * BLOCK_BYTES)
        once, again = (serve(self.make(described(kv_blocks=120), tiers=tiers), offered(3, 60)) for _ in range(2))

        assert once == again

    def test_an_id_comes_once_at_a_time(self) -> None:
        engine = self.make(described())
        engine.submit(llm("a", 10, 10), 0)

        with pytest.raises(AssertionError, match="submitted once"):
            engine.submit(llm("a", 10, 10), 1)


LOADED, COMPUTED, RUNNING = RequestId("loaded"), RequestId("computed"), RequestId("running")


class LoadsContract:
    """What becomes of a request that loads slices from DRAM among others that compute. Derive from it, and say how an
    engine is made: a stock one, or one that has this project's plugin or does as it does."""

    def make(self, registered: EngineRegistered, tiers: TierSizes, *, is_stock: bool) -> VirtualEngine:
        raise NotImplementedError

    @pytest.mark.parametrize("is_stock", [False, True])
    def test_who_computes_leaves_what_one_that_came_before_still_needs(self, is_stock: bool) -> None:
        """160 blocks; one that decodes holds 20, one loads 40 of 130, and one right behind it computes 60, which would
        fit beside what is held, but not beside what will be."""
        found = self.beside_one_that_loads((LOADED, 65, 2), (COMPUTED, 30, 40), is_stock=is_stock)

        first, end = firsts(found), ends(found)
        assert end[LOADED].cached_tokens == 20 * UNIT
        if is_stock:
            assert first[LOADED] > end[COMPUTED].at_ns, "vLLM alone has it wait until the other ends"
        else:
            assert first[LOADED] < first[COMPUTED] < end[RUNNING].at_ns

    @pytest.mark.parametrize("is_stock", [False, True])
    def test_who_entered_last_is_preempted_though_another_loaded_and_began_later(self, is_stock: bool) -> None:
        """Both have 60 blocks, and answers for which there is no room."""
        found = self.beside_one_that_loads((LOADED, 30, 400), (COMPUTED, 30, 400), is_stock=is_stock)

        end = ends(found)
        assert end[LOADED].cached_tokens == 20 * UNIT
        assert (end[LOADED].preemptions, end[COMPUTED].preemptions) == ((1, 0) if is_stock else (0, 1))

    def beside_one_that_loads(self, *both: tuple[RequestId, int, int], is_stock: bool) -> list[Outcome]:
        """The first of both (name, units, output tokens) finds twenty units in DRAM, the second none."""
        tiers = TierSizes(
            dram_bytes=300 * 2 * BLOCK_BYTES, dram_bytes_per_s=8 * S, eviction="lru" if is_stock else ""
        )  # fmt: skip
        engine = self.make(described(kv_blocks=160), tiers, is_stock=is_stock)
        serve(engine, [(0, llm("before", 20 * UNIT + 1, 1, slices_of(1, 20)))])
        serve(engine, [(S, llm("filler", 75 * UNIT, 1, slices_of(2, 75)))])
        requests = [(3 * S, llm(RUNNING, 8 * UNIT, 60))]
        for document, (name, length, output) in zip((1, 3), both, strict=True):
            requests.append((3 * S + 50 * MS, llm(name, length * UNIT, output, slices_of(document, 20))))
        return serve(engine, requests)


def slices_of(document: int, count: int) -> list[str]:
    """Named as the plugin takes them."""
    return [f"{document:016x}{place:016x}" for place in range(count)]
