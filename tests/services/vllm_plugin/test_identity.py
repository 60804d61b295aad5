"""KV is found again only by an engine that would have computed it: every difference is another namespace."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from services.vllm_plugin.identity import KNOWN_FILE, namespace, weights_digest, weights_folder
from services.vllm_plugin.support import UnsupportedEngine


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model-1.safetensors").write_bytes(b"weights, part one")
    (folder / "model-2.safetensors").write_bytes(b"weights, part two")
    return folder


def engine(model: Path, **changed: Any) -> tuple[Any, Any]:
    described = {"layers": 2, "rope_theta": 10_000, "_name_or_path": str(model)} | changed.pop("architecture", {})
    spec = SimpleNamespace(block_size=changed.pop("block_size", 16), page_size_bytes=changed.pop("page", 4096))
    hf_config = SimpleNamespace(to_json_string=lambda **_: json.dumps(described))
    told = {"dtype": "float32", "quantization": None} | {
        name: changed.pop(name) for name in ("dtype", "quantization") if name in changed
    }
    cache = {"cache_dtype": "auto", "kv_cache_layout": "LBHNC", "prefix_caching_hash_algo": "sha256"}
    cache |= {name: changed.pop(name) for name in cache if name in changed}
    layers = changed.pop("layers", ["a", "b"])
    assert not changed
    config = SimpleNamespace(
        model_config=SimpleNamespace(model=str(model), revision=None, hf_config=hf_config, **told),
        cache_config=SimpleNamespace(**cache),
    )
    return config, SimpleNamespace(kv_cache_groups=[SimpleNamespace(kv_cache_spec=spec, layer_names=layers)])


def of(*engine: Any, slice_tokens: int, known_in: Path, kernels: str = "vLLM 1, a GPU") -> bytes:
    return namespace(*engine, slice_tokens=slice_tokens, kernels=kernels, known_in=known_in)


def test_same_engine_has_the_same_namespace(model: Path, tmp_path: Path) -> None:
    first = of(*engine(model), slice_tokens=256, known_in=tmp_path)
    assert len(first) == 16
    assert of(*engine(model), slice_tokens=256, known_in=tmp_path) == first
    moved = model.rename(tmp_path / "elsewhere")
    assert of(*engine(moved), slice_tokens=256, known_in=tmp_path) == first, "a path says nothing"


@pytest.mark.parametrize(
    "changed",
    [
        {"architecture": {"rope_theta": 20_000}},
        {"dtype": "bfloat16"},
        {"quantization": "fp8"},
        {"cache_dtype": "fp8"},
        {"kv_cache_layout": "BLHNC"},
        {"prefix_caching_hash_algo": "sha256_cbor"},
        {"block_size": 32},
        {"page": 8192},
        {"layers": ["a", "b", "c"]},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_every_difference_is_another_namespace(model: Path, tmp_path: Path, changed: dict[str, Any]) -> None:
    other = of(*engine(model, **changed), slice_tokens=256, known_in=tmp_path)
    assert other != of(*engine(model), slice_tokens=256, known_in=tmp_path)


def test_other_kernels_may_lay_out_a_block_otherwise(model: Path, tmp_path: Path) -> None:
    kernels = ("vLLM 1, a GPU", "vLLM 1, another GPU", "vLLM 2, a GPU")
    assert len({of(*engine(model), slice_tokens=256, known_in=tmp_path, kernels=each) for each in kernels}) == 3


def test_slices_of_another_size_are_others(model: Path, tmp_path: Path) -> None:
    sizes = {of(*engine(model), slice_tokens=tokens, known_in=tmp_path) for tokens in (128, 256, 512)}
    assert len(sizes) == 3


def test_other_weights_of_the_same_name_and_size_are_others(model: Path, tmp_path: Path) -> None:
    before = weights_digest(model, known_in=tmp_path)
    (model / "model-2.safetensors").write_bytes(b"weights, part TWO")
    assert weights_digest(model, known_in=tmp_path) != before


def test_weights_are_read_once(model: Path, tmp_path: Path) -> None:
    before = weights_digest(model, known_in=tmp_path)
    known = tmp_path / KNOWN_FILE
    said = json.loads(known.read_text())
    assert len(said) == 2
    known.write_text(json.dumps(dict.fromkeys(said, "0" * 64)))
    assert weights_digest(model, known_in=tmp_path) != before, "what is known is believed"
    known.write_text("not even JSON")
    assert weights_digest(model, known_in=tmp_path) == before


def test_folder_is_made_and_one_that_cannot_be_costs_time_only(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    assert weights_digest(model, known_in=folder) == weights_digest(model, known_in=model / "config.json")
    assert folder.stat().st_mode & 0o777 == 0o700


def test_blobs_of_a_hub_are_known_by_their_names(model: Path, tmp_path: Path) -> None:
    blob = tmp_path / ("a" * 64)
    blob.write_bytes(b"x")
    (model / "model-1.safetensors").unlink()
    (model / "model-1.safetensors").symlink_to(blob)
    weights_digest(model, known_in=tmp_path)
    assert "a" * 64 in json.loads((tmp_path / KNOWN_FILE).read_text()).values()


def test_weights_that_are_not_here_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedEngine, match="no files of weights"):
        weights_digest(tmp_path, known_in=tmp_path)
    with pytest.raises(UnsupportedEngine, match="not found on this machine"):
        weights_folder(SimpleNamespace(model="nobody/nothing", revision=None))
