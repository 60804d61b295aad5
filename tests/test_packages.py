"""The five packages are ours, and none names one that stands above it, not even as a word that is imported later."""

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ABOVE = {
    "events": ("kvstore", "policies", "replay", "services"), "kvstore": ("policies", "replay", "services"),
    "policies": ("kvstore", "replay", "services"), "replay": ("services",),
}  # fmt: skip


@pytest.mark.parametrize("name", ["events", "kvstore", "policies", "replay", "services"])
def test_the_package_is_the_one_of_this_checkout(name: str) -> None:
    found = importlib.import_module(name).__file__
    # A PyPI package named Events exists, and shadowing would be silent.
    assert found is not None, "a package without __init__ could be merged with a stranger's"
    assert Path(found) == ROOT / name / "__init__.py"


@pytest.mark.parametrize("name", list(ABOVE))
def test_no_module_is_named_that_stands_above(name: str) -> None:
    """import-linter sees imports; what is imported by a dotted name at run time it does not see."""
    dotted = re.compile(rf"({'|'.join(ABOVE[name])})(\.[a-z_]\w*)+")
    named = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.value}"
        for path in sorted((ROOT / name).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and dotted.fullmatch(node.value)
    ]
    assert not named
