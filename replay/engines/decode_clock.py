"""All decoding sequences of an engine, counted instead of walked.

Every decoding sequence gains one token a step. So one counter (`step`) says how far each is, a heap knows who
finishes next, and who needs a new block at a step is known from its phase: step modulo block size. A step costs the
same however many sequences decode, and so do a thousand steps.
"""

from heapq import heappop, heappush
from typing import Generic, TypeVar

T = TypeVar("T")


class DecodeClock(Generic[T]):
    """`step` counts completed decode steps; `context` is the sum of the contexts in the next one."""

    def __init__(self, block_tokens: int) -> None:
        self.step = 0
        self.context = 0
        self.seqs = 0
        self._block_tokens = block_tokens
        self._crossing = [0] * block_tokens
        self._ends: list[tuple[int, int, T]] = []
        self._serial = 0
        self._member: dict[int, T] = {}

    def join(self, member: T, *, stored: int, left: int) -> int:
        """A sequence with `stored` tokens of KV and `left` tokens to go decodes from the next step on; its serial."""
        assert left > 0, "a sequence joins to make a token"
        self._serial += 1
        heappush(self._ends, (self.step + left, self._serial, member))
        self._member[self._serial] = member
        self._crossing[(self.step - stored) % self._block_tokens] += 1
        self.context += stored + 1
        self.seqs += 1
        return self._serial

    def leave(self, serial: int, *, stored: int) -> None:
        """A sequence that has `stored` tokens of KV now decodes no more."""
        del self._member[serial]
        self._crossing[(self.step - stored) % self._block_tokens] -= 1
        self.context -= stored + 1
        self.seqs -= 1

    def advance(self, steps: int) -> None:
        """`steps` steps are done."""
        self.step += steps
        self.context += steps * self.seqs

    def blocks_needed(self, steps: int, *, ahead: int = 0) -> int:
        """New blocks that the next `steps` steps take, after `ahead` steps that are not done yet."""
        if steps == 1:
            return self._crossing[(self.step + ahead) % self._block_tokens]
        rounds, rest = divmod(steps, self._block_tokens)
        first = self.step + ahead
        extra = sum(self._crossing[(first + offset) % self._block_tokens] for offset in range(rest))
        return rounds * self.seqs + extra

    def steps_within(self, blocks: int, *, ahead: int = 0) -> int:
        """The most steps after the next `ahead` ones that take no more than `blocks` new blocks."""
        assert self.seqs > 0, "without sequences there is no bound"
        rounds, left = divmod(blocks, self.seqs)
        steps = rounds * self._block_tokens
        while (need := self.blocks_needed(1, ahead=ahead + steps)) <= left:
            left -= need
            steps += 1
        return steps

    def steps_to_end(self) -> int:
        """Steps until the next sequence has made its last token."""
        self._drop_left()
        return self._ends[0][0] - self.step

    def pop_ended(self) -> list[T]:
        """The sequences whose last token is made, in the order in which they joined."""
        ended: list[T] = []
        self._drop_left()
        while self._ends and self._ends[0][0] <= self.step:
            ended.append(heappop(self._ends)[2])
            self._drop_left()
        return ended

    def _drop_left(self) -> None:
        while self._ends and self._ends[0][1] not in self._member:
            heappop(self._ends)
