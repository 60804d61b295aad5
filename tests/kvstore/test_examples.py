"""The examples of docs/kvstore.md do what the page says."""

import re
from doctest import DocTestParser, DocTestRunner
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "kvstore.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_examples_of_the_page_run_from_top_to_bottom() -> None:
    names: dict[str, object] = {}
    runner = DocTestRunner()
    blocks = BLOCK.findall(PAGE.read_text())
    for block in blocks:
        example = DocTestParser().get_doctest(block, names, PAGE.name, str(PAGE), 0)
        runner.run(example, clear_globs=False)
        names = example.globs
    assert (runner.failures, runner.tries) == (0, sum(block.count(">>> ") for block in blocks))
    assert runner.tries > 20
