"""replay/workloads."""
