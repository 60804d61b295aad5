"""vLLM's scheduler without vLLM's workers: the configuration that an engine with this description would have.

vLLM wants a model before it makes a configuration; a folder with the few lines of one is written for it, without
weights. Only the shape of the KV cache matters to a scheduler: it is one group with full attention of `block_bytes` a
block. How many layers share these bytes changes nothing there, so it is one.

Making a configuration takes seconds the first time and a tenth of one later; engines that are alike share it.
"""

import os
from functools import cache, lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import msgspec
import torch
from vllm.config import KVTransferConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, KVCacheTensor
from vllm.v1.structured_output import StructuredOutputManager

from events.base import EngineId
from events.engine import EngineRegistered
from replay.engines.tiers import TierSizes
from replay.engines.vllm_plugged import Plugged
from replay.engines.vllm_prompts import HASH_ALGORITHM, VOCABULARY

LAYER: Final = "model.layers.0.self_attn.attn"
CONFIGS_MAX: Final = 64
"""Configurations that are kept: tiers are of another size at every load and seed, so there are ever new ones."""
KV_AND_BF16: Final = 4
"""Bytes of a token's keys and values, for one number of each."""
EVICTION_DEFAULT: Final = "lru"
"""vLLM's own where nothing is said."""
_MODEL: Final = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "num_hidden_layers": 32,
    "vocab_size": VOCABULARY, "max_position_embeddings": 1 << 20, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    "torch_dtype": "bfloat16", "bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip


class _Asked(msgspec.Struct, frozen=True):
    """What a configuration depends on, in plain values."""

    block_tokens: int
    batch_tokens: int
    seqs: int
    context_tokens: int
    overlaps: bool
    scheduler: str
    transfer: str


def scheduler_of(
    registered: EngineRegistered, tiers: TierSizes | None, *, overlaps: bool, plugged: Plugged | None = None
) -> Any:
    """A scheduler of vLLM, with its KV cache manager, for this engine; `tiers` are vLLM's own CPU offload. `overlaps`:
    vLLM's asynchronous scheduling. One block more than the engine has is asked for: vLLM keeps one as a hole."""
    able = registered.capability
    asked = _Asked(
        registered.block_tokens, able.batch_tokens_max, min(able.seqs_max, able.batch_tokens_max),
        able.context_tokens_max, overlaps, plugged.scheduler if plugged is not None else "",
        _transfer(registered.engine_id, tiers, plugged),
    )  # fmt: skip
    config, blocks = _config(asked), registered.kv_blocks + 1
    config.cache_config.num_gpu_blocks = blocks
    page = registered.block_bytes
    head, odd = divmod(page, KV_AND_BF16 * registered.block_tokens)
    if odd:
        raise ValueError(f"block_bytes {page} is not {KV_AND_BF16} bytes x {registered.block_tokens} tokens x a number")
    spec = FullAttentionSpec(block_size=registered.block_tokens, num_kv_heads=1, head_size=head, dtype=torch.bfloat16)
    made = config.scheduler_config.get_scheduler_cls()(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(
            num_blocks=blocks,
            kv_cache_tensors=[
                KVCacheTensor(size=page * blocks, layers=[LAYER], layer_stride=page * blocks, block_stride=page)
            ],
            kv_cache_groups=[KVCacheGroupSpec([LAYER], spec)],
        ),
        structured_output_manager=StructuredOutputManager(config),
        block_size=registered.block_tokens, hash_block_size=registered.block_tokens, log_stats=False,
    )  # fmt: skip
    _cache_prefixes_alone(made.kv_cache_manager.coordinator, registered.block_tokens)
    return made


def _transfer(engine_id: EngineId, tiers: TierSizes | None, plugged: Plugged | None) -> str:
    """The connector and its settings, as JSON; "" = none."""
    if tiers is None or not tiers.dram_bytes:
        return ""
    if tiers.ssd_bytes:
        raise ValueError("there is no SSD in virtual time behind vLLM's scheduler: simulate with ssd_bytes = 0")
    if plugged is not None:
        return msgspec.json.encode(plugged.transfer(engine_id, tiers)).decode()
    if tiers.lazy:
        raise ValueError("vLLM's own CPU offload is not lazy: simulate with tiers that evict by the directive")
    extra = {"cpu_bytes_to_use": tiers.dram_bytes, "eviction_policy": tiers.eviction or EVICTION_DEFAULT}
    connector = {"kv_connector": "OffloadingConnector", "kv_role": "kv_both", "kv_connector_extra_config": extra}
    return msgspec.json.encode(connector).decode()


@lru_cache(maxsize=CONFIGS_MAX)
def _config(asked: _Asked) -> Any:
    transfer = KVTransferConfig(**msgspec.json.decode(asked.transfer)) if asked.transfer else None
    config = EngineArgs(
        model=_model_folder(), load_format="dummy", enforce_eager=True, dtype="bfloat16", skip_tokenizer_init=True,
        max_model_len=asked.context_tokens, max_num_batched_tokens=asked.batch_tokens, max_num_seqs=asked.seqs,
        block_size=asked.block_tokens, enable_prefix_caching=True, prefix_caching_hash_algo=HASH_ALGORITHM,
        async_scheduling=asked.overlaps, scheduler_cls=asked.scheduler or None, kv_transfer_config=transfer,
        enable_chunked_prefill=True,
    ).create_engine_config()  # fmt: skip
    config.scheduler_config.async_scheduling = asked.overlaps  # The CPU platform turns it off.
    return config


@cache
def _model_folder() -> str:
    folder = TemporaryDirectory(prefix="tidegate-model-")
    _FOLDERS.append(folder)
    Path(folder.name, "config.json").write_bytes(msgspec.json.encode(_MODEL))
    return folder.name


_FOLDERS: Final[list[TemporaryDirectory[str]]] = []
"""They are there for as long as the process is."""


def _cache_prefixes_alone(coordinator: Any, block_tokens: int) -> None:
    """vLLM serves an embedding model in an engine of its own; in one that does both, what embeddings compute shall not
    push out the prefixes of the others. And vLLM asks twice a step for each request whether a block is full: where none
    is, it would find that out four calls later."""
    cache_blocks, manager = coordinator.cache_blocks, coordinator.single_type_managers[0]
    cached_blocks = manager.num_cached_block

    def cache_prefixes(request: Any, num_computed_tokens: int) -> None:
        is_full = num_computed_tokens // block_tokens > cached_blocks.get(request.request_id, 0)
        if is_full and request.pooling_params is None:
            cache_blocks(request, num_computed_tokens)

    coordinator.cache_blocks = cache_prefixes
