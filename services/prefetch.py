"""The prefetch worker: the shell of `services.runtime.actor` around `policies.prefetch`."""

from functools import partial

from services.runtime import deciding

run = partial(deciding.run, "prefetch")
"""Decide until told to stop: `run(config, log=..., stop=...)`."""
