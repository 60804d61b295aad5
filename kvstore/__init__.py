"""The memory: what KV weighs, what it is called, and where it is. Knows no policy."""
