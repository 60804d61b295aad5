"""The five packages are ours: a PyPI package named Events exists, and shadowing would be silent."""

import importlib
from pathlib import Path

import pytest


@pytest.mark.parametrize("name", ["events", "kvstore", "policies", "replay", "services"])
def test_the_package_is_the_one_of_this_checkout(name: str) -> None:
    found = importlib.import_module(name).__file__
    assert found is not None, "a package without __init__ could be merged with a stranger's"
    assert Path(found) == Path(__file__).parents[1] / name / "__init__.py"
