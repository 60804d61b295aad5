"""What Tidegate's memory works in, stated exactly: everything else is refused at the start, with the reason.

A KV cache served wrongly answers wrongly, and nothing would say so. So the list names what the tests run on, and
whatever is not on it is refused, not tried.
"""

from typing import Any, Final

VLLM_VERSIONS: Final = ("0.32.0",)
"""Versions of vLLM that the tests run on. Builds of the same version (`+cpu`, `+cu130`) count as it."""
HASH_ALGORITHMS: Final = ("sha256", "sha256_cbor")
"""Ways of hashing blocks whose hashes name KV beyond any doubt, and repeat after a restart."""
TESTED: Final = (
    f"vLLM {', '.join(VLLM_VERSIONS)}; decoder models with full attention in all layers (one KV cache group); one "
    f"worker (no tensor, pipeline, context or data parallelism); prefix caching with {' or '.join(HASH_ALGORITHMS)}; "
    "no speculative decoding; an SSD tier without LoRA"
)


class UnsupportedEngine(Exception):
    """Tidegate's memory does not run in this engine; `reason` says why, the text also what it runs in."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"Tidegate's memory is refused here: {self.reason}. Tested: {TESTED}."


def check_version(version: str) -> None:
    """Raises UnsupportedEngine for a version of vLLM that was not tested."""
    if version.partition("+")[0] not in VLLM_VERSIONS:
        raise UnsupportedEngine(f"vLLM {version} was not tested")


def check_engine(vllm_config: Any, kv_cache_config: Any, *, ssd: bool) -> None:
    """Raises UnsupportedEngine for a model, a way of running it or a setting that was not tested. Takes vLLM's own
    configuration objects; `ssd`: an SSD tier is wanted."""
    for reason in (
        _parallelism(vllm_config.parallel_config),
        _groups(kv_cache_config),
        _settings(vllm_config),
        _ssd(vllm_config) if ssd else "",
    ):
        if reason:
            raise UnsupportedEngine(reason)


def _parallelism(config: Any) -> str:
    """Each worker holds a part of a slice: none was tested with more than one."""
    for name in (
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "prefill_context_parallel_size",
        "decode_context_parallel_size",
        "data_parallel_size",
    ):
        if getattr(config, name, 1) > 1:
            return f"{name} = {getattr(config, name)}"
    return ""


def _groups(config: Any) -> str:
    """With several groups one chunk of tokens is several slices, and some may be missing."""
    groups = config.kv_cache_groups
    if len(groups) != 1:
        return f"the model has {len(groups)} KV cache groups (a hybrid model)"
    kind = type(groups[0].kv_cache_spec).__name__
    return "" if kind == "FullAttentionSpec" else f"its KV cache is of kind {kind}"


def _settings(config: Any) -> str:
    cache = config.cache_config
    if not cache.enable_prefix_caching:
        return "prefix caching is off (--enable-prefix-caching)"
    if cache.prefix_caching_hash_algo not in HASH_ALGORITHMS:
        return (
            f"--prefix-caching-hash-algo {cache.prefix_caching_hash_algo} names blocks by hashes that can "
            "collide and do not repeat after a restart"
        )
    if config.speculative_config is not None:
        return "speculative decoding is on"
    if config.kv_transfer_config.kv_connector_extra_config.get("canonical_layout"):
        return "canonical_layout is asked for"
    return ""


def _ssd(config: Any) -> str:
    # The hash of a block holds an adapter's name, and a name may stand for other weights after a restart.
    return "an SSD tier is configured, and LoRA is on" if config.lora_config is not None else ""
