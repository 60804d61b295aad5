"""replay/engines."""
