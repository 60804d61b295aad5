"""Carries out the log's orders about this engine's DRAM and SSD tiers, each once, and says how each ended.

drop        gone from the tier, unless somebody reads or writes it now
demote      DRAM to SSD: written there if it is not there yet, then gone from DRAM
promote     SSD to DRAM: read into DRAM. Where DRAM has no room that may be made, the rest is not brought

What is cancelled after it began: slices on their way to DRAM are not waited for, and those on their way to the SSD stay
in DRAM as well.

An order that needs the device is refused: slices enter it with a request and leave it by vLLM's own free list, to DRAM
unless they are there already. Orders before the agent's start never get here.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from vllm.v1.kv_offload.base import ReqContext
from vllm.v1.kv_offload.cpu.common import CPULoadStoreSpec
from vllm.v1.kv_offload.tiering.base import JobResult, TransferJob

from events.decisions import Move
from events.slice import Tier, TransferEnd
from services.vllm_plugin.memory import Memory
from services.vllm_plugin.orders import Order
from services.vllm_plugin.primary_tier import PrimaryTier
from services.vllm_plugin.ssd_tier import SsdTier

if TYPE_CHECKING:
    from services.vllm_plugin.manager import TidegateManager


class Carried:
    """An order with a job under way: `keys` are moved by it, `there` slices are where they should be already."""

    def __init__(self, order: Order, keys: list[bytes], there: int) -> None:
        self.order, self.keys, self.there = order, keys, there


class Carrier:
    """Works in the scheduler's thread. `ssd` None: the engine has no such tier."""

    def __init__(self, manager: "TidegateManager", memory: Memory, dram: PrimaryTier, ssd: SsdTier | None) -> None:
        self._manager, self._memory, self._dram, self._ssd = manager, memory, dram, ssd
        self._orders = memory.bridge.orders
        self._jobs: dict[int, Carried] = {}

    def take_up(self) -> None:
        """Begin what was ordered since the last step, and leave what was taken back."""
        for job_id, carried in self._jobs.items():
            if carried.order.cancelled and self._ssd is not None:
                self._ssd.call_off(job_id)
        for order in self._orders.take():
            self._begin(order)

    def job_ended(self, job_id: int, result: JobResult) -> None:
        """A promotion has ended: if it was an order's, the order has."""
        carried = self._jobs.pop(job_id, None)
        if carried is not None:
            done = len(carried.keys) if result.success else len(result.successful_keys or ())
            self._finish(carried, done, result.transfer_bytes or 0)

    def stores_ended(self) -> None:
        """Orders whose writing has ended: what is on the SSD leaves DRAM."""
        for job_id in [job_id for job_id in self._jobs if job_id not in self._manager._jobs]:  # noqa: SLF001
            carried = self._jobs.pop(job_id)
            written = [key for key in carried.keys if self._ssd is not None and self._ssd.holds(key)]
            gone = [] if carried.order.cancelled else self._dram.drop(written)
            self._finish(carried, len(gone), len(written) * self._memory.slice_bytes)

    def give_up(self, why: str) -> None:
        """Nothing can be carried out any more."""
        for carried in self._jobs.values():
            self._orders.finish(carried.order, TransferEnd.FAILED, slices_done=carried.there, why=why)
        self._jobs.clear()

    def _begin(self, order: Order) -> None:
        said = order.said
        keys = [self._memory.naming.key(name) for name in dict.fromkeys(said.slices)]
        known = [key for key in keys if key is not None and self._holds(said.from_tier, key)]
        match said.move, said.from_tier, said.to_tier:
            case _ if not self._here(said.from_tier) or not (said.to_tier is None or self._here(said.to_tier)):
                self._refuse(order, "the device and what is not there move nothing by order")
            case Move.DROP, _, None:
                gone = self._drop(said.from_tier, known)
                self._say(order, done=len(gone), why=_missing(len(known) - len(gone), "in use"))
            case Move.DEMOTE, Tier.DRAM, Tier.SSD:
                self._demote(order, known)
            case Move.PROMOTE, Tier.SSD, Tier.DRAM:
                self._promote(order, known)
            case _:
                self._refuse(order, f"{said.move.value} from {said.from_tier.value} is not carried out here")

    def _here(self, tier: Tier) -> bool:
        return tier is Tier.DRAM or (tier is Tier.SSD and self._ssd is not None)

    def _holds(self, tier: Tier, key: bytes) -> bool:
        return self._memory.residency.holds(tier, key)

    def _drop(self, tier: Tier, keys: list[bytes]) -> list[bytes]:
        if tier is Tier.DRAM:
            return self._dram.drop(keys)
        return self._ssd.drop(keys) if self._ssd is not None else []

    def _demote(self, order: Order, keys: list[bytes]) -> None:
        assert self._ssd is not None, "a tier that is there"
        ready = [key for key in keys if self._dram.ready(key)]
        there = self._dram.drop([key for key in ready if self._ssd.holds(key)])
        left = [key for key in ready if self._dram.ready(key) and not self._ssd.holds(key)]
        if not left:
            self._say(order, done=len(there), why="" if there else "not there")
            return
        context = _context(order)
        job = self._manager.create_store_job(left, context, self._manager.secondary_tiers.index(self._ssd))
        self._jobs[job.job_id] = Carried(order, left, len(there))
        self._ssd.submit_store(job)

    def _promote(self, order: Order, keys: list[bytes]) -> None:
        assert self._ssd is not None, "a tier that is there"
        there = [key for key in keys if self._dram.ready(key)]
        context = _context(order)
        output = None
        # As many of the first as there is room for; none of them makes room for another.
        while keys and (output := self._dram.prepare_write(keys, context)) is None:
            keys = keys[:-1]
        coming = list(output.keys_to_store) if output is not None else []
        if output is None or not coming:
            why = "" if there else "not there, or no room in DRAM"
            self._say(order, done=len(there), why=why)
            return
        assert isinstance(output.store_spec, CPULoadStoreSpec), "DRAM has chunks"
        chunks = [int(chunk) for chunk in output.store_spec.chunk_ids]
        tier = self._manager.secondary_tiers.index(self._ssd)
        job = TransferJob(
            job_id=self._manager._next_job_id(), keys=coming, chunk_ids=np.array(chunks, dtype=np.int32),  # noqa: SLF001
            is_promotion=True, req_context=context,
        )  # fmt: skip
        self._manager._register_job(job, tier)  # noqa: SLF001
        self._jobs[job.job_id] = Carried(order, coming, len(there))
        self._ssd.submit_load(job)

    def _finish(self, carried: Carried, done: int, bytes_moved: int) -> None:
        why = _missing(len(carried.keys) - done, "taken back" if carried.order.cancelled else "failed")
        self._say(carried.order, done=carried.there + done, bytes_moved=bytes_moved, why=why)

    def _say(self, order: Order, *, done: int, bytes_moved: int = 0, why: str = "") -> None:
        if done == len(set(order.said.slices)):
            end = TransferEnd.DONE
        elif order.cancelled:
            end = TransferEnd.CANCELLED
        elif done:
            end = TransferEnd.PARTLY
        else:
            end = TransferEnd.FAILED if why else TransferEnd.NOT_NEEDED
        self._orders.finish(order, end, slices_done=done, bytes_moved=bytes_moved, why=why)

    def _refuse(self, order: Order, why: str) -> None:
        self._orders.finish(order, TransferEnd.FAILED, why=why)


def _context(order: Order) -> Any:
    """vLLM moves slices for requests; this one is nobody's."""
    return ReqContext(req_id=f"tidegate-order-{order.said.order}")


def _missing(count: int, why: str) -> str:
    return f"{count} {why}" if count > 0 else ""
