"""Sets of vLLM's in one order: what it does with their members one after the other would else hang on PYTHONHASHSEED.

Three places of vllm 0.32 matter: requests that ended since the last step (their last blocks are offloaded in that
order), requests whose loads ended (those that were aborted meanwhile give back their blocks in that order), and the
chunks of a transfer (the order in which they may be evicted from then on). Any order is as good as another there; a run
shall be a function of its arguments.
"""

from collections.abc import Collection, Iterator
from typing import Any


class Numbered(set[str]):
    """Names that are numbers, first to last."""

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(super().__iter__(), key=int))


def order_steps(scheduler: Any) -> None:
    """What ended or gave way before the step that is scheduled next is gone through in order."""
    scheduler.finished_req_ids = Numbered(scheduler.finished_req_ids)
    scheduler.reset_preempted_req_ids = Numbered(scheduler.reset_preempted_req_ids)


def order_transfers(manager: Any) -> None:
    """The chunks of a transfer that ends are gone through in order."""
    complete_load, complete_store = manager.complete_load, manager.complete_store

    def load_ended(keys: Collection[bytes], req_context: Any) -> None:
        complete_load(_in_order(keys, req_context), req_context)

    def store_ended(keys: Collection[bytes], req_context: Any, success: bool = True) -> None:
        complete_store(_in_order(keys, req_context), req_context, success)

    manager.complete_load, manager.complete_store = load_ended, store_ended


def _in_order(keys: Collection[bytes], req_context: Any) -> list[bytes]:
    """By their place in the prompt. Not by their names: vLLM's hashes depend on PYTHONHASHSEED too."""
    return sorted(keys, key=lambda key: req_context.get_offload_key_position(key) or 0)
