"""The migration worker: the shell of `services.runtime.actor` around `policies.migration`."""

from functools import partial

from services.runtime import deciding

run = partial(deciding.run, "migration")
"""Decide until told to stop: `run(config, log=..., stop=...)`."""
