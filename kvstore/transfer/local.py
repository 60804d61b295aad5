"""Transport within one process: from one tier straight into the memory of another, at the pace of the link."""

from kvstore.errors import BudgetExceeded, ChecksumMismatch, KVError, NotResident, UnsupportedSchema
from kvstore.tiers.base import TierStore
from kvstore.transfer.base import (
    CHUNK_BYTES,
    Assembly,
    Attempt,
    TransferFailed,
    TransferFault,
    chunks,
)  # fmt: skip

FAULTS: dict[type[KVError], TransferFault] = {
    NotResident: TransferFault.NOT_RESIDENT,
    ChecksumMismatch: TransferFault.NOT_RESIDENT,
    BudgetExceeded: TransferFault.NO_ROOM,
    UnsupportedSchema: TransferFault.REFUSED,
}
"""What a tier's refusal means for a transfer; any other one may pass. A slice that failed its checksum at the source
is gone there: no further try finds it."""


def fault_of(error: KVError) -> TransferFault:
    """See FAULTS."""
    return FAULTS.get(type(error), TransferFault.UNAVAILABLE)


class LocalTransport:
    """See TransportEngine. Where the source lends its memory, pieces are copied one by one, checksummed unless `summed`
    is off (memory to memory in one process has no line that could damage them); else the source writes whole slices
    straight into the target, after the pace allowed it."""

    def __init__(
        self, source: TierStore, target: TierStore, *, chunk_bytes: int = CHUNK_BYTES, summed: bool = True
    ) -> None:
        self._source, self._target = source, target
        self._chunk_bytes, self._summed = chunk_bytes, summed

    def move(self, attempt: Attempt) -> int:
        """See TransportEngine."""
        slice_id = attempt.slice_id
        try:
            if self._target.holds(slice_id):
                return 0
            size = self._source.bytes_of(slice_id)
            stored = self._target.fill(slice_id, size, lambda memory: self._copy(attempt, memory))
        except TransferFailed:
            raise
        except KVError as error:
            raise attempt.failed(fault_of(error), str(error)) from error
        if not stored and not self._target.holds(slice_id):
            raise attempt.failed(TransferFault.UNAVAILABLE, "another thread stores or drops it")
        return size if stored else 0

    def _copy(self, attempt: Attempt, memory: memoryview) -> None:
        if self._source.lends_in_place:
            with self._source.lend(attempt.slice_id) as view:
                assembly = Assembly(attempt.slice_id, memory, where="local")
                for chunk in chunks(attempt.slice_id, view, chunk_bytes=self._chunk_bytes, summed=self._summed):
                    attempt.pace(chunk.data.nbytes)
                    assembly.take(chunk)
            return
        for begin in range(0, memory.nbytes, self._chunk_bytes):
            attempt.pace(min(self._chunk_bytes, memory.nbytes - begin))
        if self._source.read_into(attempt.slice_id, memory) != memory.nbytes:
            raise attempt.failed(TransferFault.DAMAGED, "the source has another length by now")

    def close(self) -> None:
        """Nothing to let go of: the tiers are the caller's."""
