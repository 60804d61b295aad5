"""replay/traces."""
