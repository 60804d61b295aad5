"""The admission worker: the shell of `services.runtime.actor` around `policies.admission`."""

from functools import partial

from services.runtime import deciding

run = partial(deciding.run, "admission")
"""Decide until told to stop: `run(config, log=..., stop=...)`."""
