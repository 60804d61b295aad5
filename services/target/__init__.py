"""Measures a live target, a gateway of ours or any OpenAI-compatible server, as the lab measures simulated ones."""
