"""Proof: verify, replay, simulate. Needs no server."""
