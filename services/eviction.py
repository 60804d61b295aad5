"""The eviction worker: the shell of `services.runtime.actor` around `policies.eviction`."""

from functools import partial

from services.runtime import deciding

run = partial(deciding.run, "eviction")
"""Decide until told to stop: `run(config, log=..., stop=...)`."""
