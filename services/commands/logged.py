"""The journal that a command reads: the file that was named, or a pool's live log, exported for as long as it takes."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.commands.options import Settings
from services.runtime.output import Output


@contextmanager
def logged(settings: Settings, path: Path | None, pool: str | None, out: Output) -> Iterator[Path]:
    """`path`, or else a journal of all that `pool` has logged by now, which is gone when the block ends."""
    if path is not None:
        yield path
        return
    from events.base import PoolId
    from services import journals
    from services.runtime.aio import run

    with tempfile.TemporaryDirectory(prefix="tidegate-") as folder:
        exported = Path(folder) / f"{pool}.jsonl"
        with out.progress(f"export of pool {pool}") as advance:
            run(journals.export(settings.load(), PoolId(str(pool)), exported, on_progress=advance))
        yield exported
