"""The memory benchmark: systems side by side under memory pressure, simulated or live, and their report."""
