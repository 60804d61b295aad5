"""How slices get from one tier to another, in this process or on another machine: in chunks, within limits."""
