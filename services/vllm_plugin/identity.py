"""Whose KV it is: one digest of everything that KV depends on beside its tokens.

Slices on a disk outlive the engine that wrote them, and may be found by another: with other weights under the same
path, another data type, another shape of blocks. So they are kept under this digest, and an engine finds those only
that it would have computed itself, bit for bit as far as its kernels allow. What is in vLLM's block hashes already (the
tokens before, the cache salt, images) is not in here.
"""

import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec
from blake3 import blake3

from services.vllm_plugin.support import UnsupportedEngine

WEIGHTS: Final = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
KNOWN_FILE: Final = "weights.json"
"""Digests of weights that were computed before, by path, size and time of last change: reading them takes seconds."""
KNOWN_MAX: Final = 4_096
DIGEST_BYTES: Final = 16
_BLOB: Final = re.compile(r"[0-9a-f]{64}")
"""How a hub's cache names a file of weights: by its SHA-256."""


def namespace(vllm_config: Any, kv_cache_config: Any, *, slice_tokens: int, kernels: str, known_in: Path) -> bytes:
    """The digest for this engine, with slices of so many tokens: a key names where a slice ends, not where it begins.
    `kernels` says which program computes on what: by that they choose how KV lies within a block.

    Takes vLLM's own configuration; remembers what weights come to in the folder
    `known_in`, if it can be written. Raises UnsupportedEngine if the weights are not files of this machine."""
    model, cache = vllm_config.model_config, vllm_config.cache_config
    spec = kv_cache_config.kv_cache_groups[0].kv_cache_spec
    shape = {
        "format": 1,
        "architecture": _architecture(model.hf_config),
        "weights": weights_digest(weights_folder(model), known_in=known_in),
        "dtype": str(model.dtype),
        "kv_dtype": str(cache.cache_dtype),
        "quantization": str(model.quantization),
        "kv_layout": str(cache.kv_cache_layout),
        "kernels": kernels,
        "slice_tokens": slice_tokens,
        "block_tokens": spec.block_size,
        "page_bytes": spec.page_size_bytes,
        "layers": list(kv_cache_config.kv_cache_groups[0].layer_names),
        "hash": cache.prefix_caching_hash_algo,
    }
    return blake3(msgspec.json.encode(shape)).digest(DIGEST_BYTES)


def weights_folder(model: Any) -> Path:
    """Where the weights of a model lie: the folder that was named, or that of a hub's cache."""
    named = Path(model.model)
    if named.is_dir():
        return named
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(model.model, revision=model.revision, local_files_only=True))
    except (ImportError, OSError, ValueError) as error:
        raise UnsupportedEngine(f"the weights of {model.model} are not found on this machine ({error})") from error


def weights_digest(folder: Path, *, known_in: Path) -> str:
    """The digest of all files of weights in a folder, names and contents."""
    known = _known(known_in)
    found: list[tuple[str, str]] = []
    for path in sorted(folder.iterdir()):
        if path.suffix not in WEIGHTS or not path.is_file():
            continue
        real, stat = path.resolve(), path.stat()
        tag = f"{real} {stat.st_size} {stat.st_mtime_ns}"
        if _BLOB.fullmatch(real.name):
            known[tag] = real.name
        elif tag not in known:
            known[tag] = blake3(max_threads=blake3.AUTO).update_mmap(real).hexdigest()
        found.append((path.name, known[tag]))
    if not found:
        raise UnsupportedEngine(f"no files of weights in {folder}")
    _remember(known_in, known)
    return blake3(msgspec.json.encode(found)).hexdigest(DIGEST_BYTES)


def _architecture(hf_config: Any) -> dict[str, Any]:
    """The model's own description, without what names a place or a program."""
    text = hf_config.to_json_string(use_diff=False)
    described: dict[str, Any] = json.loads(text)
    for name in ("_name_or_path", "name_or_path", "transformers_version", "torch_dtype"):
        described.pop(name, None)
    return dict(sorted(described.items()))


def _known(folder: Path) -> dict[str, str]:
    try:
        return msgspec.json.decode((folder / KNOWN_FILE).read_bytes(), type=dict[str, str])
    except (OSError, msgspec.DecodeError):
        return {}


def _remember(folder: Path, known: dict[str, str]) -> None:
    """Best effort: a folder that cannot be written costs seconds at the next start."""
    kept = dict(list(known.items())[-KNOWN_MAX:])
    made = folder / f"{KNOWN_FILE}.{os.getpid()}.new"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        made.write_bytes(msgspec.json.encode(kept))
        made.replace(folder / KNOWN_FILE)
    except OSError:
        with suppress(OSError):
            made.unlink()
