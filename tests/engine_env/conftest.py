"""Tests of what runs inside a vLLM process, run in vLLM's own environment: `make test-engine`."""

import sys
import warnings
from collections.abc import Iterator
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


@pytest.fixture(autouse=True)
def plugin_as_it_was() -> Iterator[None]:
    """Engines in virtual time put copies of the plugin in its place: the next test finds what it has imported."""
    package = "services.vllm_plugin"
    before = {name: module for name, module in sys.modules.items() if name == package or name.startswith(f"{package}.")}
    yield
    for name in [one for one in sys.modules if one == package or one.startswith(f"{package}.")]:
        del sys.modules[name]
    sys.modules.update(before)
    setattr(sys.modules["services"], "vllm_plugin", before[package])  # noqa: B010 - a module has no such field
