"""`make test-gpu`: the contract suite on CUDA (streams, pinned memory) and the bandwidth achieved, or why not.

make test-gpu GPU_PYTHON=/path/to/python    a Python that has PyTorch for CUDA, pytest, hypothesis, msgspec, blake3
"""

import importlib.util
import sys

NEEDED = ("torch", "pytest", "hypothesis", "msgspec", "blake3", "numpy")


def why_not() -> str:
    """Why the suite cannot run here ("" = it can)."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return f"{sys.executable} has no {', '.join(missing)}"
    import torch

    return "" if torch.cuda.is_available() else f"PyTorch {torch.__version__} sees no CUDA device"


def main() -> int:
    """0 when skipped; else what pytest says."""
    why = why_not()
    if why:
        print(f"test-gpu: skipped: {why} (choose another: make test-gpu GPU_PYTHON=...)")
        return 0
    import pytest
    import torch

    print(f"test-gpu: {torch.cuda.get_device_name()}, PyTorch {torch.__version__}")
    # That Python may lack the plugins that some of our settings are for.
    quiet = ["-W", "ignore::pytest.PytestConfigWarning", "-p", "no:cacheprovider"]
    return int(pytest.main(["-m", "gpu", "--confcutdir=tests/kvstore", *quiet, "tests/kvstore/tiers", *sys.argv[1:]]))


if __name__ == "__main__":
    sys.exit(main())
