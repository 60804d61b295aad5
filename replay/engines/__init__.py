"""Simulated engines: pure state machines in integer time."""
