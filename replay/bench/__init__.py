"""replay/bench: what policies are worth, on the same arrivals in virtual time."""
