"""Rules about memory that is full, as pure functions: which request gives way, which slice is evicted."""
