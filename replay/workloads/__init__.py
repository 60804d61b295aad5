"""What arrives: generated workloads, and arrivals as facts."""
