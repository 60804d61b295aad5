"""What docs/vllm.md says to be in vLLM is in the vLLM of this environment."""

from pathlib import Path

import pytest
import vllm

from tests.vllm_page import Line, lines

PACKAGE = Path(vllm.__file__).parent


@pytest.mark.parametrize("line", [line for line in lines() if line.places], ids=lambda line: line.id)
def test_places_that_are_named_are_there(line: Line) -> None:
    for file, what in line.places:
        assert (PACKAGE / file).is_file(), f"vllm has {file}"
        assert what in (PACKAGE / file).read_text(), f"{file} has {what}"
