"""What runs inside a vLLM process: nothing here is imported by the other services."""
