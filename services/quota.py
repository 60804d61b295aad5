"""The quota worker: the shell of `services.runtime.actor` around `policies.quota`."""

from functools import partial

from services.runtime import deciding

run = partial(deciding.run, "quota")
"""Decide until told to stop: `run(config, log=..., stop=...)`."""
