"""KV in blocks of one size: slots that are handed out, shared by count, and copied when a sharer writes.

Blocks are numbered from 0, and a block table is a list of these numbers, as PagedAttention has it (Kwon, SOSP 2023):
token t of a request is in block `table[t // block_tokens]`. What a block holds is served only after it was written
whole since it was handed out: nobody reads half a block, or what another request left there.

Example: a has blocks 0, 1; b shares both. b writes block 1: it gets 2, a copy, and writes there; 0 is held twice, 1 and
2 once.
"""

import mmap
from array import array
from collections.abc import Iterable
from typing import Final

from kvstore.errors import BudgetExceeded, DoubleFree, NotResident, Pinned

BLOCKS_MAX: Final = 1 << 31
"""Block numbers are int32 in the block tables of engines."""


class PagedStore:
    """`blocks_max` blocks of `block_bytes` bytes. Not thread-safe. An error changes nothing.

    `memory` is where the bytes lie (pinned or shared memory of an engine, say); without it private memory is mapped
    with the first write, page by page, so that a store that only counts costs nothing.
    """

    def __init__(
        self, *, block_bytes: int, blocks_max: int, memory: memoryview | None = None, where: str = "pages"
    ) -> None:
        assert block_bytes > 0, "a block holds something"
        assert 0 <= blocks_max < BLOCKS_MAX, "a block number is an int32"
        assert memory is None or memory.nbytes >= block_bytes * blocks_max, "every block has its place"
        self.block_bytes, self.blocks_max, self.where = block_bytes, blocks_max, where
        self._memory = memory.cast("B") if memory is not None else None
        # The block given back last is handed out first: it is the one most likely in a cache of the processor.
        self._free = list(range(blocks_max - 1, -1, -1))
        self._ref_counts = array("I", bytes(4 * blocks_max))
        self._written = bytearray(blocks_max)

    @property
    def blocks_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    @property
    def blocks_used(self) -> int:
        """Blocks that somebody holds, each counted once."""
        return self.blocks_max - len(self._free)

    def take(self, count: int) -> list[int]:
        """So many free blocks, held once each, with nothing in them. Raises BudgetExceeded."""
        assert count >= 0, "blocks are given back by give_back"
        if count > len(self._free):
            raise BudgetExceeded(
                where=self.where, asked=count, free=len(self._free), limit=self.blocks_max, unit="blocks"
            )
        cut = len(self._free) - count
        taken = self._free[cut:][::-1]
        del self._free[cut:]
        for block in taken:
            self._ref_counts[block] = 1
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        """Hold these once more. Raises NotResident when nobody holds one of them."""
        blocks = list(blocks)
        for block in blocks:
            self._check_held(block)
        for block in blocks:
            self._ref_counts[block] += 1

    def give_back(self, blocks: Iterable[int]) -> int:
        """Hold these once less; what nobody holds any more is free, and how many these are is returned. Raises
        DoubleFree."""
        blocks, freed = list(blocks), []
        for done, block in enumerate(blocks):
            if self.ref_count(block) == 0:
                for before in blocks[:done]:
                    self._ref_counts[before] += 1
                raise DoubleFree(where=self.where, name=f"block {block}")
            self._ref_counts[block] -= 1
            if self._ref_counts[block] == 0:
                freed.append(block)
        for block in freed:
            self._written[block] = 0
        self._free.extend(reversed(freed))
        return len(freed)

    def ref_count(self, block: int) -> int:
        """How many hold it; 0 for a free block, and for one that is none."""
        return self._ref_counts[block] if 0 <= block < self.blocks_max else 0

    def own(self, block: int) -> int:
        """The block for a holder that wants to write: itself where nobody else holds it, else a copy, for which the
        holder gives the first one up. Raises BudgetExceeded, NotResident."""
        self._check_held(block)
        if self._ref_counts[block] == 1:
            return block
        (copy,) = self.take(1)
        if self._written[block]:
            self._place(copy)[:] = self._place(block)
            self._written[copy] = 1
        self._ref_counts[block] -= 1
        return copy

    def write(self, block: int, data: bytes | bytearray | memoryview) -> None:
        """Fill a whole block. Raises NotResident, Pinned when others hold it too, ValueError for another length."""
        self._check_held(block)
        if self._ref_counts[block] > 1:
            raise Pinned(where=self.where, name=f"block {block}", pins=self._ref_counts[block] - 1)
        if len(data) != self.block_bytes:
            raise ValueError(f"a block has {self.block_bytes} bytes, not {len(data)}")
        self._place(block)[:] = data
        self._written[block] = 1

    def read(self, block: int) -> memoryview:
        """The bytes of a block, read-only; they stay what they are while the caller holds it. Raises NotResident when
        nobody wrote it since it was handed out."""
        self._check_held(block)
        if not self._written[block]:
            raise NotResident(where=self.where, name=f"block {block}")
        return self._place(block).toreadonly()

    def check_integrity(self) -> None:
        """Every block is free, or held; none is free twice. AssertionError says which is not."""
        free = set(self._free)
        assert len(free) == len(self._free), "no block is free twice"
        for block in range(self.blocks_max):
            assert (block in free) == (self._ref_counts[block] == 0), f"block {block} is free, or it is held"
            assert not (block in free and self._written[block]), f"block {block} is free, so there is nothing in it"

    def _check_held(self, block: int) -> None:
        if self.ref_count(block) == 0:
            raise NotResident(where=self.where, name=f"block {block}")

    def _place(self, block: int) -> memoryview:
        if self._memory is None:
            self._memory = memoryview(mmap.mmap(-1, self.block_bytes * self.blocks_max, flags=mmap.MAP_PRIVATE))
        start = block * self.block_bytes
        return self._memory[start : start + self.block_bytes]
