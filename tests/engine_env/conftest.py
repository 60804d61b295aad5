"""Tests of what runs inside a vLLM process, run in vLLM's own environment: `make test-engine`."""

import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

# Where there is no vLLM they cannot even be imported; `-m engine` says there that none was run.
collect_ignore_glob = [] if find_spec("vllm") else ["test_*.py"]
if find_spec("vllm"):
    with warnings.catch_warnings():
        # What PyTorch says while it is imported is not about us; from here on warnings are errors.
        warnings.simplefilter("ignore")
        import_module("services.vllm_plugin.connector")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever stands in this folder needs vLLM."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.engine)
