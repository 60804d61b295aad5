"""The front doors: OpenAI-compatible HTTP, and plain events over NATS."""
